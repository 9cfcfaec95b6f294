"""Find a published checkpoint (file, folder or Hub repository) and read its tensors without running code from it."""

from __future__ import annotations

import argparse
import logging
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from deflect_hf.errors import CheckpointError, brief, listing
from deflect_hf.models.geovit.sources import Source

logger = logging.getLogger(__name__)

SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
# numpy 1 had the function that makes its numbers under another name
SCALAR = np.float64(0).__reduce__()[0]
SAFE: list[Any] = [argparse.Namespace, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8"))]
SAFE += [(SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def where_to_get(source: Source) -> str:
    """One sentence for messages: where the checkpoint of ``source`` is published."""
    return f"The checkpoint of {source.title} is at {source.download}"


def find_checkpoint(
    source: Source, checkpoint: str | None = None, file: str | None = None, revision: str | None = None
) -> Path:
    """The file that ``checkpoint`` means; a Hub repository's is downloaded once into its cache.

    Args:
        checkpoint: a file, a folder, or a Hub repository; default the repository of ``source``, where it has one.
        file: name of the file in the folder or repository, if it is not one of ``source.files``.

    Raises:
        CheckpointError: nothing is there; the message says where to get it.
    """
    if checkpoint is None:
        if source.hub_id is None:
            raise CheckpointError(f"{where_to_get(source)}, not on the Hub: download it and give --checkpoint FILE.")
        checkpoint = source.hub_id
    path = Path(checkpoint)
    if path.is_file():
        return path
    if path.is_dir():
        return _in_folder(path, source, file)
    if REPOSITORY.fullmatch(checkpoint) and path.suffix not in SUFFIXES:
        return _from_hub(checkpoint, source, file, revision)
    raise CheckpointError(f"{checkpoint}: no such file or folder. {where_to_get(source)}.")


def _in_folder(folder: Path, source: Source, file: str | None) -> Path:
    names = [file] if file else [*source.files]
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found and file is None:
        found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
        if len(found) > 1:
            raise CheckpointError(
                f"{folder} holds {len(found)} checkpoints: {listing(item.name for item in found)}. Choose with --file."
            )
    if not found:
        wanted = listing(names) if names else f"file ending in {listing(SUFFIXES)}"
        raise CheckpointError(f"{folder} holds no {wanted}. {where_to_get(source)}.")
    return found[0]


def _from_hub(repository: str, source: Source, file: str | None, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    names = [file] if file else [*source.files]
    if not names:
        raise CheckpointError(
            f"{repository}: which file of the repository? Name it with --file. {where_to_get(source)}."
        )
    reason: Exception | None = None
    for name in names:
        try:
            return Path(hf_hub_download(repository, name, revision=revision))
        except (OSError, EntryNotFoundError) as error:
            reason = error
    raise CheckpointError(
        f"{repository} is no file or folder here, and {listing(names)} cannot be had from a Hub repository of that "
        f"name: {reason} {where_to_get(source)}."
    ) from reason


def read_tensors(path: Path, source: Source) -> dict[str, Tensor]:
    """Tensors of a checkpoint by name, out of whatever dictionary they are wrapped in.

    A pickle can run any code. Only tensors, plain containers and what most of these files carry beside the weights are
    let in: ``argparse.Namespace``, the options of the training, and numpy's numbers, rates in the optimizer's state.

    Raises:
        CheckpointError: the file is broken, holds other objects, or no weights where ``source`` has them.
    """
    try:
        content = _load(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {_what_was_refused(path, error)} {where_to_get(source)}.") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {brief(error)} {where_to_get(source)}."
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors.")
    for wrapper in source.wrappers:
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        expected = f"under {listing(source.wrappers)} or " if source.wrappers else ""
        raise CheckpointError(
            f"{path} has no tensors {expected}at the top, only {listing(map(str, content))}. Is it the checkpoint of "
            f"{source.title}?"
        )
    return tensors


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    with torch.serialization.safe_globals(SAFE):
        # Mapped files are read where they are used: optimizer states, twice the size of the weights, are not.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _what_was_refused(path: Path, error: Exception) -> str:
    try:
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (ValueError, RuntimeError, pickle.UnpicklingError):  # files of before torch 1.6 name them in the error only
        names = set(re.findall(r"GLOBAL ([\w.]+)", str(error)))
    names = {name for name in names if name != "argparse.Namespace" and not name.startswith("numpy.")}
    if not names:
        return "it is damaged, or no checkpoint at all."
    return (
        f"it holds objects of {listing(sorted(names))}, and unpickling them can run code, so it is not opened. If you "
        "trust the file, open it in a sandbox and save its tensors alone."
    )
