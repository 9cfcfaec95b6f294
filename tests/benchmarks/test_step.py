"""The benchmark of a training step, in small; its times are not looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deflect_hf.errors import ConfigError
from tests.benchmarks import step


def test_a_step_waits_for_the_device_when_the_log_is_written_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step.main(["--output", str(tmp_path), "--images", "60", "--batch_size", "2", "--width", "16", "--blocks", "1",
               "--rounds", "1"])  # fmt: skip
    numbers = json.loads((tmp_path / "step.json").read_text())
    assert numbers["reductions"] == numbers["waits"] == pytest.approx(0.1, abs=0.05)
    assert numbers["log_interval"] == 10 and "Ratio, median of 1 rounds of " in capsys.readouterr().out


def test_numbers_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--rounds 0: give at least 1"):
        step.parse_flags(["--output", str(tmp_path), "--rounds", "0"])
