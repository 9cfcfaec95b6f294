"""The cost benchmark end to end, tiny, its meters, and what all benchmarks share."""

import importlib
import json
import os
from pathlib import Path

import pytest
import torch

from deflect_hf.benchmark import cost, runs
from deflect_hf.benchmark.__main__ import COMMANDS, main
from deflect_hf.benchmark.flags import report
from deflect_hf.benchmark.runs import MemoryMonitor, held_bytes
from deflect_hf.errors import ConfigError


@pytest.mark.parametrize("flag", ["--rounds", "--batch_size", "--patch_size"])
def test_costs_of_nothing_are_refused(flag, tmp_path):
    with pytest.raises(ConfigError, match=f"'{flag[2:]}' must be at least 1, not 0"):
        cost.main(["--output", str(tmp_path), flag, "0"])


def test_cost_prints_ratios_to_the_reference(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(cost.SIZES, "tiny", (192, 4, 3))
    late = "deflect:layers_to_transform=[3]"
    rows = ["--rows", "frozen", "through", "deflect", late, "full", "--reference", "deflect", "--checkpointing"]
    flags = ["--output", str(tmp_path), "--size", "tiny", "--image_size", "32", "--batch_size", "1", "--rounds", "1"]
    cost.main([*flags, *rows, "--cache_prefix"])
    table = capsys.readouterr().out
    (line,) = [line for line in table.splitlines() if line.startswith("| deflect | ")]
    assert line.split(" | ")[2:6] == ["1.00"] * 4 and table.count("prefix kept on disk") == 1
    frozen, through, _, everywhere, less, start, _, stored, full, _ = json.loads((tmp_path / "cost.json").read_text())
    assert less["row"] == "deflect, selective checkpointing"
    assert 0.2 * everywhere["saved_bytes"] < less["saved_bytes"] < 0.7 * everywhere["saved_bytes"]
    assert 2 * frozen["saved_bytes"] < through["saved_bytes"] < everywhere["saved_bytes"]
    assert frozen["saved_bytes"] < start["saved_bytes"] < 0.5 * everywhere["saved_bytes"]
    assert frozen["input_bytes"] is None and everywhere["input_bytes"] == start["input_bytes"]
    assert stored["row"] == f"{late}, prefix kept on disk" and stored["encoder_total"] == start["encoder_total"]
    for one in (frozen, everywhere, start, stored, full):
        assert len(one["step_seconds"]) == 1 and one["peak_bytes"] > 0
        assert json.loads((tmp_path / "rows" / f"{cost.file_name(one['row'])}.json").read_text()) == one
    # weights, and in training their gradients and the optimizer's two states
    weights = 4 * full["encoder_total"]
    assert weights <= full["file_bytes"] < 1.1 * weights and everywhere["file_bytes"] < 0.1 * weights
    assert full["peak_bytes"] > 4 * weights and weights < everywhere["peak_bytes"] < 2 * weights
    with pytest.raises(ConfigError, match="multiple of --patch_size 16"):
        cost.main(["--output", str(tmp_path), "--image_size", "40", *rows])
    with pytest.raises(ConfigError, match="--reference lora is none of the rows frozen"):
        cost.main(["--output", str(tmp_path), "--rows", "frozen", "--reference", "lora"])


@pytest.mark.parametrize("indices", ["null", "default", "all"])
def test_the_spectral_input_takes_at_most_twice_the_memory_of_the_images(indices):
    own = cost.parse_arguments(cost.CostArguments, "", ["--output", "unused", "--size", "tiny", "--image_size", "112"])
    model = cost.build(f"deflect:indices={indices}", own)
    pixels = torch.rand(1, len(cost.BANDS), 112, 112) * 0.4
    peak = cost.meters.spectral_peak(model, pixels)
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
    assert cost.meters.spectral_peak(model, values) == pytest.approx(3 * values.numel() * 4, rel=0.01)
    assert cost.meters.spectral_peak(torch.nn.Identity(), values) is None


def test_results_are_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report(tmp_path / "new", "cost", {"a": 1}, "| a |\n")
    assert (tmp_path / "new" / "cost.json").read_text() == '{\n  "a": 1\n}\n'
    assert (tmp_path / "new" / "cost.md").read_text() == "| a |\n" and capsys.readouterr().out == "| a |\n\n"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        report(tmp_path / "new", "cost", {"a": 2}, "| b |\n")
    assert '"a": 1' in (tmp_path / "new" / "cost.json").read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_flag_is_told_in_one_sentence(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert importlib.import_module(f"deflect_hf.benchmark.{command}").__doc__
    with pytest.raises(SystemExit) as stopped:
        main([command])
    told = capsys.readouterr().err.strip()
    assert stopped.value.code == 2
    assert told.startswith("error: ") and "output" in told
    assert "\n" not in told


def test_peak_and_mean_are_those_of_what_was_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor, samples = MemoryMonitor(), [1, 5, 3]

    def held() -> int:
        if len(samples) == 1:
            monitor._stop.set()
        return samples.pop(0)

    monkeypatch.setattr(runs, "held_bytes", held)
    monkeypatch.setattr(runs, "INTERVAL_SECONDS", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with monitor:
        monitor._thread.join()
    assert monitor.result() == {"of": "process", "peak_bytes": 5, "mean_bytes": 3}


@pytest.mark.skipif(torch.cuda.is_available(), reason="memory of the GPU is measured there")
def test_what_a_process_holds_is_told() -> None:
    before = held_bytes()
    values = torch.ones(50_000_000)
    assert held_bytes() - before > 2 * values.numel()  # half of it: other memory may be given back meanwhile


def test_an_error_inside_is_passed_on_and_the_thread_ends() -> None:
    monitor = MemoryMonitor()
    with pytest.raises(ValueError, match="inside"), monitor:
        raise ValueError("inside")
    assert not monitor._thread.is_alive()
