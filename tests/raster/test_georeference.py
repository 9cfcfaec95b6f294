"""Areas of pixels on the ground, against the known areas of ellipsoids, spheres and grids."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Proj
from rasterio.crs import CRS

from deflect_hf.errors import DataError
from deflect_hf.raster.georeference import crs_name, pixel_areas, places_of, projection
from deflect_hf.raster.header import RasterInfo

EARTH_KM2 = 510_065_621.724  # surface of the WGS 84 ellipsoid, by its closed formula


def header(crs: str | None, transform: tuple[float, ...], height: int, width: int = 10) -> RasterInfo:
    wkt = None if crs is None else CRS.from_user_input(crs).to_wkt()
    return RasterInfo("map.tif", 1, height, width, "uint8", ("",), (1.0,), (0.0,), (None,), wkt, transform, None)


def test_utm_pixels_are_as_large_as_their_sides_say() -> None:
    areas = pixel_areas(header("EPSG:32631", (10, 0, 5e5, 0, -20, 5e6), 30))
    assert areas.rows_m2 is not None and areas.rows_m2.shape == (30,)
    assert (areas.rows_m2 == 200).all()
    assert areas.method == "Areas are those of the map: pixels of 10 m x 20 m in EPSG:32631."


def test_a_rotated_grid_keeps_its_area() -> None:
    turned = (10 * math.cos(0.3), 10 * math.sin(0.3), 5e5, 10 * math.sin(0.3), -10 * math.cos(0.3), 5e6)
    assert pixel_areas(header("EPSG:32631", turned, 3)).rows_m2 == pytest.approx(np.full(3, 100.0))


def test_feet_become_metres() -> None:
    areas = pixel_areas(header("EPSG:2263", (10, 0, 9.8e5, 0, -10, 2e5), 3))
    assert areas.rows_m2 == pytest.approx(np.full(3, 100 * 0.3048006096**2))


@pytest.mark.parametrize(
    ("crs", "name"),
    [
        ("EPSG:32631", "Transverse_Mercator"),
        ("EPSG:32733", "Transverse_Mercator"),  # another zone, south
        ("EPSG:27700", "Transverse_Mercator"),
        ("EPSG:3031", "Polar_Stereographic"),
        ("EPSG:5070", "Albers_Conic_Equal_Area"),
        ("EPSG:4326", "geographic"),
        ("EPSG:7415", "Oblique_Stereographic"),  # with heights
        ("+proj=longlat +R=1000 +no_defs", "geographic"),
        ('LOCAL_CS["mine",UNIT["metre",1]]', None),
        (None, None),
    ],
)
def test_what_a_grid_is_whatever_its_zone(crs: str | None, name: str | None) -> None:
    info = header(crs, (10, 0, 0, 0, -10, 0), 3)
    assert projection(info) == name
    if crs is not None and name is not None:  # the same system in the words of the newer standard
        wkt = CRS.from_wkt(info.crs).to_wkt(version="WKT2_2019")
        named = projection(dataclasses.replace(info, crs=wkt))
        assert named is not None and (named == "geographic") == (name == "geographic")
        assert named == name or name not in ("geographic", "Transverse_Mercator")


@pytest.mark.parametrize("step", [1.0, 0.25])
def test_the_whole_earth_in_degrees(step: float) -> None:
    height, width = round(180 / step), round(360 / step)
    areas = pixel_areas(header("EPSG:4326", (step, 0, -180, 0, -step, 90), height, width))
    assert areas.rows_m2 is not None
    assert areas.rows_m2.sum() * width / 1e6 == pytest.approx(EARTH_KM2, rel=1e-9)
    assert areas.rows_m2 == pytest.approx(areas.rows_m2[::-1])
    assert areas.method.startswith("Areas by latitude on the ellipsoid of EPSG:4326: ")


def test_the_whole_sphere_in_degrees() -> None:
    areas = pixel_areas(header("+proj=longlat +R=1000 +no_defs", (1, 0, -180, 0, -1, 90), 180, 360))
    assert areas.rows_m2 is not None and areas.rows_m2.sum() * 360 == pytest.approx(4 * math.pi * 1e6)
    assert "by latitude on the sphere of" in areas.method


@settings(max_examples=20, deadline=None)
@given(latitude=st.floats(-80, 80))
def test_a_small_pixel_in_degrees_is_its_tangent_rectangle(latitude: float) -> None:
    step = 1e-4
    areas = pixel_areas(header("EPSG:4326", (step, 0, 7, 0, -step, latitude), 1))
    squared = 1 - 0.00669437999014 * math.sin(math.radians(latitude - step / 2)) ** 2
    parallel = 6378137 / math.sqrt(squared) * math.cos(math.radians(latitude - step / 2))
    meridian = 6378137 * (1 - 0.00669437999014) / squared**1.5
    assert areas.rows_m2 == pytest.approx([parallel * meridian * math.radians(step) ** 2], rel=1e-6)


def test_web_mercator_is_corrected_row_by_row() -> None:
    """A scene at 60 degrees north: the map shows it four times as large as it is."""
    top = 8_399_737.889818357
    areas = pixel_areas(header("EPSG:3857", (10, 0, 1e6, 0, -10, top + 50), 10))
    assert areas.rows_m2 is not None
    squared = 1 - 0.00669437999014 * 0.75
    # dx = a dlon, and dy = a dlat / cos(lat) on the map's sphere
    true = 100 * 0.5 * 0.5 * (1 / math.sqrt(squared)) * ((1 - 0.00669437999014) / squared**1.5)
    assert areas.rows_m2[5] == pytest.approx(true, rel=1e-4)
    assert (np.diff(areas.rows_m2) > 0).all()
    assert areas.method.startswith("Pixels are 10 m in EPSG:3857, which shows areas here 3.99 times as large as ")


@pytest.mark.parametrize("corner", [(-4e6, 4e6), (0.0, 3e6)])
def test_polar_maps_are_corrected_by_row_and_column(corner: tuple[float, float]) -> None:
    info = header("EPSG:3031", (1e4, 0, corner[0], 0, -1e4, corner[1]), 300, 300)
    found = pixel_areas(info).of((0, 0, 300, 300))
    rows, columns = np.mgrid[:300, :300] + 0.5
    x, y = corner[0] + 1e4 * columns, corner[1] - 1e4 * rows
    longitude, latitude = Proj("EPSG:3031")(x, y, inverse=True)
    true = 1e8 / Proj("EPSG:3031").get_factors(longitude, latitude).areal_scale
    assert found.sum() == pytest.approx(true.sum(), rel=1e-4) and found == pytest.approx(true, rel=1e-3)
    assert pixel_areas(info).of((40, 200, 7, 9)) == pytest.approx(found[40:47, 200:209])


def test_equal_area_projections_are_left_alone() -> None:
    areas = pixel_areas(header("EPSG:3035", (1000, 0, 2.5e6, 0, -1000, 5e6), 3000, 3000))
    assert areas.rows_m2 is not None and (areas.rows_m2 == 1e6).all()


@pytest.mark.parametrize(
    ("crs", "transform", "message"),
    [
        (None, (1, 0, 0, 0, 1, 0), "The file has no georeference: areas are in pixels."),
        ("EPSG:4326", (1e-4, 1e-4, 7, 1e-4, -1e-4, 50), "The grid is rotated in EPSG:4326, in degrees: areas are"),
        ("EPSG:4326", (10, 0, 5e5, 0, -10, 5e6), "The latitudes of the file leave -90 to 90 degrees (EPSG:4326): "),
        ("EPSG:4978", (10, 0, 5e5, 0, -10, 5e6), "EPSG:4978 is neither projected nor geographic: areas are in pixels."),
    ],
)
def test_where_areas_cannot_be_known(crs: str | None, transform: tuple[float, ...], message: str) -> None:
    areas = pixel_areas(header(crs, transform, 4))
    assert areas.rows_m2 is None
    assert areas.method.startswith(message)


def test_reference_systems_have_names() -> None:
    assert crs_name(header(None, (1, 0, 0, 0, 1, 0), 4)) == "none"
    assert crs_name(header("EPSG:32631", (1, 0, 0, 0, 1, 0), 4)) == "EPSG:32631"
    own = CRS.from_proj4("+proj=laea +lat_0=47 +lon_0=8 +ellps=bessel").to_wkt().replace("unknown", "My grid", 1)
    assert crs_name(header(own, (1, 0, 0, 0, 1, 0), 4)) == "My grid"


def test_images_that_are_near_each_other_are_one_place_whatever_their_systems() -> None:
    # 100 km apart on a meridian, the second in degrees; then one 4 km east of it, and one 4 km further.
    utm = header("EPSG:32631", (10, 0, 5e5, 0, -10, 5.0e6), 10)
    degrees = header("EPSG:4326", (1e-4, 0, 3.0, 0, -1e-4, 46.0526), 10)
    chained = [header("EPSG:32631", (10, 0, 5e5 + east, 0, -10, 5.1e6), 10) for east in (4e3, 8e3)]
    assert places_of([utm, degrees, *chained], 5.0) == [0, 1, 1, 1]
    assert places_of([utm, degrees, *chained], 3.0) == [0, 1, 2, 3]
    assert places_of([utm, degrees, *chained], 101.0) == [0, 0, 0, 0]
    with pytest.raises(DataError, match="does not say where it lies: leave place_km out"):
        places_of([utm, header(None, (1, 0, 0, 0, 1, 0), 10)], 5.0)
