"""Data sets of other libraries train here, or are refused with what was found in them."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.data import DatasetArguments
from deflect_hf.config.run import RunArguments
from deflect_hf.data import adapt_dataset, load_dataset_splits, sets
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.errors import BandError, ConfigError, DataError, UnitError

BANDS = ("R", "G", "B", "N")
IMAGES = np.random.default_rng(0).integers(500, 3000, (6, 4, 16, 16)).astype(np.int16)
MASKS = np.random.default_rng(1).integers(0, 3, (6, 16, 16)).astype(np.uint8)
OWN = {"scale": 1e-4, "gsd_m": 10.0}


class Geo:
    """As torchgeo's data sets: tensors, and keys that are of no use here."""

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image": torch.from_numpy(IMAGES[index]).float(),
            "mask": torch.from_numpy(MASKS[index]).long(),
            "crs": 1,
        }


@pytest.mark.parametrize(
    "source",
    [
        Geo(),
        [{"pixel_values": image, "labels": mask[None]} for image, mask in zip(IMAGES, MASKS, strict=True)],
        Dataset.from_dict({"image": IMAGES.tolist(), "label": MASKS.tolist()}),
        Dataset.from_dict({"image": IMAGES.tolist(), "label": MASKS.tolist()}).with_format("numpy"),
    ],
    ids=["torchgeo", "list of arrays", "datasets", "datasets as arrays"],
)
def test_masks_of_any_library(source: Any) -> None:
    images = adapt_dataset(
        source, BANDS, task="segmentation", classes=["land", "water"], class_values=[1, 2], ignore_values=[0], **OWN
    )
    assert (len(images), images.bands, images.classes, images.gsd_m) == (6, list(BANDS), ["land", "water"], 10.0)
    example = images[2]
    np.testing.assert_allclose(example["pixel_values"].numpy(), IMAGES[2] * 1e-4, rtol=1e-6)
    np.testing.assert_array_equal(example["labels"], np.array([-100, 0, 1])[MASKS[2]])
    assert images.select([4, 1]).names == ["000004", "000001"] and images.is_labelled()


@pytest.mark.parametrize(
    ("task", "label", "unknown"),
    [("classification", 1, -100), ("multi_label", [0, 1], [np.nan, np.nan]), ("regression", 0.5, np.nan)],
)
def test_an_image_without_a_measurement_has_no_label(task: str, label: Any, unknown: Any) -> None:
    examples = [{"image": np.full((4, 16, 16), value, np.float32), "label": label} for value in (1000, np.nan)]
    images = adapt_dataset(
        examples, BANDS, task=task, classes=None if task == "regression" else ["land", "water"], **OWN
    )
    np.testing.assert_array_equal(images[0]["labels"], np.float32(label))
    np.testing.assert_array_equal(images[1]["labels"], np.float32(unknown))


NUMBERS = np.where(MASKS == 2, np.nan, MASKS * 1.5)
VECTORS = [[1.0, 0.0, np.nan], [0.0, 1.0, 1.0]] * 3
TASKS = {
    "multi_label": (VECTORS, {"classes": ["a", "b", "c"]}),
    "regression": ([0.5, -1.0, np.nan, 3.0, 4.0, 5.0], {"target": "height", "target_unit": "m"}),
    "pixel_regression": (NUMBERS.tolist(), {"target": "height", "ignore_values": [0]}),
}


@pytest.mark.parametrize("task", TASKS)
def test_vectors_and_numbers_of_any_library(task: str) -> None:
    labels, options = TASKS[task]
    rows = [{"image": image, "label": np.float32(label)} for image, label in zip(IMAGES, labels, strict=True)]
    tensors = [{"image": row["image"], "mask": torch.as_tensor(row["label"])} for row in rows]
    table = Dataset.from_dict({"image": IMAGES.tolist(), "label": labels})
    expected = np.where(NUMBERS == 0, np.nan, NUMBERS) if task == "pixel_regression" else np.array(labels)
    for source in (rows, tensors, table, table.with_format("torch")):
        images = adapt_dataset(source, BANDS, task=task, **options, **OWN)
        assert images.is_labelled() and images[1]["labels"].dtype == torch.float32
        found = np.stack([images[index]["labels"].numpy() for index in range(6)])
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert images.classes == ["a", "b", "c"] if task == "multi_label" else images.classes == ["height"]


