"""The programs of README and guide that train from Python run as they stand there, with a tiny encoder."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deflect_hf.inference import cli
from deflect_hf.raster import read_mask, write_raster
from tests.inference.folders import encoder_folder
from tests.test_api import CHANNELS, chips

REPOSITORY = Path(__file__).resolve().parents[1]


def programs(file: str, section: str) -> tuple[list[str], list[str]]:
    """The programs of a section, and its commands."""
    text = (REPOSITORY / file).read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    python, bash = (
        re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for kind in ("python", "bash")
    )
    return python, bash


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a scene."""
    monkeypatch.chdir(tmp_path)
    encoder_folder(tmp_path / "encoder")
    write_raster("scene.tif", chips(1, side=32)[0]["image"], descriptions=CHANNELS)
    return tmp_path


def quick(program: str) -> str:
    """One epoch of a tiny encoder, in this process."""
    program = program.replace("facebook/dinov2-base", "encoder").replace("range(20)", "range(1)")
    program = (
        program.replace("epochs=20,", "epochs=1, num_workers=0,", 1) if "deflect_hf.train(" in program else program
    )
    return program.replace('"num_train_epochs": 20', '"num_train_epochs": 1, "use_cpu": True, "report_to": []')


def test_the_lines_of_the_readme(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ((program,), _) = programs("README.md", "From Python")
    names = {"chips": chips(8, side=32)}
    exec(quick(program), names)
    assert read_mask(place / "map.tif").values.shape[-2:] == (32, 32)
    assert "work-dir/python-encoder-deflect-0" in capsys.readouterr().out


def test_the_lines_of_the_readme_with_peft(place: Path) -> None:
    ((program,), _) = programs("README.md", "Use it as any PEFT method")
    images = 0.05 + 0.2 * torch.rand(2, 10, 32, 32, generator=torch.Generator().manual_seed(0))
    names: dict[str, Any] = {"loader": [{"pixel_values": images}]}
    exec(quick(program), names)
    assert names["model"].peft_config["default"].feature_mean  # fitted, saved and loaded
    assert names["model"](images).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("number", [0, 1], ids=["Trainer", "plain loop"])
def test_a_loop_of_ones_own_ends_in_a_map(number: int, place: Path) -> None:
    recipes, (command,) = programs("docs/guide.md", "Your own training loop")
    assert len(recipes[number].strip().splitlines()) < 30
    names = {"train": chips(8, side=32), "validation": chips(2, side=32)}
    exec(quick(recipes[number]), names)
    if number == 0:  # again: it has nothing left to do, and says so instead of starting anew
        exec(quick(recipes[0]), {**names})
    cli.main(shlex.split(command)[1:])
    assert np.isin(read_mask(place / "map.tif").values, (0, 1)).all()
