"""Rasters in: bands by name, windows, validity. Images and masks are read alike.

Values leave this file as they are stored (digital numbers); turning them into reflectance belongs to
:mod:`deflect_hf.data.processor` alone.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.windows import Window

from deflect_hf.errors import DataError, brief
from deflect_hf.raster.access import LOCAL, Access, is_address
from deflect_hf.raster.colors import classes_of
from deflect_hf.raster.georeference import nearest_pixels, refuse_misplaced
from deflect_hf.raster.header import (
    Box,
    Color,
    PathLike,
    RasterInfo,
    file_bands,
    is_unnamed,
    refuse_no_mask,
    stated_wavelengths,
)
from deflect_hf.raster.local import what_opens
from deflect_hf.raster.products import Product
from deflect_hf.raster.quality import Quality
from deflect_hf.raster.stack import COMPOSITE
from deflect_hf.raster.validity import measured, medians
from deflect_hf.spectral.bands import Sensor, split_date
from deflect_hf.spectral.selection import match_bands

# GDAL would take 5 % of the machine's memory for decoded blocks.
CACHE_BYTES = 24_000_000
LARGEST_READ_BYTES = 2**32  # stored values of one read; reflectance and validity take several times as much


@dataclass(frozen=True)
class OpenRaster:
    """A file that stays open from one read to the next, so that a block is not decoded for each of them."""

    path: str
    source: Any
    access: Access = LOCAL

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class Raster:
    """Bands read from a file: stored values and, per band and pixel, whether they are measurements.

    Attributes:
        values: (C, H, W) in the dtype of the file.
        valid: (C, H, W) bool, False at nodata, fill values, NaN and masked pixels.
        bands: C band codes, in the order of scales and offsets; see `header.file_bands` for bands that have none.
        info: The header; its transform is that of the whole file, not of the window.
        flagged: whether the quality layer takes out any of the pixels.
    """

    values: np.ndarray
    valid: np.ndarray
    bands: tuple[str, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    info: RasterInfo
    flagged: bool = False


@contextmanager
def open_raster(path: PathLike) -> Iterator[OpenRaster]:
    """Keep a file open for many reads by window, of one thread at a time, with little memory for decoded blocks."""
    with _opened(path) as source, rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
        yield OpenRaster(str(path), source, product_of(path).access)


@contextmanager
def _opened(path: PathLike | OpenRaster, window: Box | None = None) -> Iterator[Any]:
    """Open ``path`` for reading; whatever GDAL complains about becomes a DataError naming the file."""
    if isinstance(path, OpenRaster):
        with rasterio.Env(**path.access.options), _reading(path, window):
            yield path.source
        return
    product = product_of(path)
    name = product.open_name()
    with ExitStack() as held:
        try:
            source = held.enter_context(product.access.opened(name))
        except (RasterioError, UnicodeEncodeError) as error:  # the latter: a name that is no text
            raise DataError(f"{path} cannot be opened as a raster ({brief(error)}): {what_opens(path)}") from error
        with _reading(path, window):
            yield source


def product_of(path: PathLike) -> Product:
    """A path as a product of one file, unless it is a product already."""
    return path if isinstance(path, Product) else Product(str(path))


@contextmanager
def _reading(path: PathLike | OpenRaster, window: Box | None) -> Iterator[None]:
    try:
        yield
    except (RasterioError, MemoryError, UnicodeDecodeError) as error:  # the last: tags that are no text
        where = "" if window is None else " in the window (row {}, column {}, {} x {})".format(*window)
        fix = "copy it again or remove it"
        if is_address(str(path)):
            fix = "check its server; the same command of a prediction goes on where it stopped"
        raise DataError(f"{path} is truncated or damaged{where} ({brief(error.__cause__ or error)}): {fix}.") from error


def _info(source: Any, path: PathLike | OpenRaster) -> RasterInfo:
    if source.count == 0:
        raise DataError(f"{path} holds variables, not bands: convert one, gdal_translate NETCDF:{path}:NAME OUT.tif.")
    unreal = [dtype for dtype in source.dtypes if "complex" in dtype]
    if unreal:
        raise DataError(f"{path} holds complex numbers ({unreal[0]}): store reflectance or classes as real numbers.")
    projected = source.crs is not None and source.crs.is_projected
    transform = source.transform
    # in a rotated grid both count
    gsd_m = math.hypot(transform.b, transform.e) * source.crs.linear_units_factor[1] if projected else None
    kinds = source.colorinterp
    return RasterInfo(
        path=str(path),
        count=source.count,
        height=source.height,
        width=source.width,
        dtype=str(np.result_type(*source.dtypes)),
        descriptions=tuple(text or "" for text in source.descriptions),
        scales=tuple(source.scales),
        offsets=tuple(source.offsets),
        nodata=tuple(source.nodatavals),
        crs=source.crs.to_wkt() if source.crs is not None else None,
        transform=tuple(transform)[:6],
        gsd_m=gsd_m,
        alpha=kinds.index(ColorInterp.alpha) if ColorInterp.alpha in kinds and source.count > 1 else None,
        lossy=_lossy(source),
        colors=tuple(source.colormap(1).values()) if kinds[0] == ColorInterp.palette else (),
        units=tuple(text or "" for text in source.units),
        composite=bool(source.tags(**COMPOSITE)),
        wavelengths_nm=stated_wavelengths([source.tags(k) | source.tags(k, ns="IMAGERY") for k in source.indexes]),
    )


def _lossy(source: Any) -> str:
    """What changes the values of a file as it stores them, ``""`` if nothing does."""
    tags = source.tags(ns="IMAGE_STRUCTURE")
    compression = tags.get("COMPRESSION", source.driver.replace("JP2OpenJPEG", "JPEG2000"))
    if "JPEG" in compression.replace("JPEG2000", ""):
        return "JPEG"
    changed = tags.get("COMPRESSION_REVERSIBILITY") == "LOSSY" or float(tags.get("MAX_Z_ERROR", 0)) >= 1
    return f"lossy {compression}" if changed else ""


def raster_info(path: PathLike | OpenRaster) -> RasterInfo:
    """Read the header of a raster file."""
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
        size: (height, width) to shrink it to while reading, by averaging what is valid; None: as stored. At full size
            there is only GDAL's block cache in memory (``GDAL_CACHEMAX``); overviews in the file are used.
        nodata: Stored values that mean "no measurement", besides the file's own tag and NaN.
        quality: A layer of the file that says where its bands are no measurement; of each date its own.

    Raises:
        DataError: The file is missing, damaged or no raster, or the window leaves the image.
        BandError: A needed band is not in the file, or its bands cannot be named.
    """
    with _opened(path, window) as source:
        info = _info(source, path)
        names = file_bands(info, source_bands, sensor, None if quality is None else quality.band)
        if info.alpha is not None and not is_unnamed(names[info.alpha]):
            info = replace(info, alpha=None)  # GDAL calls the last of four bands of 8 bits so
        positions = list(range(len(names)))
        if bands is not None:
            found = match_bands(names, bands, bands if needed is None else needed, str(path))
            positions = [position for position in found if position is not None]
            names = [band for band, position in zip(bands, found, strict=True) if position is not None]
        parts = [info.parts(position) for position in positions]
        read = list(dict.fromkeys(itertools.chain(*parts)))
        values, valid = _read(source, info, read, window, size, Resampling.average, nodata)
        flagged = False
        if quality is not None:
            dates = [split_date(info.descriptions[position])[1] for position in read]
            for date in dict.fromkeys(dates):
                layer, _ = _read(
                    source, info, [info.position(quality.band + date, source_bands)], window, size, Resampling.mode
                )
                flags = quality.flags(layer)
                valid[[other == date for other in dates]] &= ~flags
                flagged = flagged or bool(flags.any())
        if info.composite:
            values, valid = medians(values, valid, [[read.index(part) for part in one] for one in parts])
    return Raster(
        values=values,
        valid=valid,
        bands=tuple(names),
        scales=tuple(info.scales[position] for position in positions),
        offsets=tuple(info.offsets[position] for position in positions),
        info=info,
        flagged=flagged,
    )


