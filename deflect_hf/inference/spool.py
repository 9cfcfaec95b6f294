"""Finished parts of a map on disk, so that an interrupted prediction goes on and several processes share one.

A part is a few rows of windows. The pixel rows that it alone counts for are stored as the map will have them; those
that it shares with the part before or after are stored as weighted sums of logits, which are added when the map is put
together. The map therefore does not depend on how often a prediction was interrupted, or on how many processes took
part.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from deflect_hf.errors import DataError
from deflect_hf.inference.tiling import Axis

Array = np.ndarray[Any, Any]
Finish = Callable[[Array], Array]
BinaryFile = IO[bytes] | gzip.GzipFile

JOB = "job.json"
WINDOWS_PER_PART = 128
LEAST_ROWS = 4  # of windows: a part shares pixels with the parts next to it alone
CHUNK_ROWS = 32
COMPRESSION = 1  # parts live for minutes
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

    def prepare(self, job: Mapping[str, Any]) -> str | None:
        """Make the folder, empty unless it was begun for the same job.

        Returns:
            What of an earlier job was another, and why it was therefore removed; None if nothing was.

        Raises:
            DataError: it cannot be written, or something else has its name.
        """
        wanted = json.loads(json.dumps(dict(job)))
        stored = self._stored_job()
        if stored == wanted:
            return None
        with self.writing():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            partial = self.folder / f"{JOB}.partial"
            partial.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
            os.replace(partial, self.folder / JOB)
        return None if stored is None else next((key for key in wanted if stored.get(key) != wanted[key]), "version")

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
    def open(self, part: Part) -> Iterator[Callable[[Array], None]]:
        """Yields ``write(sums)``, which takes the rows of a part from top to bottom in pieces (K, h, W).

        The part is there only when the block ends without an error.

        Raises:
            DataError: the disk is full, or the folder is not writable.
        """
        path = self._path(part)
        partial = path.with_suffix(f".{os.getpid()}")
        try:
            with self.writing(), gzip.open(partial, "wb", COMPRESSION) as stream:
                row = part.top

                def write(sums: Array) -> None:
                    nonlocal row
                    for low, high, shared in _sections(part):
                        piece = sums[:, max(low - row, 0) : max(high - row, 0)]
                        if piece.shape[1]:
                            _append(stream, piece if shared else self.finish(piece))
                    row += sums.shape[1]

                yield write
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def rows(self, parts: Sequence[Part]) -> Iterator[Array]:
        """All rows of the map from top to bottom, in pieces (count, h, W) of stored values.

        Raises:
            DataError: a part is damaged.
        """
        shared: Array | None = None
        for part in parts:
            path = self._path(part)
            try:
                with gzip.open(path, "rb") as stream:
                    for low, high, is_sum in _sections(part):
                        if not is_sum:
                            yield from self._read(stream, high - low, self.count, self.dtype, CHUNK_ROWS)
                        elif high > low:
                            (piece,) = self._read(stream, high - low, self.classes, SUMS, high - low)
                            if shared is None:
                                shared = piece
                            else:
                                yield self.finish(shared + piece)
                                shared = None
                    stream.read(1)  # reaches the checksum
            except (OSError, EOFError, zlib.error) as error:
                raise DataError(f"{path} is damaged ({error}): remove it, and repeat the command.") from error

    def _read(
        self, stream: BinaryFile, height: int, channels: int, dtype: np.dtype[Any], chunk: int
    ) -> Iterator[Array]:
        for start in range(0, height, chunk):
            shape = (min(chunk, height - start), channels, self.width)
            content = stream.read(int(np.prod(shape)) * dtype.itemsize)
            if len(content) < int(np.prod(shape)) * dtype.itemsize:
                raise EOFError("it ends too early")
            yield np.frombuffer(content, dtype=dtype).reshape(shape).transpose(1, 0, 2)

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
        return self.folder / f"{part.number:05d}.gz"


def _sections(part: Part) -> tuple[tuple[int, int, bool], ...]:
    """First row, row after the last, and whether they are shared sums: above, inside, below."""
    return (part.top, part.inner, True), (part.inner, part.outer, False), (part.outer, part.bottom, True)


def _append(stream: BinaryFile, values: Array) -> None:
    """Add (channels, h, W) values row by row, so that a part can be written and read a few rows at a time."""
    stream.write(np.ascontiguousarray(values.transpose(1, 0, 2)).tobytes())
