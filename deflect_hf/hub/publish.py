"""A trained model goes up to the Hub: early checks, one commit per push, nothing lost when it fails."""

from __future__ import annotations

import logging
import re
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

from deflect_hf.artifacts import saved_model as checkpoints
from deflect_hf.config.run import RunArguments
from deflect_hf.errors import ConfigError, HubError
from deflect_hf.hub.card import write_card
from deflect_hf.hub.client import LOG_IN, Hub, check_repo_id, file_hash, in_words
from deflect_hf.hub.contents import check_folder
from deflect_hf.hub.picture import draw_prediction
from deflect_hf.hub.safety import TRAINED_FILES, check_encoder_listing
from deflect_hf.hub.scrub import CARD, PICTURE, Base, refuse_leaks, stage

logger = logging.getLogger(__name__)

MAIN = "main"
BRANCH = re.compile(r"(?!refs/)[\w](?:[\w./-]{0,98}[\w])?")


@dataclass(frozen=True)
class Destination:
    """Where a model goes on the Hub.

    Attributes:
        private: whether only its owner may see it; None: as the account's default, or as it is already.
        branch: None: main.
        base_model_id: where an encoder that was loaded from a folder lies on the Hub.
    """

    repo_id: str
    private: bool | None = None
    branch: str | None = None
    base_model_id: str | None = None

    def command(self, folder: Path) -> str:
        """The command that pushes ``folder`` there later."""
        words = ["python", "-m", "deflect_hf.hub", "push", str(folder), self.repo_id]
        words += ["--private", str(self.private).lower()] if self.private is not None else []
        words += ["--revision", self.branch] if self.branch is not None else []
        words += ["--base_model_id", self.base_model_id] if self.base_model_id is not None else []
        return shlex.join(words)


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    base_model_id: str | None = None,
    picture: bool = True,
) -> str:
    """Publish a trained model: what it needs, its card, nothing about this machine; returns the commit's address.

    Args:
        folder: of a run, or its ``best/`` folder.
        repo_id: ``user/name``; made if it is not there.
        private: whether only its owner may see it; None: as the account's default, or as it is already.
        revision: branch; made if it is not there.
        base_model_id: where an encoder that was loaded from a folder lies on the Hub.
        picture: publish ``prediction.png``, too, which shows one of the images; drawn if it is not there yet.

    Raises:
        HubError: the Hub refuses or cannot be reached, or nobody else could load the model.
        CheckpointError: the folder is no trained model.
    """
    found = checkpoints.result_folder(Path(folder))
    config = checkpoints.read_config(found)
    destination = Destination(repo_id, private, revision, base_model_id)
    hub = Hub(token)
    base = prepare(hub, destination, config, found)
    if picture and not (found / PICTURE).is_file():
        draw_prediction(found)
    return upload(hub, destination, found, base, commit_message or f"Upload {config.finetune} model", picture=picture)


def prepare(hub: Hub, destination: Destination, config: RunArguments, folder: Path | None = None) -> Base:
    """Everything about a push that can fail early: name, token, rights, the repository itself, the encoder's place.

    Args:
        folder: the result folder; None before training, when a random encoder is still to be made.

    Raises:
        HubError: naming what to change.
    """
    check_repo_id(destination.repo_id)
    if destination.branch is not None and (not BRANCH.fullmatch(destination.branch) or ".." in destination.branch):
        raise HubError(f"{destination.branch!r} is no name of a branch: letters, digits and . _ - / between them.")
    if hub.offline:
        raise HubError(f"{destination.repo_id}: nothing can be pushed while HF_HUB_OFFLINE is set: unset it.")
    base = find_base(hub, config, destination.base_model_id, folder)
    make_repository(hub, destination)
    return base


def make_repository(hub: Hub, destination: Destination) -> None:
    """Have repository and branch there, and be allowed to write to them.

    Raises:
        HubError: no or a wrong token, no right to write, or it is public although it was to be private.
    """
    repo_id = destination.repo_id
    with in_words(repo_id):
        user = hub.api.whoami()["name"]
        try:
            hub.api.create_repo(repo_id, private=destination.private, exist_ok=True)
            hub.api.auth_check(repo_id, write=True)
        except HfHubHTTPError as error:
            if error.response.status_code not in (401, 403):
                raise
            raise HubError(
                f"{user!r} may not write to {repo_id} with this token. Give a token with the right to write, of an "
                f"account that owns it ({LOG_IN}), or another name."
            ) from error
        info = hub.api.model_info(repo_id)
        if destination.private and not info.private:
            raise HubError(
                f"{repo_id} is there already and public, but it was to be private. Make it private on its page "
                f"({constants.ENDPOINT}/{repo_id}/settings), or give another name."
            )
        if destination.branch not in (None, MAIN):
            hub.api.create_branch(repo_id, branch=str(destination.branch), exist_ok=True)


