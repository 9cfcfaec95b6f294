"""Maps as GeoTIFF: classes with colours and names, or probabilities; read back once they are written.

A map is written square by square, and never held whole, nor a row of it. GDAL does not report every failure of
its last writes, so the finished file is compared with what was to be in it.
"""

from __future__ import annotations

import os
import warnings
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import rasterio
import rasterio.shutil
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from deflect_hf.raster.header import Array, Color, RasterInfo
from deflect_hf.raster.read import CACHE_BYTES
from deflect_hf.raster.write import geotiff_profile, writing

SQUARE = 512  # pixels: side of a block of a Cloud Optimized GeoTIFF, and whole tiles of any other
DEEP_SQUARE = 64  # the same of a map with more bands than that of any classes, which would be large in memory
MOST_BANDS = 255
MADE_BY = {"SOFTWARE": "deflect_hf"}  # in the metadata of every map
JOB_TAG = "DEFLECT_JOB"  # checksum of all that the map depends on
SIDECAR = ".aux.xml"  # where GDAL keeps what a GeoTIFF has no tag for
# names and attributes as QGIS 3 writes them
BORDERS = {"outline_color": "0,0,0,120", "outline_style": "solid", "outline_width": "0.1", "style": "solid"}


@dataclass(frozen=True)
class MapLayout:
    """What the bands of a map are."""

    dtype: str  # ``"uint8"`` or ``"float32"``
    nodata: float  # stored value where nothing was measured
    descriptions: tuple[str, ...]  # one per band
    scales: tuple[float, ...] = ()  # what the stored values of each band are multiplied by; empty: none is
    # names of the stored values 0, 1, 2 ... of a band of classes; empty for other maps
    categories: tuple[str, ...] = ()
    # what the training masks stored for each category, where that was not its number
    class_values: tuple[int, ...] = ()
    colours: tuple[Color, ...] = ()  # red, green and blue (0 to 255) of each category
    unit: str = ""  # of the stored values, as the band says it
    job: str = ""  # what job_of_map tells of the file

    @property
    def count(self) -> int:
        """Number of bands."""
        return len(self.descriptions)

    @property
    def side(self) -> int:
        """Pixels along a side of the squares that the map is written in: a whole number of its tiles."""
        return SQUARE if self.count <= MOST_BANDS else DEEP_SQUARE


class Square(NamedTuple):
    """(count, h, w) stored values of a map, and their first row and column: multiples of the layout's side."""

    row: int
    column: int
    values: Array

    @property
    def window(self) -> Window:
        """Where in the file they are."""
        return Window(self.column, self.row, self.values.shape[2], self.values.shape[1])


def write_map(
    path: Path, layout: MapLayout, like: RasterInfo, squares: Iterator[Square], *, cog: bool, final: Path
) -> None:
    """Write a map with the size, CRS and transform of ``like``, or leave nothing.

    Args:
        path: in a folder of its own: files beside it with names that start with its name are written and removed.
        final: what errors call it, the path that it will be moved to.
        squares: the whole map.
        cog: as Cloud Optimized GeoTIFF, with overviews.
    """
    plain = path.with_name(f"{path.name}.plain.tif") if cog else path
    try:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), writing(final):
            checksums = _write_plain(plain, layout, like, squares)
            if cog:
                rasterio.shutil.copy(
                    plain,
                    path,
                    driver="COG",
                    COMPRESS="DEFLATE",
                    PREDICTOR="YES" if layout.dtype == "float32" else "NO",
                    BLOCKSIZE=layout.side,
                    # a class between two others in the table is not between them on the ground
                    OVERVIEW_RESAMPLING="MODE" if layout.categories else "AVERAGE",
                    BIGTIFF="IF_SAFER",
                )
            _compare(path, checksums)
        sidecar(path).unlink(missing_ok=True)
        if layout.categories:
            sidecar(path).write_text(category_names(layout.categories), encoding="utf-8")
    except BaseException:
        sidecar(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise
    finally:
        if cog:
            plain.unlink(missing_ok=True)
            sidecar(plain).unlink(missing_ok=True)


def job_of_map(path: Path) -> str | None:
    """The ``job`` of a map that was written here; None for any other file."""
    try:
        ignored = warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning)
        with ignored, rasterio.open(path) as source:
            tags = source.tags()
    except RasterioError:
        return None
    return tags.get(JOB_TAG, "") if MADE_BY.items() <= tags.items() else None


