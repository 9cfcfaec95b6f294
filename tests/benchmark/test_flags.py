"""What the benchmarks share: refusals in one sentence, results that are whole or not there."""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path

import pytest

from deflect_hf.benchmark.__main__ import COMMANDS, main
from deflect_hf.benchmark.flags import refuse_less, report
from deflect_hf.errors import ConfigError


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


def test_the_first_number_that_is_too_small_is_named() -> None:
    own = argparse.Namespace(rounds=1, sides=[8, 0])
    refuse_less(own, {"rounds": 1})
    with pytest.raises(ConfigError, match=r"^--sides 0: give at least 1\.$"):
        refuse_less(own, {"rounds": 1, "sides": 1})


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_flag_is_told_in_one_sentence(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert importlib.import_module(f"deflect_hf.benchmark.{command}").__doc__
    with pytest.raises(SystemExit) as stopped:
        main([command])
    told = capsys.readouterr().err.strip()
    assert stopped.value.code == 2
    assert told.startswith("error: the command line: the following arguments are required: --output")
    assert "\n" not in told
