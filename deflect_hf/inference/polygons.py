"""A class map as polygons: of each its class, area and mean confidence, with the colors of the map for QGIS.

The map is read in rows by GDAL and in squares here; what is held is the polygons, never the pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from deflect_hf.errors import ConfigError, DataError, listing
from deflect_hf.files import refuse_foreign
from deflect_hf.raster.georeference import PixelAreas, pixel_areas, pixels_of
from deflect_hf.raster.header import IDENTITY, RasterInfo
from deflect_hf.raster.maps import Array, MapLayout, Square, style_of
from deflect_hf.raster.vector import Shapes, need_vector, write_features

SUFFIXES = (".gpkg", ".geojson", ".fgb")


def refuse_polygons(path: Path, overwrite: bool) -> None:
    """Refuse a name that no polygons can be written to."""
    need_vector()
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--polygons {path}: its name must end in one of {listing(SUFFIXES)}.")
    for taken in (path, style_of(path)):
        if taken.exists() and not overwrite:
            raise ConfigError(f"{taken} is there already: give another name, or replace it with --overwrite.")
    refuse_foreign(style_of(path))


def refuse_unplaced(path: Path, info: RasterInfo) -> None:
    """Refuse (DataError) GeoJSON, which is in longitude and latitude, of an image of which these are not known."""
    if path.suffix != ".geojson":
        return
    if info.crs is None:
        raise DataError(
            f"{info.path} names no reference system, and GeoJSON is in longitude and latitude: write the polygons as "
            ".gpkg, or name the image's (gdal_edit.py -a_srs)."
        )
    pixels_of(info, None, 0, 0)


def write_polygons(
    path: Path,
    mapped: Path,
    layout: MapLayout,
    info: RasterInfo,
    squares: Iterable[Square],
    steps: int,
    tolerance: float,
) -> int:
    """Write the areas of one class that are connected side by side, or leave nothing; returns how many they are.

    Args:
        mapped: the finished map.
        squares: (2, h, w) class numbers, and confidence in steps of 1 / ``steps``, of all of it.
        tolerance: by how many pixels borders may move; neighbours keep a common border.
    """
    import shapely

    geometries, values = _outlines(mapped, int(layout.nodata))
    shapes = Shapes(geometries, np.arange(len(geometries)), shapely.STRtree(geometries))
    ground = pixel_areas(info)
    pixels, square_metres, confidence = _measured(shapes, squares, ground)
    plain = shapely.coverage_simplify(geometries, tolerance) if tolerance and len(geometries) else geometries
    grid: RasterInfo | None = dataclasses.replace(info, transform=IDENTITY)  # the map itself
    system = info.crs
    if path.suffix == ".geojson":
        grid, system = None, "EPSG:4326"  # by its standard
    on_map = shapely.transform(plain, lambda at: np.stack(pixels_of(info, grid, at[:, 0], at[:, 1]), axis=1))
    columns: dict[str, Array] = {
        "class": np.array([layout.categories[value] for value in values], dtype=object),
        "value": values.astype(np.int32),
        "pixels": pixels,
        "confidence": np.round(confidence / steps, 4),
    }
    if ground.rows_m2 is not None:
        columns["area_ha"] = square_metres / 1e4
    write_features(path, on_map, columns, system)
    return len(values)


def _outlines(mapped: Path, nodata: int) -> tuple[Array, Array]:
    """(n,) polygons in pixels, and the class number of each."""
    import rasterio
    import shapely.geometry
    from rasterio.features import shapes

    with rasterio.open(mapped) as source:
        found = [
            (shapely.geometry.shape(outline), int(value))
            for outline, value in shapes(rasterio.band(source, 1))  # on the map
            if int(value) != nodata
        ]
        to_pixels = ~source.transform
    outlines = np.array([outline for outline, _ in found], dtype=object)
    geometries = shapely.transform(outlines, lambda at: np.rint(np.stack(to_pixels @ at.T, axis=1)))
    return geometries, np.array([value for _, value in found], dtype=np.int64)


def _measured(shapes: Shapes, squares: Iterable[Square], ground: PixelAreas) -> tuple[Array, Array, Array]:
    """(n,) pixels, square metres (0 where they are not known) and mean confidence of each polygon."""
    count = len(shapes.values)
    pixels, square_metres, confidence = np.zeros(count, np.int64), np.zeros(count), np.zeros(count)
    for square in squares:
        height, width = square.values.shape[1:]
        numbers, inside = shapes.burn((square.row, square.column, height, width))
        own = numbers[inside]
        pixels += np.bincount(own, minlength=count)
        confidence += np.bincount(own, square.values[1][inside].astype(float), minlength=count)
        if ground.rows_m2 is not None:
            sizes = ground.of((square.row, square.column, height, width))
            square_metres += np.bincount(own, sizes[inside], minlength=count)
    return pixels, square_metres, confidence / np.maximum(pixels, 1)
