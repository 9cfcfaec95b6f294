"""From the name of a trained model on the Hub to its predictions."""

from __future__ import annotations

from pathlib import Path

import torch

from deflect_hf.artifacts import saved_model as checkpoints
from deflect_hf.config.run import RunArguments
from deflect_hf.errors import ConfigError, HubError
from deflect_hf.files import REPLACED
from deflect_hf.hub import safety
from deflect_hf.hub.check import check_configs, check_encoder, check_encoder_weights, check_own, check_weights
from deflect_hf.hub.client import Hub, check_repo_id
from deflect_hf.inference.predictor import Predictor


def load_predictor(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    encoder: str | Path | None = None,
    device: str | torch.device | None = None,
) -> Predictor:
    """A trained model from the Hub or from a folder, with the encoder it was trained on, its processor and its head.

    The encoder comes from where the model's configuration says, at the commit that was adapted. Nothing that is
    fetched is executed: weights are safetensors, configurations are checked before anything is built of them.

    Args:
        name_or_path: ``user/name`` on the Hub, the folder of a run, or its ``best/`` folder. A folder goes first.
        revision: branch, tag or commit; default: the main branch.
        token: for private and gated repositories; default: the one of ``hf auth login`` or HF_TOKEN.
        cache_dir: where files are kept; default: the cache of huggingface_hub.
        local_files_only: take everything from the cache, as HF_HUB_OFFLINE=1 does.
        encoder: Hub id or folder of the base encoder, instead of the one that the configuration names.
        device: where to predict; None: the accelerator if there is one, else the CPU.

    Raises:
        HubError: a repository, revision or file cannot be had, or arrived broken.
        CheckpointError: it is no trained model, or one from the Hub that is not safe to load; the message says why.

    Example:
        >>> import deflect_hf
        >>> predict = deflect_hf.load_predictor("user/name")
        >>> probabilities = predict(images, source_bands=["B", "G", "R", "N"])
    """
    hub = Hub(token, cache_dir, local_files_only)
    folder = Path(name_or_path)
    # a run may be putting a better model in its place
    published = not any(path.is_dir() for path in (folder, Path(f"{folder}{REPLACED}"), folder))
    if folder.is_file():
        raise HubError(f"{folder} is a file: give the folder of the run that it is part of.")
    if published:
        try:
            check_repo_id(str(name_or_path))
        except HubError as error:
            raise HubError(f"There is no folder {str(name_or_path)!r} on this machine, and {error}") from None
        folder, loaded = pull(hub, str(name_or_path), revision)
    elif revision is not None:
        raise ConfigError(f"revision={revision!r} is for the Hub, but {name_or_path} is a folder on this machine.")

    def load(found: Path) -> Predictor:
        config = loaded if published else check_own(found)
        source = encoder_folder(hub, found, config, encoder=encoder, published=published)
        return Predictor.from_result(found, config, encoder=source, device=device)

    return checkpoints.while_whole(folder, load)


load_adapter = load_predictor  # its first name; PEFT's method of that name does something else


def pull(hub: Hub, repo_id: str, revision: str | None = None) -> tuple[Path, RunArguments]:
    """A trained model's files in the cache, checked, and its configuration; no weights before that is safe.

    Errors are those of :func:`load_predictor`.
    """
    check_repo_id(repo_id)
    first = safety.TRAINED_FILES if hub.offline else [*safety.CONFIGS, f"{safety.ENCODER}/config.json"]
    folder = hub.fetch(repo_id, revision, first, safety.check_trained_listing)
    config = check_configs(folder, published=True)
    if not hub.offline:
        folder = hub.fetch(repo_id, folder.name, safety.TRAINED_FILES, safety.check_trained_listing)
    check_weights(folder, config)
    return folder, config


def pull_encoder(hub: Hub, repo_id: str, revision: str | None, *, published: bool = True) -> Path:
    """An encoder's files in the cache, checked like a trained model's (HubError, CheckpointError).

    The one that a run of this machine was trained on (not ``published``) is loaded by the rules that training has.
    """
    check_repo_id(repo_id)
    if not published:
        sizes: dict[str, int] = {}
        hub.fetch(repo_id, revision, ["config.json"], lambda _, found: sizes.update(found))
        whole = any(name in sizes for name in safety.MODEL_WEIGHTS[:2])
        files = safety.ENCODER_FILES if whole else ["config.json", "pytorch_model*"]
        return hub.fetch(repo_id, revision, files, lambda where, found: None)
    first = safety.ENCODER_FILES if hub.offline else ["config.json"]
    folder = hub.fetch(repo_id, revision, first, safety.check_encoder_listing)
    check_encoder(folder / "config.json", safety.read_json(folder / "config.json"))
    if not hub.offline:
        folder = hub.fetch(repo_id, folder.name, safety.ENCODER_FILES, safety.check_encoder_listing)
    check_encoder_weights(folder)
    return folder


def encoder_folder(
    hub: Hub, folder: Path, config: RunArguments, *, encoder: str | Path | None, published: bool
) -> str | None:
    """Where the encoder of a trained model lies on this machine, fetched if need be; None for ``full``.

    Raises:
        ConfigError: an encoder is given for a model that holds its own.
        HubError, CheckpointError: it cannot be had.
    """
    if config.finetune == "full":
        if encoder is not None:
            raise ConfigError(f"encoder={str(encoder)!r}: {folder} was trained with --finetune full, it holds its own.")
        return None
    if encoder is not None:
        given = str(encoder)
        return given if Path(given).is_dir() else str(pull_encoder(hub, given, None, published=published))
    source = checkpoints.encoder_source(folder, config)
    # a name that came from the Hub is a name there, whatever folders this machine has
    if config.encoder.name_or_path is None or (not published and Path(source).is_dir()):
        return source
    return str(pull_encoder(hub, source, config.encoder.revision, published=published))
