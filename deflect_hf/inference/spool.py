"""Finished parts of a map on disk, so that an interrupted prediction goes on and several processes share one.

A part is a few rows of windows. The pixel rows that it alone counts for are stored as the map will have them; those
that it shares with the part before or after are stored as weighted sums of logits, which are added when the map is put
together. The map therefore does not depend on how often a prediction was interrupted, or on how many processes took
part. Its file is a row of *cells*, compressed one by one, each of which lies in one of the squares that the map is
written in: the map is put together square by square, whatever its width.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from deflect_hf.errors import ConfigError, DataError
from deflect_hf.files import write_text
from deflect_hf.inference.tiling import Axis
from deflect_hf.raster.maps import SQUARE, Square

Array = np.ndarray[Any, Any]
Finish = Callable[[Array], Array]

JOB = "job.json"
LOCK = "lock"
WINDOWS_PER_PART = 128
LEAST_ROWS = 4  # of windows: a part shares pixels with the parts next to it alone
COMPRESSION = 1  # parts live for minutes
HEADER = struct.Struct("<4Q")  # of a cell: first pixel row, rows, first pixel column, bytes that follow
END = (0, 0, 0, 0)
SUMS = np.dtype(np.float32)


@dataclass(frozen=True)
class Part:
    """Rows of windows, from ``first`` to before ``stop``, and the pixel rows that they count for.

    Attributes:
        top, inner, outer, bottom: pixel rows, rising. Those from ``inner`` to before ``outer`` are the part's alone.
    """

    number: int
    first: int
    stop: int
    top: int
    inner: int
    outer: int
    bottom: int


class Cell(NamedTuple):
    """Pixel rows from ``top`` to before ``bottom`` of the square at ``column``, and where they are in a part's file."""

    top: int
    bottom: int
    column: int
    offset: int
    size: int


