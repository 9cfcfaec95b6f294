"""Georeferenced images of any size: what their numbers mean for a trained model, and how they are cut into windows."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import shlex
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deflect_hf.config.data import DatasetArguments
from deflect_hf.config.inference import SceneArguments
from deflect_hf.config.reading import ReadingArguments
from deflect_hf.data.collate import refuse_beyond_memory
from deflect_hf.data.contract import check_reflectance, refuse_coarse, refuse_mixed_units
from deflect_hf.data.fills import Fills
from deflect_hf.data.folder_reader import FolderReader, settle_reader
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.errors import ConfigError, DataError
from deflect_hf.inference.model import MapModel
from deflect_hf.raster.georeference import ground_m
from deflect_hf.raster.header import RasterInfo
from deflect_hf.raster.maps import Array
from deflect_hf.raster.products import Product
from deflect_hf.raster.read import OpenRaster, open_raster, raster_info

logger = logging.getLogger(__name__)

SAMPLE_SIDE = 128  # pixels
SAMPLES = 4  # per axis


@dataclass(frozen=True)
class Axis:
    """Windows along one axis of a scene.

    A window counts nothing in its outermost quarter of the overlap, where a model sees the least around a pixel, then
    rises along half a cosine to 1; at the edge of the scene it counts fully up to the last pixel. The weights sum to 1
    at every pixel, so that what all windows agree on comes out unchanged. As windows form a grid, the weight of one is
    the product of its weights along rows and columns.
    """

    length: int  # pixels of the scene
    size: int  # pixels of a window; a single window may be longer than the scene
    offsets: tuple[int, ...]  # first pixel of each window, rising
    margin: int  # pixels at an inner border of a window that it counts nothing for

    @classmethod
    def cover(cls, length: int, size: int, overlap: float, step: int) -> Axis:
        """Windows of ``size`` pixels that overlap by at least the share ``overlap``, at multiples of ``step`` pixels.

        The last one ends at the scene's edge, wherever that is, rather than looking beyond it.
        """
        if length <= size:
            return cls(length, size, (0,), 0)
        shared = min(math.ceil(overlap * size), size - 1)
        stride = max((size - shared) // step * step, min(step, size))
        offsets = [*range(0, length - size, stride), length - size]
        return cls(length, size, tuple(offsets), (size - stride) // 4)

    def __len__(self) -> int:
        return len(self.offsets)

    @functools.cached_property
    def starts(self) -> list[int]:
        """First pixel that each window counts for."""
        return [0] + [offset + self.margin for offset in self.offsets[1:]]

    @functools.cached_property
    def ends(self) -> list[int]:
        """One past the last pixel that each window counts for."""
        return [offset + self.size - self.margin for offset in self.offsets[:-1]] + [self.length]

    def split(self, most: int) -> list[tuple[int, int, range]]:
        """Stretches of about equal length: first pixel, one past the last, and the windows that count there.

        Args:
            most: windows that begin to count in a stretch; those that reach into it from outside come on top.
        """
        count = -(-len(self) // most)
        edges = [*(self.starts[len(self) * number // count] for number in range(count)), self.length]
        return [
            (low, high, range(bisect_right(self.ends, low), bisect_left(self.starts, high)))
            for low, high in itertools.pairwise(edges)
        ]

    def share(self, number: int, low: int, high: int) -> tuple[slice, slice, Array]:
        """The pixels from ``low`` to before ``high`` that a window counts for: there, in the window, their weights."""
        start, stop = max(self.starts[number], low), min(self.ends[number], high)
        offset, first = self.offsets[number], self.starts[number]
        there, inside = slice(start - low, stop - low), slice(start - offset, stop - offset)
        return there, inside, self.weights[number][start - first : stop - first]

    @functools.cached_property
    def weights(self) -> list[Array]:
        """(ends - starts,) float32 weights of each window, from its first to its last pixel that counts."""
        spans = list(zip(self.starts, self.ends, strict=True))
        raw, total = [], np.zeros(self.length)
        for number, (start, end) in enumerate(spans):
            values = np.ones(end - start)
            if number > 0:
                rise = _half_cosine(min(self.ends[number - 1], end) - start)
                values[: len(rise)] *= rise
            if number < len(self) - 1:
                fall = _half_cosine(end - max(self.starts[number + 1], start))[::-1]
                values[len(values) - len(fall) :] *= fall
            raw.append(values)
            total[start:end] += values
        return [(values / total[start:end]).astype(np.float32) for values, (start, end) in zip(raw, spans, strict=True)]


def _half_cosine(width: int) -> Array:
    """(width,) from 0 to 1, at the centers of the pixels."""
    return 0.5 - 0.5 * np.cos(np.pi * (np.arange(width) + 0.5) / max(width, 1))


@dataclass(frozen=True)
class Scene:
    """An open image, and how its stored values become reflectance."""

    file: OpenRaster
    info: RasterInfo
    reader: FolderReader
    # neither resizes nor judges the values, which is for a whole window and for the whole scene
    processor: MultispectralImageProcessor
    # not empty once the quality layer has taken out a pixel that was read
    flagged: set[bool] = field(default_factory=set)

    @classmethod
    def of(cls, file: OpenRaster, trained: MultispectralImageProcessor, arguments: SceneArguments) -> Scene:
        """Settle what the numbers of a file mean for a trained model, and look at some of them."""
        info = raster_info(file)
        gsd_m = arguments.gsd_m if arguments.gsd_m is not None else ground_m(info)
        if gsd_m is None and trained.gsd_m is not None:
            logger.warning(
                "%s: how large its pixels are is not known; the model was trained on %g m (--gsd_m says it)",
                info.path,
                trained.gsd_m,
            )
        reading = {name: getattr(arguments, name) for name in ReadingArguments.model_fields} | {"gsd_m": gsd_m}
        described = DatasetArguments(name="folder", root=info.path, **reading)
        if info.crs is None:
            _warn_of_loose_georeference(file)
        side = arguments.window or (trained.trained_size[0] if trained.trained_size else None)
        reader, processor = settle_reader(described, info, trained, height=side)
        plain = MultispectralImageProcessor.from_dict(processor.to_dict(), size=None, unit_check=False)
        scene = cls(file, info, reader, plain)
        if processor.unit_check and processor.unit == "reflectance":
            scene.refuse_mixed_units()
            sample = scene.sample()
            check_reflectance(sample, info.path, processor.bands)
            refuse_coarse(np.dtype(info.dtype), processor.scale, processor.bands, info.path)
            trained.contract.check_values(sample, info.path)
            fills = Fills(processor.scale, processor.offset)
            fills.update(sample)
            fills.report(info.path)
        return scene

    def sample(self) -> Tensor:
        """(C, h, w) reflectance: small windows spread over the scene, side by side."""
        return torch.cat([self.read(*box) for box in self._samples()], dim=-1)

    def refuse_mixed_units(self) -> None:
        """Refuse bands of fractions among digital numbers (UnitError), by the same windows as they are stored."""
        if np.dtype(self.info.dtype).kind != "f":
            return
        parts = [self.reader.raster(self.file, box) for box in self._samples()]
        bands, known = parts[0].bands, self.processor
        scales = np.broadcast_to(known.scale, len(known.bands))[[known.bands.index(band) for band in bands]]
        stored = np.concatenate([np.where(part.valid, part.values, 0) for part in parts], axis=-1)
        refuse_mixed_units(stored, scales.reshape(-1, 1, 1), bands, self.info.path)

    def _samples(self) -> list[tuple[int, int, int, int]]:
        """Rows, columns, heights and widths of windows spread over the scene, none over another."""
        height, width = (min(SAMPLE_SIDE, max(1, length // SAMPLES)) for length in (self.info.height, self.info.width))
        rows = np.linspace(0, self.info.height - height, SAMPLES).astype(int)
        columns = np.linspace(0, self.info.width - width, SAMPLES).astype(int)
        return [
            (row, column, height, width) for row, column in sorted({(int(r), int(c)) for r in rows for c in columns})
        ]

    def read(self, row: int, column: int, height: int, width: int) -> Tensor:
        """(C, height, width) reflectance; NaN where nothing was measured and beyond the last row and column."""
        size = min(height, self.info.height - row), min(width, self.info.width - column)
        stored = self.reader.raster(self.file, (row, column, *size))
        self.flagged.update({True} if stored.flagged else ())
        pixels = self.processor.convert(stored.values, stored.bands, stored.valid, self.info.path)
        beyond = (0, width - pixels.shape[-1], 0, height - pixels.shape[-2])
        return F.pad(pixels, beyond, value=math.nan) if any(beyond) else pixels


def files_of(product: Product) -> list[Path]:
    """The files that the pixels of an image come from: itself, masks, sidecars, and those that a VRT refers to."""
    found: set[Path] = set()
    todo = [Path(product), *(Path(layer.file) for layer in product.layers or ())]
    while todo:
        path = todo.pop()
        if path not in found and path.is_file():
            found.add(path)
            with contextlib.suppress(DataError), open_raster(path) as file:  # a sidecar is no raster
                todo += map(Path, file.source.files)
    return sorted(found)


def _warn_of_loose_georeference(file: OpenRaster) -> None:
    """Say why the map of an image will lie nowhere, although programs know where the image lies."""
    kind = "ground control points" if file.source.gcps[0] else "a camera model (RPC)" if file.source.rpcs else None
    if kind is not None:
        logger.warning(
            "%s is placed on the ground by %s, not by a grid: its map will have no georeference. For one that has, "
            "bring the image to a grid first: gdalwarp -t_srs EPSG:4326 %s GRID.tif",
            file,
            kind,
            shlex.quote(file.path),
        )


def window_size(predictor: MapModel, side: int | None) -> tuple[int, int]:
    """Height and width of the windows in stored pixels: as asked, else what the model was trained on."""
    processor = predictor.processor
    fixed = predictor.input_size if processor.size is None else None
    if fixed is not None and side is not None and fixed != (side, side):
        raise ConfigError(
            f"--window {side}: the exported file takes images of {fixed[0]} x {fixed[1]} pixels alone: leave it out."
        )
    plain = processor.size is None
    of_evaluation, pretrained = (predictor.window, predictor.pretrained_size) if plain else (None, None)
    known = [size for size in (fixed, side, of_evaluation, processor.trained_size, pretrained) if size is not None]
    if not known:
        raise ConfigError("give --window, the side of the training images in pixels: the trained folder does not say.")
    height, width = (known[0], known[0]) if isinstance(known[0], int) else known[0]
    if known == [pretrained]:
        logger.warning(
            "windows of %d x %d pixels, the size of the encoder's pretraining, as the trained folder does not say how "
            "large its images were: --window is best their side",
            height,
            width,
        )
    patch = predictor.patch_size
    if side is None and plain:  # images of training were filled up to whole patches
        height, width = (-(-length // step) * step for length, step in zip((height, width), patch, strict=True))
    if plain and (height % patch[0] or width % patch[1]):
        near = max(1, round(height / patch[0])) * patch[0]
        raise ConfigError(
            f"--window {height}: no multiple of the model's patches, {patch[0]} x {patch[1]} pixels; give {near}."
        )
    return height, width


def cut(predictor: MapModel, info: RasterInfo, arguments: SceneArguments) -> tuple[Axis, Axis, tuple[int, int] | None]:
    """The windows along rows and columns. A scene smaller than a window is one, filled up to whole patches.

    Those of embeddings are counted in tokens, so that all lie on one grid, whose last tokens may reach beyond the
    scene; the third is then the height and width of a token in pixels, else None.
    """
    sizes, resized = window_size(predictor, arguments.window), predictor.processor.size
    refuse_beyond_memory("--window", 1, [len(predictor.processor.bands), *sizes])
    inputs = sizes if resized is None else (resized["height"], resized["width"])
    sides = zip((info.height, info.width), sizes, inputs, predictor.patch_size, predictor.token_size, strict=True)
    axes, token = [], []
    for length, size, given, patch, of_token in sides:
        step, shortest = patch, -(-length // patch) * patch
        if arguments.output == "embeddings":
            count = given // of_token
            if size % count:
                raise ConfigError(
                    f"windows of {size} pixels hold {count} tokens a side, which do not lie on whole pixels: give "
                    f"--window {max(1, round(size / count)) * count} for embeddings."
                )
            token.append(size // count)
            length = shortest = -(-length // token[-1])
            size, step = count, 1
        # a window that is resized keeps its size, without which the image would not keep its scale
        size, step = (min(size, shortest), step) if resized is None else (size, 1)
        axes.append(Axis.cover(length, size, arguments.overlap, step))
    return axes[0], axes[1], (token[0], token[1]) if token else None
