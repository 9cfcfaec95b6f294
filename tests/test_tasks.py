"""Each task that is not one class per image or pixel, as a user runs it: a folder, train, evaluate, predict."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deflect_hf.cli import evaluate, train
from deflect_hf.config.tasks import TASKS
from deflect_hf.inference import cli
from deflect_hf.inference.predictor import Predictor
from deflect_hf.raster.read import open_raster, raster_info, read_mask, read_raster
from deflect_hf.raster.write import write_raster
from tests.benchmarks.resume import finish, start
from tests.training.test_resume import lines_without_time
from tests.training.test_run import losses

CONF = Path(__file__).parent / "conf"
BANDS = ["R", "G", "B", "N"]
NAMES = [f"{number:02d}" for number in range(16)]


def folder_of(root: Path, task: str) -> Path:
    """Images of two halves, dark and bright in N, and their labels; some of these are not known."""
    generator = np.random.default_rng(0)
    rows, columns = [], {"multi_label": "name,dark,bright", "regression": "name,other,n"}.get(task)
    for number, name in enumerate(NAMES):
        values = generator.uniform(0.05, 0.1, (4, 16, 16)).astype(np.float32)
        values[3] = generator.choice([0.1, 0.5], (2,)).repeat(8)[:, None] + generator.normal(0, 0.01, (16, 16))
        values[:, 15, 15] = np.nan
        write_raster(root / "images" / f"{name}.tif", values, descriptions=BANDS)
        if task == "pixel_regression":
            mask = (values[3] * 100).astype(np.float32)
            mask[0, :4] = -9999.0
            write_raster(root / "masks" / f"{name}.tif", mask[None], nodata=-9999.0)
        mean = float(np.nanmean(values[3])) * 100
        labels = [values[3].mean(axis=1)[row] < 0.3 for row in (0, 8)]
        has = [int(any(labels)), int(not all(labels))]
        cells = ["" if number == 3 else str(has[0]), str(has[1])] if task == "multi_label" else ["x", f"{mean:.3f}"]
        rows.append(",".join([name + ".tif" * (number % 2), *cells]))
    if columns is not None:
        (root / "labels.csv").write_text("\n".join([columns, *rows]) + "\n")
    for split, part in (("train", NAMES[:8]), ("val", NAMES[8:11]), ("test", NAMES[11:])):
        (root / f"{split}.txt").write_text("\n".join(part))
    return root


def words_of(root: Path, task: str, *more: str) -> list[str]:
    words = ["--encoder_config", str(CONF / "tiny_vit.yaml"), "--dataset.name", "folder", "--dataset.root", str(root)]
    words += ["--dataset.task", task, "--epochs", "2", "--eval_interval", "1", "--log_interval", "1"]
    words += ["--ckpt_steps", "3", "--num_workers", "0", "--segmentor.optimizer.lr", "1e-2", "--method.aux_dim", "8"]
    return [*words, "--augmentation.horizontal_flip", "0.5", *more]


@pytest.mark.parametrize(("task", "metric", "worse", "better"), [("segmentation", "miou", 0.9, 1.0),
                                                               ("regression", "rmse", 1.0, 0.9)])  # fmt: skip
def test_models_that_score_alike_are_ranked_by_their_loss(task: str, metric: str, worse: float, better: float) -> None:
    prefer = TASKS[task].preference
    ranks = [prefer({metric: score, "loss": loss}) for score, loss in ((worse, 0.1), (better, 0.3), (better, 0.2))]
    assert ranks == sorted(ranks) and ranks[1] < ranks[2]


OPTIONS = {
    "multi_label": ("--segmentor.loss.focal", "0.5", "--segmentor.pooling", "mean"),
    "regression": ("--dataset.target", "n", "--dataset.target_unit", "%", "--segmentor.pooling", "mean"),
    "pixel_regression": ("--dataset.target", "n", "--dataset.target_unit", "%", "--augmentation.random_crop", "[8,8]"),
}
SCORES = {"multi_label": ("map", "f1_macro"), "regression": ("mae", "rmse", "r2")}
SCORES["pixel_regression"] = SCORES["regression"]


@pytest.fixture(scope="module", params=OPTIONS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A task, its data, and its run of two steps in each of two epochs."""
    folder = tmp_path_factory.mktemp(request.param)
    root, run = folder_of(folder / "data", request.param), folder / "run"
    train([*words_of(root, request.param, *OPTIONS[request.param]), "--batch_size", "4", "--work_dir", str(run)])
    return request.param, root, run


