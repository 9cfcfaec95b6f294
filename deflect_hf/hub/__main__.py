"""Publish a trained model, write its card, or look whether it is fit to be published.

    python -m deflect_hf.hub push work-dir/RUN user/name [--private true] [--revision BRANCH] [--picture false]
    python -m deflect_hf.hub card work-dir/RUN
    python -m deflect_hf.hub check work-dir/RUN
    python -m deflect_hf.hub check user/name

FOLDER is that of a run, or its best/ folder. `push` takes the token of `hf auth login` or HF_TOKEN; an encoder that was
loaded from a folder needs --base_model_id USER/ENCODER, where it lies on the Hub. `check` builds nothing and predicts
nothing: it reads the files as a stranger's. Each of the three has a --help of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.schema import Arguments, UserPath, option
from deflect_hf.errors import ConfigError, run_job
from deflect_hf.files import refuse_foreign


class CardArguments(Arguments):
    """What ``card`` can be told."""

    folder: UserPath = Field(description="FOLDER of a run, or its best/ folder (needed)")


class PushArguments(CardArguments):
    """What ``push`` can be told."""

    repo_id: str = Field(description="USER/NAME on the Hub (needed)")
    private: bool | None = option(None, "whether only its owner may see it; null: as the account's default")
    revision: str | None = option(None, "branch, made if it is not there; null: main")
    message: str | None = option(None, "of the commit")
    base_model_id: str | None = option(None, "USER/ENCODER: where the encoder's folder lies on the Hub")
    picture: bool = option(True, "publish a picture of a prediction, too")


class CheckArguments(Arguments):
    """What ``check`` can be told."""

    folder: UserPath = Field(description="FOLDER of a run, or USER/NAME on the Hub (needed)")
    revision: str | None = option(None, "of a model on the Hub; null: main")


def main(argv: Sequence[str] | None = None) -> None:
    """Choose the job, do it, tell where the result is."""
    run_job({"push": push_model, "card": write, "check": look_at}, __doc__ or "", argv)


def push_model(words: list[str]) -> None:
    """`push`."""
    own = parse_arguments(PushArguments, "Publish a trained model.", words, ("folder", "repo_id"))
    from deflect_hf.hub.push import push

    options = own.model_dump(exclude={"folder", "repo_id", "message"})
    print(push(own.folder, own.repo_id, commit_message=own.message, **options))


def write(words: list[str]) -> None:
    """`card`."""
    description = "Write README.md and prediction.png into the folder of a trained model."
    own = parse_arguments(CardArguments, description, words, ("folder",))
    from deflect_hf.artifacts.saved_model import result_folder
    from deflect_hf.hub.card import write_card
    from deflect_hf.hub.picture import draw_prediction
    from deflect_hf.hub.sanitize import CARD, PICTURE

    folder = result_folder(Path(own.folder))
    refuse_foreign(folder / CARD, folder / PICTURE)
    draw_prediction(folder)
    print(write_card(folder))


def look_at(words: list[str]) -> None:
    """`check`."""
    description = "Look whether a trained model is whole and safe to load."
    own = parse_arguments(CheckArguments, description, words, ("folder",))
    from deflect_hf.artifacts.saved_model import result_folder
    from deflect_hf.hub.check import check_folder
    from deflect_hf.hub.client import Hub
    from deflect_hf.hub.load import pull

    if Path(own.folder).is_dir():
        if own.revision is not None:
            raise ConfigError(f"--revision is for a model on the Hub, but {own.folder} is a folder here.")
        folder = result_folder(Path(own.folder))
        config = check_folder(folder, published=False)
    else:
        folder, config = pull(Hub(), own.folder, own.revision)
    encoder = config.encoder.name_or_path or "its own, random one"
    print(f"{folder}: whole and safe to load. --finetune {config.finetune}, encoder {encoder}")


if __name__ == "__main__":
    main()
