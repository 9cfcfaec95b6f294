"""The two benchmarks end to end, tiny."""

from __future__ import annotations

import json
import math
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from deflect_hf.benchmark import accuracy, cost, meters
from deflect_hf.benchmark.results import RunFiles
from deflect_hf.benchmark.rows import Row
from deflect_hf.benchmark.summary import score
from deflect_hf.errors import ConfigError
from tests.benchmarks import encoders

CONF = Path(__file__).parents[1] / "conf" / "classification.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("benchmark")
    accuracy.main(command(output))
    return output


def command(output: Path, *extra: str) -> list[str]:
    rows = ["--rows", "frozen", "deflect:rank=2,aux_dim=8"]
    return ["--output", str(output), *rows, "--seeds", "0", "1", "--lr", "1e-3", "1e-2", "--report", "accuracy",
            "--config", str(CONF), "--epochs", "1", *extra]  # fmt: skip


def test_accuracy_chooses_the_rate_on_validation_and_writes_every_row(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert [one["row"] for one in summary] == ["frozen", "deflect:rank=2,aux_dim=8"]
    for one in summary:
        slug = one["row"].replace(":", "_").replace("=", "_").replace(",", "_")
        rows = [json.loads(path.read_text()) for path in sorted((finished / "rows").glob(f"{slug}-*.json"))]
        assert len(rows) == 3  # two rates with the first seed, the better one with the second
        tried = {row["lr"]: row["val"]["accuracy"] for row in rows if row["seed"] == 0}
        assert tried[one["lr"]] == max(tried.values())
        chosen = [row["test"]["accuracy"] for row in rows if row["lr"] == one["lr"]]
        assert one["scores"] == chosen
        assert math.isclose(one["mean"], sum(chosen) / 2)
        assert one["bytes"] > 0
    for name in ("metric.png", "metric_time.png"):
        assert (finished / name).stat().st_size > 1000
    table = (finished / "table.md").read_text()
    assert "| frozen |" in table
    assert f"{summary[1]['mean']:.3f} ±" in table
    assert "| deflect:rank=2,aux_dim=8 | all 7 |" in table


def test_the_file_of_a_run_says_what_it_took_and_where(finished):
    for path in (finished / "rows").glob("*.json"):
        one = json.loads(path.read_text())
        assert one["seconds_per_step"] > 0
        assert one["parameters"]["encoder_total"] > one["parameters"]["encoder_trainable"]
        assert one["memory"] is None or one["memory"]["peak_bytes"] >= one["memory"]["mean_bytes"] > 0
        assert one["energy_joules"] is None or one["energy_joules"] > 0
        assert {"torch", "transformers", "peft", "deflect_hf"} <= set(one["environment"]["packages"])
        assert one["config"]["segmentor"]["optimizer"]["lr"] == one["lr"]
        assert one["test"]["intervals"]["level"] == 0.95


def test_a_second_call_trains_nothing_and_another_configuration_is_refused(finished, monkeypatch, capsys):
    monkeypatch.setattr(accuracy, "run", None)
    accuracy.main(command(finished))
    assert "| frozen |" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="was made by another configuration: give another --output"):
        accuracy.main(command(finished, "--batch_size", "3"))


def test_a_score_that_does_not_exist_is_told_after_the_first_run(finished, monkeypatch):
    tried = []
    train = accuracy.train
    monkeypatch.setattr(accuracy, "train", lambda *words: tried.append(words) or train(*words))
    with pytest.raises(ConfigError, match="no class 'ice'"):
        accuracy.main(command(finished, "--report", "iou:ice"))
    assert len(tried) == 1


def test_one_seed_has_no_interval(finished, capsys):
    accuracy.main([*command(finished), "--seeds", "0"])
    summary = json.loads((finished / "summary.json").read_text())
    assert [one["half_interval"] for one in summary] == [None, None]
    assert "±" not in capsys.readouterr().out


