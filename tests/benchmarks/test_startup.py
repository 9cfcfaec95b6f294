"""The benchmark of what starting costs; nothing is timed here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deflect_hf.errors import ConfigError
from tests.benchmarks import startup


def test_ratio_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([9.0, 9.0, 9.0, 2.0, 2.2, 0.5, 4.0, 4.2, 0.3])  # the first three warm up
    kinds = {startup.BASE: [], startup.PACKAGE: [], "train.py --help": []}
    monkeypatch.setattr(startup, "commands", lambda: kinds)
    monkeypatch.setattr(startup, "seconds_of", lambda words: next(times))
    startup.main(["--output", str(tmp_path), "--rounds", "2"])
    assert json.loads((tmp_path / "startup.json").read_text())["ratio"] == pytest.approx(2.2 / 2.0)
    printed = capsys.readouterr().out
    assert "| `train.py --help` | 0.40 | 0.30 |" in printed and "fastest of 2 rounds: 1.100." in printed


def test_what_is_started_exists_and_a_failure_is_told() -> None:
    kinds = startup.commands()
    assert kinds.keys() == {startup.BASE, startup.PACKAGE, "train.py --help", "evaluate.py --help"}
    assert startup.seconds_of(["-c", "pass"]) > 0
    with pytest.raises(ConfigError, match=r"-c raise SystemExit\(3\) ends with status 3"):
        startup.seconds_of(["-c", "raise SystemExit(3)"])
