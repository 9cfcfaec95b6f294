"""Decoded images on disk: the same bytes, read once, and never those of a file that was written anew."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.run import RunArguments
from deflect_hf.data import ImageDataset, adapt_dataset, load_dataset_splits
from deflect_hf.data.folder_reader import FolderReader
from deflect_hf.errors import ConfigError
from deflect_hf.raster.write import write_raster
from deflect_hf.training.run import run
from tests.data.conftest import BANDS, stored_image
from tests.data.test_folder import segments

ENCODER = Path(__file__).resolve().parents[1] / "conf" / "tiny_vit.yaml"


def train_split(folder: Path, kept: Path | None = None, **changes: Any) -> ImageDataset:
    images = load_dataset_splits(segments(folder, **changes))["train"]
    return images if kept is None else images.kept_in(kept)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """To the last bit, NaN included, and of one dtype."""
    raw = [[one[key].numpy().tobytes(), one[key].dtype, one[key].shape] for key in ("pixel_values", "labels")]
    return one["name"] == other["name"] and raw == [
        [other[key].numpy().tobytes(), other[key].dtype, other[key].shape] for key in ("pixel_values", "labels")
    ]


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read, seen = FolderReader.read, list[str]()

    def counted(self: FolderReader, row: Any) -> Any:
        seen.append(row["name"])
        return read(self, row)

    monkeypatch.setattr(FolderReader, "read", counted)
    return seen


def test_kept_examples_are_the_same_bytes_and_read_once(segmentation_folder: Path, tmp_path: Path, monkeypatch) -> None:
    stored = stored_image(0)
    stored[1, 2, :] = -9999
    write_raster(segmentation_folder / "images" / "a0.tif", stored, nodata=-9999, descriptions=BANDS)
    plain = train_split(segmentation_folder)
    expected = [plain[index] for index in range(len(plain))]
    seen = count_reads(monkeypatch)
    for _ in range(2):  # the second of another start
        images = train_split(segmentation_folder, tmp_path / "kept")
        images.processor.trained_size, images.processor.quantiles = [6, 8], {"R": [0.1] * 3}  # as training notes them
        assert all(same(images[index], example) for index, example in enumerate(expected))
    assert sorted(seen) == sorted(plain.names) and len(list((tmp_path / "kept").iterdir())) == len(plain)
    for changes in (
        {"scale": 2e-4},
        {"bands": ["N", "R"]},
        {"image_size": [12, 16]},
        {"ignore_values": [0], "class_values": [2, 1]},
    ):
        with_kept, without = (train_split(segmentation_folder, kept, **changes) for kept in (tmp_path / "kept", None))
        assert same(with_kept[0], without[0]), changes


def test_a_file_written_anew_or_damaged_is_read_again(
    segmentation_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = train_split(segmentation_folder, tmp_path / "kept")
    before, name = images[0], images.names[0]
    write_raster(segmentation_folder / "images" / f"{name}.tif", stored_image(77), descriptions=BANDS)
    assert not torch.equal(images[0]["pixel_values"], before["pixel_values"])
    assert same(images[0], train_split(segmentation_folder)[0])
    for path in (tmp_path / "kept").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    assert same(images[0], train_split(segmentation_folder)[0]) and "it is computed again" in caplog.text


def test_a_run_reads_each_image_for_statistics_and_once_more(
    segmentation_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--encoder_config", str(ENCODER), "--dataset.name", "folder", "--dataset.root", str(segmentation_folder)]
    words += [
        "--dataset.classes",
        "[land, water]",
        "--dataset.class_values",
        "[1, 2]",
        "--dataset.ignore_values",
        "[0]",
    ]
    words += ["--dataset.scale", "1e-4", "--augmentation.rot90", "true"]
    words += [
        "--batch_size",
        "2",
        "--num_workers",
        "0",
        "--epochs",
        "6",
        "--eval_interval",
        "2",
        "--dataset.image_size",
        "[16, 16]",
    ]
    told: list[Any] = []
    reads: list[int] = []
    for cached in ("false", "true"):
        folder = tmp_path / cached
        with monkeypatch.context() as patched:
            seen = count_reads(patched)
            given = [*words, "--cache_images", cached, "--work_dir", str(folder)]
            results, *_ = run(parse_arguments(RunArguments, "test", given))
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        told.append(([line["loss"] for line in lines if "loss" in line], results["test"]["per_class"]))
        reads.append(len(seen))
    assert told[0] == told[1]
    images = results["images"]
    assert len(list((tmp_path / "true" / "images").iterdir())) == images["train"] + images["val"]
    # six epochs; three evaluations, and the scores of the best model
    assert reads[0] - reads[1] == 5 * images["train"] + 3 * images["val"]


def test_what_a_program_reads_is_not_kept(tmp_path: Path) -> None:
    from deflect_hf import train

    examples = [{"image": stored_image(index, 16, 16) * 1e-4, "label": index % 2} for index in range(12)]
    images = adapt_dataset(examples, BANDS, task="classification", classes=["a", "b"])
    with pytest.raises(ConfigError, match="cache_images keeps what files hold, but a program reads these examples"):
        train({"encoder_config": str(ENCODER), "cache_images": True, "work_dir": str(tmp_path / "run")}, train=images)