def test_finished_runs_of_another_output_are_taken_over_and_nothing_else_is_trained(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy, "run", None)
    words = command(tmp_path, "--reuse", str(finished), "--only_finished")
    words[words.index("frozen") + 1 : words.index("frozen") + 1] = ["norm"]
    accuracy.main(words)
    told = json.loads((tmp_path / "summary.json").read_text())
    for one, slug in zip(told, ("frozen", "deflect_rank_2_aux_dim_8"), strict=True):
        paths = [finished / "rows" / f"{slug}-lr{one['lr']:g}-seed{seed}.json" for seed in (0, 1)]
        assert one["scores"] == [json.loads(path.read_text())["test"]["accuracy"] for path in paths]
    assert len(list((tmp_path / "rows").glob("*.json"))) == 6
    accuracy.main(command(tmp_path, "--only_finished"))  # without the other output now
    with pytest.raises(
        ConfigError, match=r"frozen-lr0\.001-seed5 is not finished, and the others are compared with it"
    ):
        accuracy.main([*command(tmp_path, "--only_finished"), "--seeds", "5"])
    with pytest.raises(ConfigError, match="was made by another configuration"):
        accuracy.main(command(tmp_path / "new", "--reuse", str(finished), "--batch_size", "3"))


def test_a_process_waits_for_another_that_is_at_the_same_run(finished, tmp_path, monkeypatch):
    plan = accuracy.read_plan(command(tmp_path))
    name = "frozen-lr0.001-seed0"
    files = RunFiles(tmp_path, name)
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


def test_step_times_of_the_cost_benchmark(tmp_path):
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
        (("--seeds", "1", "0", "1"), "--seeds 1 0 1: give each seed once, none below 0"),
        (("--seeds", "-1"), "--seeds -1: give each seed once, none below 0"),
        (("--lr", "1e-3", "0"), "--lr 0.001 0.0: learning rates are above 0"),
        (("--segmentor.channels", "8"), "segmentor.channels is for segmentor.head mlp"),
    ],
)
def test_what_a_benchmark_does_not_do_is_refused(words, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        accuracy.main(command(tmp_path, *words))


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="trains in one process: start it with python"):
        accuracy.main(command(tmp_path))


@pytest.mark.parametrize("flag", ["--seed", "--finetune", "--work_dir"])
def test_what_the_benchmark_sets_itself_is_refused(flag, tmp_path):
    with pytest.raises(ConfigError, match=f"{flag} is set by the benchmark"):
        accuracy.main([*command(tmp_path), flag, "1"])


def test_reported_score_must_exist():
    test = {"accuracy": 0.5, "miou": 0.25, "per_class": {"water": {"iou": 0.75, "recall": None}}}
    assert score(test, "iou:water") == 0.75
    with pytest.raises(ConfigError, match="the data set has no test images to report on"):
        score({}, "miou")
    with pytest.raises(ConfigError, match=r"no mean.*Did you mean 'miou'"):
        score(test, "miuo")
    with pytest.raises(ConfigError, match="no class 'ice'; there are 'water'"):
        score(test, "iou:ice")
    with pytest.raises(ConfigError, match="no score 'iuo' of a class; there are 'iou', 'recall'"):
        score(test, "iuo:water")
    with pytest.raises(ConfigError, match="test images of a run have no 'water' in label or prediction"):
        score(test, "recall:water")


@pytest.mark.parametrize("flag", ["--rounds", "--batch_size", "--patch_size"])
def test_costs_of_nothing_are_refused(flag, tmp_path):
    with pytest.raises(ConfigError, match=f"{flag} 0: give at least 1"):
        cost.parse(["--output", str(tmp_path), flag, "0"])


