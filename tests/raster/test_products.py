"""Scenes as agencies deliver them, opened as one raster: which file is which band, units, grids, what is refused."""

import json
import tarfile
import zipfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import rasterio

from deflect_hf.config.reading import ReadingArguments
from deflect_hf.errors import ConfigError, DataError, UnitError
from deflect_hf.raster.products import Product
from deflect_hf.raster.quality import quality_layer
from deflect_hf.raster.read import open_raster, raster_info, read_raster
from deflect_hf.raster.write import write_raster
from deflect_hf.spectral.sensors import get_sensor
from tests.raster.safe import BANDS, IMAGES, NAME, write_l1c, write_layer, write_safe

CODES = {"A": "B01", "B": "B02", "G": "B03", "R": "B04", "RE1": "B05", "RE2": "B06", "RE3": "B07", "N": "B08",
         "N2": "B8A", "WV": "B09", "S1": "B11", "S2": "B12"}  # fmt: skip
POSITIONS = {"B01": 0, "B02": 1, "B03": 2, "B04": 3, "B05": 4, "B06": 5, "B07": 6, "B08": 7, "B8A": 8, "B09": 9,
             "B11": 11, "B12": 12}  # fmt: skip


def bilinear(values: np.ndarray, factor: int) -> np.ndarray:
    """Values between the middles of pixels, by those around that are not NaN; NaN where the pixel itself is."""
    side = len(values)
    place = (np.arange(side * factor) + 0.5) / factor - 0.5
    total = weights = 0.0
    for down in (0, 1):
        for right in (0, 1):
            rows, columns = (np.floor(place).astype(int) + step for step in (down, right))
            share = np.outer(*(1 - np.abs(place - index) for index in (rows, columns)))
            inside = np.outer(*((index >= 0) & (index < side) for index in (rows, columns)))
            near = values[np.ix_(rows.clip(0, side - 1), columns.clip(0, side - 1))]
            share = share * inside * np.isfinite(near)
            total, weights = total + share * np.nan_to_num(near), weights + share
    with np.errstate(invalid="ignore"):
        found = total / weights
    return np.where(np.isnan(np.kron(values, np.ones((factor, factor)))), np.nan, found)


def test_a_safe_is_the_reflectance_that_its_metadata_say(tmp_path: Path) -> None:
    stored = write_safe(tmp_path)
    safe = tmp_path / NAME
    raster = read_raster(safe, list(CODES))
    assert (raster.info.gsd_m, raster.info.descriptions[-1], raster.values.shape) == (10.0, "SCL", (12, 60, 60))
    for code, values, valid in zip(raster.bands, raster.values, raster.valid, strict=True):
        band = CODES[code]
        own = np.where(stored[band] == 0, np.nan, stored[band].astype(float))
        expected = (bilinear(own, BANDS[band] // 10) - 1000 - POSITIONS[band]) / 10_000
        np.testing.assert_array_equal(valid, np.isfinite(expected))
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6)
    with open_raster(safe) as file:  # windows are parts of the whole
        window = read_raster(file, list(CODES), window=(13, 7, 31, 22)).values
    np.testing.assert_array_equal(window, raster.values[:, 13:44, 7:29])
    clouds = quality_layer(ReadingArguments(qa="sentinel2_scl"))
    flagged = ~read_raster(safe, ["N"], quality=clouds).valid[0] & raster.valid[7]
    np.testing.assert_array_equal(flagged, np.kron(stored["SCL"] == 9, np.ones((2, 2), dtype=bool)) & raster.valid[7])


def test_a_safe_of_level_1c_has_cirrus_and_its_own_offsets(tmp_path: Path) -> None:
    safe, stored = write_l1c(tmp_path)
    raster = read_raster(Product.of(safe, grid=60.0))
    assert raster.info.descriptions == (*list(CODES)[:10], "CIRRUS", "S1", "S2")
    for code, values in zip(raster.bands, raster.values, strict=True):
        band = CODES.get(code, "B10")
        if BANDS.get(band, 60) == 60:  # on its own grid
            expected = (stored[band].astype(float) - 1000 - POSITIONS.get(band, 10)) / 10_000
            np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6)
    fine = read_raster(safe, ["B"])
    np.testing.assert_allclose(fine.values[0], (stored["B02"].astype(float) - 1001) / 10_000, rtol=0, atol=1e-6)


