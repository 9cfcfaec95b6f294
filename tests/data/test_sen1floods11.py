"""Sen1Floods11: pixels, labels and splits of a replica, Bolivia, and broken folders."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data import load_dataset_splits
from deflect_hf.errors import DataError
from tests.data.replicas import write_lines, write_sen1floods11

HAND = "data/flood_events/HandLabeled"
TEST = "splits/flood_handlabeled/flood_test_data.csv"
BOLIVIA = "splits/flood_handlabeled/flood_bolivia_data.csv"


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sen1floods11(tmp_path_factory.mktemp("floods") / "v1.1")


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


def test_ids_alone_make_a_split_file_too(replica: Path) -> None:
    write_lines(replica / "few.txt", ["\ufeffIndia_100", "Spain_101_S2Hand.tif"])
    write_lines(replica / "last.txt", ["Spain_100"])
    own = {"train_split": "few.txt", "val_split": BOLIVIA, "test_split": "last.txt"}
    split = load_dataset_splits(arguments(replica, **own))["train"]
    assert split.names == ["India_100", "Spain_101"] and split[1]["labels"].shape == (16, 16)


def test_the_mask_is_the_one_that_the_list_names(tmp_path: Path) -> None:
    root = write_sen1floods11(tmp_path / "v1.1")
    write_lines(root / TEST, ["Spain_7_S1Hand.tif,Spain_7_Label.tif"])
    missing = f"2 problem(s): {HAND}/S2Hand/Spain_7_S2Hand.tif is missing (listed in {TEST}); "
    with pytest.raises(DataError, match=re.escape(f"{missing}{HAND}/LabelHand/Spain_7_Label.tif is missing")):
        load_dataset_splits(arguments(root))
