"""The notebooks of `examples/` run from top to bottom, in a process of their own, with a Hub on this machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.conftest import environment
from tests.hub.server import running

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((REPOSITORY / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    cells = json.loads(notebook.read_text())["cells"]
    program = tmp_path / "notebook.py"
    program.write_text("\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))
    with running() as hub:
        settings = environment(hub, tmp_path / "home", TMPDIR=str(tmp_path), PYTHONPATH=str(REPOSITORY))
        done = subprocess.run([sys.executable, program], env=settings, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        repository = hub.repositories["alice/land-water"]
        assert repository.private and "README.md" in hub.files("alice/land-water")
    assert float(done.stdout.partition("pixels as they should be: ")[2].partition("%")[0]) > 85
    assert "alice/land-water predicts the same: True" in done.stdout
