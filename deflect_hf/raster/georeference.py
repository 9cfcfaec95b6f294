"""Where pixels lie on the ground and how large they are there, from the reference system and the geotransform.

pyproj and rasterio are imported when they are asked.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from affine import Affine

from deflect_hf.errors import DataError
from deflect_hf.raster.header import Array, Box, RasterInfo

# A projection that shows areas more than this share too large or too small is corrected for it. UTM stays below.
TOLERATED_DISTORTION = 0.01
SAMPLED = 65  # rows and columns
GEOGRAPHIC = "geographic"
TOLERATED_SHIFT = 0.1  # pixels of the image
EARTH_RADIUS_KM = 6371.0088  # mean radius
CORNERS = np.array([(0, 0), (1, 0), (0, 1), (1, 1)], dtype=float).T  # columns and rows, in lengths of the sides


@functools.lru_cache(maxsize=64)  # a folder has few systems and many files
def _system(wkt: str) -> Any:
    from pyproj import CRS

    return CRS.from_wkt(wkt)


@functools.lru_cache(maxsize=64)
def _between(source: str, target: str | None) -> Any:
    """From one system to another, or to longitude and latitude in degrees; None where they are the same."""
    from pyproj import Transformer
    from pyproj.exceptions import ProjError

    if target is not None and (source == target or _system(source) == _system(target)):
        return None
    try:
        return Transformer.from_crs(_system(source), _system(target) if target else "EPSG:4326", always_xy=True)
    except ProjError as error:
        names = _system(source).name, _system(target).name if target else "longitude and latitude"
        raise DataError(
            f"nothing leads from the reference system {names[0]!r} to {names[1]!r}: one of them is local, and does not "
            "say where on the Earth it is; give the files one system (gdal_edit.py -a_srs, ogr2ogr -a_srs)."
        ) from error


def crs_name(info: RasterInfo) -> str:
    """What people call the reference system: ``EPSG:32631``, else its own name; ``none`` without one."""
    if info.crs is None:
        return "none"
    system = _system(info.crs)
    code = system.to_epsg()
    return str(system.name) if code is None else f"EPSG:{code}"


def projection(info: RasterInfo) -> str | None:
    """How a grid lies on the ground: ``Transverse_Mercator`` for every zone of UTM, ``geographic`` for degrees, ...

    None where the file does not say.
    """
    if info.crs is None:
        return None
    method = re.search(r'(?:PROJECTION\[|CONVERSION\["[^"]*",\s*METHOD\[)"([^"]*)"', info.crs)
    if method is not None:
        return method[1].replace(" ", "_")
    return GEOGRAPHIC if re.search(r"\bGEO(?:GCS|GCRS|DCRS)\[", info.crs) else None


@dataclass(frozen=True)
class PixelAreas:
    """Area of the pixels of a raster."""

    rows_m2: Array | None  # (H,) square metres of a pixel of the middle of that row, None where they cannot be known
    method: str  # one sentence for people: how the areas were found, or why there are none
    samples: tuple[Array, Array, Array] | None = None  # rows (n,), columns (m,) and areas (n, m), unless rows say all

    def of(self, box: Box) -> Array:
        """(h, w) square metres of the pixels of a box."""
        row, column, height, width = box
        assert self.rows_m2 is not None
        if self.samples is None:
            return np.broadcast_to(self.rows_m2[row : row + height, None], (height, width))
        rows, columns, areas = self.samples
        down = _between_samples(rows, row + np.arange(height) + 0.5)
        return down @ areas @ _between_samples(columns, column + np.arange(width) + 0.5).T


def _between_samples(samples: Array, wanted: Array) -> Array:
    """(w, n) shares of the samples in what lies linearly between them."""
    return np.stack([np.interp(wanted, samples, share) for share in np.eye(len(samples))], axis=1)


def pixel_areas(info: RasterInfo) -> PixelAreas:
    """Square metres of the pixels, from the pixel size of a projected system or by latitude.

    A projected system gives |a e - b d| of the geotransform in its linear unit; where the projection shows areas more
    than 1 % wrong (Web Mercator away from the equator), and in a geographic system, they are those of the pixel's
    corners on the system's ellipsoid, by row in degrees and else by row and column.
    """
    if info.crs is None:
        return PixelAreas(None, "The file has no georeference: areas are in pixels.")
    name, crs = crs_name(info), _system(info.crs)
    a, b, _, d, e, f = info.transform
    if crs.is_geographic:
        if b or d:
            return PixelAreas(None, f"The grid is rotated in {name}, in degrees: areas are in pixels.")
        if max(abs(f), abs(f + e * info.height)) * _unit(crs) > math.pi / 2 + 1e-9:
            return PixelAreas(None, f"The latitudes of the file leave -90 to 90 degrees ({name}): areas are in pixels.")
        areas = _ground_m2(info, crs, np.arange(info.height) + 0.5, np.array([info.width / 2]))[:, 0]
        shape = "ellipsoid" if crs.ellipsoid.inverse_flattening else "sphere"
        return PixelAreas(
            areas, f"Areas by latitude on the {shape} of {name}: {areas.min():.6g} to {areas.max():.6g} m2 a pixel."
        )
    if not crs.is_projected:
        return PixelAreas(None, f"{name} is neither projected nor geographic: areas are in pixels.")
    metres = _unit(crs)
    plane = abs(a * e - b * d) * metres**2
    width, height = math.hypot(a, d) * metres, math.hypot(b, e) * metres
    size = f"{width:.6g} m" if math.isclose(width, height) else f"{width:.6g} m x {height:.6g} m"
    rows, columns = (np.linspace(0.5, side - 0.5, SAMPLED) for side in (info.height, info.width))
    ground = _ground_m2(info, crs, rows, columns)
    known = np.isfinite(ground).all() and (ground > 0).all()
    if not known or np.abs(plane / ground - 1).max() <= TOLERATED_DISTORTION:
        areas = np.full(info.height, plane)
        return PixelAreas(areas, f"Areas are those of the map: pixels of {size} in {name}.")
    scales = sorted({f"{plane / ground.max():.3g}", f"{plane / ground.min():.3g}"}, key=float)
    return PixelAreas(
        np.interp(np.arange(info.height) + 0.5, rows, ground[:, SAMPLED // 2]),
        f"Pixels are {size} in {name}, which shows areas here {' to '.join(scales)} times as large as they "
        "are: areas are those on the ellipsoid, corrected by row and column.",
        (rows, columns, ground),
    )


def places_of(infos: Sequence[RasterInfo], km: float) -> list[int]:
    """The place of each image, numbered: those with middles closer than ``km``, also by way of others, share it."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    degrees = []
    for info in infos:
        if info.crs is None or not info.georeferenced:
            raise DataError(f"{info.path} does not say where it lies: leave place_km out, or give it a georeference.")
        degrees.append(pixels_of(info, None, info.width / 2, info.height / 2))
    longitude, latitude = np.radians(np.array(degrees)).T
    ball = np.stack([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], 1)
    chord = 2 * math.sin(min(km / EARTH_RADIUS_KM / 2, math.pi / 2))
    near = cKDTree(ball).query_pairs(chord, output_type="ndarray")
    graph = coo_array((np.ones(len(near)), (near[:, 0], near[:, 1])), shape=(len(infos), len(infos)))
    return [int(place) for place in connected_components(graph, directed=False)[1]]


