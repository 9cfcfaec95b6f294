"""Bands of several files as one virtual raster (GDAL's VRT): on one grid, read by window, nothing read whole."""

from __future__ import annotations

import logging
import math
import re
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import rasterio.warp
from rasterio.enums import MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT

from deflect_hf.errors import ConfigError, DataError, data_errors, listing
from deflect_hf.raster.access import LOCAL, SERVERS
from deflect_hf.raster.header import REFLECTANCE
from deflect_hf.spectral.bands import fold, is_reflectance, split_date
from deflect_hf.spectral.selection import band_or_none

logger = logging.getLogger(__name__)

GDAL_TYPES = {"uint8": "Byte"} | {name.lower(): name for name in (
    "Int8", "UInt16", "Int16", "UInt32", "Int32", "UInt64", "Int64", "Float32", "Float64")}  # fmt: skip
COMPOSITE = {"ns": "DATES"}  # of the tags that say that bands without a date are composites of those with one
COVERAGE_POINTS = 33  # along each side
WHOLE = 0.9  # of the points: small chips may be cut half a coarse pixel too short
_BAND_NUMBER = re.compile(r"(?:^|[\W_])(?:b|band)?\d+(?:a|nm)?(?:[\W_]|$)", re.IGNORECASE)  # none is in dem_10m
SAME_PIXELS = 1e-3  # of a pixel, by which the corners of one grid may miss those of another


@dataclass(frozen=True)
class Layer:
    """One band of a scene, by default in a file of its own.

    Attributes:
        name: Its description in the stack: a band code, a quality layer, or what its file is called by.
        file: What GDAL opens.
        alias: What the product calls it.
        scale: reflectance = stored * scale + offset; None where the product does not say.
        nodata: Stored value that is no measurement, besides the file's tag and mask; of classes, that beyond its edges.
        classes: Classes or bits, which are never interpolated.
        band: Where it is in its file, from 1; None: the file holds it alone.
        remote: At an address that the user wrote, or that belongs to one.
        alpha: The band of its file, from 1, that says where the others were measured.
        fills: What a configuration has for ``nodata`` where ``scale`` is None; None: it says nothing of it.
    """

    name: str
    file: str
    alias: str = ""
    scale: float | None = None
    offset: float = 0.0
    nodata: float | None = None
    classes: bool = False
    band: int | None = None
    remote: bool = False
    alpha: int | None = None
    fills: tuple[float, ...] | None = None


@dataclass(frozen=True)
class _Grid:
    crs: Any
    transform: Any
    width: int
    height: int

    def same(self, other: _Grid) -> bool:
        if (self.crs, self.width, self.height) != (other.crs, other.width, other.height):
            return False
        corners = [(0, 0), (self.width, 0), (0, self.height), (self.width, self.height)]
        own = [~self.transform @ (other.transform @ corner) for corner in corners]
        return bool(np.abs(np.subtract(own, corners)).max() <= SAME_PIXELS)


@dataclass(frozen=True)
class _Header:
    layer: Layer
    grid: _Grid
    dtype: str
    block: tuple[int, int]
    nodata: float | None
    masked: bool
    tagged: bool  # masked by its nodata tag alone
    scale: float
    offset: float

    @property
    def measured(self) -> str:
        """The type of its values once NaN is where nothing was measured: one that holds all that is stored."""
        return str(np.result_type(self.dtype, np.float32)) if self.layer.scale is None else "float32"


