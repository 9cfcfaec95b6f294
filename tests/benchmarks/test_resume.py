"""The benchmark that kills runs, in small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deflect_hf.errors import ConfigError
from tests.benchmarks.resume import difference, main, parse_flags


def test_killed_runs_end_as_the_uninterrupted_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--output", str(tmp_path), "--kills", "1"])
    assert capsys.readouterr().out.startswith("1/1 resumed runs of 1 process(es) equal the uninterrupted one; ")
    kills = json.loads((tmp_path / "resume.json").read_text())
    assert [kill["differs"] for kill in kills] == [None]
    # what differs is noticed
    log = tmp_path / "killed" / "log.jsonl"
    lines = log.read_text().splitlines()
    changed = {**json.loads(lines[3]), "loss": 0.5}
    log.write_text("\n".join([*lines[:3], json.dumps(changed), *lines[4:]]) + "\n")
    told = difference(tmp_path / "uninterrupted", tmp_path / "killed")
    assert told is not None and told.startswith("log: {") and "'loss': 0.5" in told


def test_flags_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--kills 0: give at least 1"):
        parse_flags(["--output", str(tmp_path), "--kills", "0"])