def _affine(info: RasterInfo) -> Any:
    """Columns and rows to coordinates; the corners of pixels are the whole numbers."""
    return Affine(*info.transform)


def _unit(crs: Any) -> float:
    """Metres, or radians, of one unit of the horizontal axes."""
    return float(crs.axis_info[0].unit_conversion_factor)


def _ground_m2(info: RasterInfo, crs: Any, rows: Array, columns: Array) -> Array:
    """(n, m) square metres on the ellipsoid of the pixels that are centred on these rows and columns."""
    from pyproj import Transformer

    across, down = np.array([-0.5, 0.5, 0.5, -0.5]), np.array([-0.5, -0.5, 0.5, 0.5])
    middle_rows, middle_columns = (middles.reshape(-1, 1) for middles in np.meshgrid(rows, columns, indexing="ij"))
    x, y = _affine(info) @ (middle_columns + across, middle_rows + down)
    longitude, latitude = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform(x, y)
    degrees = math.degrees(_unit(crs.geodetic_crs))
    geod = crs.get_geod()
    return np.array(
        [
            abs(geod.polygon_area_perimeter(lon, lat)[0])
            for lon, lat in zip(longitude * degrees, latitude * degrees, strict=True)
        ]
    ).reshape(len(rows), len(columns))


def is_geographic(crs: str) -> bool:
    """Whether a reference system is in degrees of longitude and latitude."""
    return bool(_system(crs).is_geographic)


def pixels_of(source: RasterInfo, target: RasterInfo | None, columns: Any, rows: Any) -> tuple[Any, Any]:
    """Where points of one grid are in another; None: as longitude and latitude, on the map where no system is known.

    A system that one of the files does not name is the other's.
    """
    x, y = _affine(source) @ (columns, rows)
    if source.crs is not None and (target is None or target.crs is not None):
        try:
            between = _between(source.crs, None if target is None else target.crs)
        except DataError as error:
            raise DataError(f"{source.path}: {error}") from error
        x, y = (x, y) if between is None else between.transform(x, y)
    if target is not None:
        x, y = ~_affine(target) @ (x, y)
    return x, y


def unit_m(info: RasterInfo) -> float:
    """Metres of one unit of a projected reference system."""
    return _unit(_system(str(info.crs)))