def plan_parts(rows: Axis, columns: int) -> list[Part]:
    """The parts of a scene with ``columns`` windows in each row of windows, from top to bottom."""
    height = max(LEAST_ROWS, -(-WINDOWS_PER_PART // columns))
    parts: list[Part] = []
    for first in range(0, len(rows), height):
        stop = min(first + height, len(rows))
        inner = rows.ends[first - 1] if first > 0 else 0
        outer = rows.starts[stop] if stop < len(rows) else rows.length
        parts.append(Part(len(parts), first, stop, rows.starts[first], inner, outer, rows.ends[stop - 1]))
    return parts


@dataclass(frozen=True)
class Spool:
    """The folder of the parts of a map.

    Attributes:
        folder: ``OUT.tif.parts``, beside the map.
        width: of the map in pixels.
        classes: K, channels of the sums.
        count, dtype: bands of the map, and how they are stored.
        finish: (K, h, W) sums of logits, NaN where nothing was measured -> (count, h, W) stored values.
    """

    folder: Path
    width: int
    classes: int
    count: int
    dtype: np.dtype[Any]
    finish: Finish

    def prepare(self, job: Mapping[str, Any], *, overwrite: bool) -> None:
        """Make the folder, empty unless it was begun for the same job.

        Args:
            overwrite: remove what another job has finished.

        Raises:
            ConfigError: it holds parts of another job, and they are not to be removed.
            DataError: it cannot be written, or something else has its name.
        """
        wanted = {key: json.dumps(value) for key, value in job.items()}  # as text, for NaN is not equal to itself
        stored = self._stored_job()
        found = {key: json.dumps(value) for key, value in (stored or {}).items()}
        if found == wanted:
            return
        if stored is not None and not overwrite:
            changed = next((key for key in wanted if found.get(key) != wanted[key]), "version")
            raise ConfigError(
                f"{self.folder} holds finished parts of a prediction with another {changed}: repeat that command to "
                "finish it, give the map another name, or begin anew with --overwrite."
            )
        with self.writing():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_text(self.folder / JOB, json.dumps(dict(job), indent=2) + "\n")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other commands from the folder.

        Raises:
            ConfigError: another one is at work there.
        """
        lock = FileLock(self.folder / LOCK, timeout=0)
        with self.writing():
            try:
                lock.acquire()
            except Timeout:
                raise ConfigError(
                    f"{self.folder}: another command is making this map right now; wait for it, or give the map "
                    "another name. (Several processes share a map under accelerate launch.)"
                ) from None
        try:
            yield
        finally:
            (self.folder / LOCK).unlink(missing_ok=True)
            lock.release()

    def _stored_job(self) -> dict[str, Any] | None:
        """The job of an earlier prediction; None if there is no folder."""
        if not self.folder.exists():
            return None
        try:
            return dict(json.loads((self.folder / JOB).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(
                f"{self.folder} is in the way: parts of the map are kept there, but this is something else; move it."
            ) from error

    def remove(self) -> None:
        """Take the folder away."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def is_finished(self, part: Part) -> bool:
        """Whether the part is there."""
        return self._path(part).is_file()

    @contextmanager
    def open(self, part: Part) -> Iterator[Callable[[int, int, Array], None]]:
        """Yields ``write(row, column, sums)``, which takes pieces (K, h, w) of a part, in any order.

        A piece begins at a column that is a multiple of SQUARE, and is no wider. The part is there only when the block
        ends without an error.

        Raises:
            DataError: the disk is full, or the folder is not writable.
        """
        path = self._path(part)
        partial = path.with_suffix(f".{os.getpid()}")
        try:
            with self.writing(), partial.open("wb") as stream:

                def write(row: int, column: int, sums: Array) -> None:
                    for low, high, shared in _sections(part):
                        for first, last in _cuts(max(low, row), min(high, row + sums.shape[1])):
                            piece = sums[:, first - row : last - row]
                            values = piece if shared else self.finish(piece)
                            content = zlib.compress(np.ascontiguousarray(values).data, COMPRESSION)
                            stream.write(HEADER.pack(first, last - first, column, len(content)))
                            stream.write(content)

                yield write
                stream.write(HEADER.pack(*END))
            with self.writing():
                os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def squares(self, parts: Sequence[Part]) -> Iterator[Square]:
        """The whole map, square by square: rows of squares from top to bottom, each from left to right.

        Raises:
            DataError: a part is damaged.
        """
        height = parts[-1].bottom
        for row in range(0, height, SQUARE):
            end = min(row + SQUARE, height)
            near = [part for part in parts if part.top < end and part.bottom > row]
            cells = {part: self._cells(part, row, end) for part in near}
            for column in range(0, self.width, SQUARE):
                here = {part: [cell for cell in cells[part] if cell.column == column] for part in near}
                yield Square(row, column, self._square(row, end, min(SQUARE, self.width - column), here))

    def _cells(self, part: Part, row: int, end: int) -> list[Cell]:
        """Where a part keeps what lies in the rows from ``row`` to before ``end``."""
        found: list[Cell] = []
        with self._reading(part) as stream:
            while (header := HEADER.unpack(stream.read(HEADER.size))) != END:
                top, height, column, size = header
                if row <= top < end:
                    found.append(Cell(top, top + height, column, stream.tell(), size))
                stream.seek(size, os.SEEK_CUR)
        return found

    def _square(self, row: int, end: int, width: int, cells: Mapping[Part, Sequence[Cell]]) -> Array:
        """(count, end - row, width) stored values."""
        values = np.empty((self.count, end - row, width), self.dtype)
        # pixel rows that a part shares with the next: added up, first to last
        shared = [(max(part.outer, row), min(part.bottom, end)) for part in cells]
        sums = {low: np.zeros((self.classes, high - low, width), SUMS) for low, high in shared if high > low}
        missing = end - row + sum(added.shape[1] for added in sums.values())
        for part, found in cells.items():
            with self._reading(part) as stream:
                for cell in found:
                    alone = part.inner <= cell.top < part.outer
                    stream.seek(cell.offset)
                    content = np.frombuffer(zlib.decompress(stream.read(cell.size)), self.dtype if alone else SUMS)
                    piece = content.reshape(-1, cell.bottom - cell.top, width)
                    missing -= cell.bottom - cell.top
                    if alone:
                        values[:, cell.top - row : cell.bottom - row] = piece
                    else:
                        low = max(first for first in sums if first <= cell.top)
                        sums[low][:, cell.top - low : cell.bottom - low] += piece
        if missing:
            raise DataError(f"{self.folder} is damaged (rows from {row} on): remove it, and repeat the command.")
        for low, added in sums.items():
            values[:, low - row : low - row + added.shape[1]] = self.finish(added)
        return values

    @contextmanager
    def _reading(self, part: Part) -> Iterator[BinaryIO]:
        path = self._path(part)
        try:
            with path.open("rb") as stream:
                yield stream
        except (OSError, ValueError, struct.error, zlib.error) as error:
            raise DataError(f"{path} is damaged ({error}): remove it, and repeat the command.") from error

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

    def _path(self, part: Part) -> Path:
        return self.folder / f"{part.number:05d}.part"


def _sections(part: Part) -> tuple[tuple[int, int, bool], ...]:
    """First row, row after the last, and whether they are shared sums: above, inside, below."""
    return (part.top, part.inner, True), (part.inner, part.outer, False), (part.outer, part.bottom, True)


def _cuts(low: int, high: int) -> Iterator[tuple[int, int]]:
    """The rows from ``low`` to before ``high``, cut where squares meet."""
    while low < high:
        last = min(high, (low // SQUARE + 1) * SQUARE)
        yield low, last
        low = last
