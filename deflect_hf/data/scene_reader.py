"""Windows straight from scenes: the pixels of the image, and of its labels, whatever they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from deflect_hf.data.dataset import Stored
from deflect_hf.data.folder_reader import FolderReader
from deflect_hf.data.places import Region
from deflect_hf.raster.georeference import part_of
from deflect_hf.raster.header import Array, Box, Color, RasterInfo
from deflect_hf.raster.products import Product
from deflect_hf.raster.read import read_mask
from deflect_hf.raster.vector import Shapes


@dataclass(frozen=True)
class ShapeLabels:
    """Polygons and points."""

    path: str
    shapes: Mapping[str, Shapes]  # by split, under ``""`` where all splits see the same
    all_touched: bool
    background: int | None  # class value of all other ground, None where it has no label
    unknown: Shapes | None = None  # features without a class, whose ground is no background

    def read(self, info: RasterInfo, box: Box, split: str) -> tuple[Array, Array]:
        """(h, w) class values of a box of the scene, and where there are any that the split may see."""
        shapes = self.shapes.get(split, self.shapes.get(""))
        if shapes is None:
            return np.zeros(box[2:], np.int32), np.zeros(box[2:], dtype=bool)
        values, labelled = shapes.burn(box, self.all_touched)
        if self.background is None:
            return values, labelled
        claimed = shapes.claimed(box, self.all_touched)  # by two classes, maybe, which is no background
        if self.unknown is not None:
            claimed |= self.unknown.claimed(box, self.all_touched)
        return np.where(claimed, values, self.background), labelled | ~claimed


@dataclass(frozen=True)
class RasterLabels:
    """A raster of classes, stored or painted in ``colors``, on the grid of the scene or resampled to it."""

    path: str
    georeferenced: bool
    colors: Mapping[Color, int] | None = None

    def read(self, info: RasterInfo, box: Box, split: str) -> tuple[Array, Array]:
        """(h, w) class values of a box of the scene, and where they are valid."""
        if self.georeferenced:
            mask = read_mask(self.path, onto=part_of(info, box), resample=True, colors=self.colors)
        else:
            mask = read_mask(self.path, window=box, colors=self.colors)
        return mask.values[0], mask.valid[0]


SceneLabels = ShapeLabels | RasterLabels


@dataclass(frozen=True)
class SceneReader:
    """Reads the window of a row."""

    reader: FolderReader  # what the bands of the scenes are
    # infos, labels, products: of each scene
    infos: tuple[RasterInfo, ...]
    labels: tuple[SceneLabels, ...]
    products: tuple[Product, ...]
    window: int  # side of the windows in pixels; a smaller one is filled up with pixels that were not measured
    regions: tuple[Region, ...]  # what is in which split
    classes: tuple[str, ...]
    values: tuple[int, ...]  # stored value of each of the ``classes``
    cells: tuple[Mapping[str, Any], ...] = ()  # of training: rows for windows of a grid, from which others are drawn

    def read(self, row: Mapping[str, Any]) -> Stored:
        """Read the window of a row: only its ``core`` keeps its labels, the rest belongs to other windows."""
        info, labels, box = self.infos[row["scene"]], self.labels[row["scene"]], tuple(row["box"])
        raster = self.reader.raster(self.products[row["scene"]], box)
        values, labelled = labels.read(info, box, row["split"])
        top, left, height, width = row["core"]
        rows, columns = np.arange(box[0], box[0] + box[2]), np.arange(box[1], box[1] + box[3])
        labelled &= ((rows >= top) & (rows < top + height))[:, None] & ((columns >= left) & (columns < left + width))
        return Stored(
            self._filled(raster.values),
            raster.bands,
            self._filled(values),
            info.path,
            self._filled(raster.valid),
            self._filled(labelled),
            labels.path,
        )

    def draw(self, row: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """A window that holds one of the labelled pixels of one of the row's cells, anywhere in it, in their region."""
        first, last = row["cells"]
        row = {**row, **self.cells[first + int(torch.randint(last - first, (), generator=generator))]}
        core, (top, left, height, width) = tuple(row["core"]), row["region"]
        _, labelled = self.labels[row["scene"]].read(self.infos[row["scene"]], core, row["split"])
        rows, columns = labelled.nonzero()
        at = int(torch.randint(len(rows), (), generator=generator))
        shift = torch.randint(self.window, (2,), generator=generator).tolist()
        row_, column_ = core[0] + int(rows[at]) - shift[0], core[1] + int(columns[at]) - shift[1]
        high, wide = min(self.window, height), min(self.window, width)
        box = (min(max(row_, top), top + height - high), min(max(column_, left), left + width - wide), high, wide)
        return {**row, "box": box, "core": box}

    def label_counts(self) -> Array:
        """(K,) labelled pixels of each class in the cells of training, also of those that no epoch has drawn yet."""
        return np.sum([cell["counts"] for cell in self.cells], axis=0)

    def _filled(self, values: Array) -> Array:
        """(..., h, w) -> (..., window, window), zeros on the right and below, which are valid nowhere."""
        short = [(0, 0)] * (values.ndim - 2) + [(0, self.window - side) for side in values.shape[-2:]]
        return np.pad(values, short) if values.shape[-2:] != (self.window, self.window) else values
