"""The two benchmarks end to end, tiny."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from deflect_hf.benchmark import accuracy, cost, encoders
from deflect_hf.benchmark.rows import Row
from deflect_hf.errors import ConfigError

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
    assert (finished / "metric.png").stat().st_size > 1000
    table = (finished / "table.md").read_text()
    assert "| frozen |" in table
    assert f"{summary[1]['mean']:.3f} ±" in table


def test_a_second_call_trains_nothing_and_another_configuration_is_refused(finished, monkeypatch, capsys):
    monkeypatch.setattr(accuracy, "run", None)
    accuracy.main(command(finished))
    assert "| frozen |" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="was made by another configuration: give another --output"):
        accuracy.main(command(finished, "--batch_size", "3"))


def test_one_seed_has_no_interval(finished, capsys):
    accuracy.main([*command(finished), "--seeds", "0"])
    summary = json.loads((finished / "summary.json").read_text())
    assert [one["half_interval"] for one in summary] == [None, None]
    assert "±" not in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--seed", "--finetune", "--work_dir"])
def test_what_the_benchmark_sets_itself_is_refused(flag, tmp_path):
    with pytest.raises(ConfigError, match=f"{flag} is set by the benchmark"):
        accuracy.main([*command(tmp_path), flag, "1"])


def test_reported_score_must_exist():
    test = {"accuracy": 0.5, "miou": 0.25, "per_class": {"water": {"iou": 0.75, "recall": None}}}
    assert accuracy.score(test, "iou:water") == 0.75
    with pytest.raises(ConfigError, match=r"no mean.*Did you mean 'miou'"):
        accuracy.score(test, "miuo")
    with pytest.raises(ConfigError, match="no class 'ice'; there are 'water'"):
        accuracy.score(test, "iou:ice")
    with pytest.raises(ConfigError, match="no score 'iuo' of a class; there are 'iou', 'recall'"):
        accuracy.score(test, "iuo:water")
    with pytest.raises(ConfigError, match="test images of a run have no 'water' in label or prediction"):
        accuracy.score(test, "recall:water")


def test_cost_prints_ratios_to_the_first_row(tmp_path, capsys):
    rows = ["--rows", "frozen", "deflect", "deflect:layers_to_transform=[11]"]
    cost.main(["--output", str(tmp_path), "--size", "tiny", "--image_size", "32", "--batch_size", "1", *rows])
    table = capsys.readouterr().out
    assert "| frozen | 0 (0.00 %) | 1.00 | 1.00 | none | none | 1.00 |" in table
    frozen, everywhere, late = json.loads((tmp_path / "cost.json").read_text())
    assert frozen["saved_bytes"] < late["saved_bytes"] < 0.5 * everywhere["saved_bytes"]
    assert frozen["input_bytes"] is None and everywhere["input_bytes"] == late["input_bytes"]
    assert len(everywhere["step_seconds"]) == cost.ROUNDS
    with pytest.raises(ConfigError, match="multiple of --patch_size 16"):
        cost.main(["--output", str(tmp_path), "--image_size", "40", *rows])


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