def cubic(values: np.ndarray, factor: int) -> np.ndarray:
    """Values between the middles of pixels by the cubic convolution of Keys with a = -0.5, away from the border."""
    place = (np.arange(len(values) * factor) + 0.5) / factor - 0.5
    far = np.abs(place[:, None] - np.arange(len(values)))
    near = np.where(far < 1, 1.5 * far**3 - 2.5 * far**2 + 1, -0.5 * far**3 + 2.5 * far**2 - 4 * far + 2)
    weights = np.where(far < 2, near, 0)
    return np.asarray(weights @ values @ weights.T)


def test_bands_come_onto_the_grid_by_cubic_convolution_where_it_is_asked_for(tmp_path: Path) -> None:
    coarse = np.random.default_rng(2).integers(2000, 4000, (12, 12), dtype=np.uint16)
    write_layer(tmp_path / "x_B04.tif", np.full((24, 24), 700, np.uint16), 10, driver="GTiff")
    write_layer(tmp_path / "x_B11.tif", coarse, 20, driver="GTiff")
    sensor = get_sensor("sentinel2_l2a_harmonized")
    found = {
        resampling: read_raster(Product.of(tmp_path, resampling=resampling), ["S1"], sensor=sensor).values[0]
        for resampling in ("bilinear", "cubic")
    }
    inner = slice(4, -4)
    np.testing.assert_allclose(found["cubic"][inner, inner], cubic(coarse, 2)[inner, inner], atol=1)
    np.testing.assert_allclose(found["bilinear"][inner, inner], bilinear(coarse.astype(float), 2)[inner, inner], atol=1)
    assert np.abs(found["cubic"].astype(float) - found["bilinear"]).max() > 20


def test_a_safe_in_a_zip_and_by_its_metadata_file_and_on_another_grid(tmp_path: Path) -> None:
    stored = write_safe(tmp_path)
    whole = read_raster(tmp_path / NAME).values
    with zipfile.ZipFile(tmp_path / "product.zip", "w") as archive:
        for file in (tmp_path / NAME).rglob("*"):
            archive.write(file, file.relative_to(tmp_path))
    np.testing.assert_array_equal(read_raster(tmp_path / "product.zip").values, whole)
    np.testing.assert_array_equal(read_raster(tmp_path / NAME / "MTD_MSIL2A.xml").values, whole)
    for grid in ("B11", "S1", 20.0):
        raster = read_raster(Product.of(tmp_path / NAME, grid=grid), ["S1", "B"])
        assert raster.info.gsd_m == 20.0
        own = (stored["B11"].astype(np.float64) - 1011) / 10_000
        np.testing.assert_allclose(raster.values[0][5:], own[5:], atol=1e-6)
    with pytest.raises(ConfigError, match="has no band 'B10', on whose grid the others were to come: `grid` is one of"):
        raster_info(Product.of(tmp_path / NAME, grid="B10"))


def test_what_a_safe_lacks_is_named(tmp_path: Path) -> None:
    write_safe(tmp_path)
    lost = tmp_path / NAME / IMAGES / "R10m" / "T32UNU_20230715T103631_B04_10m.jp2"
    lost.unlink()
    with pytest.raises(DataError, match=r"MTD_MSIL2A.xml names .*_B04_10m.jp2.*, which is not there: unpack all of it"):
        raster_info(tmp_path / NAME)
    (tmp_path / NAME / "MTD_MSIL2A.xml").write_text("<half")
    with pytest.raises(DataError, match=r"MTD_MSIL2A.xml is damaged"):
        raster_info(tmp_path / NAME)
    (tmp_path / NAME / "MTD_MSIL2A.xml").unlink()
    with pytest.raises(DataError, match=r"SAFE holds no MTD_MSIL1C.xml or MTD_MSIL2A.xml: copy all of it"):
        raster_info(tmp_path / NAME)


