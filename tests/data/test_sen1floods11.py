"""Sen1Floods11: pixels, labels and splits of a replica, Bolivia, and broken folders."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data import load_dataset_splits
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.errors import ConfigError, DataError
from tests.data.replicas import write_lines, write_sen1floods11

HAND = "data/flood_events/HandLabeled"
TRAIN = "splits/flood_handlabeled/flood_train_data.csv"
TEST = "splits/flood_handlabeled/flood_test_data.csv"
BOLIVIA = "splits/flood_handlabeled/flood_bolivia_data.csv"


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sen1floods11(tmp_path_factory.mktemp("floods") / "v1.1")


@pytest.fixture
def copy(replica: Path, tmp_path: Path) -> Path:
    """A replica to break."""
    return shutil.copytree(replica, tmp_path / "v1.1")


def arguments(root: Path, **options: object) -> DatasetArguments:
    return DatasetArguments(name="sen1floods11", root=str(root), **options)


def test_pixels_and_labels_of_full_size(tmp_path: Path) -> None:
    root = write_sen1floods11(tmp_path / "v1.1", train=1, val=1, test=1, bolivia=1, size=512)
    split = load_dataset_splits(arguments(root))["train"]
    example = split[0]
    hand = root / "data" / "flood_events" / "HandLabeled"
    with rasterio.open(hand / "S2Hand" / "Ghana_100_S2Hand.tif") as image:
        stored = image.read()
    with rasterio.open(hand / "LabelHand" / "Ghana_100_LabelHand.tif") as mask:
        labels = mask.read(1).astype(np.int64)
    assert example["pixel_values"].shape == (13, 512, 512) and stored.dtype == np.uint16
    expected = torch.from_numpy(stored / 10000).float()
    expected[:, 0, 0] = torch.nan  # digital number 0
    torch.testing.assert_close(example["pixel_values"], expected, equal_nan=True)
    assert labels[0, 0] == -1 and (labels == 1).any()
    labels[0, 0] = -100
    np.testing.assert_array_equal(example["labels"], labels)
    assert split.bands == ["A", "B", "G", "R", "RE1", "RE2", "RE3", "N", "N2", "WV", "CIRRUS", "S1", "S2"]
    assert split.gsd_m == 10.0


def test_splits_and_bolivia(replica: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "deflect_hf"):
        splits = load_dataset_splits(arguments(replica.parent))  # the folder that holds v1.1/
    assert {split: images.names for split, images in splits.items()} == {
        "train": [f"Ghana_{number}" for number in range(100, 106)],
        "val": ["India_100", "India_101"],
        "test": ["Spain_100", "Spain_101"],
    }
    assert "Sen1Floods11: 2 images in the val split, but 89 are published" in caplog.text
    held_out = load_dataset_splits(arguments(replica, test_split=BOLIVIA))
    assert held_out["test"].names == ["Bolivia_100", "Bolivia_101"] and held_out["train"].names == splits["train"].names
    assert held_out["test"][0]["labels"].shape == (16, 16)


def test_ids_alone_make_a_split_file_too(copy: Path) -> None:
    write_lines(copy / "few.txt", ["\ufeffIndia_100", "Spain_101_S2Hand.tif"])
    split = load_dataset_splits(arguments(copy, train_split="few.txt", val_split=BOLIVIA, test_split=TRAIN))["train"]
    assert split.names == ["India_100", "Spain_101"] and split[1]["labels"].shape == (16, 16)


def test_a_trained_model_says_the_bands(replica: Path) -> None:
    trained = MultispectralImageProcessor(["S1", "G"])
    pixels = load_dataset_splits(arguments(replica), trained)["val"][1]["pixel_values"]
    full = load_dataset_splits(arguments(replica))["val"]
    expected = full[1]["pixel_values"][[full.bands.index("S1"), full.bands.index("G")]]
    torch.testing.assert_close(pixels, expected, equal_nan=True)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda root: (root / HAND / "S2Hand" / "Ghana_101_S2Hand.tif").unlink(),
            f"1 problem(s): {HAND}/S2Hand/Ghana_101_S2Hand.tif is missing (listed in {TRAIN})",
        ),
        (
            lambda root: (root / HAND / "LabelHand" / "India_100_LabelHand.tif").write_bytes(b""),
            "India_100_LabelHand.tif is empty",
        ),
        (lambda root: shutil.rmtree(root / HAND / "LabelHand"), "10 problem(s): "),
        (
            lambda root: (root / "splits/flood_handlabeled/flood_valid_data.csv").unlink(),
            "flood_valid_data.csv is missing",
        ),
        (
            lambda root: write_lines(root / TEST, ["Spain_7_S1Hand.tif,Spain_7_Label.tif"]),
            f"2 problem(s): {HAND}/S2Hand/Spain_7_S2Hand.tif is missing (listed in {TEST}); "
            f"{HAND}/LabelHand/Spain_7_Label.tif is missing",
        ),
    ],
)
def test_a_broken_folder_is_reported_file_by_file(copy: Path, act: Callable[[Path], None], message: str) -> None:
    act(copy)
    with pytest.raises(DataError, match=re.escape(message)):
        load_dataset_splits(arguments(copy))


def test_a_bucket_cannot_be_downloaded_here(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_dataset_splits(arguments(tmp_path, download=True))
    hand, root = "data/flood_events/HandLabeled", tmp_path / "v1.1"
    assert str(caught.value) == (
        "`download`: Sen1Floods11 lies in a bucket of single files, without an archive. Remove `download` and fetch it "
        f"with: mkdir -p {root}/{{{hand}/S2Hand,{hand}/LabelHand,splits}}; "
        f"gsutil -m rsync -r gs://sen1floods11/v1.1/{hand}/S2Hand {root}/{hand}/S2Hand; "
        f"gsutil -m rsync -r gs://sen1floods11/v1.1/{hand}/LabelHand {root}/{hand}/LabelHand; "
        f"gsutil -m rsync -r gs://sen1floods11/v1.1/splits {root}/splits"
    )