def stack(
    layers: Sequence[Layer], where: str, grid: str | float | None, resampling: str, composite: bool = False
) -> str:
    """A virtual raster of layers, as XML that GDAL opens like a file.

    Bands whose unit is known hold reflectance, NaN where nothing was measured; others what is stored. A layer on
    another grid is interpolated over what is valid, classes are taken from the nearest pixel.

    Args:
        where: What messages call it.
        grid: The layer whose grid all others come onto, or the side of a pixel in the unit of the reference system;
            None: the finest. Layers of further dates (``N@1``) are never asked.
        resampling: ``"bilinear"`` or ``"cubic"``.
        composite: Say in its tags that bands without a date are composites; see :mod:`deflect_hf.raster.read`.
    """
    headers = [_header(layer, where) for layer in layers]
    measured = {header.layer.name: header.layer.scale is not None for header in headers}
    if any(known != measured.get(split_date(name)[0], known) for name, known in measured.items()):
        raise DataError(
            f"{where}: some dates are reflectance by the metadata of their product, others are not: give products of "
            "one kind for all dates."
        )
    target = _target([header for header in headers if not split_date(header.layer.name)[1]], where, grid)
    root = _root(target)
    if composite:
        _refuse_unlike_dates(headers, where)
        _text(ElementTree.SubElement(root, "Metadata", domain=COMPOSITE["ns"]), "MDI", "median", key="COMPOSITE")
    for header in headers:
        _append_band(root, header, target, Resampling[resampling], where)
    return ElementTree.tostring(root, encoding="unicode")


def _refuse_unlike_dates(headers: Sequence[_Header], where: str) -> None:
    """Refuse dates whose bands are tagged otherwise: a median is of stored numbers, which then mean several things."""
    first: dict[str, _Header] = {}
    for header in headers:
        usual = first.setdefault(split_date(header.layer.name)[0], header)
        tags, others = ((one.scale, one.offset) for one in (header, usual))
        if header.layer.scale is None and not header.layer.classes and tags != others:
            raise DataError(
                f"{where}: band {usual.layer.name} is tagged scale {others[0]:g}, offset {others[1]:g} in "
                f"{usual.layer.file}, but scale {tags[0]:g}, offset {tags[1]:g} in {header.layer.file}, so that their "
                "median means nothing: give dates that are stored alike, or correct the tags (gdal_edit.py -scale "
                "-offset)."
            )


@contextmanager
def opened_layer(file: str, remote: bool, what: str) -> Iterator[Any]:
    """A file of layers, open for reading; ``remote``: at an address; ``what``: for messages."""
    refused = data_errors(f"{what} cannot be opened", "copy it again.", RasterioError)
    with refused, (SERVERS if remote else LOCAL).opened(file) as source:
        yield source


def _header(layer: Layer, where: str) -> _Header:
    band = (layer.band or 1) - 1
    what = f"{where}: {layer.file}, band {layer.name},"
    with opened_layer(layer.file, layer.remote, what) as source:
        if source.count != 1 and layer.band is None:
            raise DataError(
                f"{what} holds {source.count} bands: only files of one band are put together; give a file with all "
                "bands by itself."
            )
        if source.dtypes[band] not in GDAL_TYPES:
            raise DataError(f"{what} holds numbers of type {source.dtypes[band]}: store reflectance as real numbers.")
        flags = source.mask_flag_enums[band]
        # to GDAL the last of two or four bands is a mask, also where it has a name and is none
        masked = layer.alpha is not None or not {MaskFlags.all_valid, MaskFlags.alpha} & {*flags}
        tagged = layer.alpha is None and MaskFlags.nodata in flags
        placed = _Grid(source.crs, source.transform, source.width, source.height)
        return _Header(layer, placed, source.dtypes[band], source.block_shapes[band], source.nodatavals[band],
                       masked, tagged, source.scales[band], source.offsets[band])  # fmt: skip


def _target(headers: Sequence[_Header], where: str, grid: str | float | None) -> _Grid:
    """The grid of the stack."""
    bands = [header for header in headers if not header.layer.classes] or list(headers)
    loose = [header for header in headers if header.grid.transform.is_identity]
    first = bands[0].grid
    if loose and not all(header.grid.same(first) for header in headers):
        raise DataError(
            f"{where}: {loose[0].layer.file} does not say where it lies, and the files differ in that or in size: give "
            "all of them a georeference, or files of one size."
        )
    if isinstance(grid, str):
        named = [header for header in headers if fold(grid) in map(fold, (header.layer.name, header.layer.alias))]
        if not named:
            raise ConfigError(
                f"{where} has no band {grid!r}, on whose grid the others were to come: `grid` is one of "
                f"{listing(header.layer.name for header in headers)}, or the side of a pixel."
            )
        return named[0].grid
    alike = [header.grid for header in bands if header.grid.crs == first.crs]
    finest = min(alike, key=lambda one: abs(one.transform.determinant))
    if grid is None:
        return finest
    if finest.crs is None or not finest.crs.is_projected:
        raise ConfigError(f"{where} is not in metres: `grid` is then the name of a band, not {grid:g}.")
    wide, high = (math.hypot(*side) for side in ((finest.transform.a, finest.transform.d),
                                                 (finest.transform.b, finest.transform.e)))  # fmt: skip
    scaled = finest.transform @ rasterio.Affine.scale(grid / wide, grid / high)
    return _Grid(
        finest.crs,
        scaled,
        max(1, math.ceil(finest.width * wide / grid - SAME_PIXELS)),
        max(1, math.ceil(finest.height * high / grid - SAME_PIXELS)),
    )


