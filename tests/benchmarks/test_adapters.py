"""One encoder for several tasks against a model each: tiny, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deflect_hf.errors import ConfigError
from tests.benchmarks import adapters

TINY = ("--size", "tiny", "--image_size", "16", "--rounds", "1")


def test_memory_and_times_of_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapters.main(
        ["--output", str(tmp_path), "--tasks", "3", "--row", "deflect:rank=2,layers_to_transform=[11]", *TINY]
    )
    numbers = json.loads((tmp_path / "adapters.json").read_text())
    separate, shared = numbers["bytes"]
    assert 0.333 < shared / separate < 0.36  # three encoders against one, and small adapters
    assert [len(way) for way in numbers["load_seconds"] + numbers["predict_seconds"]] == [1] * 4
    table = capsys.readouterr().out
    assert (tmp_path / "adapters.md").read_text() in table
    assert "| 3 tasks | a model each | one encoder | ratio |" in table
    assert (
        f"| parameters in memory | {separate / 1e6:.1f} MB | {shared / 1e6:.1f} MB | {shared / separate:.2f} |" in table
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--row", "full"], "--row full trains the encoder itself, so there is nothing to share; give another method."),
        (["--tasks", "1"], "--tasks 1: give at least 2."),
        (["--patch_size", "0"], "--patch_size 0: give at least 1."),
        (["--size", "huge"], "the command line: argument --size: invalid choice: 'huge'"),
        (["--image_size", "20"], "--image_size 20 must be a multiple of --patch_size 16."),
        (["--row", "deflekt"], "'deflekt' is unknown; "),
    ],
)
def test_flags_that_do_not_fit(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        adapters.parse(["--output", str(tmp_path), *words])
    assert message in str(error.value)
