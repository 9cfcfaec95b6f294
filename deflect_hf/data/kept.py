"""Tensors kept on disk, one file per image, found by a hash of everything that their content depends on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from deflect_hf.files import PARTIAL

logger = logging.getLogger(__name__)

IMAGES = "images"  # folder of decoded ones in that of a run


def read_kept(path: Path) -> dict[str, Tensor] | None:
    """What a file holds; None where there is none, or one that cannot be read, which is logged."""
    from safetensors import SafetensorError  # not where an exported model makes maps
    from safetensors.torch import load_file

    try:
        return load_file(path) if path.is_file() else None
    except SafetensorError as error:
        logger.warning("%s cannot be read (%s): it is computed again", path, error)
        return None


def keep(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write them under a name of this process first, so that any number of processes may write the same file."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def kept(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What a file holds, made and kept if there is none."""
    tensors = read_kept(path)
    if tensors is None:
        tensors = make()
        keep(path, tensors)
    return tensors


def example_file(row: Mapping[str, Any], how: Any) -> str:
    """The name for the example of a row that is read as ``how`` says; another one once a file it names changes."""
    files = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in _files(row)]
    told = f"{json.dumps(row, sort_keys=True)} {files} {how!r}"
    return f"{hashlib.sha256(told.encode()).hexdigest()[:24]}.safetensors"


def _files(value: Any) -> Iterator[tuple[str, os.stat_result]]:
    """The files that a row names, in whatever lists."""
    if isinstance(value, str):
        if os.path.isfile(value):
            yield value, os.stat(value)
    elif isinstance(value, Mapping | list | tuple):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _files(one)