def _append_band(root: Any, header: _Header, target: _Grid, resampling: Resampling, where: str) -> None:
    """Append a layer to a virtual raster, as it is stored, in reflectance, or brought to its grid."""
    layer, there = header.layer, header.grid.same(target)
    covered = 1.0 if there else _coverage(header.grid, target)
    if not covered:
        raise DataError(
            f"{where}: {layer.file}, band {layer.name}, lies beside the other files: give the files of one place."
        )
    if covered < WHOLE:
        logger.warning(
            "%s: %s, band %s, covers %.0f %% of the ground of the others; beyond it that band counts as not measured",
            *(where, layer.file, layer.name, 100 * covered),
        )
    if layer.classes:
        fill = next((value for value in (layer.nodata, header.nodata) if value is not None), 0)
        name = layer.file if there else _warped(layer.file, target, Resampling.nearest, fill, where, layer.remote)
        band = _band(root, layer.name, header.dtype, None)
        _source(band, name, "SimpleSource", header)
        return
    nodata = header.nodata if layer.nodata is None and not header.tagged else layer.nodata
    plain = there and layer.scale is None and (not header.masked or header.tagged)
    if plain:
        band = _band(root, layer.name, header.dtype, header.nodata)
        _source(band, layer.file, "SimpleSource", header)
    elif there:
        band = _measured(root, header, *(() if nodata is None else (nodata,)))
    else:
        single = _root(header.grid)
        _measured(single, header, *_fills(header, nodata))
        name = ElementTree.tostring(single, encoding="unicode")
        band = _band(root, layer.name, header.measured, math.nan)
        _source(band, _warped(name, target, resampling, math.nan, where, layer.remote), "SimpleSource", None)
    if layer.scale is not None:
        _text(band, "UnitType", REFLECTANCE)
    elif (header.scale, header.offset) != (1.0, 0.0):
        _text(band, "Offset", repr(header.offset))
        _text(band, "Scale", repr(header.scale))


def _coverage(layer: _Grid, target: _Grid) -> float:
    """The share of the target's ground that a layer's grid covers, of points spread over it."""
    sides = (np.linspace(0.5, size - 0.5, min(size, COVERAGE_POINTS)) for size in (target.width, target.height))
    x, y = target.transform @ np.stack([axis.ravel() for axis in np.meshgrid(*sides)])
    if layer.crs is not None and target.crs is not None:
        x, y = rasterio.warp.transform(target.crs, layer.crs, x, y)
    columns, rows = ~layer.transform @ (np.asarray(x), np.asarray(y))
    return float(((columns > 0) & (rows > 0) & (columns < layer.width) & (rows < layer.height)).mean())


def _fills(header: _Header, nodata: float | None) -> list[float]:
    """The stored values of a layer that must not be interpolated."""
    layer, plain = header.layer, split_date(header.layer.name)[0]
    if layer.scale is None and layer.fills is not None:
        said = dict.fromkeys([*layer.fills, nodata])  # in one order, as a map's parts are known again by it
        return [value for value in said if value is not None and not math.isnan(value)]
    if nodata is not None or header.masked or header.dtype != "uint16":
        return [] if nodata is None else [nodata]
    # 16 bits of which nothing is said: 0 is no measurement in all products that store reflectance so
    code = band_or_none(plain)
    return [0.0] if (is_reflectance(code) if code else _BAND_NUMBER.search(plain)) else []


