"""Finished blocks of a map on disk, so that an interrupted prediction goes on and several processes share one.

``OUT.tif.parts`` holds what the map depends on (``job.json``) and a plain ``.npy`` file for each finished block, with a
checksum of its header and content after its last value.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from deflect_hf.errors import ConfigError, DataError
from deflect_hf.files import write_text
from deflect_hf.inference.blocks import Block
from deflect_hf.raster.maps import SQUARE, Array, Square

logger = logging.getLogger(__name__)

JOB = "job.json"
LOCK = "lock"
DIGEST_BYTES = 16
CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Parts:
    """The folder ``OUT.tif.parts`` beside a map of ``count`` bands of ``dtype``, in squares of ``side``."""

    folder: Path
    count: int
    dtype: np.dtype[Any]
    side: int = SQUARE

    @contextmanager
    def begun(self, job: Mapping[str, Any], *, overwrite: bool) -> Iterator[None]:
        """Make the folder, or find that of an interrupted run, and keep other commands from it meanwhile.

        Args:
            overwrite: remove what another job has finished, unless it is at work right now.
        """
        if self.folder.exists() and not self._is_ours():
            raise DataError(
                f"{self.folder} is in the way: parts of the map are kept there, but this is something else; move it."
            )
        lock = FileLock(self.folder / LOCK, timeout=0)
        with self.writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except Timeout:
                raise ConfigError(
                    f"{self.folder}: another command is making this map right now; wait for it, or give the map "
                    "another name. (Several processes share a map under accelerate launch.)"
                ) from None
        try:
            self._prepare(job, overwrite)
            yield
        finally:
            (self.folder / LOCK).unlink(missing_ok=True)
            lock.release()

    def _is_ours(self) -> bool:
        """Whether the folder is one of parts; one that was interrupted at once holds nothing yet."""
        return self.folder.is_dir() and (
            (self.folder / JOB).is_file() or all(path.name == LOCK for path in self.folder.iterdir())
        )

    def _prepare(self, job: Mapping[str, Any], overwrite: bool) -> None:
        content = json.dumps(dict(job), indent=2) + "\n"  # compared as text, for NaN is not equal to itself
        path = self.folder / JOB
        found = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
        if found == content:
            return
        if found is not None and not overwrite:
            try:
                stored = dict(json.loads(found))
            except (ValueError, TypeError):
                stored = {}
            changed = next((key for key in job if json.dumps(stored.get(key)) != json.dumps(job[key])), "version")
            raise ConfigError(
                f"{self.folder} holds finished parts of a prediction with another {changed}: repeat that command to "
                "finish it, give the map another name, or begin anew with --overwrite."
            )
        with self.writing():
            for path in self.folder.iterdir():
                if path.name != LOCK:
                    path.unlink()
            write_text(self.folder / JOB, content)

    def missing(self, blocks: Sequence[Block]) -> list[Block]:
        """Those of the blocks that are not there, or damaged."""
        there = [block for block in blocks if self._path(block).exists()]
        whole = [block for block in there if self._is_whole(block)]
        if len(whole) < len(there):
            logger.warning("%s: %d damaged part(s) are made again", self.folder, len(there) - len(whole))
        return [block for block in blocks if block not in whole]

    def write(self, block: Block, pieces: Iterable[Array]) -> None:
        """Keep a block, given as (count, h, W) stored values of its pixel rows from top to bottom.

        It is there only when all of it is.
        """
        path = self._path(block)
        partial = path.with_suffix(f".{os.getpid()}")
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": self._shape(block)}
        try:
            with self.writing():
                with partial.open("wb") as stream:
                    np.lib.format.write_array_header_1_0(stream, header)
                    for piece in pieces:  # as (h, count, W), so that rows can be written as they are finished
                        stream.write(np.ascontiguousarray(piece.transpose(1, 0, 2)).data)
                with partial.open("ab") as stream:
                    stream.write(_digest(partial, partial.stat().st_size))
                os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def squares(self, blocks: Sequence[Block]) -> Iterator[Square]:
        """The whole map, square by square: rows of squares from top to bottom, each from left to right."""
        height, width = blocks[-1].bottom, blocks[-1].right
        checked: set[Block] = set()
        for row in range(0, height, self.side):
            bottom = min(row + self.side, height)
            near = [block for block in blocks if block.top < bottom and block.bottom > row]
            for block in near:
                if block not in checked and not self._is_whole(block):
                    raise DataError(f"{self._path(block)} is damaged: repeat the command, which makes it again.")
                checked.add(block)
            for column in range(0, width, self.side):
                right = min(column + self.side, width)
                values = np.empty((self.count, bottom - row, right - column), self.dtype)
                for block in near:
                    if block.left < right and block.right > column:
                        self._copy(block, values, row, column)
                yield Square(row, column, values)

    def _copy(self, block: Block, values: Array, row: int, column: int) -> None:
        """Write what a block has of a square into it, whose first row and column are given."""
        top, bottom = max(block.top, row), min(block.bottom, row + values.shape[1])
        left, right = max(block.left, column), min(block.right, column + values.shape[2])
        stored = np.load(self._path(block), mmap_mode="r")
        piece = stored[top - block.top : bottom - block.top, :, left - block.left : right - block.left]
        values[:, top - row : bottom - row, left - column : right - column] = piece.transpose(1, 0, 2)

    def remove(self) -> None:
        """Take the folder away."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What the file system refuses becomes a DataError."""
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self.folder} cannot be written ({error.strerror or error}): make room on the disk, or choose a "
                "writable folder for the map. Finished parts stay there: the same command goes on after them."
            ) from error

    def _is_whole(self, block: Block) -> bool:
        """Whether a part has the shape of its block and the checksum at its end."""
        path = self._path(block)
        try:
            length = max(path.stat().st_size - DIGEST_BYTES, 0)
            with path.open("rb") as stream:
                stream.seek(length)
                whole = stream.read() == _digest(path, length)
            return whole and np.load(path, mmap_mode="r").shape == self._shape(block)
        except (OSError, ValueError):
            return False

    def _shape(self, block: Block) -> tuple[int, int, int]:
        return block.bottom - block.top, self.count, block.right - block.left

    def _path(self, block: Block) -> Path:
        return self.folder / f"{block.number:05d}.npy"


def _digest(path: Path, length: int) -> bytes:
    """Of the first ``length`` bytes."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with path.open("rb") as stream:
        for start in range(0, length, CHUNK_BYTES):
            digest.update(stream.read(min(CHUNK_BYTES, length - start)))
    return digest.digest()