def sidecar(path: Path) -> Path:
    """The file beside a map that holds the names of its classes."""
    return path.with_name(path.name + SIDECAR)


def _write_plain(
    path: Path, layout: MapLayout, like: RasterInfo, squares: Iterator[Square]
) -> list[tuple[Window, int]]:
    """Write the map as a plain GeoTIFF; returns the checksum of each square."""
    profile = geotiff_profile(layout.count, layout.dtype, like, layout.nodata)
    profile |= {"predictor": 3 if layout.dtype == "float32" else 1, "interleave": "band"}
    if not layout.colours:
        profile["photometric"] = "minisblack"  # four bands of 8 bits are red, green, blue and alpha otherwise
    if layout.side < SQUARE:
        profile |= {"tiled": True, "blockxsize": layout.side, "blockysize": layout.side}
    checksums = []
    with rasterio.open(path, "w", **profile) as sink:
        for number, text in enumerate(layout.descriptions, start=1):
            sink.set_band_description(number, text)
        if layout.colours:
            table = {number: (*colour, 255) for number, colour in enumerate(layout.colours)}
            sink.write_colormap(1, {**table, int(layout.nodata): (0, 0, 0, 0)})
        if layout.unit:
            sink.units = [layout.unit] * layout.count
        if any(scale != 1.0 for scale in layout.scales):
            sink.scales = layout.scales
        sink.update_tags(**MADE_BY, **({JOB_TAG: layout.job} if layout.job else {}))
        for number, name in enumerate(layout.categories):
            sink.update_tags(1, **{f"CLASS_{number}": name})
        for number, value in enumerate(layout.class_values):
            sink.update_tags(1, **{f"CLASS_{number}_VALUE": str(value)})
        for square in squares:
            sink.write(square.values, window=square.window)
            checksums.append((square.window, zlib.crc32(square.values.data)))
    return checksums


def _compare(path: Path, checksums: list[tuple[Window, int]]) -> None:
    """Read the file back; OSError if it holds other values than were to be written."""
    with rasterio.open(path) as source:
        for window, checksum in checksums:
            if zlib.crc32(source.read(window=window).data) != checksum:
                raise OSError(f"row {window.row_off}, column {window.col_off}: it came back with other values")


def category_names(names: tuple[str, ...]) -> str:
    """GDAL's auxiliary file with the names of band 1's values, which QGIS shows in the legend."""
    root = ElementTree.Element("PAMDataset")
    listed = ElementTree.SubElement(ElementTree.SubElement(root, "PAMRasterBand", band="1"), "CategoryNames")
    for name in names:
        ElementTree.SubElement(listed, "Category").text = name
    return ElementTree.tostring(root, encoding="unicode") + os.linesep


def style_of(path: Path) -> Path:
    """The file beside a map or polygons by which QGIS paints them: one for both where they have one name."""
    return path.with_suffix(".qml")


def qgis_style(layout: MapLayout) -> str:
    """QML that paints polygons by their attribute ``class``, and a raster by its first band."""
    root = ElementTree.Element("qgis", {"version": "3.22.0", "styleCategories": "Symbology", "made-by": "deflect_hf"})
    renderer = ElementTree.SubElement(root, "renderer-v2", type="categorizedSymbol", attr="class")
    categories, symbols = (ElementTree.SubElement(renderer, name) for name in ("categories", "symbols"))
    pipe = ElementTree.SubElement(root, "pipe")
    painted = ElementTree.SubElement(
        pipe, "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1", nodataColor=""
    )
    palette = ElementTree.SubElement(painted, "colorPalette")
    for number, (name, color) in enumerate(zip(layout.categories, layout.colours, strict=True)):
        ElementTree.SubElement(categories, "category", symbol=str(number), value=name, label=name, render="true")
        symbol = ElementTree.SubElement(symbols, "symbol", type="fill", name=str(number), alpha="1")
        layer = ElementTree.SubElement(symbol, "layer", {"class": "SimpleFill"}, enabled="1")
        options = ElementTree.SubElement(layer, "Option", type="Map")
        for key, value in {"color": ",".join(map(str, (*color, 255))), **BORDERS}.items():
            ElementTree.SubElement(options, "Option", type="QString", name=key, value=value)
        ElementTree.SubElement(
            palette,
            "paletteEntry",
            value=str(number),
            color="#{:02x}{:02x}{:02x}".format(*color),
            alpha="255",
            label=name,
        )
    document = ElementTree.tostring(root, encoding="unicode")
    return f"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n{document}\n"
