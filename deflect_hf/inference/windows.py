"""The windows of a scene: read ahead, predicted, blended, and given on in squares as they are finished.

Memory depends on the size of windows and batches, not on the scene: what a row of windows leaves to the next waits on
disk.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deflect_hf.data.processor import resize
from deflect_hf.inference.scenes import Scene
from deflect_hf.inference.spool import Part
from deflect_hf.inference.tiling import Axis
from deflect_hf.inference.trained import TrainedModel, refuse_overflow
from deflect_hf.raster.maps import SQUARE

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batch(NamedTuple):
    """Windows of one row, read.

    Attributes:
        pixel_values: (B, C, h, w) reflectance, of the windows in which something was measured.
        columns: which these are along the row.
        left: first pixel column of ``measured``.
        measured: (height of a window, w) bool, where any band holds a measurement.
    """

    pixel_values: Tensor
    columns: list[int]
    left: int
    measured: Tensor


class Sums(NamedTuple):
    """(K, h, w) weighted sums of logits, NaN where not measured, and the first pixel row and column of them."""

    row: int
    column: int
    values: Tensor


class Ledge:
    """(K, height, W) sums of the pixel rows that a row of windows shares with the next, on disk.

    Args:
        folder: where they are kept, without a name, so that nothing stays behind.
        height: pixel rows that are shared.
    """

    def __init__(self, folder: Path, classes: int, height: int) -> None:
        self.height = height
        self._shape = (classes, height)
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 it outlives this call
        self._step = classes * height * np.dtype(np.float32).itemsize

    def put(self, column: int, sums: Tensor) -> None:
        """Keep (K, height, w) sums from a pixel column on."""
        self._file.seek(column * self._step)
        self._file.write(sums.permute(2, 0, 1).contiguous().cpu().numpy().tobytes())

    def get(self, column: int, width: int) -> Tensor:
        """(K, height, width) sums from a pixel column on."""
        self._file.seek(column * self._step)
        content = bytearray(self._file.read(width * self._step))
        return torch.frombuffer(content, dtype=torch.float32).view(width, *self._shape).permute(1, 2, 0)

    def close(self) -> None:
        """Give the room on disk back."""
        self._file.close()


class Band:
    """The pixel columns of a row of windows that are not finished: sums of logits, and where something was measured.

    Args:
        classes, height: K, and of a window.
        width: the most pixel columns that are held at a time.
    """

    def __init__(self, classes: int, height: int, width: int, device: torch.device) -> None:
        self.sums = torch.zeros(classes, height, width, device=device)
        self.measured = torch.zeros(height, width, dtype=torch.bool)
        self.left = self.right = 0

    def begin(self) -> None:
        """Forget the row before."""
        self.sums.zero_()
        self.left = self.right = 0

    def reach(self, right: int, above: Ledge | None) -> None:
        """Hold the columns up to before ``right``, too, with what the row above left to them."""
        if above is not None:
            sums = above.get(self.right, right - self.right)
            self.sums[:, : above.height, self.right - self.left : right - self.left] = sums
        self.right = right

    def note(self, batch: Batch) -> None:
        """Where a batch found something measured, among the columns that are held."""
        known = max(0, self.left - batch.left)
        measured = batch.measured[:, known : self.right - batch.left]
        first = batch.left + known - self.left
        self.measured[:, first : first + measured.shape[1]] = measured

    def forget(self, stop: int) -> None:
        """The columns before ``stop`` are finished."""
        kept = self.right - stop
        rest = self.sums[..., stop - self.left : self.right - self.left].clone()
        self.sums.zero_()[..., :kept] = rest
        self.measured[:, :kept] = self.measured[:, stop - self.left : self.right - self.left].clone()
        self.left = stop


@dataclass(frozen=True)
class SceneWindows:
    """The windows of a scene and the model that predicts them."""

    scene: Scene
    predictor: TrainedModel
    rows: Axis
    columns: Axis
    batch_size: int

    def sums(self, part: Part, done: Callable[[int], object], scratch: Path) -> Generator[Sums]:
        """Weighted sums of logits of a part: its rows of windows from top to bottom, each from left to right.

        They begin at columns that are multiples of SQUARE, and are no wider. Close it before the image: it reads ahead.

        Args:
            done: told how many windows were done since it was last told.
            scratch: folder of a writable disk, for what a row of windows leaves to the next.
        """
        jobs = [(row, group) for row in range(part.first, part.stop) for group in self._groups]
        above: Ledge | None = None
        with ExitStack() as ledges, closing(ahead(self.read, jobs)) as batches:
            for row in range(part.first, part.stop):
                end = self.rows.ends[row]
                final = self.rows.starts[row + 1] if row + 1 < part.stop else end
                below = Ledge(scratch, len(self.predictor.classes), end - final) if end > final else None
                if below is not None:
                    ledges.callback(below.close)
                yield from self._row(row, final, batches, done, (above, below))
                if above is not None:
                    above.close()
                above = below

    def _row(
        self,
        row: int,
        final: int,
        batches: Iterator[Batch],
        done: Callable[[int], object],
        ledges: tuple[Ledge | None, Ledge | None],
    ) -> Iterator[Sums]:
        """The sums of one row of windows, whose pixel rows from ``final`` on are left to the next."""
        start, end, offset = self.rows.starts[row], self.rows.ends[row], self.rows.offsets[row]
        above, below = ledges
        band = self._band
        band.begin()
        for group, following in zip(self._groups, [*self._groups[1:], None], strict=True):
            batch = next(batches)
            band.reach(self.columns.ends[group[-1]], above)
            band.note(batch)
            if batch.columns:
                self._add(band, row, batch)
            done(len(group))
            stop = band.right if following is None else self.columns.starts[following[0]] // SQUARE * SQUARE
            for column in range(band.left, stop, SQUARE):
                held = slice(column - band.left, min(column + SQUARE, stop) - band.left)
                measured = band.measured[start - offset : final - offset, held]
                yield Sums(start, column, band.sums[:, : final - start, held].cpu().masked_fill(~measured, torch.nan))
            if below is not None:
                below.put(band.left, band.sums[:, final - start : end - start, : stop - band.left])
            band.forget(stop)

    def read(self, job: tuple[int, range]) -> Batch:
        """The windows of a row that ``job`` numbers: read in one piece, made reflectance one by one."""
        row, group = job
        size = self.rows.size, self.columns.size
        offsets = [self.columns.offsets[column] for column in group]
        left = offsets[0]
        stored = self.scene.stored(self.rows.offsets[row], left, size[0], offsets[-1] - left + size[1])
        measured = torch.zeros(size[0], min(offsets[-1] + size[1], self.scene.info.width) - left, dtype=torch.bool)
        pixel_values = torch.empty(len(group), len(self.predictor.processor.bands), *(self._size or size))
        kept: list[int] = []
        for column, offset in zip(group, offsets, strict=True):
            here = slice(offset - left, offset - left + size[1])
            window = self.scene.convert(stored, here, size)
            seen = torch.isfinite(window).any(dim=0)
            if bool(seen.any()):
                pixel_values[len(kept)] = window if self._size is None else resize(window, self._size)
                kept.append(column)
            measured[:, here] = seen[:, : measured.shape[1] - here.start]
        return Batch(pixel_values[: len(kept)], kept, left, measured)

    @functools.cached_property
    def _groups(self) -> list[range]:
        """Windows of a row that are predicted together."""
        count = len(self.columns)
        return [range(first, min(first + self.batch_size, count)) for first in range(0, count, self.batch_size)]

    @functools.cached_property
    def _band(self) -> Band:
        """The largest thing held, made once: as wide as a group of windows and the square that it leaves unfinished."""
        widest = max(self.columns.ends[group[-1]] - self.columns.starts[group[0]] for group in self._groups)
        width = min(widest + SQUARE, self.columns.length)
        return Band(len(self.predictor.classes), self.rows.size, width, self.predictor.device)

    @property
    def _size(self) -> tuple[int, int] | None:
        """What the model's images are resized to."""
        size = self.predictor.processor.size
        return None if size is None else (size["height"], size["width"])

    def _add(self, band: Band, row: int, batch: Batch) -> None:
        """Add the weighted logits of a batch to ``band``, which starts where ``row`` begins to count."""
        start, end, offset = self.rows.starts[row], self.rows.ends[row], self.rows.offsets[row]
        down = torch.from_numpy(self.rows.weights[row]).to(band.sums.device)[:, None]
        for column, logits in zip(batch.columns, self.logits(batch.pixel_values), strict=True):
            left, right, first = self.columns.starts[column], self.columns.ends[column], self.columns.offsets[column]
            weight = down * torch.from_numpy(self.columns.weights[column]).to(band.sums.device)
            piece = logits[:, start - offset : end - offset, left - first : right - first]
            band.sums[:, : end - start, left - band.left : right - band.left].addcmul_(piece, weight)

    def logits(self, pixel_values: Tensor) -> Tensor:
        """(B, C, h, w) reflectance, resized if the model wants it so -> (B, K, height, width) logits of the windows.

        Raises:
            DataError: values so large that the model's computation overflows.
        """
        logits = self.predictor.forward(pixel_values, None if self._size is None else self.predictor.window)
        fix = "say which stored values are no measurement (--nodata, --qa_band)."
        refuse_overflow(logits, pixel_values, self.scene.info.path, fix)
        if self._size is None:
            return logits
        size = (self.rows.size, self.columns.size)
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def ahead(read: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result]:
    """``map(read, items)``, where one item is read in another thread while the one before it is worked on."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming: Future[Result] | None = None
        for item in items:
            following = pool.submit(read, item)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()
