"""Several dates of one place: bands of all of them by name, and their median, for training and for maps."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.enums import ColorInterp

from deflect_hf.config.data import DatasetArguments
from deflect_hf.config.reading import ReadingArguments
from deflect_hf.data import load_dataset_splits
from deflect_hf.data.folder_reader import layout_of
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.errors import BandError, ConfigError, DataError
from deflect_hf.inference.predictor import Predictor
from deflect_hf.raster.products import Product
from deflect_hf.raster.quality import Quality, quality_layer
from deflect_hf.raster.read import raster_info, read_raster
from deflect_hf.spectral.selection import match_bands, resolve_bands
from deflect_hf.spectral.sensors import get_sensor
from tests.inference.scenes_and_models import Stub, map_of, read, write_scene
from tests.raster.safe import write_layer

BANDS = ["G", "R", "N", "SCL"]
CLOUD = 9


def write_dates(root: Path, names: tuple[str, ...] = ("a",), described: bool = True) -> np.ndarray:
    """Three dates of scenes of 32 x 32 in folders 0, 1 and 2; of the first (3, 4, 32, 32), 10 rows cloudy on each."""
    stored = np.random.default_rng(0).integers(500, 4000, (3, 4, 32, 32)).astype(np.int16)
    for date, values in enumerate(stored):
        values[3] = 4
        values[3, 4 * date : 4 * date + 10] = CLOUD
        for name in names:
            write_scene(root / str(date) / f"{name}.tif", values, descriptions=BANDS if described else [""] * 4)
    return stored


def test_bands_of_dates_have_names_of_their_own() -> None:
    assert resolve_bands(["red", "nir@1", "N", "W1034@2"]) == ["R", "N@1", "N", "W1034@2"]
    assert resolve_bands(["B04@1", "B8"], get_sensor("sentinel2_l2a")) == ["R@1", "N"]
    assert match_bands(["R", "N2", "N2@1"], ["N@1", "R"], ["R"]) == [2, 0]
    with pytest.raises(BandError, match=r"lack the band\(s\) 'N@1'; they have 'N'\. Bands with @ .* `dates`"):
        match_bands(["N"], ["N@1"], ["N@1"])


@pytest.mark.parametrize("described", [True, False])
def test_each_date_has_its_clouds_and_the_median_is_of_what_is_left(described: bool, tmp_path: Path) -> None:
    stored = write_dates(tmp_path, described=described).astype(float)
    clear = np.where(stored[:, 3] == CLOUD, np.nan, 1.0)
    others = (str(tmp_path / "1" / "*.tif"), str(tmp_path / "2" / "*.tif"))
    scene = Product.of(tmp_path / "0" / "a.tif", dates=others, composite=True)
    naming: dict[str, Any] = {} if described else {"source_bands": BANDS}
    clouds = quality_layer(ReadingArguments(qa="sentinel2_scl"))
    raster = read_raster(scene, ["N", "N@0", "R@2", "G"], quality=clouds, **naming)
    expected = np.stack([stored[:, 2], stored[:, 0]]) * clear
    with pytest.warns(RuntimeWarning, match="All-NaN"):
        medians = np.nanmedian(expected, axis=1)
    np.testing.assert_array_equal(np.where(raster.valid, raster.values, np.nan)[[0, 3]], medians)
    np.testing.assert_array_equal(raster.valid[1], np.isfinite(clear[0]))
    np.testing.assert_array_equal(raster.values[2], np.where(raster.valid[2], stored[2, 1], raster.values[2]))
    part = read_raster(scene, ["N"], quality=clouds, window=(3, 5, 20, 9), **naming)
    np.testing.assert_array_equal(part.values[0], raster.values[0, 3:23, 5:14])


def test_dates_come_onto_the_grid_of_the_scene(tmp_path: Path) -> None:
    write_layer(tmp_path / "new.tif", np.full((8, 8), 700, np.uint16), 10, driver="GTiff")
    write_layer(tmp_path / "old.tif", np.full((24, 24), 900, np.uint16), 5, driver="GTiff")
    scene = Product.of(tmp_path / "new.tif", dates=(str(tmp_path / "old.tif"),))
    raster = read_raster(scene, ["R", "R@1"], source_bands=["R"])
    assert raster.values.shape == (2, 8, 8) and set(raster.values[1].flat) == {900} and raster.info.gsd_m == 10
    with pytest.raises(DataError, match=r"gone\.tif is not there"):
        raster_info(Product.of(tmp_path / "new.tif", dates=(str(tmp_path / "gone.tif"),)))


@pytest.mark.parametrize("side", [8, 16])
@pytest.mark.parametrize("last", ["", "N2"])
def test_the_alpha_band_of_a_date_says_where_that_date_was_measured(last: str, side: int, tmp_path: Path) -> None:
    for name, pixels, unseen in (("new.tif", 8, 2), ("old.tif", side, side // 2)):
        values = np.full((5, pixels, pixels), 700, np.uint16)
        values[0, -1], values[4, :unseen] = 65535, 0
        placed = {"crs": "EPSG:32632", "transform": (80 / pixels, 0.0, 6e5, 0.0, -80 / pixels, 4.8e6)}
        write_scene(tmp_path / name, values, nodata=65535, descriptions=["B", *BANDS[:3], last], **placed)
        with rasterio.open(tmp_path / name, "r+") as file:
            file.colorinterp = [ColorInterp.gray, *[ColorInterp.undefined] * 3, ColorInterp.alpha]
    raster = read_raster(Product.of(tmp_path / "new.tif", dates=(str(tmp_path / "old.tif"),)), ["B", "N", "N@1"])
    unseen = [0, 0, 0] if last else [2, 2, 4]  # a band that has a name is no mask
    assert raster.valid[1:, :, 0].sum(axis=1).tolist() == [8 - rows for rows in unseen[1:]]
    assert raster.valid[0, :, 0].tolist() == [row >= unseen[0] and row < 7 for row in range(8)]
    assert set(raster.values[raster.valid]) == {700}


def test_a_date_that_is_the_image_and_one_without_the_quality_layer_are_refused(tmp_path: Path) -> None:
    write_dates(tmp_path)
    scene, other = tmp_path / "0" / "a.tif", tmp_path / "1" / "a.tif"
    for dates in ([tmp_path / "0" / "*.tif"], [other, tmp_path / "0" / ".." / "1" / "a.tif"]):
        with pytest.raises(DataError, match=r"0/a\.tif: of the image and its `dates`, .*, two are one file"):
            raster_info(Product.of(scene, dates=tuple(map(str, dates))))
    write_scene(other, np.full((3, 32, 32), 700, np.int16), descriptions=BANDS[:3])
    clouds = quality_layer(ReadingArguments(qa="sentinel2_scl"))
    with pytest.raises(BandError, match=r"a\.tif, @1 of its `dates` .*: 0 bands .* 'SCL', .* are 'G@1', 'R@1', 'N@1':"):
        read_raster(Product.of(scene, dates=(str(other),)), ["N", "N@1"], quality=clouds)


def test_dates_whose_descriptions_are_in_another_order_are_refused(tmp_path: Path) -> None:
    names = ["x3", "x4", "x8", "SCL"]
    for date, order in (("0", [0, 1, 2, 3]), ("1", [2, 1, 0, 3])):
        described = [names[k] for k in order]
        write_scene(tmp_path / date / "a.tif", np.full((4, 8, 8), 700, np.int16), descriptions=described)
    scene = Product.of(tmp_path / "0" / "a.tif", dates=(str(tmp_path / "1" / "a.tif"),))
    with pytest.raises(BandError, match=r"@1 of its `dates` are described as 'x8', 'x4', 'x3', 'SCL', .* 'x3', 'x4'"):
        read_raster(scene, ["N"], source_bands=[*BANDS[:3], "_"])


def test_a_median_of_dates_that_are_tagged_otherwise_is_refused(tmp_path: Path) -> None:
    write_dates(tmp_path)
    with rasterio.open(tmp_path / "1" / "a.tif", "r+") as file:
        file.scales = (1.0, 1e-4, 1.0, 1.0)
    scene = Product.of(tmp_path / "0" / "a.tif", dates=(str(tmp_path / "1" / "a.tif"),))
    assert raster_info(scene).scales == (1.0,) * 5 + (1e-4, 1.0, 1.0)
    with pytest.raises(DataError, match=r"band R is tagged scale 1, .*0/a\.tif, but scale 0\.0001, .*1/a\.tif"):
        raster_info(dataclasses.replace(scene, composite=True))


@pytest.mark.parametrize("described", [True, False])
def test_a_quality_layer_of_any_name_is_never_interpolated(described: bool, tmp_path: Path) -> None:
    names = ["G", "R", "N", "Clouds"]
    for date, side in (("0", 8), ("1", 4)):
        values = np.full((4, side, side), 700, np.int16)
        values[3] = 0
        values[3, : side // 2] = 200
        placed = {"crs": "EPSG:32632", "transform": (80 / side, 0.0, 6e5, 0.0, -80 / side, 4.8e6)}
        write_scene(tmp_path / date / "a.tif", values, descriptions=names if described else [""] * 4, **placed)
    said = {"source_bands": None if described else names, "qa_band": "clouds", "qa_values": [200]}
    args = folder(tmp_path, dates=["1/*.tif"], **said)
    layout = dataclasses.replace(layout_of(args), path=str(tmp_path / "0" / "a.tif"))
    quality = Quality("clouds", (200,))
    raster = read_raster(layout, ["G", "G@1"], source_bands=said["source_bands"], quality=quality)
    assert raster.valid[:, :, 0].tolist() == [[False] * 4 + [True] * 4] * 2


def folder(root: Path, **said: Any) -> DatasetArguments:
    reading = {"scale": 1e-4, "offset": 0.0, "images": "0/*.tif", "masks": "masks/*.png", "classes": ["x", "y"]}
    return DatasetArguments(name="folder", root=str(root), task="segmentation", **{**reading, **said})


def test_values_that_are_no_measurement_are_those_that_are_said_of_the_files(tmp_path: Path) -> None:
    trained = MultispectralImageProcessor(["R"], nodata=[-9999.0])
    for said, processor, expected in (
        ({"nodata": [7.0], "sensor": "sentinel2_l2a"}, trained, (7.0,)),
        ({"nodata": []}, trained, ()),
        ({"sensor": "sentinel2_l2a"}, trained, (0.0,)),
        ({"sensor": {"bands": ["R"]}}, trained, None),
        ({}, trained, (-9999.0,)),
        ({}, MultispectralImageProcessor(["R"], reading={"nodata": []}), ()),
        ({"sensor": "sentinel2_l2a"}, MultispectralImageProcessor(["R"], reading={"nodata": []}), (0.0,)),
        ({}, None, None),
    ):
        assert layout_of(folder(tmp_path, **said), processor).nodata == expected


def test_a_folder_of_dates_and_what_does_nothing(tmp_path: Path) -> None:
    from PIL import Image

    names = tuple("abcdefgh")
    stored = write_dates(tmp_path, names)
    (tmp_path / "masks").mkdir()
    for name in names:
        Image.fromarray(np.eye(32, dtype=np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    images = load_dataset_splits(folder(tmp_path, dates=["1/*.tif"]))["train"]
    assert images.bands == ["G", "R", "N", "G@1", "R@1", "N@1"]
    np.testing.assert_allclose(images[0]["pixel_values"][5], stored[1, 2] * 1e-4, atol=1e-6)
    images = load_dataset_splits(folder(tmp_path, dates=["1/*.tif", "2/*.tif"], composite="median"))["train"]
    assert images.bands == ["G", "R", "N"] and images.processor.reading == {"composite": "median"}
    np.testing.assert_allclose(images[0]["pixel_values"][2], np.median(stored[:, 2], axis=0) * 1e-4, atol=1e-6)
    for said, problem in (
        ({"dates": ["1/*.tif"], "bands": ["R", "N"]}, r"`dates` does nothing for the bands 'R', 'N': .*'R@1'"),
        ({"composite": "median"}, "a composite is of several dates: give the others"),
    ):
        with pytest.raises(ConfigError, match=problem):
            load_dataset_splits(folder(tmp_path, **said))


def test_a_map_needs_the_dates_of_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stored = write_dates(tmp_path)
    scene, others = tmp_path / "0" / "a.tif", [str(tmp_path / "1" / "*.tif")]

    def predictor(bands: list[str], **reading: Any) -> Predictor:
        processor = MultispectralImageProcessor(bands, scale=1e-4, gsd_m=20.0, reading=reading)
        return Predictor(Stub(), processor, task="segmentation", classes=("land", "water"))

    both = np.concatenate([stored[0, :3], stored[1, :3]])[[1, 2, 5]]
    plain = write_scene(tmp_path / "plain.tif", both, descriptions=["R", "G", "N"])
    expected = read(map_of(predictor(["R", "G", "N"]), plain, tmp_path / "plain_map.tif"))
    stacked = predictor(["R", "N", "N@1"])
    np.testing.assert_array_equal(read(map_of(stacked, scene, tmp_path / "stack.tif", dates=others)), expected)
    with pytest.raises(BandError, match=r"lack the band\(s\) 'N@1'.*give their files, `dates`"):
        map_of(stacked, scene, tmp_path / "none.tif")
    means = write_scene(tmp_path / "mean.tif", stored[:2, :3].mean(0, dtype=np.float32), descriptions=["G", "R", "N"])
    expected = read(map_of(predictor(["R", "G", "N"]), means, tmp_path / "mean_map.tif"))
    median = predictor(["R", "G", "N"], composite="median")
    np.testing.assert_array_equal(read(map_of(median, scene, tmp_path / "median.tif", dates=others)), expected)
    map_of(median, scene, tmp_path / "alone.tif")
    assert "trained on medians of several dates, but this is one" in caplog.text
    assert torch.isfinite(torch.from_numpy(expected)).all()
