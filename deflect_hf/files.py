"""Files and folders that are written whole or not at all: a killed run leaves no half of one.

Data reach the disk before their name does, so that this also holds when the machine goes down.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deflect_hf.errors import ConfigError, listing

CONFIG = "config.yaml"  # of a run and of its checkpoints
LOG = "log.jsonl"  # of a run
PARTIAL = ".partial"  # ending of what is being written
REPLACED = ".replaced"  # ending of what makes room for it
# what tells a file that was written here: the program of a picture, the versions among results, the head of a card, ...
MARKS = {
    ".png": rb"Software\0deflect_hf",
    ".json": rb'"deflect_hf": ',
    ".md": rb"^(- deflect_hf|library_name: peft)$",
    ".html": rb"deflect_hf",
    ".qml": rb'made-by="deflect_hf"',
}


@contextmanager
def atomic_dir(target: Path) -> Iterator[Path]:
    """A folder to write into that appears under its name when the block ends without an error.

    What was there under its name stays until then, as ``target.replaced`` for the instant between two renames; see
    ``recover``. A symbolic link stays one: the folder it leads to is replaced, beside which there has to be room.
    """
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, replaced = (target.with_name(target.name + ending) for ending in (PARTIAL, REPLACED))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        files = [path for path in partial.rglob("*") if path.is_file()]
        for path in files:
            # safetensors writes for its owner alone, whatever the umask, which the folder's own mode tells
            path.chmod(partial.stat().st_mode & 0o666)
        for path in [*files, partial]:
            _flush(path)
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)  # on a full disk, room for what comes
        raise
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        os.replace(target, replaced)
    os.replace(partial, target)
    _flush(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def recover(target: Path) -> None:
    """End what a killed ``atomic_dir`` left: the former folder gets its name back where no new one has it."""
    target = target.resolve()
    partial, replaced = (target.with_name(target.name + ending) for ending in (PARTIAL, REPLACED))
    if replaced.is_dir() and not target.exists():
        os.replace(replaced, target)
    for leftover in (partial, replaced):
        shutil.rmtree(leftover, ignore_errors=True)


def remove_folder(target: Path) -> None:
    """Remove a folder that is never seen half removed under its name."""
    target = target.resolve()
    replaced = target.with_name(target.name + REPLACED)
    shutil.rmtree(replaced, ignore_errors=True)
    os.replace(target, replaced)
    shutil.rmtree(replaced)


@contextmanager
def temp_dir(target: Path) -> Iterator[Path]:
    """A folder under this name for the time of the block."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    try:
        yield target
    finally:
        shutil.rmtree(target, ignore_errors=True)


def refuse_foreign(*paths: Path) -> None:
    """Refuse to replace files that were not written by this project."""
    foreign = [str(path) for path in paths if path.exists() and not is_ours(path)]
    if foreign:
        raise ConfigError(
            f"{listing(foreign)}: not written by deflect_hf, and not replaced: move it away, or give another place"
        )


def is_ours(path: Path) -> bool:
    """Whether a file, by whose ending MARKS has something, was written by this project."""
    return re.search(MARKS[path.suffix], path.read_bytes(), re.MULTILINE) is not None


def refuse_used(output: Path, known: Iterable[str] = ()) -> None:
    """Refuse a folder for results that holds other things already, unless one of the names ``known`` is among them."""
    if output.is_dir() and (not any(output.iterdir()) or any((output / name).exists() for name in known)):
        return
    if output.exists():
        raise ConfigError(f"{output} is there already, with other things: give another --output, or move it away")


def write_text(path: Path, content: str) -> None:
    """Write under a temporary name first, so that ``path`` is never half a file."""
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(content, encoding="utf-8")
    _flush(partial)
    os.replace(partial, path)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _flush(path: Path) -> None:
    """Have a file or the names in a folder on the disk before going on."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():  # systems that open no folders have no need to
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
