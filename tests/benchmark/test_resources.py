"""Memory and energy of a run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from deflect_hf.benchmark import resources
from deflect_hf.benchmark.resources import Counter, Monitor, processor_counters


@pytest.mark.skipif(not resources.STATM.is_file(), reason="the system does not tell the memory of a process")
@pytest.mark.skipif(torch.cuda.is_available(), reason="memory of the GPU is measured there")
def test_the_peak_is_what_was_held_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "INTERVAL_SECONDS", 0.01)
    with Monitor() as monitor:
        time.sleep(0.1)
        held = torch.ones(50_000_000)
        time.sleep(0.1)
        del held
        time.sleep(0.1)
    memory = monitor.result()["memory"]
    assert memory["of"] == "process"
    assert memory["peak_bytes"] - memory["mean_bytes"] > 20e6
    assert memory["peak_bytes"] > 200e6


def test_an_error_inside_is_passed_on_and_the_thread_ends() -> None:
    monitor = Monitor()
    with pytest.raises(ValueError, match="inside"), monitor:
        raise ValueError("inside")
    assert not monitor._thread.is_alive()


def test_a_counter_that_begins_anew() -> None:
    readings = iter([90, 95, 5, 5])
    counter = Counter(lambda: next(readings), joules_per_unit=0.5, end=99)
    for expected in (2.5, 7.5, 7.5):
        counter.read()
        assert counter.joules == expected


def test_counters_of_processors(tmp_path: Path) -> None:
    for name in ("intel-rapl:0", "intel-rapl:0:1", "intel-rapl:1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text("1000000\n")
        (tmp_path / name / "max_energy_range_uj").write_text("9999999\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()  # as if only root could read it
    (counter,) = processor_counters(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("500000\n")
    counter.read()
    assert counter.joules == pytest.approx(9.5)
    assert list(processor_counters(tmp_path / "none")) == []
