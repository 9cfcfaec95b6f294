"""The accuracy benchmark end to end, tiny: seeds, folds, what is run again and what is refused."""

import json
import math
import shutil
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock

from deflect_hf import load_predictor
from deflect_hf.benchmark import accuracy
from deflect_hf.benchmark.accuracy import Plan
from deflect_hf.benchmark.runs import Row, RunFiles, settings
from deflect_hf.benchmark.summary import Trial, cross_validation, half_interval
from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.run import RunArguments
from deflect_hf.errors import ConfigError
from deflect_hf.evaluation import metrics
from deflect_hf.raster import write_raster

CONF = Path(__file__).parents[1] / "conf"
SET = ("--config", str(CONF / "classification.yaml"), "--epochs", "1", "--dataset.num_samples", "24")
SEEDS = ("--rows", "frozen", "deflect:rank=2,aux_dim=8", "--seeds", "0", "1", "--lr", "1e-3", "1e-2")
SEEDS += ("--report", "accuracy")
FOLDS = ("--rows", "frozen", "lora:rank=2", "--lr", "1e-2", "--report", "f1_macro", "--folds", "2")


def command(output: Path, *extra: str) -> list[str]:
    return ["--output", str(output), *SEEDS, *SET, *extra]


def folds(output: Path, *extra: str) -> list[str]:
    return ["--output", str(output), *FOLDS, *SET, *extra]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("benchmark")
    accuracy.main(command(output))
    return output


def results(output: Path, pattern: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((output / "rows").glob(pattern))]


def summary(output: Path) -> list[dict[str, Any]]:
    return json.loads((output / "summary.json").read_text())


def test_the_rate_is_chosen_on_validation_and_every_run_has_a_file(finished: Path) -> None:
    assert [one["row"] for one in summary(finished)] == ["frozen", "deflect:rank=2,aux_dim=8"]
    for one, slug in zip(summary(finished), ("frozen", "deflect_rank_2_aux_dim_8"), strict=True):
        rows = results(finished, f"{slug}-*.json")
        assert len(rows) == 3  # two rates with the first seed, the better one with the second
        tried = {row["lr"]: row["val"]["accuracy"] for row in rows if row["seed"] == 0}
        assert tried[one["lr"]] == max(tried.values())
        assert one["scores"] == [row["test"]["accuracy"] for row in rows if row["lr"] == one["lr"]]
        assert math.isclose(one["mean"], sum(one["scores"]) / 2)
        for row in rows:
            assert row["seconds_per_step"] > 0 and row["bytes"] > 0
            assert row["parameters"]["encoder_total"] > row["parameters"]["encoder_trainable"]
            assert row["memory"] is None or row["memory"]["peak_bytes"] >= row["memory"]["mean_bytes"] > 0
            assert {"torch", "transformers", "peft", "deflect_hf"} <= set(row["environment"]["packages"])
            assert row["config"]["segmentor"]["optimizer"]["lr"] == row["lr"]
            assert row["test"]["intervals"]["level"] == 0.95
    for name in ("metric.png", "metric_time.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")
    table = (finished / "table.md").read_text()
    assert "| frozen | RGB |" in table and "| deflect:rank=2,aux_dim=8 | all 7 |" in table
    assert f"{summary(finished)[1]['mean']:.3f} ±" in table


def test_a_second_call_trains_nothing_and_another_configuration_is_refused(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(accuracy, "run", None)
    accuracy.main(command(finished))
    assert "| frozen |" in capsys.readouterr().out
    accuracy.main([*command(tmp_path, "--reuse", str(finished)), "--seeds", "0"])
    assert [one["half_interval"] for one in summary(tmp_path)] == [None, None]
    assert "±" not in capsys.readouterr().out
    with pytest.raises(ConfigError, match="was made by another configuration: give another --output"):
        accuracy.main(command(finished, "--batch_size", "3"))
    with pytest.raises(ConfigError, match="no class 'ice'"):
        accuracy.main(command(finished, "--report", "iou:ice"))


def test_files_made_before_a_key_came_and_on_another_machine_are_finished_runs(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "run", None)
    shutil.copytree(finished / "rows", tmp_path / "rows")
    for file in (tmp_path / "rows").glob("*.json"):
        record = json.loads(file.read_text())
        del record["config"]["augmentation"]["band_noise"]
        file.write_text(json.dumps(record))
    accuracy.main(command(tmp_path))
    assert [one["scores"] for one in summary(tmp_path)] == [one["scores"] for one in summary(finished)]
    record["config"]["batches"] = 4  # no key of this version
    file.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="was made by another configuration"):
        accuracy.main(command(tmp_path))