def _read(
    source: Any,
    info: RasterInfo,
    positions: Sequence[int],
    window: Box | None,
    size: tuple[int, int] | None,
    resampling: Resampling,
    nodata: Sequence[float] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """(C, H, W) stored values and whether they are valid: by tags, ``nodata``, NaN, masks in and beside the file."""
    height, width = size or (window[2:] if window is not None else (info.height, info.width))
    wanted = len(positions) * height * width * np.dtype(info.dtype).itemsize
    if wanted > LARGEST_READ_BYTES:  # a damaged header can announce more pixels than there is memory for
        raise DataError(
            f"{info.path}: its header announces {height} x {width} pixels, {wanted / 2**30:,.0f} GiB: it "
            "is damaged, copy it again; or it is a scene, cut it into images."
        )
    area = _window(info, window)
    shrunk = {} if size is None else {"out_shape": size}
    read = functools.partial(source.read, window=area, resampling=resampling)
    if len({source.dtypes[position] for position in positions}) == 1:
        shape = {"out_shape": (len(positions), *size)} if size is not None else {}
        bands = values = read([position + 1 for position in positions], **shape)
    else:  # a virtual raster may have bands of several types
        bands = [read(position + 1, **shrunk) for position in positions]
        values = np.stack(bands)
    valid = np.stack([measured(band, {info.nodata[k], *nodata}) for band, k in zip(bands, positions, strict=True)])
    flags = source.mask_flag_enums  # asks GDAL for every band each time
    mask_of = functools.partial(source.read_masks, window=area, resampling=Resampling.nearest, **shrunk)
    shared = [k for k in positions if MaskFlags.per_dataset in flags[k] and MaskFlags.alpha not in flags[k]]
    if shared:
        valid &= mask_of(shared[0] + 1) > 0
    # to GDAL a mask of one or three bands alone; one that is a band itself says nothing about the others
    if info.alpha is not None and info.alpha not in positions:
        valid &= read(info.alpha + 1, resampling=Resampling.nearest, **shrunk) > 0
    for band, position in enumerate(positions):
        if not flags[position]:  # a mask of its own, in a virtual raster
            valid[band] &= mask_of(position + 1) > 0
    return values, valid


def read_quality(path: PathLike, quality: Quality, source_bands: Sequence[str] | None = None) -> np.ndarray:
    """(1, H, W) stored values of a quality layer."""
    with _opened(path) as source:
        info = _info(source, path)
        return _read(source, info, [info.position(quality.band, source_bands)], None, None, Resampling.nearest)[0]


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


def read_mask(
    path: PathLike | OpenRaster,
    *,
    window: Box | None = None,
    size: tuple[int, int] | None = None,
    onto: RasterInfo | None = None,
    resample: bool = False,
    numbers: bool = False,
    band: int | None = None,
    colors: Mapping[Color, int] | None = None,
) -> Raster:
    """Read a label image: values (1, H, W) of stored class values, valid False where it has no label.

    A pixel shrunk to ``size`` has the most frequent value of its area.

    Args:
        onto: The image whose pixels the mask is wanted on; stored in another order, it is turned to the image's.
        resample: On another grid, take the label at the middle of each pixel of ``onto``, none outside of the mask.
        numbers: The values are numbers, which may be fractions, of a regression.
        band: Which one is read of a file with several; None: only a file with one is taken.
        colors: What a painted mask means, see :func:`deflect_hf.raster.colors.classes_of`.

    Raises:
        DataError: As :func:`read_raster`; the file has several bands, fractional values or values that its compression
            has changed; or it is not on the grid of ``onto``.
    """
    with _opened(path) as source:
        info = _info(source, path)
        positions = [band] if band is not None else [k for k in range(info.count) if k != info.alpha]
        if band is None:
            refuse_no_mask(info, colors is not None)
        if onto is None:
            values, valid = _read(source, info, positions, window, size, Resampling.mode)
        elif resample and info.georeferenced and onto.georeferenced:
            rows, columns = nearest_pixels(info, onto)
            inside = rows >= 0
            shape = (len(positions), *rows.shape)
            values, valid = np.zeros(shape, info.dtype), np.zeros(shape, dtype=bool)
            if inside.any():
                rows, columns = rows[inside], columns[inside]
                top, left = int(rows.min()), int(columns.min())
                box = (top, left, int(rows.max()) - top + 1, int(columns.max()) - left + 1)
                stored, labelled = _read(source, info, positions, box, None, Resampling.nearest)
                values[:, inside] = stored[:, rows - top, columns - left]
                valid[:, inside] = labelled[:, rows - top, columns - left]
        else:
            turn = refuse_misplaced(info, onto)
            values, valid = map(turn, _read(source, info, positions, None, None, Resampling.nearest))
    if colors is not None:
        values, valid = classes_of(values, valid, info, colors)
    if not numbers and values.dtype.kind == "f" and not np.array_equal(values[valid], np.round(values[valid])):
        raise DataError(f"{path} holds fractional values: a mask stores one whole class value per pixel.")
    return Raster(values, valid, ("mask",), info.scales, info.offsets, info)
