"""The benchmark of maps, on a scene of a few windows."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from deflect_hf.errors import ConfigError, DeflectError
from tests.benchmarks import scenes


def test_a_scene_is_predicted_in_a_process_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    flags = ["--output", str(tmp_path / "out"), "--sides", "300", "--window", "32", "--scratch", str(scratch)]
    scenes.main(flags)
    (found,) = json.loads((tmp_path / "out" / "scenes.json").read_text())
    assert found["side"] == 300 and found["peak_bytes"] > 2**26 and found["seconds"] > 0
    table = capsys.readouterr().out
    assert f"| 300 x 300 x 7 | {found['peak_bytes'] / 2**20:.0f} MiB | 1.00 |" in table
    assert "windows of 32 px, overlap 0.125, random weights" in table
    assert list(scratch.iterdir()) == []


def test_ratios_are_to_the_first_scene() -> None:
    own = argparse.Namespace(map="classes", window=32, overlap="0", adapter=None)
    table = scenes.as_markdown([scenes.Measured(100, 1.0, 2**29), scenes.Measured(800, 9.0, 2**30)], own)
    assert "| 100 x 100 x 7 | 512 MiB | 1.00 | 1 |" in table and "| 800 x 800 x 7 | 1024 MiB | 2.00 | 9 |" in table


def test_flags_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--window 40: give a multiple of 16\."):
        scenes.main(["--output", str(tmp_path), "--window", "40"])
    with pytest.raises(ConfigError, match=r"--sides 0: give at least 1\."):
        scenes.main(["--output", str(tmp_path), "--sides", "300", "0"])
    with pytest.raises(ConfigError, match=r"--adapter .*none: no such folder; give that of a run\."):
        scenes.main(["--output", str(tmp_path), "--adapter", str(tmp_path / "none")])


def test_a_process_that_was_killed_without_a_word_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "CHILD", "import os; os.kill(os.getpid(), 9)")
    own = argparse.Namespace(map="classes", window=32, overlap="0", cog=False)
    with pytest.raises(DeflectError, match=r"a\.tif could not be predicted, status -9: it said nothing"):
        scenes.measure(tmp_path / "a.tif", 300, tmp_path, own)