def test_a_task_from_a_folder_to_scores_pictures_and_predictions(
    trained: tuple[str, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, root, run = trained
    results = json.loads((run / "results.json").read_text())
    assert results["task"] == task and all(math.isfinite(results["test"][name]) for name in SCORES[task])
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    best = [line["val"] for line in log if "val" in line]
    metric = results["selected_by"].removeprefix("val ")
    assert results["val"][metric] == pytest.approx((max if task == "multi_label" else min)(v[metric] for v in best))

    evaluate(["--eval_dir", str(run), "--drop_bands", "--output_dir", str(tmp_path / "out"), "--panels", "1"])
    again = json.loads((tmp_path / "out" / "results_test.json").read_text())
    assert {name: again[name] for name in SCORES[task]} == {name: results["test"][name] for name in SCORES[task]}
    assert set(again["drop_bands"]["scores"]) == {"", "N"}
    picture = "scores.png" if task == "multi_label" else "scatter.png"
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {picture, "predictions_00.png"}
    assert f"{metric} {again[metric]:.4f}" in capsys.readouterr().out

    predictor = Predictor.from_folder(run)
    image = root / "images" / f"{NAMES[-1]}.tif"
    found = predictor(read_raster(image, BANDS).values[None])[0]
    assert predictor.unit == (None if task == "multi_label" else "%")
    if task == "pixel_regression":
        target = tmp_path / "map.tif"
        cli.main([str(image), str(target), "--adapter", str(run)])
        info, written = raster_info(target), read_mask(target, numbers=True)
        with open_raster(target) as opened:
            assert (info.descriptions, info.dtype, opened.source.units) == (("n",), "float32", ("%",))
        assert not written.valid[0, 15, 15] and written.valid.sum() == 255
        np.testing.assert_allclose(written.values[written.valid], found[found.isfinite()].numpy(), rtol=1e-4, atol=1e-3)
        check_errors(predictor, root, results["test"])
    else:
        assert bool(((found >= 0) & (found <= 1)).all()) if task == "multi_label" else 0 < float(found[0]) < 100


def test_a_run_that_goes_on_in_its_second_epoch_equals_one_that_was_left_alone(
    trained: tuple[str, Path, Path], tmp_path: Path
) -> None:
    task, root, run = trained
    again = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(again / "checkpoints" / "step-4")
    words = words_of(root, task, *OPTIONS[task])
    train([*words, "--batch_size", "4", "--work_dir", str(again), "--resume_from", "last"])
    kept = [line for line in (run / "log.jsonl").read_text().splitlines() if json.loads(line)["step"] <= 3]
    assert (again / "log.jsonl").read_text().splitlines()[: len(kept)] == kept
    assert lines_without_time(again) == lines_without_time(run)
    assert losses(run).keys() == {1, 2, 3, 4}
    results, expected = (json.loads((folder / "results.json").read_text()) for folder in (again, run))
    assert (results["val"], results["test"]) == (expected["val"], expected["test"])
    assert all((folder / "best" / "adapter_model.safetensors").is_file() for folder in (run, again))
    assert len({(folder / "best" / "adapter_model.safetensors").read_bytes() for folder in (run, again)}) == 1


def test_two_processes_train_and_score_as_one(trained: tuple[str, Path, Path], tmp_path: Path) -> None:
    task, root, run = trained  # three images of validation, five of test: the shares are uneven
    words = [*words_of(root, task, *OPTIONS[task]), "--batch_size", "2", "--work_dir", str(tmp_path / "two")]
    finish(start(words, 2, tmp_path / "log"))
    assert losses(tmp_path / "two") == pytest.approx(losses(run), rel=1e-4)
    results, expected = (json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "two", run))
    assert results["best_epoch"] == expected["best_epoch"]
    for split in ("val", "test"):
        for name in SCORES[task]:
            assert results[split][name] == pytest.approx(expected[split][name], rel=1e-4), (split, name)
            interval = expected[split]["intervals"][name]
            assert results[split]["intervals"][name] == pytest.approx(interval, rel=1e-3)


def check_errors(predictor: Predictor, root: Path, scores: dict[str, Any]) -> None:
    """The scores are those of torchmetrics over the pixels that have a label and a measurement."""
    import torch
    from torchmetrics import functional

    found, labels = [], []
    for name in NAMES[11:]:
        found.append(predictor(read_raster(root / "images" / f"{name}.tif", BANDS).values[None])[0, 0])
        mask = read_mask(root / "masks" / f"{name}.tif", numbers=True)
        labels.append(torch.from_numpy(np.where(mask.valid, mask.values, np.nan)[0]))
    predicted, label = torch.stack(found), torch.stack(labels)
    known = predicted.isfinite() & label.isfinite()
    assert scores["labels"] == int(known.sum()) == 5 * (256 - 4 - 1)
    for name, function in (("mae", functional.mean_absolute_error), ("r2", functional.r2_score)):
        assert scores[name] == pytest.approx(float(function(predicted[known], label[known])), rel=1e-3, abs=1e-3)