def find_base(hub: Hub, config: RunArguments, base_model_id: str | None, folder: Path | None) -> Base:
    """Where others will find the encoder.

    Raises:
        HubError: it is in a folder of this machine, or not on the Hub, or another one is there.
    """
    source = config.encoder.name_or_path
    local = source is not None and Path(source).is_dir()
    if base_model_id is not None and (not local or config.finetune == "full"):
        raise ConfigError(
            f"hub_base_model_id {base_model_id!r} is for an encoder that was loaded from a folder; this one "
            + ("is part of the model" if config.finetune == "full" else f"is {source or 'a random one'}")
        )
    if source is None or (local and config.finetune == "full"):
        beside = source is None and config.finetune != "full" and folder is not None
        return Base(folder=Path(checkpoints.encoder_source(folder, config)) if beside and folder else None)
    if not local:
        return _on_the_hub(hub, source, config.encoder.revision)
    if base_model_id is None:
        raise HubError(
            f"the encoder {source} is a folder on this machine: nobody else could load what is pushed. Upload it, if "
            f"its licence allows that (hf upload USER/ENCODER {shlex.quote(source)}), and say where it is: "
            "--hub_base_model_id USER/ENCODER, or --base_model_id where a folder is pushed."
        )
    check_repo_id(base_model_id)
    base = _on_the_hub(hub, base_model_id, None)
    weights = Path(source) / "model.safetensors"
    there = hub.announced(base_model_id, base.commit).hashes.get(weights.name)
    if weights.is_file() and there is not None and file_hash(weights, there) != there:
        raise HubError(
            f"{base_model_id} holds other weights than {source}, the encoder that was adapted: upload that folder "
            "there, or name the repository that holds it."
        )
    return base


def _on_the_hub(hub: Hub, name: str, revision: str | None) -> Base:
    """The encoder at the commit that was adapted, if this machine fetched it; else at the one that is there now."""
    check_repo_id(name)
    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    used = Path(cached).parent.name if isinstance(cached, str) else revision
    announced = hub.announced(name, used)
    check_encoder_listing(name, announced.sizes)
    return Base(name, announced.commit, licence=announced.licence)


def upload(hub: Hub, destination: Destination, folder: Path, base: Base, message: str, *, picture: bool = True) -> str:
    """One commit with everything that belongs to the model in ``folder``, and without what an earlier one left.

    Returns:
        The address of the commit.

    Raises:
        HubError: it failed; the folder is as it was.
    """
    config = checkpoints.read_config(folder)
    config.hub_picture = picture
    repo_id, branch = destination.repo_id, destination.branch or MAIN
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary)
        stage(folder, staged, config, base)
        write_card(staged, repo_id=repo_id, revision=destination.branch, licence=base.licence)
        refuse_leaks(staged, config, folder)
        check_folder(staged, published=True)
        paths = sorted(path for path in staged.rglob("*") if path.is_file())
        with in_words(repo_id, branch):
            additions = [CommitOperationAdd(path.relative_to(staged).as_posix(), path) for path in paths]
            ours = {operation.path_in_repo for operation in additions}
            there = [name for name in hub.api.list_repo_files(repo_id, revision=branch) if _is_ours(name)]
            deletions = [CommitOperationDelete(name) for name in there if name not in ours]
            commit = hub.api.create_commit(repo_id, [*deletions, *additions], commit_message=message, revision=branch)
    logger.info("%s: %d files are on the Hub, %s", repo_id, len(additions), commit.commit_url)
    return str(commit.commit_url)


def _is_ours(name: str) -> bool:
    """Whether a file of the repository is one that a push writes."""
    own = (CARD, PICTURE, checkpoints.RESULTS, *TRAINED_FILES)
    return any(Path(name).match(pattern) and name.count("/") == pattern.count("/") for pattern in own)
