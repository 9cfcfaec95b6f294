"""MADOS: pixels, labels and splits of a replica, and every way its folder can be broken."""

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import Resampling

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data import load_dataset_splits
from deflect_hf.data.sets.mados import crop_row
from deflect_hf.errors import DataError
from deflect_hf.raster.write import write_raster
from tests.data.replicas import SATELLITES, write_lines, write_mados

CODES = ["A", "B", "G", "R", "RE1", "RE2", "RE3", "N", "N2", "S1", "S2"]


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mados(tmp_path_factory.mktemp("data") / "MADOS")


@pytest.fixture
def copy(replica: Path, tmp_path: Path) -> Path:
    """A replica to break."""
    return shutil.copytree(replica, tmp_path / "MADOS")


def arguments(root: Path, **options: object) -> DatasetArguments:
    return DatasetArguments(name="mados", root=str(root), **options)


def original_image(root: Path, name: str, resampling: Resampling) -> np.ndarray:
    """(11, H, W) as the loader published with the data makes it: all files, by wavelength, upscaled by GDAL."""
    scene, crop = name.rsplit("_", 1)
    files = sorted((root / scene).glob(f"*/*L2R_rhorc*_{crop}.tif"), key=lambda path: int(path.stem.split("_")[-2]))
    planes = []
    for file in files:
        factor = int(file.parent.name) // 10
        with rasterio.open(file) as source:
            shape = (source.height * factor, source.width * factor)
            planes.append(source.read(1, out_shape=shape, resampling=resampling))
    return np.stack(planes)


def original_labels(root: Path, name: str) -> np.ndarray:
    scene, crop = name.rsplit("_", 1)
    with rasterio.open(root / scene / "10" / f"{scene}_L2R_cl_{crop}.tif") as source:
        return source.read(1).astype(np.int64) - 1


def test_pixels_and_labels_of_full_size_are_those_of_the_original_loader(tmp_path: Path) -> None:
    root = write_mados(tmp_path / "MADOS", train=1, val=1, test=1, size=240, crops_per_scene=1)
    splits = load_dataset_splits(arguments(root, ignore_index=-1))
    for split in splits.values():  # the first and the third scene are of S2A, the second of S2B
        example = split[0]
        image = original_image(root, example["name"], Resampling.nearest)
        assert example["pixel_values"].shape == (11, 240, 240) and example["pixel_values"].dtype == torch.float32
        np.testing.assert_array_equal(example["pixel_values"].numpy(), image)
        labels = original_labels(root, example["name"])
        labels[np.isnan(image).all(axis=0)] = -1
        np.testing.assert_array_equal(example["labels"].numpy(), labels)
    assert split.bands == CODES and split.gsd_m == 10.0
    assert split.classes[0] == "Marine Debris" and split.classes[-1] == "Sea snot" and split.num_classes == 15


def test_nan_is_invalid_negative_reflectance_is_kept_and_unlabelled_pixels_are_ignored(replica: Path) -> None:
    example = load_dataset_splits(arguments(replica))["train"][0]
    pixels, labels = example["pixel_values"], example["labels"]
    assert torch.isnan(pixels[:, :6, :6]).all() and torch.isfinite(pixels[:, 6:]).all()
    assert (labels[:6, :6] == -100).all()
    assert pixels[:, -1, -1].tolist() == pytest.approx([-0.004] * 11)
    assert (pixels[CODES.index("A"), -6:, -6:] == pixels[CODES.index("A"), -1, -1]).all()  # one pixel of 60 m
    stored = original_labels(replica, example["name"])
    assert set(labels.unique().tolist()) == {-100, 4, 5, 6}
    assert (labels[stored == -1] == -100).all() and (labels[6:][stored[6:] >= 0] >= 0).all()


def test_bilinear_is_that_of_gdal_away_from_invalid_pixels(replica: Path) -> None:
    example = load_dataset_splits(arguments(replica, resampling="bilinear"))["val"][0]
    expected = original_image(replica, example["name"], Resampling.bilinear)
    np.testing.assert_allclose(example["pixel_values"][:, 12:, 12:], expected[:, 12:, 12:], atol=1e-6)
    nearest = original_image(replica, example["name"], Resampling.nearest)
    assert np.abs(expected[0, 12:, 12:] - nearest[0, 12:, 12:]).max() > 0.01


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_whatever_the_wavelengths_in_the_names_bands_ascend(data: st.DataObject) -> None:
    jitter = {nm: nm + data.draw(st.integers(-8, 8)) for by_gsd in SATELLITES[0].values() for nm in by_gsd}
    sizes = {
        f"Scene_1/{gsd_m}": {f"Scene_1_L2R_rhorc_{jitter[nm]}_7.tif": 1 for nm in data.draw(st.permutations(by_gsd))}
        for gsd_m, by_gsd in SATELLITES[0].items()
    }
    sizes["Scene_1/10"]["Scene_1_L2R_cl_7.tif"] = 1
    row, problems = crop_row("Scene_1_7", Path(), sizes.__getitem__)
    found = [int(Path(path).name.split("_")[-2]) for path in row["bands"]]
    expected = ["60", "10", "10", "10", "20", "20", "20", "10", "20", "20", "20"]
    assert found == sorted(jitter.values()) and not problems
    assert [Path(path).parent.name for path in row["bands"]] == expected