def _measured(root: Any, header: _Header, *fills: float) -> Any:
    """A band of the layer's own grid: reflectance where the unit is known, NaN where nothing was measured."""
    layer, name = header.layer, header.layer.file
    if layer.alpha is not None:  # GDAL makes masks of some alone
        single = _root(header.grid)
        _source(_band(single, layer.name, header.dtype, None), name, "SimpleSource", header)
        mask = ElementTree.SubElement(ElementTree.SubElement(single, "MaskBand"), "VRTRasterBand", dataType="Byte")
        _source(mask, name, "SimpleSource", replace(header, layer=replace(layer, band=layer.alpha)))
        name = ElementTree.tostring(single, encoding="unicode")
    masked = header.masked and not (header.tagged and header.nodata in fills)
    if len(fills) > 1 or (fills and masked):  # GDAL looks at one value, and then at no mask
        single = _root(header.grid)
        _measured(single, replace(header, layer=replace(layer, scale=None)), *fills[:-1])
        name, masked = ElementTree.tostring(single, encoding="unicode"), False
    band = _band(root, layer.name, header.measured, math.nan)
    source = _source(band, name, "ComplexSource", header)
    if layer.scale is not None:
        _text(source, "ScaleOffset", repr(layer.offset))
        _text(source, "ScaleRatio", repr(layer.scale))
    if masked:
        _text(source, "UseMaskBand", "true")
    if fills:
        _text(source, "NODATA", repr(fills[-1]))
    return band


def _root(grid: _Grid) -> Any:
    root = ElementTree.Element("VRTDataset", rasterXSize=str(grid.width), rasterYSize=str(grid.height))
    if grid.crs is not None:
        _text(root, "SRS", grid.crs.to_wkt())
    if not grid.transform.is_identity:
        _text(root, "GeoTransform", ", ".join(map(repr, map(float, grid.transform.to_gdal()))))
    return root


def _band(root: Any, name: str, dtype: str, nodata: float | None) -> Any:
    number = len(root.findall("VRTRasterBand")) + 1
    band = ElementTree.SubElement(root, "VRTRasterBand", dataType=GDAL_TYPES[dtype], band=str(number))
    _text(band, "Description", name)
    if nodata is not None:
        _text(band, "NoDataValue", "nan" if math.isnan(nodata) else repr(nodata))
    return band


def _source(band: Any, name: str, kind: str, header: _Header | None) -> Any:
    source = ElementTree.SubElement(band, kind)
    _text(source, "SourceFilename", name, relativeToVRT="0")
    whole = header is not None and (name == header.layer.file or header.layer.classes)  # else made of that band alone
    _text(source, "SourceBand", str(header.layer.band or 1 if header is not None and whole else 1))
    if header is not None and name == header.layer.file:  # GDAL then opens the file when it is read
        rows, columns = header.block
        sizes = {"RasterXSize": header.grid.width, "RasterYSize": header.grid.height, "BlockXSize": columns}
        sizes["BlockYSize"] = rows
        kinds = {key: str(size) for key, size in sizes.items()}
        ElementTree.SubElement(source, "SourceProperties", kinds, DataType=GDAL_TYPES[header.dtype])
    return source


def _text(parent: Any, tag: str, text: str, **attributes: str) -> None:
    ElementTree.SubElement(parent, tag, attributes).text = text


def _warped(name: str, target: _Grid, resampling: Resampling, fill: float, where: str, remote: bool) -> str:
    """A virtual raster of one on another grid, as XML."""
    nodata = {"nodata": fill, "src_nodata": fill} if math.isnan(fill) else {"nodata": fill}
    grid = {"crs": target.crs, "transform": target.transform, "width": target.width, "height": target.height}
    with (
        data_errors(f"{where}: its files cannot be brought to one grid", "choose another `grid`.", RasterioError),
        (SERVERS if remote else LOCAL).opened(name) as source,
        WarpedVRT(source, resampling=resampling, tolerance=0.01, **grid, **nodata) as warped,
        tempfile.TemporaryDirectory() as folder,
    ):
        file = Path(folder) / "warped.vrt"
        rasterio.shutil.copy(warped, file, driver="VRT")
        return file.read_text(encoding="utf-8")