def test_settings_do_not_say_where_a_machine_keeps_its_data() -> None:
    words = ["--dataset_config", "configs/datasets/burn42.yaml", "--encoder.name_or_path", "/home/me/encoder"]
    words += ["--segmentor_config", "configs/segmentors/linear.yaml", "--config", "configs/run/default.yaml"]
    there, here = (
        settings(parse_arguments(RunArguments, "", [*words, "--dataset.root", root]))
        for root in ("/a/burn", "/b/c/burn")
    )
    assert there == here
    assert (here["dataset"]["root"], here["encoder"]["name_or_path"]) == ("burn", "encoder")


def test_finished_runs_of_another_output_are_taken_over_and_nothing_else_is_trained(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "run", None)
    words = command(tmp_path, "--reuse", str(finished), "--only_finished")
    words[words.index("frozen") + 1 : words.index("frozen") + 1] = ["norm"]
    accuracy.main(words)
    assert [one["scores"] for one in summary(tmp_path)] == [one["scores"] for one in summary(finished)]
    assert len(list((tmp_path / "rows").glob("*.json"))) == 6
    accuracy.main(command(tmp_path, "--only_finished"))  # without the other output now
    with pytest.raises(ConfigError, match=r"frozen-lr0\.001-seed5 is not finished"):
        accuracy.main([*command(tmp_path, "--only_finished"), "--seeds", "5"])
    with pytest.raises(ConfigError, match="was made by another configuration"):
        accuracy.main(command(tmp_path / "new", "--reuse", str(finished), "--batch_size", "3"))


def test_a_process_waits_for_another_that_is_at_the_same_run(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = accuracy.read_plan(command(tmp_path))
    name = "frozen-lr0.001-seed0"
    files = RunFiles.of(tmp_path, name)
    files.lock.parent.mkdir(parents=True)
    files.result.parent.mkdir()
    monkeypatch.setattr(accuracy, "run", None)
    with ThreadPoolExecutor(1) as pool:
        with FileLock(files.lock):
            waiting = pool.submit(accuracy.train, plan, plan.rows[0], 1e-3, plan.trials[0])
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.5)
            shutil.copy(finished / "rows" / f"{name}.json", files.result)
        assert waiting.result(timeout=60)["row"] == "frozen"


def test_rivals_are_trained_on_all_bands_by_the_same_loop(tmp_path: Path) -> None:
    words = ["--rows", "frozen", "pixel", "unet:width=4,levels=2", "--seeds", "0", "--lr", "1e-2", "--epochs", "1"]
    segmentation = ("--config", str(CONF / "segmentation.yaml"), "--dataset.num_samples", "16")
    accuracy.main(["--output", str(tmp_path), *words, *segmentation])
    frozen, pixel, unet = summary(tmp_path)
    assert (frozen["bands"], pixel["bands"], unet["bands"]) == ("RGB", "all 7", "all 7")
    assert pixel["encoder_trainable"] == pixel["encoder_total"] == 8 * 64 + 64 + 64 * 64 + 64
    runs = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "rows").glob("*.json")}
    assert len({(one["steps"], str(one["images"])) for one in runs.values()}) == 1
    assert len({str(one["config"]["augmentation"]) for one in runs.values()}) == 1
    for run in (tmp_path / "runs").glob("[pu]*/"):  # mapped like any other model
        predictor = load_predictor(run)
        assert predictor(np.full((7, 32, 32), 1000)).shape == (1, 4, 32, 32)
    with pytest.raises(ConfigError, match=r"wdth is no option of the row 'unet'.*Did you mean 'width'"):
        Row.parse("unet:wdth=4")
    with pytest.raises(ConfigError, match="the row 'pixel': width=0 must be a whole number from 1 on"):
        Row.parse("pixel:width=0")


