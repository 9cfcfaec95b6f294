"""The notebooks of `examples/` run from top to bottom."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from configparser import ConfigParser
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((REPOSITORY / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ConfigParser()
    settings.read(REPOSITORY / "setup.cfg")
    lines = settings["options.entry_points"]["console_scripts"].strip().splitlines()
    programs, plain = dict(line.split(" = ") for line in lines), subprocess.run

    def in_this_process(words: Sequence[Any], **options: Any) -> Any:
        if words[0] not in programs:
            return plain(words, **options)
        return resolve_name(programs[words[0]])([str(word) for word in words[1:]])

    monkeypatch.setattr(subprocess, "run", in_this_process)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cells = json.loads(notebook.read_text())["cells"]
    exec("\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"), {})
    correct = float(capsys.readouterr().out.partition("pixels as they should be: ")[2].partition("%")[0])
    assert correct > 85