def test_split_files_are_read_and_counted(replica: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "deflect_hf"):
        splits = load_dataset_splits(arguments(replica, test_split="splits/val_X.txt", val_split="splits/test_X.txt"))
    assert splits["train"].names == ["Scene_0_1", "Scene_0_2", "Scene_0_3", "Scene_1_1", "Scene_1_2", "Scene_1_3"]
    assert splits["test"].names == ["Scene_2_1", "Scene_2_2"] and splits["val"].names == ["Scene_2_3", "Scene_3_1"]
    assert "MADOS: train split, 6 images" in caplog.text and "CC BY 4.0" in caplog.text
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [  # not of the splits that the user chose
        "MADOS: 6 images in the train split, but 1433 are published: results do not compare with published ones"
    ]


def remove(pattern: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        for file in root.glob(pattern):
            file.unlink()

    return act


def lists(split: str, *lines: str) -> Callable[[Path], None]:
    return lambda root: write_lines(root / "splits" / f"{split}_X.txt", lines)


MISPLACED = "Scene_0_L2R_rhorc_783_1.tif"


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            remove("Scene_0/20/*_740_2.tif"),
            "1 problem(s): Scene_0/20 holds 5 band(s) of crop 2 (704 nm, 783 nm, 865 nm, 1614 nm, 2202 nm) instead of ",
        ),
        (
            remove("Scene_0/60/*"),
            "3 problem(s): Scene_0/60 holds 0 band(s) of crop 1 instead of 1 (listed in splits/train_X.txt); Scene",
        ),
        (
            lambda root: shutil.rmtree(root / "Scene_0"),
            "1 problem(s): Scene_0/ is missing or has no files (listed in splits/train_X.txt). Copy it again",
        ),
        (
            lambda root: (root / "Scene_0/20" / MISPLACED).rename(root / "Scene_0/10" / MISPLACED),
            "Scene_0/10 holds 5 band(s) of crop 1 (492 nm, 560 nm, 665 nm, 783 nm, 833 nm) instead of 4",
        ),
        (
            lists("val", "Scene_2_1", "Scene_2_17", "Scene_9_1"),
            "2 problem(s): Scene_2 has no crop 17 (listed in splits/val_X.txt); Scene_9/ is missing",
        ),
        (remove("splits/test_X.txt"), "splits/test_X.txt is missing"),
        (lambda root: (root / "splits/test_X.txt").write_bytes(b"\xff\xfe"), "splits/test_X.txt is no text in UTF-8"),
        (lists("val", "Scene"), "'Scene' is no crop, such as 'Scene_0_1' (listed in splits/val_X.txt)"),
    ],
)
def test_a_broken_folder_is_reported_file_by_file(copy: Path, act: Callable[[Path], None], message: str) -> None:
    act(copy)
    with pytest.raises(DataError, match=re.escape(message)):
        load_dataset_splits(arguments(copy))


def test_many_broken_files_are_counted_and_the_first_ones_named(copy: Path) -> None:
    for file in copy.glob("Scene_*/10/*_cl_*.tif"):
        file.unlink()
    with pytest.raises(DataError) as caught:
        load_dataset_splits(arguments(copy))
    assert f"{copy} is not MADOS as published, 10 problem(s): " in str(caught.value)
    assert str(caught.value).count("is missing") == 8 and "; and 2 more. Copy it again" in str(caught.value)


def test_a_band_of_another_grid_is_named_when_it_is_read(copy: Path) -> None:
    split = load_dataset_splits(arguments(copy))["train"]
    file = copy / "Scene_0" / "20" / "Scene_0_L2R_rhorc_865_1.tif"
    write_raster(file, np.zeros((1, 24, 24), dtype=np.float32))
    with pytest.raises(DataError, match=r"865_1\.tif is 24 x 24 pixels: .* 2 times that must be the 24 x 24 of"):
        split[0]
    write_raster(file, np.zeros((2, 12, 12), dtype=np.float32))
    with pytest.raises(DataError, match=rf"{re.escape(str(file))} is not the single band 'N2': copy the file again"):
        split[0]
