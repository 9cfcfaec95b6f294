"""The one pass over the training set: what it finds, how often it is made, and images of any size."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data import ImageDataset
from deflect_hf.data.folder import load_folder
from deflect_hf.data.order import evaluation_loader
from deflect_hf.errors import CheckpointError, DataError
from deflect_hf.raster.write import write_raster
from deflect_hf.spectral.features import RunningMoments, SpectralFeatures
from deflect_hf.training import statistics
from deflect_hf.training.build import check_method, load_splits
from deflect_hf.training.statistics import (
    QUANTILES,
    Statistics,
    look_at,
    statistics_of,
    warn_of_other_files,
    whole_patches,
)
from tests.training.test_build import configured
from tests.training.test_run import train as train_run


def test_bands_labels_and_quantiles_are_those_of_the_whole_training_split(caplog: pytest.LogCaptureFixture) -> None:
    config = configured("--augmentation.random_crop", "null", "--sampler", "balanced")
    train = load_splits(config, ("train",))["train"]
    images = torch.stack([train[k]["pixel_values"] for k in range(len(train))]).double()
    labels = torch.stack([train[k]["labels"] for k in range(len(train))])
    features = SpectralFeatures(train.bands, {"NDVI": "(N - R)/(N + R)"}, (8, 8))
    found = look_at(config, train, features, Accelerator())
    pixels = images.movedim(1, -1).flatten(0, -2)
    mean, std = found.of_bands(["R", "G", "B"], "here", "")
    rgb = pixels[:, [train.bands.index(band) for band in "RGB"]]
    torch.testing.assert_close(torch.tensor(mean).double(), rgb.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.tensor(std).double(), rgb.std(0), rtol=1e-3, atol=0)
    assert found.labels == torch.bincount(labels.flatten(), minlength=4).tolist()
    expected = RunningMoments(features.num_features)
    expected.update(features.raw_statistics(images.float()))
    assert found.features is not None
    torch.testing.assert_close(found.features.mean, expected.mean, rtol=1e-6, atol=1e-9)
    for position, band in enumerate(train.bands):
        exact = pixels[:, position].quantile(torch.tensor(QUANTILES, dtype=torch.float64))
        assert found.quantiles[band] == pytest.approx(exact.tolist(), rel=1e-6)
    again = Statistics.from_state(json.loads(json.dumps(found.state())))
    assert again.state() == found.state()
    assert found.present == [label.unique().tolist() for label in labels]
    assert "which the model cannot learn" not in caplog.text
    more = dataclasses.replace(train.labels, classes=(*train.classes, "ice"), values=(*train.labels.values, 99))
    few = ImageDataset(train.table, train.reader, train.processor, more).select([0])
    assert look_at(config, few, None, Accelerator()).labels[4] == 0
    assert "nothing in the training split is labelled" in caplog.text and "'ice', which the model cannot" in caplog.text


@pytest.mark.parametrize(("fill", "said"), [(-9999, True), (-9998, False)])
def test_labels_that_are_a_usual_fill_are_told(
    fill: int, said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in range(3):
        write_raster(tmp_path / f"images/{name}.tif", np.full((3, 8, 8), 0.1, np.float32), descriptions=list("RGB"))
    (tmp_path / "labels.csv").write_text(f"name,height\n0,{fill}\n1,{fill}\n2,{fill}\n")
    images = load_folder(DatasetArguments(name="folder", root=str(tmp_path), task="regression"))
    look_at(configured(), images["train"], None, Accelerator())
    assert ("1 label(s) of the training split are -9999, which the model learns as any value" in caplog.text) == said


def test_images_are_drawn_as_their_rarest_class_asks_for() -> None:
    moments = RunningMoments(1)
    present = [[0], [0, 1], [0], [], [0, 2], [2]]
    found = Statistics(["R"], {}, moments, None, [4, 1, 2], {}, present=present)
    assert found.image_weights() == [1 / 4, 1, 1 / 4, 1 / 4, 1 / 2, 1 / 2]
    assert Statistics(["R"], {}, moments, None, [4, 1, 2], {}).image_weights() is None


def test_a_run_looks_at_its_images_once_and_not_at_all_when_it_goes_on(
    deflect_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaders = []

    def counted(*arguments):
        loaders.append(arguments)
        return evaluation_loader(*arguments)

    monkeypatch.setattr(statistics, "evaluation_loader", counted)
    words = ("--epochs", "1", "--ckpt_steps", "4", "--segmentor.loss.class_weights", "balanced")
    results = train_run(tmp_path, *words)
    assert len(loaders) == 1
    again = train_run(tmp_path, *words, "--resume_from", str(tmp_path / "checkpoints" / "step-4"))
    assert len(loaders) == 1 and again["test"] == results["test"]


def test_statistics_of_another_run_are_refused() -> None:
    config = check_method(configured())
    train = load_splits(config, ("train",))["train"]
    moments = RunningMoments(2).state()
    stored = {"bands": ["R", "G"], "formulas": {}, "pixels": moments, "features": None, "labels": [1], "quantiles": {}}
    with pytest.raises(CheckpointError, match=r"it is of 1 classes, the bands 'R', 'G' and the indices"):
        statistics_of(config, train, (8, 8), Accelerator(), stored)


@pytest.mark.parametrize(
    ("value", "message"), [(0.25, "have one value in all of the training images: do"), (torch.nan, "no training")]
)
def test_bands_without_values_are_named(value: float, message: str) -> None:
    moments = RunningMoments(2)
    moments.update(torch.stack([torch.rand(5), torch.full((5,), value)], dim=-1))
    found = Statistics(["R", "N"], {}, moments, None, [], {})
    with pytest.raises(DataError, match=rf"^here: .*{message}") as caught:
        found.of_bands(["R", "N"], "here", "do")
    assert "'N'" in str(caught.value) and "'R'" not in str(caught.value)


def test_statistics_are_those_of_whole_patches() -> None:
    images = torch.arange(2.0 * 3 * 10 * 13).reshape(2, 3, 10, 13)
    assert torch.equal(whole_patches(images, (4, 6)), images[..., :8, :12])
    padded = whole_patches(images, (16, 6))
    assert padded.shape == (2, 3, 16, 12) and torch.equal(padded[..., :10, :], images[..., :12])
    assert padded[..., 10:, :].isnan().all()


@pytest.mark.parametrize(
    "now, said",
    [
        ([[10, 1], [20, 2], [0, 0]], None),
        ([[10, 7], [20, 8], [0, 0]], None),  # all were copied
        ([[10, 7], [21, 8], [0, 0]], "1 of 3 files of the training split are not those .*: 'b.tif' "),
        ([[10, 1], [20, 9], [0, 0]], "1 of 3 files .*: 'b.tif' "),
        ([[10, 1], [20, 2]], "0 of 2 files .*: another number of them "),
    ],
)
def test_files_that_a_run_was_not_started_with_are_named(now: Any, said: str | None, caplog: Any) -> None:
    files = ["x/a.tif", "x/b.tif", "https://c/d.tif"][: len(now)]
    warn_of_other_files(files, now, [[10, 1], [20, 2], [0, 0]])
    assert (re.search(said, caplog.text) is not None) if said else not caplog.text


def test_a_run_that_goes_on_over_a_changed_image_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in "abc":
        write_raster(tmp_path / f"images/{name}.tif", np.full((3, 8, 8), 0.1, np.float32), descriptions=list("RGB"))
    (tmp_path / "labels.csv").write_text("name,height\na,1\nb,2\nc,3\n")
    given = DatasetArguments(name="folder", root=str(tmp_path), task="regression", val_fraction=0.0, test_fraction=0.0)
    train = load_folder(given)["train"]
    config = configured("--finetune", "norm", "--method", "{}")
    stored = statistics_of(config, train, (8, 8), Accelerator(), None).state()
    statistics_of(config, train, (8, 8), Accelerator(), json.loads(json.dumps(stored)))
    assert "started with" not in caplog.text
    write_raster(tmp_path / "images/b.tif", np.zeros((3, 40, 40), np.float32), descriptions=list("RGB"))
    statistics_of(config, train, (8, 8), Accelerator(), json.loads(json.dumps(stored)))
    assert "1 of 3 files of the training split are not those that the run was started with: 'b.tif'" in caplog.text