def part_of(info: RasterInfo, box: tuple[int, int, int, int]) -> RasterInfo:
    """The header that a window (row, column, height, width) of a raster would have as a file of its own."""
    row, column, height, width = box
    placed = _affine(info) @ Affine.translation(column, row)
    return dataclasses.replace(info, height=height, width=width, transform=tuple(placed)[:6])


def ground_m(info: RasterInfo) -> float | None:
    """Size of a pixel on the ground in metres, by latitude where the coordinates are degrees."""
    if info.gsd_m is not None:
        return info.gsd_m
    areas = pixel_areas(info).rows_m2
    return None if areas is None else float(np.sqrt(np.median(areas)))


def refuse_misplaced(label: RasterInfo, image: RasterInfo) -> Callable[[Array], Array]:
    """What brings (..., h, w) of a label, as stored, to the rows and columns of its image, (..., H, W).

    Stored from the south, from the east or with rows for columns, a label lies on the same pixels all the same. Where
    one of them has no georeference it lies as it is stored.

    Raises:
        DataError: It does not have the pixels of the image, to a tenth of one.
    """
    size, wanted = (label.height, label.width), (image.height, image.width)
    placed = label.georeferenced and image.georeferenced
    if not placed or (label.transform, label.crs) == (image.transform, image.crs):
        if size == wanted:
            return np.asarray
        raise DataError(
            f"{label.path} is {size[0]} x {size[1]} pixels, but its image {image.path} is {wanted[0]} x {wanted[1]}: "
            "make the mask on the grid of the image."
        )
    found = np.stack(pixels_of(label, image, *CORNERS * [[label.width], [label.height]]))
    along_row, along_column = (found[:, [1, 2]] - found[:, [0]]).T
    swapped = abs(along_row[1]) > abs(along_row[0])  # its stored rows are the image's columns
    upside_down, mirrored = along_column[int(not swapped)] < 0, along_row[int(swapped)] < 0
    flipped = np.abs(np.array([[mirrored], [upside_down]]) - CORNERS)
    off = found - (flipped[::-1] if swapped else flipped) * [[image.width], [image.height]]
    shift = off[:, np.abs(off).max(axis=0).argmax()]  # pixels by which the corner that is farthest off is off
    if (size[::-1] if swapped else size) == wanted and np.abs(shift).max() <= TOLERATED_SHIFT:

        def turn(values: Array) -> Array:
            turned = values[..., :: -1 if upside_down else 1, :: -1 if mirrored else 1]
            return np.ascontiguousarray(turned.swapaxes(-1, -2) if swapped else turned)

        return turn
    pixels, metres = math.hypot(*shift), _metres(image, shift)
    ground = "" if metres is None else f" ({metres:.4g} m)"
    problems = []
    if not pixels <= TOLERATED_SHIFT:
        elsewhere = f"{pixels:.4g} pixels{ground} off the image" if math.isfinite(pixels) else "elsewhere"
        problems.append(f"it lies {elsewhere}")
    if size != wanted:
        problems.append(f"it has {size[0]} x {size[1]} pixels, the image {wanted[0]} x {wanted[1]}")
    if label.gsd_m is not None and image.gsd_m is not None and not math.isclose(label.gsd_m, image.gsd_m, rel_tol=1e-3):
        problems.append(f"its pixels are {label.gsd_m:g} m, the image's {image.gsd_m:g} m")
    names = crs_name(label), crs_name(image)
    if names[0] != names[1]:
        problems.append(f"it is in {names[0]}, the image in {names[1]}")
    raise DataError(
        f"{label.path} is not on the grid of its image {image.path}: {'; '.join(problems)}. Make the mask on the grid "
        "of the image, or set `label_alignment: resample` to take for each pixel the label at its middle."
    )


def _metres(image: RasterInfo, shift: Array) -> float | None:
    """Length on the ground of a shift in pixels from the middle of an image."""
    if image.crs is None or _system(image.crs).is_engineering:
        return None
    columns, rows = image.width / 2 + np.array([0, shift[0]]), image.height / 2 + np.array([0, shift[1]])
    longitude, latitude = pixels_of(image, None, columns, rows)
    metres = _system(image.crs).get_geod().inv(longitude[0], latitude[0], longitude[1], latitude[1])[2]
    return float(metres) if math.isfinite(metres) else None


def nearest_pixels(label: RasterInfo, image: RasterInfo) -> tuple[Array, Array]:
    """Row and column, (H, W) each, of the label's pixel at the middle of each pixel of the image; -1 outside of it."""
    rows, columns = np.mgrid[: image.height, : image.width] + 0.5
    column, row = pixels_of(image, label, columns, rows)
    # where middles fall on the border of two pixels, rounding does not choose
    row, column = (np.floor(np.nan_to_num(at, nan=-1, posinf=-1, neginf=-1) + 1e-6) for at in (row, column))
    outside = (row < 0) | (row >= label.height) | (column < 0) | (column >= label.width)
    return np.where(outside, -1, row).astype(np.int64), np.where(outside, -1, column).astype(np.int64)
