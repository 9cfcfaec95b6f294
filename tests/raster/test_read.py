"""Rasters in and out: bands by name, windows, validity, georeference, broken files."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp

from deflect_hf.errors import BandError, DataError
from deflect_hf.raster.header import overview_size
from deflect_hf.raster.quality import Quality
from deflect_hf.raster.read import raster_info, read_mask, read_raster
from deflect_hf.raster.write import write_raster
from deflect_hf.spectral.sensors import get_sensor

VALUES = np.arange(4 * 6 * 8, dtype=np.int16).reshape(4, 6, 8)
BANDS = ("B", "G", "R", "N")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.tif"
    write_raster(path, VALUES, descriptions=BANDS)
    return path


@pytest.fixture
def georeferenced(tmp_path: Path) -> Path:
    path = tmp_path / "utm.tif"
    plain = tmp_path / "plain.tif"
    write_raster(plain, VALUES, descriptions=BANDS)
    utm = replace(raster_info(plain), crs="EPSG:32635", transform=(20.0, 0.0, 600000.0, 0.0, -20.0, 4800000.0))
    write_raster(path, VALUES, like=utm, nodata=-9999, descriptions=BANDS)
    return path


def test_the_pixel_size_of_a_rotated_grid_is_that_along_its_columns(georeferenced: Path, tmp_path: Path) -> None:
    turned = replace(raster_info(georeferenced), transform=(0.0, 20.0, 600000.0, 20.0, 0.0, 4800000.0))
    write_raster(tmp_path / "turned.tif", VALUES, like=turned)
    assert raster_info(tmp_path / "turned.tif").gsd_m == 20.0


def test_bands_are_read_by_name_in_the_order_wanted(image: Path) -> None:
    raster = read_raster(image, ["N", "R"])
    assert raster.bands == ("N", "R")
    assert raster.values.dtype == np.int16
    np.testing.assert_array_equal(raster.values, VALUES[[3, 2]])
    assert raster.valid.all()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.integers(0, 5), column=st.integers(0, 7), height=st.integers(1, 6), width=st.integers(1, 8))
def test_a_window_is_a_slice_or_refused(image: Path, row: int, column: int, height: int, width: int) -> None:
    window = (row, column, height, width)
    if row + height > 6 or column + width > 8:
        with pytest.raises(DataError, match=r"leaves the image of 6 x 8 pixels"):
            read_raster(image, window=window)
    else:
        expected = VALUES[:, row : row + height, column : column + width]
        np.testing.assert_array_equal(read_raster(image, window=window).values, expected)


def test_georeference_nodata_and_names_survive_writing(georeferenced: Path, image: Path) -> None:
    assert (raster_info(image).crs, raster_info(image).gsd_m) == (None, None)
    info = raster_info(georeferenced)
    assert rasterio.crs.CRS.from_wkt(str(info.crs)).to_epsg() == 32635
    assert info.transform == (20.0, 0.0, 600000.0, 0.0, -20.0, 4800000.0)
    assert info.gsd_m == 20.0
    assert info.nodata == (-9999.0,) * 4
    assert info.descriptions == BANDS


def test_a_failed_write_leaves_the_old_file_and_no_other(image: Path) -> None:
    names: Any = [*BANDS[:-1], object()]
    with pytest.raises((TypeError, AttributeError)):
        write_raster(image, np.zeros_like(VALUES), descriptions=names)
    np.testing.assert_array_equal(read_raster(image).values, VALUES)
    assert [path.name for path in image.parent.iterdir()] == ["image.tif"]


def test_an_unwritable_target_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match=r"out\.tif cannot be written .*: make room on the disk"):
        write_raster(tmp_path / "file" / "out.tif", VALUES)


def test_nodata_tag_nan_and_extra_values_are_invalid_per_band(tmp_path: Path) -> None:
    values = np.full((2, 2, 2), 0.25, dtype=np.float32)
    values[0, 0, 0], values[1, 0, 1], values[0, 1, 1], values[1, 1, 0] = np.nan, -9999.0, 9999.0, np.inf
    path = tmp_path / "fill.tif"
    write_raster(path, values, nodata=-9999.0, descriptions=("R", "N"))
    valid = read_raster(path, nodata=[9999.0]).valid
    assert valid.tolist() == [[[False, True], [True, False]], [[True, False], [False, True]]]


def test_a_negative_nodata_value_does_not_wrap_in_unsigned_files(tmp_path: Path) -> None:
    path = tmp_path / "unsigned.tif"
    write_raster(path, np.full((1, 2, 2), 2**16 - 9999, dtype=np.uint16), descriptions=("R",))
    assert read_raster(path, nodata=[-9999.0]).valid.all()


def test_an_internal_mask_makes_pixels_invalid(image: Path) -> None:
    mask = np.full((6, 8), 255, dtype=np.uint8)
    mask[0, :3] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(image, "r+") as sink:
        sink.write_mask(mask)
    valid = read_raster(image, ["R", "N"], window=(0, 0, 2, 4)).valid
    assert valid.tolist() == [[[False, False, False, True], [True] * 4]] * 2


@pytest.mark.parametrize("size", [None, (3, 4)])
@pytest.mark.parametrize("named", ["in the file", "by source_bands"])
def test_an_alpha_band_beside_any_number_of_bands_is_a_mask(
    tmp_path: Path, named: str, size: tuple[int, int] | None
) -> None:
    values = np.full((5, 6, 8), 900, dtype=np.uint16)
    values[4, :2] = 0
    path, own = tmp_path / "mosaic.tif", named == "in the file"
    write_raster(path, values, descriptions=(*BANDS, "") if own else ("",) * 5)
    with rasterio.open(path, "r+") as sink:
        sink.colorinterp = [ColorInterp.gray, *[ColorInterp.undefined] * 3, ColorInterp.alpha]
    raster = read_raster(path, ["R", "N"], source_bands=None if own else BANDS, size=size)
    height = 6 if size is None else 3
    assert raster.valid.all(axis=(0, 2)).tolist() == raster.valid.any(axis=(0, 2)).tolist()
    assert raster.valid[0, :, 0].tolist() == [False] * (height // 3) + [True] * (height - height // 3)


@pytest.mark.parametrize("named", ["in the file", "by source_bands"])
def test_the_fourth_band_of_8_bits_is_no_mask_where_it_has_a_name(tmp_path: Path, named: str) -> None:
    values = np.full((4, 2, 2), 9, dtype=np.uint8)
    values[3, 0] = 0  # near infrared over water
    path = tmp_path / "photo.tif"
    own = named == "in the file"
    write_raster(path, values, descriptions=BANDS if own else ("",) * 4)
    assert raster_info(path).alpha == 3  # as GDAL takes it
    assert read_raster(path, ["R", "G"], source_bands=None if own else BANDS).valid.all()


def test_a_mask_of_one_band_of_a_virtual_raster_is_for_that_band(image: Path, tmp_path: Path) -> None:
    write_raster(tmp_path / "seen.tif", np.eye(6, 8, dtype=np.uint8)[None])
    source = (
        "<SimpleSource><SourceFilename relativeToVRT='1'>{}</SourceFilename><SourceBand>{}</SourceBand></SimpleSource>"
    )
    mask = f"<MaskBand><VRTRasterBand dataType='Byte'>{source.format('seen.tif', 1)}</VRTRasterBand></MaskBand>"
    bands = [
        f"<VRTRasterBand dataType='Int16' band='{n}'><Description>{code}</Description>{mask if code == 'N' else ''}"
        f"{source.format(image.name, n)}</VRTRasterBand>"
        for n, code in enumerate(BANDS, 1)
    ]
    path = tmp_path / "scene.vrt"
    path.write_text(f"<VRTDataset rasterXSize='8' rasterYSize='6'>{''.join(bands)}</VRTDataset>")
    assert read_raster(path).valid.sum(axis=(1, 2)).tolist() == [48, 48, 48, 6]


def test_scale_and_offset_tags_follow_the_bands(image: Path) -> None:
    with rasterio.open(image, "r+") as sink:
        sink.scales, sink.offsets = (1e-4, 2e-4, 3e-4, 4e-4), (0.0, -0.1, 0.0, -0.2)
    raster = read_raster(image, ["N", "G"])
    assert (raster.scales, raster.offsets) == ((4e-4, 2e-4), (-0.2, -0.1))
    np.testing.assert_array_equal(raster.values, VALUES[[3, 1]])  # stored values, not scaled


def test_bands_that_are_not_needed_are_left_out(image: Path) -> None:
    raster = read_raster(image, ["S2", "N", "R"], needed=["R"])
    assert raster.bands == ("N", "R") and raster.values.shape[0] == 2 and len(raster.scales) == 2
    assert np.array_equal(raster.values, read_raster(image, ["N", "R"]).values)


def test_a_quality_layer_makes_pixels_invalid_in_all_bands(tmp_path: Path) -> None:
    layer = np.full((1, 6, 8), 4, dtype=np.int16)
    layer[0, 2, :3], layer[0, 5, 7] = 9, 8
    path = tmp_path / "scl.tif"
    write_raster(path, np.concatenate([VALUES, layer]), descriptions=(*BANDS, "SCL"))
    raster = read_raster(path, ["N", "R"], quality=Quality("scl", (8, 9)))
    assert raster.bands == ("N", "R")
    np.testing.assert_array_equal(raster.valid, np.broadcast_to(layer == 4, (2, 6, 8)))
    window = read_raster(path, ["N"], window=(2, 1, 3, 4), quality=Quality("SCL", (9,)))
    assert (~window.valid).nonzero()[2].tolist() == [0, 1]
    with pytest.raises(BandError, match=r"scl\.tif: 0 bands are described as 'QA'.* 'N', 'SCL': correct `qa_band`"):
        read_raster(path, ["N"], quality=Quality("QA", (9,)))


def test_files_without_names_take_the_configured_ones(tmp_path: Path) -> None:
    path = tmp_path / "bare.tif"
    write_raster(path, VALUES)
    np.testing.assert_array_equal(read_raster(path, ["R"], source_bands=["R", "G", "B", "N"]).values, VALUES[:1])
    superset = get_sensor({"name": "mine", "bands": ["N", "R", "G", "B"]})
    np.testing.assert_array_equal(read_raster(path, ["R"], sensor=superset).values, VALUES[1:2])
    with pytest.raises(BandError, match=r"bare\.tif does not name its 4 band\(s\): give `source_bands`"):
        read_raster(path)


def test_the_sensors_own_names_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "numbers.tif"
    write_raster(path, VALUES, descriptions=("B02", "B8A", "B11", "quality"))
    raster = read_raster(path, ["S1", "N2", "B"], sensor=get_sensor("sentinel2_l2a_harmonized"))
    np.testing.assert_array_equal(raster.values, VALUES[[2, 1, 0]])
    assert read_raster(path, sensor=get_sensor("sentinel2_l1c")).bands == ("B", "N2", "S1", "band 4 quality")
    with pytest.raises(BandError, match=r"\('B02', 'B8A', 'B11', 'quality' say nothing without a sensor\)"):
        read_raster(path)


def test_bands_that_are_only_counted_have_no_names(tmp_path: Path) -> None:
    path = tmp_path / "counted.tif"
    write_raster(path, VALUES, descriptions=("Band 1", "Band 2", "Band 3", "Band 4"))
    four = get_sensor({"name": "four", "bands": [{"code": code, "aliases": [f"B{number}"]} for number, code in
                                                 zip((2, 3, 4, 8), BANDS, strict=True)]})  # fmt: skip
    assert read_raster(path, sensor=four).bands == BANDS
    assert read_raster(path, source_bands=["R", "G", "B", "N"], sensor=four).bands == ("R", "G", "B", "N")
    write_raster(path, VALUES, descriptions=("Band 4", "Band 3", "Band 2", "Band 8"))
    assert read_raster(path, sensor=four).bands == ("R", "G", "B", "N")
    # names that say a band, but not to be taken for it: the standard order would contradict them
    write_raster(path, VALUES, descriptions=("T32_B02_10m", "T32_B03_10m", "T32_B04_10m", "T32_B08_10m"))
    assert read_raster(path, sensor=four).bands == ("B", "G", "R", "N")
    write_raster(path, VALUES, descriptions=("T32_B08_10m", "T32_B03_10m", "T32_B04_10m", "T32_B02_10m"))
    with pytest.raises(BandError, match=r"not the standard order .*: give `source_bands`.* \('N', 'G', 'R', 'B'\?\)"):
        read_raster(path, sensor=four)


@pytest.mark.parametrize(
    ("text", "refused"), [("S2 red (median)", True), ("green 10m", False), ("red_green_ratio", False)]
)
def test_a_color_in_a_description_is_not_that_of_another_band(text: str, refused: bool, tmp_path: Path) -> None:
    path = tmp_path / "colors.tif"
    write_raster(path, VALUES, descriptions=("", text, "", ""))
    told = pytest.raises(BandError, match=r"band 2 is described as 'S2 red \(median\)' \(= R\) .* calls it 'G'")
    with told if refused else nullcontext():
        assert read_raster(path, source_bands=["B", "G", "R", "N"]).bands == BANDS


def test_masks_are_pictures_or_rasters(tmp_path: Path) -> None:
    labels = np.array([[[0, 1, 2], [2, 255, 0]]], dtype=np.uint8)
    with rasterio.open(tmp_path / "mask.png", "w", driver="PNG", width=3, height=2, count=1, dtype="uint8") as sink:
        sink.write(labels)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png").values, labels)
    write_raster(tmp_path / "mask.tif", labels, nodata=255)
    assert read_mask(tmp_path / "mask.tif").valid.tolist() == [[[True] * 3, [True, False, True]]]


def test_images_shrink_by_averaging_what_is_valid(tmp_path: Path) -> None:
    values = np.array([[[10, 20, 0, 0], [30, 40, 0, 8]]], dtype=np.uint16)
    write_raster(tmp_path / "image.tif", values, nodata=0, descriptions=["R"])
    shrunk = read_raster(tmp_path / "image.tif", size=(1, 2))
    assert shrunk.values.tolist() == [[[25, 8]]] and shrunk.valid.all()
    assert not read_raster(tmp_path / "image.tif", window=(0, 2, 1, 2), size=(1, 1)).valid.any()


def test_masks_shrink_to_the_most_frequent_class(tmp_path: Path) -> None:
    labels = np.array([[[2, 2, 7, 255], [2, 5, 255, 255]]], dtype=np.uint8)
    write_raster(tmp_path / "mask.tif", labels, nodata=255)
    assert read_mask(tmp_path / "mask.tif", size=(1, 2)).values.tolist() == [[[2, 7]]]
    assert read_mask(tmp_path / "mask.tif", window=(1, 1, 1, 2)).values.tolist() == [[[5, 255]]]


@pytest.mark.parametrize(("side", "expected"), [(100, (6, 8)), (8, (6, 8)), (4, (3, 4)), (1, (1, 1))])
def test_the_size_of_an_overview_keeps_the_proportions(image: Path, side: int, expected: tuple[int, int]) -> None:
    assert overview_size(raster_info(image), side) == expected


def test_another_size_cannot_take_the_georeference(georeferenced: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"values of 5 x 8 pixels cannot take the georeference of .*utm\.tif \(6 x 8\)"):
        write_raster(tmp_path / "out.tif", VALUES[:, :5], like=raster_info(georeferenced))


def test_more_descriptions_than_bands_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.tif: 3 descriptions for 2 band\(s\)"):
        write_raster(tmp_path / "a.tif", np.zeros((2, 4, 4), np.uint8), descriptions=("B", "G", "R"))
    assert not (tmp_path / "a.tif").exists()


@pytest.mark.parametrize(
    "head, said",
    [
        (
            b"GRIB",
            "it is GRIB, which is not read: gdalinfo .* lists .*; convert that, gdal_translate .*x.dat SCENE.tif",
        ),
        (b"\x89HDF\r\n\x1a\n", "it is HDF5, .*gdal_translate 'HDF5:\".*x.dat\"://LAYER' SCENE.tif"),
        (b"SQLite format 3\0", r"it is a GeoPackage, .*\(polygons are for `labels`\)"),
        (b"\x1f\x8b\x08", "it is compressed by gzip: unpack it, and give the file or folder in it"),
        (b"II*\0", "it must be a GeoTIFF or PNG file; copy it again"),
    ],
)
def test_a_file_that_is_no_raster_is_told_what_opens_it(head: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.dat").write_bytes(head + bytes(100))
    with pytest.raises(DataError, match=said):
        raster_info(tmp_path / "x.dat")


def test_an_address_of_a_file_is_refused_with_its_path(image: Path) -> None:
    with pytest.raises(DataError, match=rf"give the path alone, {image}\."):
        raster_info(f"file://{image}")