@pytest.mark.parametrize("name", ["zarr.json", ".zgroup"])
def test_a_zarr_store_is_called_so(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=r"is a Zarr store, which is not opened: write it as a GeoTIFF"):
        raster_info(tmp_path)


def test_one_file_per_band_by_pattern_by_mapping_and_by_name(tmp_path: Path) -> None:
    values = {band: np.full((6, 8), number, np.int16) for number, band in enumerate(("B02", "B04", "B08", "SCL"), 1)}
    for band, layer in values.items():
        write_layer(tmp_path / f"scene_{band}.tif", layer, 10, driver="GTiff")
    sensor = get_sensor("sentinel2_l2a_harmonized")
    pairs = {"N": "*_B08.tif", "red": "scene_B04.tif"}
    for product in (
        tmp_path,
        Product.of(tmp_path, "*_{band}.tif"),
        tmp_path / "*_{band}.tif",
        Product.of(tmp_path, pairs),
    ):
        raster = read_raster(product, ["N", "R"], sensor=sensor)
        assert raster.values.dtype == np.int16 and raster.values[:, 0, 0].tolist() == [3, 2]
    write_layer(tmp_path / "old_B04.tif", values["B04"], 10, driver="GTiff")
    with pytest.raises(DataError, match=r"old_B04.tif and scene_B04.tif are both band B04: make the pattern"):
        raster_info(Product.of(tmp_path, "*_{band}.tif"))
    with pytest.raises(
        DataError, match=r"is a folder, not a raster; it holds old_B04.tif, .*`files: '\*_\{band\}.tif'`"
    ):
        raster_info(tmp_path)
    with pytest.raises(DataError, match=r"band N: no file fits '\*_B8A.tif'; it holds old_B04.tif"):
        raster_info(Product.of(tmp_path, {"N": "*_B8A.tif"}))
    with pytest.raises(DataError, match=r"no file fits '\*-\{band\}.tif'"):
        raster_info(tmp_path / "*-{band}.tif")


def test_a_pattern_passes_over_the_picture_of_a_sentinel_2_product(tmp_path: Path) -> None:
    for band in ("B04", "B08"):
        write_layer(tmp_path / f"T32_{band}_10m.tif", np.full((8, 8), 700, np.uint16), 10, driver="GTiff")
    write_raster(tmp_path / "T32_TCI_10m.tif", np.ones((3, 8, 8), np.uint8))
    for product in (Product.of(tmp_path, "*_{band}_10m.tif"), tmp_path / "*_{band}_10m.tif"):
        assert raster_info(product).descriptions == ("B04", "B08")


def test_files_without_a_unit_keep_their_values_also_on_another_grid(tmp_path: Path) -> None:
    fine, coarse = np.full((8, 8), 700, np.uint16), np.full((4, 4), 900, np.uint16)
    fine[0], coarse[0] = 0, 0
    write_layer(tmp_path / "B04.tif", fine, 10, driver="GTiff")
    write_layer(tmp_path / "B11.tif", coarse, 20, driver="GTiff")
    write_layer(tmp_path / "CLP.tif", np.repeat(np.arange(4, dtype=np.uint8)[:, None], 4, 1) * 60, 20, driver="GTiff")
    sensor = get_sensor("sentinel2_l2a_harmonized")
    raster = read_raster(tmp_path, ["R", "S1"], sensor=sensor, nodata=[0])
    assert raster.values[:, 4, 4].tolist() == [700, 900] and set(raster.values[1][raster.valid[1]]) == {900}
    clouds = quality_layer(ReadingArguments(qa_band="CLP", qa_above=100.0))
    assert (~read_raster(tmp_path, ["R"], sensor=sensor, quality=clouds).valid[0]).any(axis=1).tolist() == [
        *[False] * 4,
        *[True] * 4,
    ]
    assert clouds.flags(np.array([60.0, 120.0, np.nan])).tolist() == [False, True, True]


