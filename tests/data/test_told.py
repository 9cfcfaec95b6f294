"""What is odd about a folder or its numbers, and is read all the same, is told in a line."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from accelerate import Accelerator

from deflect_hf.data import load_dataset_splits
from deflect_hf.errors import UnitError
from deflect_hf.raster.write import write_raster
from deflect_hf.training.statistics import look_at
from tests.data.conftest import BANDS, stored_image
from tests.data.test_folder import segments
from tests.training.test_build import configured


def listed(*names: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        for name in names:
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text("a0\na1\n")

    return change


def moved(name: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        (root / "images" / name).parent.mkdir(exist_ok=True)
        (root / "images" / "a9.tif").rename(root / "images" / name)

    return change


def tagged(*numbers: int) -> Callable[[Path], object]:
    return lambda root: [
        write_raster(root / f"images/a{k}.tif", stored_image(k), descriptions=BANDS, nodata=0) for k in numbers
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (listed("train.csv"), "'train.csv' look like lists of splits, and are not read: name them by `train_split`"),
        (listed("splits/val_ids.txt"), "'splits/val_ids.txt' look like lists"),
        (listed("constrained.txt"), ""),
        (listed("train.txt", "dev.txt"), "dev.txt is not read: if it is the validation split, call it val.txt"),
        (moved("deep/a9.tif"), "1 image(s) in folders below, such as deep/a9.tif, are not read"),
        (moved("a9.png"), "1 of 10 masks have no image, such as a9.tif"),
        (tagged(*range(9)), "no measurement is not tagged in 1 of 10 images, unlike 0 in the others: a9.tif"),
        (tagged(3), "no measurement is 0 in 1 of 10 images, unlike not tagged in the others: a3.tif"),
        (tagged(*range(10)), ""),
    ],
)
def test_what_a_folder_leaves_out_is_told(
    change: Callable[[Path], object], said: str, segmentation_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(segmentation_folder)
    load_dataset_splits(segments(segmentation_folder))
    assert said in caplog.text and bool(said) == any(record.levelname == "WARNING" for record in caplog.records)


def test_a_fourth_band_of_8_bits_that_has_a_name_is_no_mask(
    segmentation_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_raster(segmentation_folder / "images/a3.tif", stored_image(3).astype(np.uint8), descriptions=BANDS)
    load_dataset_splits(segments(segmentation_folder))
    assert "of 8 bits in 1 of 10 images" in caplog.text and "lack 'N'" not in caplog.text


@pytest.mark.parametrize(
    ("names", "sensor", "tags", "said"),
    [
        (["B1", "B2", "B3", "B4"], "sentinel2_l2a", (), "'A', 'B', 'G', 'R' of sensor 'sentinel2_l2a': if these names"),
        (["B1", "B2", "B3", "B4"], "landsat_tm_c2l2", (), ""),
        (["B2", "B3", "B4", "B8"], "sentinel2_l2a", (0.49, 0.56, 0.665, 0.842), ""),
        (["B", "G", "R", "N"], None, (0.665, 0.56, 0.49, 0.842), "'B' is at 665 nm, as 'R' should be; 'R' is at 490"),
        (["B", "G", "R", "N"], None, (490, 560, 665, 1610), "'N' is at 1610 nm."),
        (["B", "G", "R", "N"], None, (500, 590, 700, 910), ""),  # a little off the ranges of the catalogue
        (["B", "G", "R", "N"], None, (), ""),
    ],
)
def test_names_that_a_file_may_not_mean_are_told(
    names: list[str],
    sensor: str | None,
    tags: tuple[float, ...],
    said: str,
    segmentation_folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for path in (segmentation_folder / "images").iterdir():
        with rasterio.open(path, "r+") as sink:
            sink.descriptions = names
            for band, value in enumerate(tags, start=1):
                key = {"ns": "IMAGERY", "CENTRAL_WAVELENGTH_UM": value} if value < 10 else {"wavelength": value}
                sink.update_tags(band, **key)
    load_dataset_splits(segments(segmentation_folder, sensor=sensor, scale=1e-4, offset=0.0))
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said in "".join(warned) and bool(said) == bool(warned)
    if "of sensor" in said:  # and what it asks for is followed
        given = segments(
            segmentation_folder, sensor=sensor, scale=1e-4, offset=0.0, source_bands=["B2", "B3", "B4", "N"]
        )
        assert load_dataset_splits(given)["train"].bands == ["B", "G", "R", "N"]


def test_a_nodata_value_of_the_configuration_is_one_of_all_images(
    segmentation_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tagged(3)(segmentation_folder)
    load_dataset_splits(segments(segmentation_folder, nodata=[0]))
    assert "not tagged" not in caplog.text


@pytest.mark.parametrize(
    ("value", "bands", "pixels", "said"),
    [
        (-9999, slice(2, 3), 1, "1 of 480 pixels hold -9999, by which files often mean that nothing was measured"),
        (65535, slice(0, 4), 2, "2 of 480 pixels hold 65535, "),
        (0, slice(0, 4), 8, "80 of 480 pixels hold 0 in all bands, "),
        (0, slice(0, 3), 8, ""),
        (-9998, slice(0, 4), 8, ""),
        (700, slice(3, 4), 48, "the band(s) 'N' have one value in all of the training images"),
    ],
)
def test_values_that_are_seldom_measured_are_told(
    value: int, bands: slice, pixels: int, said: str, segmentation_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for k in range(10) if value in (0, 700) else [3]:
        image = stored_image(k).astype(np.int32)
        image[bands].reshape(-1, 48)[:, :pixels] = value
        write_raster(segmentation_folder / f"images/a{k}.tif", image, descriptions=BANDS)
    options = {"scale": 2e-4, "offset": -0.1, "val_fraction": 0.0, "test_fraction": 0.0, "unit_check": False}
    train = load_dataset_splits(segments(segmentation_folder, **options))["train"]
    look_at(configured(), train, None, Accelerator())
    assert said in caplog.text and bool(said) == ("hold " in caplog.text or "one value" in caplog.text)
    caplog.clear()
    unmeasured = load_dataset_splits(segments(segmentation_folder, **options, nodata=[value, 0]))["train"]
    look_at(configured(), unmeasured, None, Accelerator())
    assert "pixels hold" not in caplog.text


@pytest.mark.parametrize(
    ("numbers", "offset", "said"),
    [
        (
            range(3),
            0.0,
            "in 3 of 10 training images, such as a0, no band is anywhere below 1000: Sentinel-2 products of",
        ),
        (range(3), 0.0, "no snow, sand or cloud, take it off them, as one `offset` is for all"),
        (range(10), 0.0, "in 10 of 10 training images"),
        (range(10), 0.0, "give `offset: -0.1`"),
        (range(10), -0.1, ""),
        (range(0), 0.0, ""),
    ],
)
def test_digital_numbers_that_start_at_a_thousand_are_told(
    numbers: range, offset: float, said: str, segmentation_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for k in numbers:
        write_raster(segmentation_folder / f"images/a{k}.tif", stored_image(k) + 1000, descriptions=BANDS)
    options = {"offset": offset, "val_fraction": 0.0, "test_fraction": 0.0}
    look_at(configured(), load_dataset_splits(segments(segmentation_folder, **options))["train"], None, Accelerator())
    assert said in caplog.text and bool(said) == ("baseline 04.00" in caplog.text)


@pytest.mark.parametrize(("scale", "refused"), [(1e-6, True), (2e-6, True), (2e-5, False)])
def test_images_that_a_scale_makes_too_dark_are_refused(scale: float, refused: bool, segmentation_folder: Path) -> None:
    splits = [
        load_dataset_splits(segments(segmentation_folder, scale=scale, unit_check=check)) for check in (True, False)
    ]
    look_at(configured("--dataset.unit_check", "false"), splits[1]["train"], None, Accelerator())
    with pytest.raises(UnitError, match=r"99 % of the values are below 0\.00") if refused else nullcontext():
        look_at(configured(), splits[0]["train"], None, Accelerator())


@pytest.mark.parametrize("scale", [1e-4, [1e-4, 2e-4]])
def test_a_fill_is_known_by_each_bands_own_scale(scale: float | list[float]) -> None:
    from deflect_hf.data.fills import OF_IMAGES, Fills

    values = np.full((2, 4, 4), 65535, np.uint16).astype(np.float32)
    values *= np.asarray(scale, np.float32).reshape(-1, 1, 1)
    values += np.float32(-0.1)
    fills = Fills(scale, -0.1)
    fills.update(torch.from_numpy(values))
    assert dict(zip(OF_IMAGES, fills.counts.tolist(), strict=False))[65535.0] == 16