@pytest.mark.parametrize(
    ("task", "label", "message"),
    [
        ("multi_label", [0, 2], r"the label of example 0 of list is \[0, 2\]: it must be 3 numbers, 1 for each"),
        ("multi_label", MASKS[0], r"is of shape \(16, 16\): it must be 3 numbers"),
        ("multi_label", "forest", "is a str of <U6: give a number, or an array of numbers"),
        ("regression", [1.0, 2.0], r"has the shape \(2,\): a regression's is one number"),
        ("regression", np.inf, "holds infinity: write NaN where it is not known"),
        ("pixel_regression", 3.0, r"mask of example 0 of list has the shape \(\), but its image is \(16, 16\)"),
    ],
)
def test_labels_that_a_task_does_not_have(task: str, label: Any, message: str) -> None:
    options = {key: value for key, value in TASKS[task][1].items() if key != "ignore_values"}
    with pytest.raises(DataError, match=message):
        adapt_dataset([{"image": IMAGES[0], "label": label}], BANDS, task=task, **options, **OWN)


def test_classes_and_the_bands_of_a_trained_model() -> None:
    source = [{"image": image, "label": torch.tensor(7 + index % 2)} for index, image in enumerate(IMAGES)]
    trained = MultispectralImageProcessor(["N", "R"], scale=1.0, size=8)
    images = adapt_dataset(
        source, BANDS, task="classification", classes=["a", "b"], class_values=[7, 8], processor=trained, **OWN
    )
    assert images[3]["pixel_values"].shape == (2, 8, 8) and images[3]["labels"].item() == 1
    assert images.gsd_m == 20.0 and images[3]["pixel_values"].max() < 0.31
    with pytest.raises(UnitError, match="list: the model was trained on 8-bit values"):
        adapt_dataset(
            source, BANDS, task="classification", classes=["a", "b"], class_values=[7, 8],
            processor=MultispectralImageProcessor(["R"], unit="8bit"), **OWN,
        )  # fmt: skip


SETS_FILE = """
from deflect_hf.config.readers import DatasetSpec
from deflect_hf.data import adapt_dataset
from tests.data.test_adapt import BANDS, OWN, Geo

DATASET = DatasetSpec(name="geo", title="Geo", task="segmentation")

def load(args, processor=None):
    classes = ["no", "land", "water"]
    whole = adapt_dataset(Geo(), BANDS, task="segmentation", classes=classes, processor=processor, **OWN)
    return {"train": whole.select(range(4)), "val": whole.select([4]), "test": whole.select([5])}
"""


def test_masked_arrays_are_images_and_masks_with_what_is_not_known() -> None:
    image, mask = np.ma.array(np.full((3, 4, 4), 0.2, np.float32)), np.ma.array(np.ones((1, 4, 4), np.uint8))
    image[:, 0], image[1, 1], mask[0, 3] = (np.ma.masked,) * 3
    example = adapt_dataset([{"image": image, "mask": mask}], ["R", "G", "B"], task="segmentation", classes=["a", "b"])[
        0
    ]
    assert example["pixel_values"].isnan().sum((1, 2)).tolist() == [4, 8, 4]
    assert example["labels"][:, 0].tolist() == [-100, 1, 1, -100]