@pytest.mark.parametrize("fine", [True, False])
def test_the_mask_of_a_file_counts_beside_its_nodata_value(tmp_path: Path, fine: bool) -> None:
    stored, seen = np.full((8, 8), 700, np.uint16), np.ones((8, 8), np.uint8)
    stored[0], seen[7] = 0, 0
    write_layer(tmp_path / "B04.tif", stored, 10, driver="GTiff")
    with rasterio.open(tmp_path / "B04.tif", "r+") as file:
        file.nodata = 0
        file.write_mask(seen)
    step = 1 if fine else 2
    write_layer(tmp_path / "B08.tif", np.ones((8 * step, 8 * step), np.uint16), 10 / step, driver="GTiff")
    valid = read_raster(tmp_path, ["R"], sensor=get_sensor("sentinel2_l2a_harmonized")).valid[0]
    assert valid[::step, 0].tolist() == [False, *[True] * 6, False]


def test_a_band_of_another_place_is_refused(tmp_path: Path) -> None:
    write_layer(tmp_path / "B04.tif", np.ones((8, 8), np.uint16), 10, driver="GTiff")
    write_layer(tmp_path / "B08.tif", np.ones((8, 8), np.uint16), 10, epsg=32633, driver="GTiff")
    with pytest.raises(DataError, match=r"B08\.tif, band B08, lies beside the other files"):
        read_raster(tmp_path, ["R"], sensor=get_sensor("sentinel2_l2a_harmonized"))


