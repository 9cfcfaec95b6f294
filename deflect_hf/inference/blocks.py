"""A map in independent blocks: each predicts every window that reaches into it, and blends them.

A block needs nothing of its neighbours, so that blocks can be made in any order, by any process, and again after an
interruption; the windows at their borders, 10 to 20 % of all, are then predicted more than once. One that is made right
after the block above it takes what that one's last windows count for in it, with the same bits. Memory depends on the
size of windows and batches, not on the scene: pixel rows are given on as soon as no further window counts for them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deflect_hf.data.processor import resize
from deflect_hf.inference.model import MapModel, refuse_overflow
from deflect_hf.inference.scenes import Axis, Scene

WINDOWS_PER_BLOCK = 256
LEAST_WINDOWS = 8  # along each side of a block: with fewer, too much is predicted twice
SUMS_BYTES = 2**23  # of logits that are added up at a time, which bounds the width of a block


class Block(NamedTuple):
    """A rectangle of the map in its pixels, and the rows and columns of windows that count for some of it."""

    number: int
    top: int
    bottom: int
    left: int
    right: int
    rows: range
    columns: range


class Batch(NamedTuple):
    """Windows of one row, read: those in which something was measured."""

    pixel_values: list[Tensor]  # (C, h, w) reflectance of each; resized, if training did
    columns: list[int]  # which these are along the row
    left: int  # first column of `measured` in the map
    measured: Tensor  # (height of a window, w) bool, where any band holds a measurement


@dataclass
class Overhang:
    """What the windows of the block that was made last count for below it."""

    block: Block | None = None
    sums: Tensor | None = None  # (K, height of a window, width of the block), from its bottom on

    def over(self, block: Block) -> tuple[Tensor | None, range]:
        """The sums for a block that lies right below, once, and the rows of windows that they lack."""
        above, sums = self.block, self.sums
        self.block = self.sums = None
        if above is None or (above.bottom, above.left, above.right) != (block.top, block.left, block.right):
            return None, block.rows
        return sums, range(above.rows.stop, block.rows.stop)


@dataclass(frozen=True)
class SceneWindows:
    """The windows of a scene and the model that predicts them."""

    scene: Scene
    predictor: MapModel
    rows: Axis  # counted in pixels of the map, as ``columns``
    columns: Axis
    batch_size: int
    # height and width in pixels of the scene of a token, which is then a pixel of the map; None: maps of classes and
    # values, on the pixels of the scene
    token: tuple[int, int] | None

    @property
    def channels(self) -> int:
        """Classes, or features of a token."""
        return len(self.predictor.classes) if self.token is None else self.predictor.embedding_size

    def blocks(self) -> list[Block]:
        """The blocks of the map, row by row."""
        pixels = SUMS_BYTES / (self.channels * torch.float32.itemsize * self.rows.size)
        wide = max(LEAST_WINDOWS, int(pixels * len(self.columns) / self.columns.length))
        tall = max(LEAST_WINDOWS, -(-WINDOWS_PER_BLOCK // min(wide, len(self.columns))))
        found: list[Block] = []
        for top, bottom, rows in self.rows.split(tall):
            for left, right, columns in self.columns.split(wide):
                found.append(Block(len(found), top, bottom, left, right, rows, columns))
        return found

    def logits(self, block: Block, done: Callable[[int], object], overhang: Overhang) -> Generator[Tensor]:
        """(K, h, W) logits, or features of tokens, of the block's rows, top to bottom, NaN where nothing was measured.

        Close it before the image: it reads ahead. ``done`` is told how many windows were done since its last call.
        """
        groups = [
            block.columns[first : first + self.batch_size] for first in range(0, len(block.columns), self.batch_size)
        ]
        size, width = self.rows.size, block.right - block.left
        sums, rows = overhang.over(block)
        if sums is None:
            sums = torch.zeros(self.channels, size, width, device=self.predictor.device)
        done((len(block.rows) - len(rows)) * len(block.columns))
        below = self.rows.ends[block.rows[-1]]
        measured = torch.zeros(size, width, dtype=torch.bool)
        top = block.top  # pixel row that `sums` begins with: those above have been given on
        with closing(self._batches([(row, group) for row in rows for group in groups])) as batches:
            for row in rows:
                for group in groups:
                    batch = next(batches)
                    low = max(batch.left, block.left)
                    high = min(batch.left + batch.measured.shape[1], block.right)
                    seen = batch.measured[:, low - batch.left : high - batch.left]
                    measured[:, low - block.left : high - block.left] = seen
                    self._add(sums, row, batch, (top, below, block.left, block.right))
                    done(len(group))
                end = block.bottom if row == block.rows[-1] else max(top, self.rows.starts[row + 1])
                finished, first = end - top, top - self.rows.offsets[row]
                if finished:
                    yield sums[:, :finished].cpu().masked_fill(~measured[first : first + finished], torch.nan)
                    sums[:, : size - finished] = sums[:, finished:].clone()
                    sums[:, size - finished :] = 0
                top = end
        overhang.block, overhang.sums = block, sums

    def _batches(self, groups: list[tuple[int, range]]) -> Generator[Batch]:
        """Each is read in another thread while the one before it is worked on."""
        with ThreadPoolExecutor(max_workers=1) as pool:
            coming = pool.submit(self._read, *groups[0])
            for group in groups[1:]:
                batch, coming = coming, pool.submit(self._read, *group)
                yield batch.result()
            yield coming.result()

    def _read(self, row: int, group: range) -> Batch:
        """Some windows of a row, read in one piece."""
        down, across = self.token or (1, 1)
        left, side = self.columns.offsets[group[0]], self.columns.size * across
        width = self.columns.offsets[group[-1]] * across + side - left * across
        strip = self.scene.read(self.rows.offsets[row] * down, left * across, self.rows.size * down, width)
        measured = torch.isfinite(strip).any(dim=0)
        starts = {column: (self.columns.offsets[column] - left) * across for column in group}
        kept = [column for column in group if bool(measured[:, starts[column] : starts[column] + side].any())]
        windows = [strip[..., starts[column] : starts[column] + side] for column in kept]
        if self._size is not None:
            windows = [resize(window, self._size) for window in windows]
        tokens = measured.unflatten(1, (-1, across)).unflatten(0, (-1, down)).any(dim=3).any(dim=1)
        return Batch(windows, kept, left, tokens)

    def _add(self, sums: Tensor, row: int, batch: Batch, box: tuple[int, int, int, int]) -> None:
        """Add the weighted logits of a batch to ``sums``, which are those of the pixels of ``box``."""
        if not batch.columns:
            return
        top, bottom, left, right = box
        there, inside, weights = self.rows.share(row, top, bottom)
        down = torch.from_numpy(weights).to(sums.device)[:, None]
        for column, logits in zip(batch.columns, self._predict(torch.stack(batch.pixel_values)), strict=True):
            across, within, weights = self.columns.share(column, left, right)
            sums[:, there, across].addcmul_(logits[:, inside, within], down * torch.from_numpy(weights).to(sums.device))

    def _predict(self, pixel_values: Tensor) -> Tensor:
        """(B, C, h, w) reflectance, resized if the model wants it so -> (B, K, height, width) logits of the windows."""
        if self.token is not None:
            logits = self.predictor.embeddings(pixel_values)
        else:
            logits = self.predictor.forward(pixel_values, None if self._size is None else self.predictor.window)
        fix = "say which stored values are no measurement (--nodata, --qa_band)."
        refuse_overflow(logits, pixel_values, self.scene.info.path, fix)
        if self._size is None or self.token is not None:
            return logits
        return F.interpolate(logits, size=(self.rows.size, self.columns.size), mode="bilinear", align_corners=False)

    @property
    def _size(self) -> tuple[int, int] | None:
        """What the model's images are resized to."""
        size = self.predictor.processor.size
        return None if size is None else (size["height"], size["width"])
