"""A trained model goes up to the Hub: early checks, one commit per push, nothing lost when it fails."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import filter_repo_objects

from deflect_hf.artifacts import saved_model as checkpoints
from deflect_hf.config.run import RunArguments
from deflect_hf.errors import CheckpointError, ConfigError, HubError
from deflect_hf.hub.card import write_card
from deflect_hf.hub.check import check_encoder, check_folder, check_plan
from deflect_hf.hub.client import LOG_IN, Hub, as_hub_error, check_repo_id, file_hash
from deflect_hf.hub.picture import draw_prediction
from deflect_hf.hub.safety import TRAINED_FILES, check_encoder_listing, read_json
from deflect_hf.hub.sanitize import CARD, PICTURE, Base, refuse_leaks, stage
from deflect_hf.training.loop import Publish

logger = logging.getLogger(__name__)

MAIN = "main"
WRITTEN = [CARD, PICTURE, *TRAINED_FILES]  # what a push may leave in a repository
BRANCH = re.compile(r"(?!refs/)(?!.*\.\.)[\w](?:[\w./-]{0,98}[\w])?")


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
    destination = Destination(repo_id, private, revision, base_model_id, Hub(token))
    base = destination.prepare(config, found)
    if picture and not (found / PICTURE).is_file():
        draw_prediction(found)
    return destination.upload(found, base, commit_message or f"Upload {config.finetune} model", picture=picture)


@dataclass(frozen=True)
class Destination:
    """Where a model goes on the Hub; arguments as those of :func:`push`."""

    repo_id: str
    private: bool | None = None
    branch: str | None = None
    base_model_id: str | None = None
    hub: Hub = field(default_factory=Hub)

    def prepare(self, config: RunArguments, folder: Path | None = None) -> Base:
        """Everything about a push that can fail early (HubError): name, token, rights, repository, encoder's place.

        ``folder`` is None before training, when a random encoder is still to be made.
        """
        check_repo_id(self.repo_id)
        if self.branch is not None and not BRANCH.fullmatch(self.branch):
            raise HubError(f"{self.branch!r} is no name of a branch: letters, digits and . _ - / between them.")
        if self.hub.offline:
            raise HubError(f"{self.repo_id}: nothing can be pushed while HF_HUB_OFFLINE is set: unset it.")
        base = self.find_base(config, folder)
        with _loadable_by_others():
            if base.name is not None and config.finetune != "full":
                path = self.hub.fetch(base.name, base.commit, ["config.json"], check_encoder_listing) / "config.json"
                check_encoder(path, read_json(path))
            if folder is None:
                check_plan(config)
        self.make_repository()
        return base

    def make_repository(self) -> None:
        """Have repository and branch there, and be allowed to write to them (HubError)."""
        api = self.hub.api
        with as_hub_error(self.repo_id):
            user = api.whoami()["name"]
            try:
                api.create_repo(self.repo_id, private=self.private, exist_ok=True)
                api.auth_check(self.repo_id, write=True)
            except HfHubHTTPError as error:
                if error.response.status_code not in (401, 403):
                    raise
                raise HubError(
                    f"{user!r} may not write to {self.repo_id} with this token. Give a token with the right to write, "
                    f"of an account that owns it ({LOG_IN}), or another name."
                ) from error
            if self.private and not api.model_info(self.repo_id).private:
                raise HubError(
                    f"{self.repo_id} is there already and public, but it was to be private. Make it private on its "
                    f"page ({constants.ENDPOINT}/{self.repo_id}/settings), or give another name."
                )
            if self.branch not in (None, MAIN):
                api.create_branch(self.repo_id, branch=str(self.branch), exist_ok=True)

    def find_base(self, config: RunArguments, folder: Path | None) -> Base:
        """Where others will find the encoder (HubError)."""
        source = config.encoder.name_or_path
        local = source is not None and Path(source).is_dir()
        if self.base_model_id is not None and (not local or config.finetune == "full"):
            raise ConfigError(
                f"hub_base_model_id {self.base_model_id!r} is for an encoder that was loaded from a folder; this one "
                + ("is part of the model" if config.finetune == "full" else f"is {source or 'a random one'}")
            )
        if source is None or (local and config.finetune == "full"):
            beside = source is None and config.finetune != "full" and folder is not None
            return Base(folder=Path(checkpoints.encoder_source(folder, config)) if beside and folder else None)
        if not local:
            return _on_the_hub(self.hub, source, config.encoder.revision)
        if self.base_model_id is None:
            raise HubError(
                f"the encoder {source} is a folder on this machine: nobody else could load what is pushed. Upload it, "
                f"if its license allows that (hf upload USER/ENCODER {shlex.quote(source)}), and say where it is: "
                "--hub_base_model_id USER/ENCODER, or --base_model_id where a folder is pushed."
            )
        base = _on_the_hub(self.hub, self.base_model_id, None)
        weights = Path(source) / "model.safetensors"
        there = self.hub.announced(self.base_model_id, base.commit).hashes.get(weights.name)
        if weights.is_file() and there is not None and file_hash(weights, there) != there:
            raise HubError(
                f"{self.base_model_id} holds other weights than {source}, the encoder that was adapted: upload that "
                "folder there, or name the repository that holds it."
            )
        return base

    def upload(self, folder: Path, base: Base, message: str, *, picture: bool = True) -> str:
        """One commit with all that belongs to the model in ``folder``, and without what an earlier push left.

        Returns its address; a HubError leaves the folder as it was.
        """
        branch = self.branch or MAIN
        with tempfile.TemporaryDirectory() as temporary:
            staged = Path(temporary) / "model"

            def copy(found: Path) -> None:
                shutil.rmtree(staged, ignore_errors=True)
                staged.mkdir()
                config = checkpoints.read_config(found)
                stage(found, staged, config, base, picture=picture)
                write_card(staged, repo_id=self.repo_id, revision=self.branch, license=base.license)
                refuse_leaks(staged, config, found)
                with _loadable_by_others():
                    check_folder(staged, published=True)

            checkpoints.while_whole(folder, copy)
            paths = sorted(path for path in staged.rglob("*") if path.is_file())
            additions = [CommitOperationAdd(path.relative_to(staged).as_posix(), path) for path in paths]
            ours = {operation.path_in_repo for operation in additions}
            with as_hub_error(self.repo_id, branch):
                there = filter_repo_objects(
                    self.hub.api.list_repo_files(self.repo_id, revision=branch), allow_patterns=WRITTEN
                )
                deletions = [CommitOperationDelete(name) for name in there if name not in ours]
                commit = self.hub.api.create_commit(
                    self.repo_id, [*deletions, *additions], commit_message=message, revision=branch
                )
        logger.info("%s: %d files are on the Hub, %s", self.repo_id, len(additions), commit.commit_url)
        return str(commit.commit_url)

    def command(self, folder: Path, picture: bool) -> str:
        """The command that pushes ``folder`` there later."""
        words = ["python", "-m", "deflect_hf.hub", "push", str(folder), self.repo_id]
        words += ["--private", str(self.private).lower()] if self.private is not None else []
        words += ["--revision", self.branch] if self.branch is not None else []
        words += ["--base_model_id", self.base_model_id] if self.base_model_id is not None else []
        words += [] if picture else ["--picture", "false"]
        return shlex.join(words)


@contextmanager
def _loadable_by_others() -> Iterator[None]:
    """What would be refused when it is pulled is not pushed (HubError)."""
    try:
        yield
    except CheckpointError as error:
        raise HubError(
            f"Nobody else could load this model from the Hub, only this machine from its folder: {error}"
        ) from error


def _on_the_hub(hub: Hub, name: str, revision: str | None) -> Base:
    """The encoder at the commit that was adapted, if this machine fetched it; else at the one that is there now."""
    check_repo_id(name)
    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    used = Path(cached).parent.name if isinstance(cached, str) else revision
    announced = hub.announced(name, used)
    check_encoder_listing(name, announced.sizes)
    return Base(name, announced.commit, license=announced.license)


@dataclass(frozen=True)
class Publication:
    """What a training run publishes: checked before it begins, its checkpoints on the way, its best model at the end.

    Attributes:
        destination: None for a run that is not published: it gets a card, and nothing is asked of the Hub.
    """

    config: RunArguments
    destination: Destination | None

    @classmethod
    def of(cls, config: RunArguments) -> Publication:
        """What ``--push_to_hub`` asks for; the first process asks the Hub whether it may (HubError)."""
        if not config.push_to_hub or config.dry_run:
            return cls(config, None)
        destination = Destination(
            str(config.hub_model_id), config.hub_private, config.hub_revision, config.hub_base_model_id
        )
        if os.environ.get("RANK", "0") == "0":
            destination.prepare(config)
        return cls(config, destination)

    @property
    def publish(self) -> Publish | None:
        """What is to be done at each checkpoint."""
        every = self.destination is not None and self.config.hub_strategy == "every_checkpoint"
        return self.checkpoint if every else None

    def checkpoint(self, folder: Path, step: int) -> None:
        """Push a checkpoint to a branch of its own; a failure is logged, and the run goes on."""
        assert self.destination is not None
        destination = replace(self.destination, branch=f"step-{step}")
        try:
            base = destination.find_base(self.config, folder)
            destination.make_repository()
            destination.upload(folder, base, f"Checkpoint after step {step}", picture=False)
        except HubError as error:
            logger.warning("the checkpoint of step %d is not on the Hub, training goes on: %s", step, error)

    def finish(self, work_dir: Path) -> str | None:
        """Write the model card of a run that has ended, and publish its best model; returns the commit's address.

        A HubError names the folder and the command that pushes it later.
        """
        best, picture = checkpoints.result_folder(work_dir), self.config.hub_picture
        write_card(best)
        if self.destination is None:
            return None
        try:
            base = self.destination.find_base(self.config, best)
            if picture:
                draw_prediction(best)
            return self.destination.upload(best, base, f"Upload {self.config.finetune} model", picture=picture)
        except HubError as error:
            later = self.destination.command(best, picture)
            raise HubError(f"{error} The run is complete, its model is in {best}. Push it later: {later}") from error