@pytest.mark.parametrize(
    ("turned", "moved", "covered"),
    [
        (0, (4, 0), None),
        (0, (40, 0), "50 %"),
        (0, (90, 0), "beside"),
        (45, (0, 0), "%"),
        (45, (120, 100), "beside"),  # though there is ground within the edges of both
    ],
)
def test_the_ground_that_a_band_covers_is_that_of_its_grid(
    turned: float, moved: tuple[float, float], covered: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Moved east and north by metres, turned around its upper left corner; the other band has 80 x 80 m."""
    write_layer(tmp_path / "B04.tif", np.ones((8, 8), np.uint16), 10, driver="GTiff")
    write_layer(tmp_path / "B08.tif", np.ones((8, 8), np.uint16), 10, driver="GTiff")
    with rasterio.open(tmp_path / "B08.tif", "r+") as file:
        file.transform = rasterio.Affine.translation(*moved) @ file.transform @ rasterio.Affine.rotation(turned)
    read = partial(read_raster, tmp_path, ["R", "N"], sensor=get_sensor("sentinel2_l2a_harmonized"))
    with pytest.raises(DataError, match="lies beside the other files") if covered == "beside" else nullcontext():
        read()
    assert ("covers" in caplog.text) == (covered not in (None, "beside"))
    assert covered in (None, "beside") or f"{covered} of the ground" in caplog.text


LEVEL2 = """GROUP = LANDSAT_METADATA_FILE
  GROUP = PRODUCT_CONTENTS
    PROCESSING_LEVEL = "L2SP"
    FILE_NAME_BAND_4 = "LC08_X_SR_B4.TIF"
    FILE_NAME_BAND_5 = "LC08_X_SR_B5.TIF"
  END_GROUP = PRODUCT_CONTENTS
  GROUP = IMAGE_ATTRIBUTES
    SPACECRAFT_ID = "LANDSAT_8"
    SENSOR_ID = "OLI_TIRS"
    SUN_ELEVATION = 30.0
  END_GROUP = IMAGE_ATTRIBUTES
  GROUP = LEVEL2_SURFACE_REFLECTANCE_PARAMETERS
    REFLECTANCE_MULT_BAND_4 = 2.75e-05
    REFLECTANCE_MULT_BAND_5 = 2.75e-05
    REFLECTANCE_ADD_BAND_4 = -0.2
    REFLECTANCE_ADD_BAND_5 = -0.2
  END_GROUP = LEVEL2_SURFACE_REFLECTANCE_PARAMETERS
  GROUP = LEVEL1_PROCESSING_RECORD
    FILE_NAME_BAND_4 = "LC08_Y_B4.TIF"
  END_GROUP = LEVEL1_PROCESSING_RECORD
  GROUP = LEVEL1_RADIOMETRIC_RESCALING
    REFLECTANCE_MULT_BAND_4 = 2.0000E-05
    REFLECTANCE_ADD_BAND_4 = -0.100000
  END_GROUP = LEVEL1_RADIOMETRIC_RESCALING
END_GROUP = LANDSAT_METADATA_FILE
END
"""


def test_a_landsat_scene_is_the_reflectance_that_its_metadata_say(tmp_path: Path) -> None:
    (tmp_path / "LC08_X_MTL.txt").write_text(LEVEL2)
    for band, number in (("SR_B4", 8000), ("SR_B5", 0), ("QA_PIXEL", 21824)):
        write_layer(tmp_path / f"LC08_X_{band}.TIF", np.full((4, 4), number, np.uint16), 30, driver="GTiff")
    raster = read_raster(tmp_path)
    assert raster.info.descriptions == ("R", "N", "QA_PIXEL")
    np.testing.assert_allclose(raster.values[0], 8000 * 2.75e-5 - 0.2, atol=1e-6)
    assert not raster.valid[1].any()
    with tarfile.open(tmp_path / "LC08_X.tar", "w") as archive:  # as the USGS delivers it
        for file in sorted(tmp_path.glob("LC08_X_*")):
            archive.add(file, file.name)
    packed = read_raster(tmp_path / "LC08_X.tar")
    assert packed.info.descriptions == raster.info.descriptions
    np.testing.assert_array_equal(packed.values, raster.values)
    (tmp_path / "LC08_X.tar").unlink()
    surface = LEVEL2.replace("LEVEL2_SURFACE_REFLECTANCE_PARAMETERS", "LEVEL1_RADIOMETRIC_RESCALING")
    (tmp_path / "LC08_X_MTL.txt").write_text(surface)
    np.testing.assert_allclose(
        read_raster(tmp_path / "LC08_X_MTL.txt").values[0], (8000 * 2.75e-5 - 0.2) / 0.5, atol=1e-6
    )
    (tmp_path / "LC08_X_MTL.txt").write_text(LEVEL2.replace("REFLECTANCE_MULT", "NOTHING"))
    with pytest.raises(UnitError, match=r"says neither how band 4 becomes reflectance nor radiance.*Level 2"):
        raster_info(tmp_path)
    (tmp_path / "LC08_X_MTL.txt").write_text(LEVEL2.replace("LC08_X_SR_B5", "LC08_X_SR_B5_lost"))
    with pytest.raises(DataError, match=r"names LC08_X_SR_B5_lost.TIF, band N, which is not there"):
        raster_info(tmp_path)


def test_digital_numbers_of_landsat_5_become_reflectance_at_the_top_of_the_atmosphere(shared_data: Path) -> None:
    raster = read_raster(shared_data / "workflow" / "lt5_tm")
    assert raster.bands == ("B", "G", "R", "N", "S1", "S2")
    stored = read_raster(shared_data / "workflow" / "lt5_tm" / "LT52240631988227CUB02_B4.TIF", source_bands=["N"])
    # 1988-08-14 is day 227; Chander et al. 2009, equation 3
    distance = 1 - 0.01672 * np.cos(np.radians(0.9856 * (227 - 4)))
    radiance = 0.876 * stored.values[0].astype(float) - 2.38602
    expected = np.pi * radiance * distance**2 / (1031 * np.sin(np.radians(49.75588889)))
    np.testing.assert_allclose(raster.values[3], expected, atol=1e-6)


def test_hls_and_stac_items(tmp_path: Path) -> None:
    for band, number in (("B04", 1234), ("B8A", -9999), ("B10", 7), ("SZA", 5)):
        name = f"HLS.L30.T10SEG.2022001T184000.v2.0.{band}.tif"
        write_layer(tmp_path / name, np.full((4, 4), number, np.int16), 30, driver="GTiff")
    write_layer(
        tmp_path / "HLS.L30.T10SEG.2022001T184000.v2.0.Fmask.tif", np.full((4, 4), 64, np.uint8), 30, driver="GTiff"
    )
    raster = read_raster(tmp_path)
    assert raster.info.descriptions == ("R", "Fmask") and raster.values[0, 0, 0] == pytest.approx(0.1234)

    item = {"type": "Feature", "properties": {"platform": "sentinel-2a"}, "assets": {
        "visual": {"href": "tci.tif", "eo:bands": [{"name": "red"}, {"name": "green"}, {"name": "blue"}]},
        "nir": {"href": "nir.tif", "eo:bands": [{"name": "nir", "common_name": "nir"}],
                "raster:bands": [{"scale": 1e-4, "offset": -0.1, "nodata": 0}]},
        "B05": {"href": "./sub/B05.tif", "raster:bands": [{"scale": 1e-4, "offset": -0.1}]},
        "scl": {"href": "scl.tif"}}}  # fmt: skip
    write_layer(tmp_path / "stac" / "nir.tif", np.array([[0, 2000]], np.uint16), 10, driver="GTiff")
    write_layer(tmp_path / "stac" / "sub" / "B05.tif", np.array([[3000, 3000]], np.uint16), 10, driver="GTiff")
    write_layer(tmp_path / "stac" / "scl.tif", np.array([[0, 4]], np.uint8), 10, driver="GTiff")
    path = tmp_path / "stac" / "item.json"
    path.write_text(json.dumps(item))
    raster = read_raster(path, ["N", "RE1"])
    assert raster.info.descriptions == ("N", "RE1", "SCL") and raster.valid[0].tolist() == [[False, True]]
    np.testing.assert_allclose(raster.values[:, 0, 1], [0.1, 0.2], atol=1e-6)
    item["properties"]["earthsearch:boa_offset_applied"] = True
    path.write_text(json.dumps(item))
    np.testing.assert_allclose(read_raster(path, ["N"]).values[0, 0, 1], 0.2, atol=1e-6)
    path.write_text(json.dumps(item).replace("nir.tif", "https://example.org/nir.tif"))
    with pytest.raises(DataError, match=r"asset 'nir' is at https://example.org/nir.tif: what a file names"):
        raster_info(path)


@pytest.mark.parametrize(
    ("band", "nodata", "last"),
    [
        ("S1", (-999.0, 7.0), [False, True]),
        ("S1", None, [False, True]),
        ("S1", (), [True, True]),
        ("DEM", None, [True, True]),
        ("dem_10m", None, [True, True]),
        ("x_B05", None, [False, True]),
    ],
)
def test_values_that_are_no_measurement_are_not_interpolated(
    band: str, nodata: tuple[float, ...] | None, last: list[bool], tmp_path: Path
) -> None:
    """Of whole numbers of 16 bits of which nothing is said, 0 is none, where they are reflectance."""
    coarse = np.full((4, 4), 900, np.int16 if nodata else np.uint16)
    coarse[0], coarse[1] = nodata or (0, 900)
    write_layer(tmp_path / "B04.tif", np.full((8, 8), 700, np.uint16), 10, driver="GTiff")
    write_layer(tmp_path / f"{band}.tif", coarse, 20, driver="GTiff")
    product = Product.of(tmp_path, "{band}.tif", nodata=nodata)
    sensor = get_sensor({"bands": ["R", {"code": band}]})
    raster = read_raster(product, [band], sensor=sensor)
    assert raster.valid[0, [0, -1], 0].tolist() == last
    assert last[0] or set(raster.values[raster.valid]) == {900}


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint64", "int32", "uint32"])
@pytest.mark.parametrize("step", [1, 2])
def test_numbers_of_32_and_64_bits_keep_their_digits_in_a_stack(dtype: str, step: int, tmp_path: Path) -> None:
    large = 2**30 + 1 if "32" in dtype else 2**40 + 1
    write_layer(tmp_path / "R.tif", np.full((4 * step, 4 * step), 700, np.uint16), 10 / step, driver="GTiff")
    write_layer(tmp_path / "N.tif", np.full((4, 4), large, dtype), 10, driver="GTiff")
    assert set(read_raster(tmp_path, ["N", "R"]).values[0].flat) == {large}


def test_complex_numbers_in_a_stack_are_refused(tmp_path: Path) -> None:
    write_layer(tmp_path / "R.tif", np.ones((4, 4), np.uint16), 10, driver="GTiff")
    write_layer(tmp_path / "N.tif", np.ones((4, 4), np.complex64), 10, driver="GTiff")
    with pytest.raises(DataError, match=r"N\.tif, band N, holds numbers of type complex64: store .* real numbers"):
        read_raster(tmp_path, ["R"])
