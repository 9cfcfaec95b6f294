"""GeoTIFF and PNG files in and out: bands by name, windows, validity, georeference.

Nothing else reads pixels through rasterio. Values leave it as they are stored (digital numbers); turning them into
reflectance belongs to :mod:`deflect_hf.data.processor` alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from deflect_hf.errors import BandError, DataError
from deflect_hf.raster.header import PathLike, Quality, RasterInfo, file_bands
from deflect_hf.spectral.selection import Sensor, match_bands

Box = tuple[int, int, int, int]

# GDAL would take 5 % of the machine's memory for decoded blocks.
CACHE_BYTES = 24_000_000
LARGEST_READ_BYTES = 2**32  # stored values of one read; reflectance and validity take several times as much
STRIPS_CACHE_BYTES = 96_000_000  # where a block is as wide as the image, neighbouring windows share all of theirs


@dataclass(frozen=True)
class OpenRaster:
    """A file that stays open from one read to the next, so that a block is not decoded for each of them."""

    path: str
    source: Any

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class Raster:
    """Bands read from a file: stored values and, per band and pixel, whether they are measurements.

    Attributes:
        values: (C, H, W) in the dtype of the file.
        valid: (C, H, W) bool, False at nodata, fill values, NaN and masked pixels.
        bands: C band codes; see :func:`~deflect_hf.raster.header.file_bands` for bands that have none.
        scales: GDAL scale tag of the C bands read, in their order.
        info: The header; its transform is that of the whole file, not of the window.
    """

    values: np.ndarray
    valid: np.ndarray
    bands: tuple[str, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    info: RasterInfo


@contextmanager
def open_raster(path: PathLike) -> Iterator[OpenRaster]:
    """Keep a file open for many reads by window, of one thread at a time, with little memory for decoded blocks.

    Raises:
        DataError: As :func:`raster_info`.
    """
    with _opened(path) as source:
        strips = source.count > 0 and source.block_shapes[0][1] >= source.width
        with rasterio.Env(GDAL_CACHEMAX=STRIPS_CACHE_BYTES if strips else CACHE_BYTES):
            yield OpenRaster(str(path), source)


@contextmanager
def _opened(path: PathLike | OpenRaster, window: Box | None = None) -> Iterator[Any]:
    """Open ``path`` for reading; whatever GDAL complains about becomes a DataError naming the file."""
    if isinstance(path, OpenRaster):
        with _reading(path, window):
            yield path.source
        return
    if not Path(path).is_file():
        raise DataError(f"{path} is not there: check the path, and the data folder it should lie in.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # chips without a georeference are common
            source = rasterio.open(path)
    except RasterioError as error:
        raise DataError(
            f"{path} cannot be opened as a raster ({error}): it must be a GeoTIFF or PNG file; copy it again."
        ) from error
    with source, _reading(path, window):
        yield source


@contextmanager
def _reading(path: PathLike | OpenRaster, window: Box | None) -> Iterator[None]:
    try:
        yield
    except (RasterioError, MemoryError) as error:
        where = "" if window is None else " in the window (row {}, column {}, {} x {})".format(*window)
        reason = error.__cause__ or error
        raise DataError(f"{path} is truncated or damaged{where} ({reason}): copy it again or remove it.") from error


def _info(source: Any, path: PathLike | OpenRaster) -> RasterInfo:
    if source.count == 0:
        raise DataError(f"{path} holds no bands: a raster needs at least one (is it a container of subdatasets?).")
    unreal = [dtype for dtype in source.dtypes if "complex" in dtype]
    if unreal:
        raise DataError(f"{path} holds complex numbers ({unreal[0]}): store reflectance or classes as real numbers.")
    projected = source.crs is not None and source.crs.is_projected
    transform = source.transform
    # in a rotated grid both count
    gsd_m = math.hypot(transform.b, transform.e) * source.crs.linear_units_factor[1] if projected else None
    return RasterInfo(
        path=str(path),
        count=source.count,
        height=source.height,
        width=source.width,
        dtype=source.dtypes[0],
        descriptions=tuple(text or "" for text in source.descriptions),
        scales=tuple(source.scales),
        offsets=tuple(source.offsets),
        nodata=tuple(source.nodatavals),
        crs=source.crs.to_wkt() if source.crs is not None else None,
        transform=tuple(transform)[:6],
        gsd_m=gsd_m,
    )


def raster_info(path: PathLike | OpenRaster) -> RasterInfo:
    """Read the header of a raster file.

    Raises:
        DataError: The file is missing, not a raster, or has no bands.
    """
    with _opened(path) as source:
        return _info(source, path)


def read_raster(
    path: PathLike | OpenRaster,
    bands: Sequence[str] | None = None,
    *,
    needed: Sequence[str] | None = None,
    source_bands: Sequence[str] | None = None,
    sensor: Sensor | None = None,
    window: Box | None = None,
    size: tuple[int, int] | None = None,
    nodata: Sequence[float] = (),
    quality: Quality | None = None,
) -> Raster:
    """Read bands by name, the whole image or a window of it.

    Args:
        bands: Band codes wanted, in the order wanted; None reads all.
        needed: Those of ``bands`` that must be there; others are left out of the result. None: all of them.
        source_bands: Names of the file's bands in file order, for files without band descriptions.
        sensor: Resolves the sensor's own names (``B8A``) and, failing the two above, gives the band order.
        window: (row, column, height, width) in pixels.
        size: (height, width) to shrink it to while reading, by averaging what is valid; None: as stored. At full size
            there is only GDAL's block cache in memory (``GDAL_CACHEMAX``); overviews in the file are used.
        nodata: Stored values that mean "no measurement", besides the file's own tag and NaN.
        quality: A layer of the file that says where its bands are no measurement.

    Raises:
        DataError: The file is missing, damaged or no raster, or the window leaves the image.
        BandError: A needed band is not in the file, or its bands cannot be named.
    """
    with _opened(path, window) as source:
        info = _info(source, path)
        names = file_bands(info, source_bands, sensor)
        positions = list(range(len(names)))
        if bands is not None:
            try:
                found = match_bands(names, bands, bands if needed is None else needed)
            except BandError as error:
                raise BandError(f"{path}: {error}") from error
            positions = [position for position in found if position is not None]
            names = [band for band, position in zip(bands, found, strict=True) if position is not None]
        indexes = [position + 1 for position in positions]
        area = _window(info, window)
        _refuse_huge(info, len(indexes), area, size)
        shrink = _shrinking(size, len(indexes), Resampling.average)
        values = source.read(indexes, window=area, **shrink)
        valid = _valid(values, [info.nodata[position] for position in positions], nodata)
        flags = source.mask_flag_enums  # asks GDAL for every band each time
        if any(MaskFlags.per_dataset in flags[position] for position in positions):
            valid &= source.read_masks(indexes, window=area, **_shrinking(size, len(indexes), Resampling.nearest)) > 0
        if quality is not None:
            layer = source.read(quality.position(info) + 1, window=area, **_shrinking(size, 0, Resampling.mode))
            valid &= ~np.isin(layer, quality.invalid)
    return Raster(
        values=values,
        valid=valid,
        bands=tuple(names),
        scales=tuple(info.scales[position] for position in positions),
        offsets=tuple(info.offsets[position] for position in positions),
        info=info,
    )


def _refuse_huge(info: RasterInfo, count: int, window: Window | None, size: tuple[int, int] | None) -> None:
    """A damaged header can announce more pixels than there is memory for."""
    height, width = size or ((info.height, info.width) if window is None else (window.height, window.width))
    wanted = count * height * width * np.dtype(info.dtype).itemsize
    if wanted > LARGEST_READ_BYTES:
        raise DataError(
            f"{info.path}: its header announces {height} x {width} pixels, {wanted / 2**30:,.0f} GiB: it "
            "is damaged, copy it again; or it is a scene, cut it into images."
        )


def _shrinking(size: tuple[int, int] | None, count: int, resampling: Resampling) -> dict[str, Any]:
    """How rasterio is told to read ``count`` bands (0: one, without an axis of bands) at another size."""
    return {} if size is None else {"out_shape": (count, *size) if count else size, "resampling": resampling}


def overview_size(info: RasterInfo, side: int) -> tuple[int, int]:
    """Height and width of the raster shrunk so that neither exceeds ``side``; its own if they do not."""
    factor = min(1.0, side / max(info.height, info.width))
    return max(1, round(info.height * factor)), max(1, round(info.width * factor))


def _window(info: RasterInfo, window: Box | None) -> Window | None:
    if window is None:
        return None
    row, column, height, width = window
    if min(row, column) < 0 or min(height, width) < 1 or row + height > info.height or column + width > info.width:
        raise DataError(
            f"{info.path}: window (row {row}, column {column}, {height} x {width}) leaves the image of "
            f"{info.height} x {info.width} pixels."
        )
    return Window(column, row, width, height)


def _valid(values: np.ndarray, tags: Sequence[float | None], extra: Sequence[float]) -> np.ndarray:
    """(C, H, W) stored values -> (C, H, W) bool: measured, that is neither NaN nor any of the nodata values."""
    valid = np.isfinite(values) if np.issubdtype(values.dtype, np.floating) else np.ones(values.shape, dtype=bool)
    for channel, tag in enumerate(tags):
        for fill in {*extra, *([] if tag is None else [tag])}:
            if not math.isnan(fill):
                valid[channel] &= values[channel] != float(fill)
    return valid


def read_mask(path: PathLike | OpenRaster, *, window: Box | None = None, size: tuple[int, int] | None = None) -> Raster:
    """Read a label image (GeoTIFF or PNG): values (1, H, W) of stored class values, valid False at nodata.

    ``window`` and ``size`` are those of :func:`read_raster`; a shrunk pixel has the most frequent value of its area.

    Raises:
        DataError: As :func:`read_raster`, or the file has several bands or fractional values.
    """
    with _opened(path) as source:
        info = _info(source, path)
        if info.count != 1:
            raise DataError(
                f"{path} has {info.count} bands, but a mask has one: store class values, not colours "
                f"(a palette PNG or a single-band GeoTIFF)."
            )
        area = _window(info, window)
        _refuse_huge(info, 1, area, size)
        values = source.read(window=area, **_shrinking(size, 1, Resampling.mode))
        valid = _valid(values, info.nodata, ())
    if np.issubdtype(values.dtype, np.floating) and not np.array_equal(values[valid], np.round(values[valid])):
        raise DataError(f"{path} holds fractional values: a mask stores one whole class value per pixel.")
    return Raster(values, valid, ("mask",), info.scales, info.offsets, info)
