"""Repeated cross-validation in the accuracy benchmark, and the intervals over trials."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from deflect_hf.benchmark import accuracy
from deflect_hf.benchmark.accuracy import Plan
from deflect_hf.benchmark.rows import Row
from deflect_hf.benchmark.trials import Trial, cross_validation, half_interval, student
from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.run import RunArguments
from deflect_hf.errors import ConfigError
from deflect_hf.evaluation import metrics
from deflect_hf.raster.write import write_raster

CONF = Path(__file__).parents[1] / "conf" / "classification.yaml"


def command(output: Path, *extra: str) -> list[str]:
    return ["--output", str(output), "--rows", "frozen", "lora:rank=2", "--lr", "1e-2", "--report", "f1_macro",
            "--config", str(CONF), "--epochs", "1", "--dataset.num_samples", "24", *extra]  # fmt: skip


FOLDS = ("--folds", "2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("folds")
    accuracy.main(command(output, *FOLDS))
    return output


def rows(folder: Path, slug: str) -> dict[str, dict]:
    return {path.stem.rpartition("-lr0.01-")[2]: json.loads(path.read_text()) for path in folder.glob(f"{slug}-*.json")}


def test_every_row_is_tested_on_every_image_once(finished: Path) -> None:
    for slug in ("frozen", "lora_rank_2"):
        found = rows(finished / "rows", slug)
        assert sorted(found) == ["repeat0-fold0", "repeat0-fold1"]
        supports = [[row["support"] for row in one["test"]["per_class"].values()] for one in found.values()]
        assert np.sum(supports, axis=0).tolist() == [6, 6, 6, 6]
        for name in found:
            told = yaml.safe_load((finished / "runs" / f"{slug}-lr0.01-{name}" / "config.yaml").read_text())
            assert f"repeat{told['dataset']['seed']}-fold{told['dataset']['fold']}" == name
            assert (told["seed"], told["dataset"]["num_folds"]) == (told["dataset"]["seed"], 2)


def test_each_repeat_draws_other_folds_and_weights() -> None:
    base = parse_arguments(RunArguments, "test", ["--config", str(CONF)])
    found = [trial.settings(base) for trial in cross_validation(folds=3, repeats=2)]
    assert [(one.seed, one.dataset.seed, one.dataset.fold) for one in found] == [
        (0, 0, 0), (0, 0, 1), (0, 0, 2), (1, 1, 0), (1, 1, 1), (1, 1, 2)
    ]  # fmt: skip
    assert {one.dataset.num_folds for one in found} == {3}
    plain = Trial(7).settings(base)
    assert (plain.seed, plain.dataset) == (7, base.dataset)


def result(matrix: np.ndarray, validation: float) -> dict[str, Any]:
    """What a run of two classes would leave."""
    names = ("encoder_trainable", "encoder_total", "encoder_trainable_percent", "patch_embedding_trainable")
    return {
        "task": "classification",
        "val": {"accuracy": validation},
        "test": {**metrics.scores(torch.from_numpy(matrix), ["a", "b"]), "confusion_matrix": matrix.tolist()},
        "bytes": 1,
        "bands": "RGB",
        "seconds_per_step": 1.0,
        "memory": None,
        "energy_joules": None,
        "config_sha256": "0",
        "environment": {"packages": {}, "git_revision": None, "device": "cpu"},
        "parameters": dict.fromkeys((*names, "head_trainable"), 1),
    }


def test_the_table_has_means_pooled_scores_and_gains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = np.random.default_rng(0).integers(1, 9, (2, 4, 2, 2))  # rows, trials
    monkeypatch.setattr(
        accuracy,
        "train",
        lambda plan, row, lr, trial: result(matrices[int(row.method != "frozen"), 2 * trial.seed + trial.fold], 0.5),
    )
    accuracy.main(command(tmp_path, *FOLDS, "--repeats", "2"))
    summary = json.loads((tmp_path / "summary.json").read_text())

    def f1(matrix: np.ndarray) -> float:
        return float(np.mean(2 * matrix.diagonal() / (matrix.sum(axis=0) + matrix.sum(axis=1))))

    for one, trials in zip(summary, matrices, strict=True):
        assert one["scores"] == pytest.approx([f1(matrix) for matrix in trials])
        assert one["mean"] == pytest.approx(statistics.fmean(one["scores"]))
        # Student's t with 3 degrees of freedom; a quarter for four scores, 1 for a fold over its rest
        expected = 3.1824 * math.sqrt((1 / 4 + 1) * statistics.variance(one["scores"]))
        assert one["half_interval"] == pytest.approx(expected)
        assert one["pooled"] == pytest.approx([f1(trials[0] + trials[1]), f1(trials[2] + trials[3])])
    first, second = summary
    gains = [a - b for a, b in zip(first["scores"], second["scores"], strict=True)]
    assert second["gain_of_first"] == pytest.approx(statistics.fmean(gains))
    assert second["gain_half_interval"] == pytest.approx(half_interval(gains, folds=2))
    table = (tmp_path / "table.md").read_text()
    assert f"{statistics.fmean(second['pooled']):.3f} | {second['gain_of_first']:+.3f} ±" in table
    assert "2 x 2-fold cross-validation: mean over the folds" in table
    assert {line.count("|") for line in table.splitlines() if line.startswith("|")} == {13}


def test_a_second_call_runs_only_the_folds_that_are_missing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "copy"
    shutil.copytree(finished, output)
    gone = output / "rows" / "lora_rank_2-lr0.01-repeat0-fold1.json"
    expected = json.loads(gone.read_text())
    gone.unlink()
    started = []
    run = accuracy.run
    monkeypatch.setattr(accuracy, "run", lambda config: started.append(config.work_dir) or run(config))
    accuracy.main(command(output, *FOLDS))
    assert started == [str(output / "runs" / gone.stem)]
    assert json.loads(gone.read_text())["test"] == expected["test"]


def test_the_rate_is_chosen_on_validation_of_the_first_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def pretend(plan: Plan, row: Row, lr: float, trial: Trial) -> dict[str, Any]:
        tried.append((lr, trial.name))
        validation = {1e-3: [0.9, 0.1, 0.1], 1e-2: [0.8, 0.7, 0.7]}[lr][trial.fold or 0]
        return result(np.array([[2, 1], [1, 2]]), validation)

    monkeypatch.setattr(accuracy, "train", pretend)
    words = command(tmp_path, "--folds", "3", "--lr", "1e-3", "1e-2")
    words[words.index("frozen") : words.index("lora:rank=2") + 1] = ["frozen"]
    accuracy.main(words)
    assert json.loads((tmp_path / "summary.json").read_text())[0]["lr"] == 1e-3
    accuracy.main([*words, "--lr_folds", "2"])
    assert json.loads((tmp_path / "summary.json").read_text())[0]["lr"] == 1e-2
    assert tried[:4] == [(1e-3, "repeat0-fold0"), (1e-2, "repeat0-fold0"), (1e-3, "repeat0-fold1"),
                         (1e-3, "repeat0-fold2")]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--folds", "5", "--seeds", "0"), "--seeds and --folds exclude each other"),
        (("--repeats", "2"), "--repeats is for --folds"),
        (("--lr_folds", "1"), "--lr_folds is for --folds"),
        (("--folds", "1"), "--folds 1 --repeats 1 --lr_folds 1: give at least 2 folds"),
        (("--folds", "3", "--lr_folds", "4"), "at least 1 fold and at most all of them"),
        (("--folds", "3", "--repeats", "0"), "--repeats 0 --lr_folds 1: give at least 2 folds and 1 repeat"),
        (("--folds", "3", "--dataset.fold=1"), "--dataset.fold is set by the benchmark"),
        (("--folds", "3", "--dataset.seed", "1"), "--dataset.seed is set by the benchmark"),
    ],
)
def test_flags_that_contradict_are_refused(flags: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        accuracy.main(command(tmp_path, *flags))
    assert message in str(caught.value)


def test_data_with_a_split_of_its_own_has_no_folds(tmp_path: Path) -> None:
    write_raster(tmp_path / "data" / "dark" / "1.tif", np.zeros((1, 4, 4), np.float32), descriptions=["R"])
    (tmp_path / "data" / "held_out.txt").write_text("1\n")
    words = ["--output", str(tmp_path / "out"), "--rows", "frozen", "--lr", "1e-3", "--folds", "2",
             "--config", str(CONF), "--dataset_config", str(tmp_path / "set.yaml")]  # fmt: skip
    options = {"name": "folder", "root": str(tmp_path / "data")}
    (tmp_path / "set.yaml").write_text(yaml.safe_dump({**options, "test_split": "held_out.txt"}))
    with pytest.raises(ConfigError) as caught:
        accuracy.main(["--dataset.num_samples", "640", "--dataset.image_size", "null", *words])
    assert str(caught.value).startswith(f"--folds: {tmp_path / 'data'} has split files ('held_out.txt'), which random")
    (tmp_path / "set.yaml").write_text(yaml.safe_dump({"name": "m-forestnet", "root": str(tmp_path)}))
    with pytest.raises(ConfigError, match="'m-forestnet' has a published split, which is the one to report on"):
        accuracy.main(["--dataset.num_samples", "640", "--dataset.image_size", "null", *words])


def test_intervals_over_trials() -> None:
    assert half_interval([0.5]) is None
    assert half_interval([0.4, 0.6]) == pytest.approx(12.7062 * 0.1, rel=1e-5)
    scores = [0.5, 0.6, 0.55, 0.7, 0.65]
    plain, corrected = half_interval(scores), half_interval(scores, folds=5)
    assert plain is not None and corrected == pytest.approx(plain * 1.5)  # sqrt((1/5 + 1/4) * 5)
    # published quantiles
    for degrees, expected in ((9, 2.262), (10, 2.228), (14, 2.145), (29, 2.045), (120, 1.980)):
        assert student(degrees) == pytest.approx(expected, abs=1e-3)
    assert [trial.name for trial in cross_validation(2, 2)][1:3] == ["repeat0-fold1", "repeat1-fold0"]