def test_an_adapted_data_set_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "geo.py").write_text(SETS_FILE, encoding="utf-8")
    monkeypatch.setattr(sets, "__path__", [*sets.__path__, str(tmp_path / "sets")])
    monkeypatch.delitem(sys.modules, f"{sets.__name__}.geo", raising=False)
    from deflect_hf.training.run import run

    encoder = Path(__file__).resolve().parents[1] / "conf" / "tiny_vit.yaml"
    words = ["--encoder_config", str(encoder), "--dataset.name", "geo", "--num_workers", "0", "--batch_size", "4"]
    words += ["--epochs", "1", "--eval_interval", "1", "--work_dir", str(tmp_path / "run")]
    results, _, _ = run(parse_arguments(RunArguments, "test", words))
    assert 0 <= results["test"]["accuracy"] <= 1


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"picture": 1, "label": 0}, r"example 0 of list has 'picture', 'label': give exactly one of 'pixel_values'"),
        ({"image": IMAGES[0]}, "has 'image': give exactly one of 'labels', 'mask', 'label'"),
        ({"image": IMAGES[0], "mask": 0, "label": 0}, "exactly one of 'labels'"),
        ({"image": IMAGES[0], "label": None}, r"has 'image', 'label' \('label' is None\): give exactly one"),
        ((IMAGES[0], 0), "example 0 of list is a tuple: it must be a dict"),
        ({"image": IMAGES[0].transpose(1, 2, 0), "label": 0}, r"shape \(16, 16, 4\): .* C = 4 .* move them first"),
        ({"image": IMAGES[0, :3], "label": 0}, r"shape \(3, 16, 16\): it must be \(C, H, W\), with C = 4"),
        ({"image": "a.tif", "label": 0}, "the image of example 0 of list is a str of <U5: give an array of numbers"),
        ({"image": [[[1], [1, 2]]], "label": 0}, "is a list, no array of numbers"),
        ({"image": IMAGES[0], "label": 2}, r"the label of example 0 of list is 2: it must be one of \[0, 1\]"),
        ({"image": IMAGES[0], "label": MASKS[0]}, r"is of shape \(16, 16\): it must be one of"),
        ({"image": IMAGES[0], "label": 0.5}, "holds float64: class values are whole numbers"),
    ],
)
def test_what_an_example_lacks_is_said_with_what_was_found(example: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        adapt_dataset([example], BANDS, task="classification", classes=["a", "b"], **OWN)


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        (iter([]), {}, DataError, "dataset is list_iterator: give something with a length"),
        (Geo(), {"task": "detection"}, ConfigError, "Unknown task 'detection': choose one of 'classification', "),
        (Geo(), {"task": "pixel_regression"}, ConfigError, "classes does nothing for task='pixel_regression'"),
        (Geo(), {"target_unit": "m"}, ConfigError, "target_unit does nothing for task='segmentation'"),
        (Geo(), {"task": "multi_label", "classes": []}, ConfigError, "classes=.*: task='multi_label' needs the names"),
        (Geo(), {"class_values": [1]}, ConfigError, "one value of its own for each of the 2 classes"),
        (Geo(), {"bands": ["R", "G", "B", "none"]}, BandError, "none"),
        (Geo(), {"classes": ["a", "b"]}, DataError, r"unknown class value\(s\) \[2\]"),
        ([{"image": IMAGES[0], "mask": MASKS[0, :8]}], {}, DataError, r"the shape \(8, 16\), but its image is"),
    ],
)
def test_what_cannot_be_adapted_is_refused(source: Any, options: dict, error: type[Exception], message: str) -> None:
    given = {"bands": BANDS, "task": "segmentation", "classes": ["a", "b"], **OWN, **options}
    with pytest.raises(error, match=message):
        adapt_dataset(source, **given)[0]


def test_examples_of_two_splits_are_told(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"image": image, "label": index % 2} for index, image in enumerate(IMAGES)]
    args = DatasetArguments(name="python", task="classification", bands=list(BANDS), classes=["a", "b"], **OWN)
    load_dataset_splits(args, given={"train": rows[2:], "val": rows[:2]})
    assert "those of the" not in caplog.text
    load_dataset_splits(args, given={"train": rows, "val": rows, "test": rows[:2]})
    for said in (
        f"{len(rows)} example(s) of the val split are those of the train split, too",
        "2 example(s) of the test",
    ):
        assert said in caplog.text
