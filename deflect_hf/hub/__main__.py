"""Publish a trained model, write its card, or look whether it is fit to be published.

    python -m deflect_hf.hub push work-dir/RUN user/name [--private true] [--revision BRANCH] [--picture false]
    python -m deflect_hf.hub card work-dir/RUN
    python -m deflect_hf.hub check work-dir/RUN
    python -m deflect_hf.hub check user/name

FOLDER is that of a run, or its best/ folder. `push` takes the token of `hf auth login` or HF_TOKEN; an encoder that was
loaded from a folder needs --base_model_id USER/ENCODER, where it lies on the Hub. `check` builds nothing and predicts
nothing: it reads the files as a stranger's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from deflect_hf.config.compose import Parser
from deflect_hf.errors import ConfigError, show_log, user_errors
from deflect_hf.files import refuse_foreign


def main(argv: Sequence[str] | None = None) -> None:
    """Parse and hand over."""
    words = sys.argv[1:] if argv is None else list(argv)
    with user_errors(words):
        arguments = build_parser().parse_args(words)
        show_log()
        arguments.run(arguments)


def build_parser() -> Parser:
    """One sub-command per job."""
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m deflect_hf.hub", description=__doc__, formatter_class=form)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, parser_class=Parser, metavar="push|card|check")
    push = commands.add_parser("push", help="publish a trained model")
    push.add_argument("folder", metavar="FOLDER")
    push.add_argument("repo_id", metavar="USER/NAME")
    push.add_argument("--private", type=str.lower, choices=("true", "false"), help="whether only its owner may see it")
    push.add_argument("--revision", metavar="BRANCH", help="made if it is not there [main]")
    push.add_argument("--message", metavar="TEXT", help="of the commit")
    push.add_argument("--base_model_id", metavar="USER/ENCODER", help="where the encoder's folder lies on the Hub")
    push.add_argument(
        "--picture",
        type=str.lower,
        choices=("true", "false"),
        default="true",
        help="publish a picture of a prediction, too",
    )
    push.set_defaults(run=run_push)
    card = commands.add_parser("card", help="write README.md and prediction.png into the folder")
    card.add_argument("folder", metavar="FOLDER")
    card.set_defaults(run=run_card)
    check = commands.add_parser("check", help="look whether it is whole and safe to load")
    check.add_argument("folder", metavar="FOLDER|USER/NAME")
    check.add_argument("--revision", metavar="REVISION", help="of a model on the Hub [main]")
    check.set_defaults(run=run_check)
    return parser


def run_push(arguments: argparse.Namespace) -> None:
    """`push`."""
    from deflect_hf.hub.push import push

    url = push(
        arguments.folder,
        arguments.repo_id,
        private=None if arguments.private is None else arguments.private == "true",
        revision=arguments.revision,
        commit_message=arguments.message,
        base_model_id=arguments.base_model_id,
        picture=arguments.picture == "true",
    )
    print(url)


def run_card(arguments: argparse.Namespace) -> None:
    """`card`."""
    from deflect_hf.artifacts.saved_model import result_folder
    from deflect_hf.hub.card import write_card
    from deflect_hf.hub.picture import draw_prediction
    from deflect_hf.hub.sanitize import CARD, PICTURE

    folder = result_folder(Path(arguments.folder))
    refuse_foreign(folder / CARD, folder / PICTURE)
    draw_prediction(folder)
    print(write_card(folder))


def run_check(arguments: argparse.Namespace) -> None:
    """`check`."""
    from deflect_hf.artifacts.saved_model import result_folder
    from deflect_hf.hub.check import check_folder
    from deflect_hf.hub.client import Hub
    from deflect_hf.hub.load import pull

    if Path(arguments.folder).is_dir():
        if arguments.revision is not None:
            raise ConfigError(f"--revision is for a model on the Hub, but {arguments.folder} is a folder here.")
        folder = result_folder(Path(arguments.folder))
        config = check_folder(folder, published=False)
    else:
        folder, config = pull(Hub(), arguments.folder, arguments.revision)
    encoder = config.encoder.name_or_path or "its own, random one"
    print(f"{folder}: whole and safe to load. --finetune {config.finetune}, encoder {encoder}")


if __name__ == "__main__":
    main()
