"""Georeferenced images of any size, window by window: read, predicted and blended.

Memory does not depend on the height of a scene; of its width it holds one row of windows: classes x height of a window
x width of the scene x 4 bytes.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deflect_hf.contract import check_reflectance
from deflect_hf.data.arguments import DatasetArguments
from deflect_hf.data.folder import FolderReader, settle_reader
from deflect_hf.errors import ConfigError
from deflect_hf.georeference import pixel_areas
from deflect_hf.inference.arguments import SceneArguments
from deflect_hf.inference.predictor import Predictor
from deflect_hf.inference.spool import Part
from deflect_hf.inference.tiling import Axis
from deflect_hf.methods import task_model
from deflect_hf.models.configuration import as_pair
from deflect_hf.processing import MultispectralImageProcessor, resize
from deflect_hf.raster import OpenRaster, raster_info, read_raster
from deflect_hf.raster_header import RasterInfo
from deflect_hf.training.evaluation import predict_logits

logger = logging.getLogger(__name__)

SAMPLE_SIDE = 128  # pixels
SAMPLES = 4  # per axis
PIECE_PIXELS = 2**18  # of which classes are made at a time
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Scene:
    """An open image, and how its stored values become reflectance.

    Attributes:
        processor: neither resizes nor judges the values, which is for a whole window and for the whole scene.
    """

    file: OpenRaster
    info: RasterInfo
    reader: FolderReader
    processor: MultispectralImageProcessor

    @classmethod
    def of(cls, file: OpenRaster, trained: MultispectralImageProcessor, arguments: SceneArguments) -> Scene:
        """Settle what the numbers of a file mean for a trained model, and look at some of them.

        Raises:
            BandError: the bands cannot be named, or one that the model needs is missing.
            UnitError: the values cannot be reflectance, or the model was trained in another unit.
        """
        info = raster_info(file)
        gsd_m = arguments.gsd_m if arguments.gsd_m is not None else _ground_m(info)
        if gsd_m is None and trained.gsd_m is not None:
            logger.warning(
                "%s: how large its pixels are is not known; the model was trained on %g m (--gsd_m says it)",
                info.path,
                trained.gsd_m,
            )
        described = DatasetArguments(
            name="folder",
            root=info.path,
            sensor=arguments.sensor,
            source_bands=arguments.source_bands,
            scale=arguments.scale,
            offset=arguments.offset,
            nodata=arguments.nodata,
            qa_band=arguments.qa_band,
            qa_values=arguments.qa_values,
            unit_check=arguments.unit_check,
            gsd_m=gsd_m,
        )
        reader, processor = settle_reader(described, info, trained)
        plain = MultispectralImageProcessor.from_dict(processor.to_dict(), size=None, unit_check=False)
        scene = cls(file, info, reader, plain)
        if processor.unit_check and processor.unit == "reflectance":
            check_reflectance(scene.sample(), info.path)
        return scene

    def sample(self) -> Tensor:
        """(C, h, w) reflectance: small windows spread over the scene, side by side."""
        height, width = (min(SAMPLE_SIDE, length) for length in (self.info.height, self.info.width))
        rows = np.linspace(0, self.info.height - height, SAMPLES).astype(int)
        columns = np.linspace(0, self.info.width - width, SAMPLES).astype(int)
        corners = {(int(row), int(column)) for row in rows for column in columns}
        return torch.cat([self.read(row, column, height, width) for row, column in sorted(corners)], dim=-1)

    def read(self, row: int, column: int, height: int, width: int) -> Tensor:
        """(C, height, width) reflectance; NaN where nothing was measured and beyond the last row and column."""
        inside = min(height, self.info.height - row), min(width, self.info.width - column)
        raster = read_raster(
            self.file,
            self.reader.bands,
            needed=self.reader.needed_bands,
            source_bands=self.reader.source_bands,
            sensor=self.reader.sensor,
            window=(row, column, *inside),
            quality=self.reader.quality,
        )
        pixels = self.processor.convert(raster.values, raster.bands, raster.valid, self.info.path)
        if inside == (height, width):
            return pixels  # padding copies, by nothing too
        return F.pad(pixels, (0, width - inside[1], 0, height - inside[0]), value=math.nan)


def _ground_m(info: RasterInfo) -> float | None:
    """Size of a pixel on the ground in metres, by latitude where the coordinates are degrees."""
    if info.gsd_m is not None:
        return info.gsd_m
    areas = pixel_areas(info).rows_m2
    return None if areas is None else float(np.sqrt(np.median(areas)))


def window_size(predictor: Predictor, side: int | None) -> tuple[int, int]:
    """Height and width of the windows in stored pixels: as asked, else what the model was trained on.

    Raises:
        ConfigError: no multiple of the patch size, or not known.
    """
    config, processor = task_model(predictor.model).config, predictor.processor
    pretraining = getattr(config.encoder_config, "image_size", None)
    if side is not None:
        height, width = side, side
    elif predictor.window is not None and processor.size is None:
        height, width = predictor.window, predictor.window
    elif processor.trained_size is not None:
        height, width = processor.trained_size
    elif pretraining is not None and processor.size is None:
        height, width = as_pair(pretraining)
        logger.warning(
            "windows of %d x %d pixels, the size of the encoder's pretraining, as the trained folder does not say how "
            "large its images were: --window is best their side",
            height,
            width,
        )
    else:
        raise ConfigError("give --window, the side of the training images in pixels: the trained folder does not say.")
    patch = config.patch_size
    if processor.size is None and (height % patch[0] or width % patch[1]):
        near = max(1, round(height / patch[0])) * patch[0]
        raise ConfigError(
            f"--window {height}: no multiple of the model's patches, {patch[0]} x {patch[1]} pixels; give {near}."
        )
    return height, width


def cut(predictor: Predictor, info: RasterInfo, arguments: SceneArguments) -> tuple[Axis, Axis]:
    """The windows along rows and columns. A scene smaller than a window is one, filled up to whole patches."""
    axes = []
    sizes, patches = window_size(predictor, arguments.window), task_model(predictor.model).config.patch_size
    for length, size, patch in zip((info.height, info.width), sizes, patches, strict=True):
        if predictor.processor.size is None:
            axes.append(Axis.cover(length, min(size, -(-length // patch) * patch), arguments.overlap, patch))
        else:  # the window is resized, and the image keeps its scale only if the window keeps its size
            axes.append(Axis.cover(length, size, arguments.overlap, 1))
    return axes[0], axes[1]


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


@dataclass(frozen=True)
class SceneWindows:
    """The windows of a scene and the model that predicts them."""

    scene: Scene
    predictor: Predictor
    rows: Axis
    columns: Axis
    batch_size: int

    def sums(self, part: Part, done: Callable[[int], object]) -> Generator[Tensor]:
        """Weighted sums of logits of a part's rows from top to bottom, in pieces (K, h, W), NaN where not measured.

        Close it before the image: it reads ahead.

        Args:
            done: told how many windows were done since it was last told.
        """
        width = self.scene.info.width
        band, measured = self._band.zero_(), torch.zeros(self.rows.size, width, dtype=torch.bool)
        step = max(1, PIECE_PIXELS // width)
        groups = [
            range(k, min(k + self.batch_size, len(self.columns))) for k in range(0, len(self.columns), self.batch_size)
        ]
        jobs = [(row, group) for row in range(part.first, part.stop) for group in groups]
        with closing(ahead(self.read, jobs)) as batches:
            for (row, group), batch in zip(jobs, batches, strict=True):
                measured[:, batch.left : batch.left + batch.measured.shape[1]] = batch.measured
                if batch.columns:
                    self._add(band, row, batch)
                done(len(group))
                if group is groups[-1]:
                    start, end, offset = self.rows.starts[row], self.rows.ends[row], self.rows.offsets[row]
                    final = self.rows.starts[row + 1] if row + 1 < part.stop else end
                    for low in range(start, final, step):
                        high = min(low + step, final)
                        piece = band[:, low - start : high - start].cpu()
                        yield piece.masked_fill(~measured[low - offset : high - offset], torch.nan)
                    rest = band[:, final - start : end - start].clone()
                    band.zero_()[:, : end - final] = rest

    def read(self, job: tuple[int, range]) -> Batch:
        """The windows of a row that ``job`` numbers, in one piece."""
        row, group = job
        height, width = self.rows.size, self.columns.size
        offsets = [self.columns.offsets[column] for column in group]
        left = offsets[0]
        pixels = self.scene.read(self.rows.offsets[row], left, height, offsets[-1] - left + width)
        measured = torch.isfinite(pixels).any(dim=0)
        measured = measured[:, : self.scene.info.width - left]
        windows, kept = [], []
        for column, offset in zip(group, offsets, strict=True):
            if bool(measured[:, offset - left : offset - left + width].any()):
                window = pixels[..., offset - left : offset - left + width]
                windows.append(window if self._size is None else resize(window, self._size))
                kept.append(column)
        return Batch(torch.stack(windows) if windows else pixels[:0, None], kept, left, measured)

    @functools.cached_property
    def _band(self) -> Tensor:
        """(K, height of a window, W) sums in the making: the largest thing held, made once."""
        shape = (len(self.predictor.classes), self.rows.size, self.scene.info.width)
        return torch.zeros(shape, device=self.predictor.device)

    @property
    def _size(self) -> tuple[int, int] | None:
        """What the model's images are resized to."""
        size = self.predictor.processor.size
        return None if size is None else (size["height"], size["width"])

    def _add(self, band: Tensor, row: int, batch: Batch) -> None:
        """Add the weighted logits of a batch to ``band`` (K, h, W), which starts where ``row`` begins to count."""
        start, end, offset = self.rows.starts[row], self.rows.ends[row], self.rows.offsets[row]
        down = torch.from_numpy(self.rows.weights[row]).to(band.device)[:, None]
        for column, logits in zip(batch.columns, self.logits(batch.pixel_values), strict=True):
            left, right, first = self.columns.starts[column], self.columns.ends[column], self.columns.offsets[column]
            weight = down * torch.from_numpy(self.columns.weights[column]).to(band.device)
            piece = logits[:, start - offset : end - offset, left - first : right - first]
            band[:, : end - start, left:right].addcmul_(piece, weight)

    @torch.no_grad()
    def logits(self, pixel_values: Tensor) -> Tensor:
        """(B, C, h, w) reflectance, resized if the model wants it so -> (B, K, height, width) logits of the windows."""
        window = None if self._size is None else self.predictor.window
        with self.predictor.autocast():
            logits = predict_logits(self.predictor.model, pixel_values.to(self.predictor.device), window)
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
