"""HLS Burn Scars: pixels, masks and the published split of a replica, and broken folders."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data import load_dataset_splits
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.data.sets.hlsburnscars import held_out
from deflect_hf.errors import DataError, UnitError
from deflect_hf.raster.write import write_raster
from tests.data.replicas import write_burn_scars

FIRST = "subsetted_512x512_HLS.S30.T10SGD.2018100.v1.4"


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_burn_scars(tmp_path_factory.mktemp("burn") / "hls_burn_scars")


@pytest.fixture
def copy(replica: Path, tmp_path: Path) -> Path:
    """A replica to break."""
    return shutil.copytree(replica, tmp_path / "hls_burn_scars")


def arguments(root: Path, **options: object) -> DatasetArguments:
    return DatasetArguments(name="hlsburnscars", root=str(root), **options)


def test_pixels_and_masks_of_full_size(tmp_path: Path) -> None:
    root = write_burn_scars(tmp_path / "burn", training=2, validation=1, size=512)
    split = load_dataset_splits(arguments(root))["test"]
    example = split[0]
    with rasterio.open(root / "validation" / f"{FIRST}_merged.tif") as image:
        stored = image.read()
    with rasterio.open(root / "validation" / f"{FIRST}.mask.tif") as mask:
        labels = mask.read(1).astype(np.int64)
    assert example["pixel_values"].shape == (6, 512, 512) and example["name"] == FIRST
    assert torch.isnan(example["pixel_values"][:, 0, :3]).all()  # 9999, -9999 and NaN
    np.testing.assert_array_equal(example["pixel_values"][:, 1:], stored[:, 1:])
    np.testing.assert_array_equal(example["pixel_values"][:, 0, 3:], stored[:, 0, 3:])
    assert example["labels"][0, :3].tolist() == [-100] * 3  # the mask itself says so of the first two only
    labels[0, :3] = -100
    np.testing.assert_array_equal(example["labels"], labels)
    assert split.bands == ["B", "G", "R", "N", "S1", "S2"] and split.gsd_m == 30.0
    assert split.classes == ["Not burned", "Burn scar"]


def test_the_grid_of_the_images_belongs_to_the_contract(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in sorted((copy / "training").glob("*_merged.tif")):
        with rasterio.open(path, "r+") as image:
            image.crs, image.transform = "EPSG:32610", rasterio.Affine(30, 0, 6e5, 0, -30, 4.8e6)
    trained = load_dataset_splits(arguments(copy))["train"].processor
    assert MultispectralImageProcessor.from_dict(trained.to_dict()).contract.projection == "Transverse_Mercator"
    trained.projection = "geographic"
    with caplog.at_level(logging.WARNING):
        load_dataset_splits(arguments(copy), trained)
    assert "HLS Burn Scars: its coordinate reference system is Transverse_Mercator, but the model was" in caplog.text


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 1000))
def test_validation_images_are_those_that_sklearn_holds_out(count: int) -> None:
    train, val = train_test_split(np.arange(count), test_size=0.1, random_state=23)
    assert held_out(count) == set(val.tolist())
    assert set(range(count)) - held_out(count) == set(train.tolist())


def test_the_split_of_the_published_540_images() -> None:
    assert sorted(held_out(540))[:8] == [19, 45, 46, 63, 64, 73, 86, 115] and len(held_out(540)) == 54


def test_splits_do_not_depend_on_the_seed(replica: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "deflect_hf"):
        splits = load_dataset_splits(arguments(replica))
    other = load_dataset_splits(arguments(replica, seed=5))
    names = {split: images.names for split, images in splits.items()}
    assert names == {split: images.names for split, images in other.items()}
    stems = sorted(path.name.removesuffix("_merged.tif") for path in (replica / "training").glob("*_merged.tif"))
    assert names["val"] == [stems[index] for index in sorted(held_out(12))] and len(names["val"]) == 2
    assert sorted(names["train"] + names["val"]) == stems and len(names["test"]) == 4
    assert "HLS Burn Scars: 10 images in the train split, but 486 are published" in caplog.text
    assert "HLS Burn Scars: test split, 4 images" in caplog.text


def test_another_scale_of_the_files_can_be_said(copy: Path) -> None:
    expected = load_dataset_splits(arguments(copy))["test"][0]["pixel_values"]
    path = copy / "validation" / f"{FIRST}_merged.tif"
    with rasterio.open(path) as source:
        values = source.read()
    measured = np.isfinite(values) & (np.abs(values) < 9999)
    write_raster(path, np.where(measured, np.round(values * 10000), -9999).astype(np.int16))
    with pytest.raises(UnitError, match=r"v1\.4_merged\.tif: .*these look like digital numbers: give the sensor, or"):
        load_dataset_splits(arguments(copy))["test"][0]
    pixels = load_dataset_splits(arguments(copy, scale=1e-4))["test"][0]["pixel_values"]
    torch.testing.assert_close(pixels, expected, equal_nan=True, atol=6e-5, rtol=0)


def test_a_part_without_files_and_files_of_another_kind_are_named(copy: Path) -> None:
    split = load_dataset_splits(arguments(copy))["test"]
    write_raster(copy / "validation" / f"{FIRST}_merged.tif", np.zeros((3, 24, 24), dtype=np.float32))
    with pytest.raises(DataError, match=r"merged\.tif does not have the 6 bands of HLS Burn Scars, 'B', .* again\."):
        split[0]
    shutil.rmtree(copy / "validation")
    with pytest.raises(DataError, match=r"1 problem\(s\): validation/ is missing or has no files"):
        load_dataset_splits(arguments(copy))
