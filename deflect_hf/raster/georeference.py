"""How large pixels are on the ground: from the coordinate reference system and the geotransform of a raster.

Imports rasterio when it is asked, for what PROJ knows of the reference system.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from deflect_hf.raster.header import RasterInfo

Array = np.ndarray[Any, Any]

# WGS 84, for projected systems; a geographic system is measured on its own ellipsoid.
WGS84 = (6378137.0, 298.257223563)  # semi-major axis in metres, inverse flattening
# A projection that shows areas more than this share too large or too small is corrected for it. UTM stays below.
TOLERATED_DISTORTION = 0.01
SAMPLED_ROWS = 65
GEOGRAPHIC = "geographic"


@dataclass(frozen=True)
class PixelAreas:
    """Area of a pixel in each row of a raster.

    Attributes:
        rows_m2: (H,) square metres of a pixel of that row, None where they cannot be known.
        method: one sentence for people: how the areas were found, or why there are none.
    """

    rows_m2: Array | None
    method: str


def pixel_areas(info: RasterInfo) -> PixelAreas:
    """Square metres of a pixel in each row, from the pixel size of a projected system or by latitude.

    A projected system gives |a e - b d| of the geotransform in its linear unit; where the projection shows areas more
    than 1 % wrong (Web Mercator away from the equator), they are brought to the ellipsoid row by row. In a geographic
    system a pixel is a zone of the system's ellipsoid between two latitudes, cut by two longitudes.
    """
    if info.crs is None:
        return PixelAreas(None, "The file has no georeference: areas are in pixels.")
    from rasterio.crs import CRS

    crs = CRS.from_wkt(info.crs)
    if crs.is_projected:
        return _projected(info, crs)
    if crs.is_geographic:
        return _geographic(info, crs)
    return PixelAreas(None, f"{crs_name(info)} is neither projected nor geographic: areas are in pixels.")


def crs_name(info: RasterInfo) -> str:
    """What people call the reference system: ``EPSG:32631``, else its own name; ``none`` without one."""
    if info.crs is None:
        return "none"
    from rasterio.crs import CRS

    code = CRS.from_wkt(info.crs).to_epsg()
    if code is not None:
        return f"EPSG:{code}"
    named = re.search(r'^\w+\["([^"]*)"', info.crs)
    return named[1] if named else "unnamed"


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


def _projected(info: RasterInfo, crs: Any) -> PixelAreas:
    a, b, _, d, e, _ = info.transform
    metres = crs.linear_units_factor[1]
    plane = abs(a * e - b * d) * metres**2
    width, height = math.hypot(a, d) * metres, math.hypot(b, e) * metres
    size = f"{width:.6g} m" if math.isclose(width, height) else f"{width:.6g} m x {height:.6g} m"
    ground = _ground_m2(info, crs)
    if ground is None or np.abs(plane / ground - 1).max() <= TOLERATED_DISTORTION:
        areas = np.full(info.height, plane)
        return PixelAreas(areas, f"Areas are those of the map: pixels of {size} in {crs_name(info)}.")
    scales = sorted({f"{plane / ground.max():.3g}", f"{plane / ground.min():.3g}"}, key=float)
    return PixelAreas(
        ground,
        f"Pixels are {size} in {crs_name(info)}, which shows areas here {' to '.join(scales)} times as large as they "
        "are: areas are those on the ellipsoid, corrected row by row.",
    )


def _ground_m2(info: RasterInfo, crs: Any) -> Array | None:
    """(H,) square metres of a pixel of the middle column on the ellipsoid; None where PROJ cannot say."""
    from rasterio.errors import RasterioError
    from rasterio.warp import transform

    a, b, c, d, e, f = info.transform
    rows = np.linspace(0, info.height, SAMPLED_ROWS)
    # half a pixel right and left of the middle of these rows, and half a pixel below and above
    columns = info.width / 2 + np.repeat([0.5, -0.5, 0.0, 0.0], SAMPLED_ROWS)
    lines = np.tile(rows, 4) + np.repeat([0.0, 0.0, 0.5, -0.5], SAMPLED_ROWS)
    try:
        found = transform(
            crs, "EPSG:4326", (c + a * columns + b * lines).tolist(), (f + d * columns + e * lines).tolist()
        )
    except RasterioError:
        return None
    longitude, latitude = np.radians(np.asarray(found[:2], dtype=np.float64)).reshape(2, 4, SAMPLED_ROWS)
    # differences of longitude across the antimeridian are small, too
    along, down = (
        ((longitude[i] - longitude[i + 1] + math.pi) % (2 * math.pi) - math.pi, latitude[i] - latitude[i + 1])
        for i in (0, 2)
    )
    middle = latitude.mean(axis=0)
    axis_m, shrink = WGS84[0], (1 - 1 / WGS84[1]) ** 2
    squared = 1 - (1 - shrink) * np.sin(middle) ** 2
    # radii of curvature along the parallel (times cosine) and along the meridian
    parallel, meridian = axis_m / np.sqrt(squared) * np.cos(middle), axis_m * shrink / squared**1.5
    ground = np.abs(along[0] * down[1] - along[1] * down[0]) * parallel * meridian
    if not (np.isfinite(ground).all() and (ground > 0).all()):
        return None
    return np.interp(np.arange(info.height) + 0.5, rows, ground)


def _geographic(info: RasterInfo, crs: Any) -> PixelAreas:
    a, b, _, d, e, f = info.transform
    if b or d:
        return PixelAreas(None, f"The grid is rotated in {crs_name(info)}, in degrees: areas are in pixels.")
    radians = crs.units_factor[1]
    edges = (f + e * np.arange(info.height + 1)) * radians
    if np.abs(edges).max() > math.pi / 2 + 1e-9:
        return PixelAreas(
            None, f"The latitudes of the file leave -90 to 90 degrees ({crs_name(info)}): areas are in pixels."
        )
    axis_m, inverse = _ellipsoid(info.crs or "")
    zones = np.abs(np.diff(_zone(np.sin(edges), axis_m, inverse)))
    areas = zones * abs(a) * radians
    shape = "sphere" if inverse == 0 else "ellipsoid"
    return PixelAreas(
        areas,
        f"Areas by latitude on the {shape} of {crs_name(info)}: {areas.min():.6g} to {areas.max():.6g} m2 a pixel.",
    )


def _ellipsoid(wkt: str) -> tuple[float, float]:
    """Semi-major axis in metres and inverse flattening (0: a sphere) that the reference system names."""
    named = re.search(r'(?:SPHEROID|ELLIPSOID)\["[^"]*",\s*([0-9.eE+]+),\s*([0-9.eE+]+)', wkt)
    return (float(named[1]), float(named[2])) if named else WGS84


def _zone(sine: Array, axis_m: float, inverse_flattening: float) -> Array:
    """Sine of a latitude -> square metres between the equator and it, per radian of longitude.

    Source: the authalic latitude's q (Snyder, Map Projections: A Working Manual, 1987, equation 3-12).
    """
    if inverse_flattening == 0:
        return axis_m**2 * sine
    flattening = 1 / inverse_flattening
    eccentricity = math.sqrt(flattening * (2 - flattening))
    scaled = eccentricity * sine
    return axis_m**2 * (1 - eccentricity**2) * (sine / (1 - scaled**2) + np.arctanh(scaled) / eccentricity) / 2