def test_step_times_of_the_cost_benchmark(tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    path.write_text(json.dumps([{"row": "frozen", "step_seconds": [2, 9, 1]}, {"row": "lora", "step_seconds": [3]}]))
    assert accuracy.read_ratios(path, ["frozen", "lora"]) == {"frozen": 1.0, "lora": 3.0}
    with pytest.raises(ConfigError, match="no row 'norm'; it has 'frozen', 'lora'"):
        accuracy.read_ratios(path, ["lora", "norm"])
    with pytest.raises(ConfigError, match=r"give a cost\.json that the benchmark cost wrote"):
        accuracy.read_ratios(tmp_path / "cots.json", ["lora"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--push_to_hub", "true", "--hub_model_id", "user/name"), "push_to_hub: a benchmark publishes nothing"),
        (("--method.rank", "4"), "--method.rank: options of a method stand in its row"),
        (("--overwrite",), "--overwrite is set by the benchmark"),
        (("--seed", "1"), "--seed is set by the benchmark"),
        (("--finetune", "lora"), "--finetune is set by the benchmark"),
        (("--folds", "5"), "--seeds and --folds exclude each other"),
        (("--repeats", "2"), "--repeats is for --folds"),
        (("--lr_folds", "1"), "--lr_folds is for --folds"),
        (("--seeds", "1", "0", "1"), "--seeds 1 0 1: give each seed once, none below 0"),
        (("--seeds", "-1"), "--seeds -1: give each seed once, none below 0"),
        (("--lr", "1e-3", "0"), "--lr 0.001 0.0: learning rates are above 0"),
        (("--segmentor.channels", "8"), "segmentor.channels is for segmentor.head mlp"),
    ],
)
def test_what_a_benchmark_does_not_do_is_refused(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        accuracy.main(command(tmp_path, *words))


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="trains in one process: start it with python"):
        accuracy.main(command(tmp_path))


def test_every_row_is_tested_on_every_image_once_and_only_missing_folds_are_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracy.main(folds(tmp_path))
    for slug in ("frozen", "lora_rank_2"):
        found = results(tmp_path, f"{slug}-*.json")
        supports = [[row["support"] for row in one["test"]["per_class"].values()] for one in found]
        assert np.sum(supports, axis=0).tolist() == [6, 6, 6, 6]
        for number, one in enumerate(found):
            dataset = one["config"]["dataset"]
            assert (one["seed"], dataset["seed"], dataset["fold"], dataset["num_folds"]) == (0, 0, number, 2)
    gone = tmp_path / "rows" / "lora_rank_2-lr0.01-repeat0-fold1.json"
    expected = json.loads(gone.read_text())
    gone.unlink()
    started, run = [], accuracy.run
    monkeypatch.setattr(accuracy, "run", lambda config: started.append(config.work_dir) or run(config))
    accuracy.main(folds(tmp_path))
    assert started == [str(tmp_path / "runs" / gone.stem)]
    assert json.loads(gone.read_text())["test"] == expected["test"]


def test_each_repeat_draws_other_folds_and_weights() -> None:
    base = parse_arguments(RunArguments, "test", list(SET))
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
    accuracy.main(folds(tmp_path, "--repeats", "2"))

    def f1(matrix: np.ndarray) -> float:
        return float(np.mean(2 * matrix.diagonal() / (matrix.sum(axis=0) + matrix.sum(axis=1))))

    for one, trials in zip(summary(tmp_path), matrices, strict=True):
        assert one["scores"] == pytest.approx([f1(matrix) for matrix in trials])
        assert one["mean"] == pytest.approx(statistics.fmean(one["scores"]))
        # Student's t with 3 degrees of freedom; a quarter for four scores, 1 for a fold over its rest
        expected = 3.1824463 * math.sqrt((1 / 4 + 1) * statistics.variance(one["scores"]))
        assert one["half_interval"] == pytest.approx(expected)
        assert one["pooled"] == pytest.approx([f1(trials[0] + trials[1]), f1(trials[2] + trials[3])])
    first, second = summary(tmp_path)
    gains = [a - b for a, b in zip(first["scores"], second["scores"], strict=True)]
    assert second["gain_of_first"] == pytest.approx(statistics.fmean(gains))
    assert second["gain_half_interval"] == pytest.approx(half_interval(gains, folds=2))
    table = (tmp_path / "table.md").read_text()
    assert f"{statistics.fmean(second['pooled']):.3f} | {second['gain_of_first']:+.3f} ±" in table
    assert "2 x 2-fold cross-validation: mean over the folds" in table
    assert {line.count("|") for line in table.splitlines() if line.startswith("|")} == {13}


def test_scores_that_no_confusion_matrix_has_are_reported_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pretend(plan: Plan, row: Row, lr: float, trial: Trial) -> dict[str, Any]:
        found = result(np.array([[2, 1], [1, 2]]), 0.5)
        return found | {"test": found["test"] | {"ece": 0.1 * (1 + (trial.fold or 0)), "temperature": 2.0}}

    monkeypatch.setattr(accuracy, "train", pretend)
    accuracy.main(folds(tmp_path, "--report", "ece"))
    assert summary(tmp_path)[0]["scores"] == pytest.approx([0.1, 0.2])
    assert "pooled" not in (tmp_path / "table.md").read_text().lower()
    (tmp_path / "rows").mkdir()  # where finished runs lie, of which these are none
    with pytest.raises(ConfigError, match="'temperature' is no mean; there are 'accuracy', 'miou', 'f1_macro', 'ece'"):
        accuracy.main(folds(tmp_path, "--report", "temperature"))


def test_the_rate_is_chosen_on_validation_of_the_first_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def pretend(plan: Plan, row: Row, lr: float, trial: Trial) -> dict[str, Any]:
        tried.append((lr, trial.name))
        validation = {1e-3: [0.9, 0.1, 0.1], 1e-2: [0.8, 0.7, 0.7]}[lr][trial.fold or 0]
        return result(np.array([[2, 1], [1, 2]]), validation)

    monkeypatch.setattr(accuracy, "train", pretend)
    words = folds(tmp_path, "--folds", "3", "--lr", "1e-3", "1e-2", "--rows", "frozen")
    accuracy.main(words)
    (tmp_path / "rows").mkdir()  # where finished runs lie, of which these are none
    assert summary(tmp_path)[0]["lr"] == 1e-3
    accuracy.main([*words, "--lr_folds", "2"])
    assert summary(tmp_path)[0]["lr"] == 1e-2
    assert tried[:4] == [(1e-3, "repeat0-fold0"), (1e-2, "repeat0-fold0"), (1e-3, "repeat0-fold1"),
                         (1e-3, "repeat0-fold2")]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--folds", "1"), "--folds 1 --repeats 1 --lr_folds 1: give at least 2 folds"),
        (("--folds", "3", "--lr_folds", "4"), "at least 1 fold and at most all of them"),
        (("--folds", "3", "--repeats", "0"), "--repeats 0 --lr_folds 1: give at least 2 folds and 1 repeat"),
        (("--folds", "3", "--dataset.fold=1"), "--dataset.fold is set by the benchmark"),
        (("--folds", "3", "--dataset.seed", "1"), "--dataset.seed is set by the benchmark"),
    ],
)
def test_impossible_folds_are_refused(flags: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        accuracy.main(folds(tmp_path, *flags))


def test_data_with_a_split_of_its_own_has_no_folds(tmp_path: Path) -> None:
    write_raster(tmp_path / "data" / "dark" / "1.tif", np.zeros((1, 4, 4), np.float32), descriptions=["R"])
    (tmp_path / "data" / "held_out.txt").write_text("1\n")
    words = ["--output", str(tmp_path / "out"), "--rows", "frozen", "--lr", "1e-3", "--folds", "2",
             "--config", str(CONF / "classification.yaml"), "--dataset_config", str(tmp_path / "set.yaml")]  # fmt: skip
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
    assert [trial.name for trial in cross_validation(2, 2)][1:3] == ["repeat0-fold1", "repeat1-fold0"]