def test_cost_prints_ratios_to_the_reference(tmp_path, capsys):
    late = "deflect:layers_to_transform=[11]"
    rows = ["--rows", "frozen", "deflect", late, "full", "--reference", "deflect"]
    flags = ["--output", str(tmp_path), "--size", "tiny", "--image_size", "32", "--batch_size", "1", "--rounds", "2"]
    cost.main([*flags, *rows, "--cache_prefix"])
    table = capsys.readouterr().out
    (line,) = [line for line in table.splitlines() if line.startswith("| deflect | ")]
    assert line.split(" | ")[2:7] == ["1.00"] * 5 and table.count("prefix kept on disk") == 1
    frozen, everywhere, start, stored, full = json.loads((tmp_path / "cost.json").read_text())
    assert frozen["saved_bytes"] < start["saved_bytes"] < 0.5 * everywhere["saved_bytes"]
    assert frozen["input_bytes"] is None and everywhere["input_bytes"] == start["input_bytes"]
    assert stored["row"] == f"{late}, prefix kept on disk" and stored["encoder_total"] == start["encoder_total"]
    for one in (frozen, everywhere, start, stored, full):
        assert len(one["step_seconds"]) == 2 and one["peak_bytes"] > one["mean_bytes"] > 0
        assert json.loads((tmp_path / "rows" / f"{cost.file_name(one['row'])}.json").read_text()) == one
    # weights, and in training their gradients and the optimizer's two states
    weights = 4 * full["encoder_total"]
    assert weights <= full["file_bytes"] < 1.1 * weights and everywhere["file_bytes"] < 0.1 * weights
    assert full["peak_bytes"] > 4 * weights and weights < everywhere["peak_bytes"] < 2 * weights
    with pytest.raises(ConfigError, match="multiple of --patch_size 16"):
        cost.main(["--output", str(tmp_path), "--image_size", "40", *rows])
    with pytest.raises(ConfigError, match="--reference lora is none of the rows frozen"):
        cost.main(["--output", str(tmp_path), "--rows", "frozen", "--reference", "lora"])


def test_memory_of_a_call_is_its_peak_and_its_mean():
    def call() -> None:
        kept = torch.zeros(1_000_000)
        time.sleep(0.03)
        more = torch.zeros(1_000_000)
        del more
        time.sleep(0.03)
        del kept

    peak, mean = meters.allocated(call, cuda=False)
    assert peak == pytest.approx(8e6, rel=0.01) and 4e6 <= mean < 6.5e6


@pytest.mark.parametrize("indices", ["null", "default", "all"])
def test_the_spectral_input_takes_at_most_twice_the_memory_of_the_images(indices):
    own = cost.parse(["--output", "unused", "--size", "tiny"])
    model = cost.build(Row.parse(f"deflect:indices={indices}"), own)
    pixels = torch.rand(1, len(cost.BANDS), 224, 224) * 0.4
    peak = cost.spectral_peak(model, pixels)
    # the planes of all bands without NaN, and where they are measured, a quarter of that
    assert peak is not None and 1.25 <= peak / (pixels.numel() * 4) <= 2.0


def test_peak_memory_is_what_is_held_at_once():
    class Twice(torch.nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            for _ in range(3):
                values = (values + 1.0) * 2.0  # the sum goes when the product is there
            return values

    model = torch.nn.ModuleDict({"deflect_input": torch.nn.ModuleDict({"default": Twice()})})
    values = torch.zeros(1000, 100)
    # the values of the round before, the sum and the product
    assert cost.spectral_peak(model, values) == pytest.approx(3 * values.numel() * 4, rel=0.01)
    assert cost.spectral_peak(torch.nn.Identity(), values) is None


def test_encoders_of_full_size(tmp_path, capsys):
    flags = ["--encoders", "dino-mc", "--image_size", "16", "--rounds", "1"]
    encoders.main(["--output", str(tmp_path), *flags])
    (one,) = json.loads((tmp_path / "encoders.json").read_text())
    assert (one["total"], one["encoder"]) == (21_670_272, "dino-mc")
    assert 0 < one["trainable"] < 0.004 * one["total"]
    assert min(one["frozen_ms"], one["deflected_ms"], one["training_ms"]) > 0
    assert "| dino-mc | 21,670,272 |" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="dino-mc"):
        encoders.main(["--output", str(tmp_path), "--encoders", "dino-mk"])
    with pytest.raises(ConfigError, match="--image_size 24: scale-mae has patches of 16 pixels; give a multiple"):
        encoders.main(["--output", str(tmp_path), "--encoders", "dino-mc", "scale-mae", "--image_size", "24"])
    with pytest.raises(ConfigError, match="--rounds 0: give at least 1"):
        encoders.main(["--output", str(tmp_path), "--rounds", "0"])
