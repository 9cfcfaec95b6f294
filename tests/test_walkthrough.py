"""CONTRIBUTING.md does what it says: its code, as it stands there, is run."""

import ast
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from peft import PeftConfig

from deflect_hf import methods
from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.methods import METHODS, methods_help
from deflect_hf.config.readers import dataset_names
from deflect_hf.config.run import RunArguments
from deflect_hf.data import sets
from deflect_hf.errors import ConfigError
from deflect_hf.raster import write_raster
from deflect_hf.training.run import run

REPOSITORY = Path(__file__).resolve().parents[1]


def blocks(section: str, language: str) -> list[str]:
    """The code blocks of a section of CONTRIBUTING.md."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    part = re.split(r"^## ", text.split(f"## {section}\n")[1], flags=re.MULTILINE)[0]
    return re.findall(rf"^```{language}\n(.*?)^```", part, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def lakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data set of the walk-through, among those of the package; its images are in the folder returned."""
    (code,) = blocks("A new data set", "python")
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "lakes.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(sets, "__path__", [*sets.__path__, str(tmp_path / "sets")])
    monkeypatch.delitem(sys.modules, f"{sets.__name__}.lakes", raising=False)
    rng = np.random.default_rng(0)
    for number in range(8):
        image = rng.integers(1500, 4000, (12, 16, 16)).astype(np.uint16)
        write_raster(tmp_path / "lakes" / "images" / f"{number}.tif", image)
        write_raster(tmp_path / "lakes" / "masks" / f"{number}.tif", rng.integers(0, 2, (1, 16, 16)).astype(np.uint8))
    for split, ids in {"train": "0\n1\n2\n3\n", "val": "4\n5\n", "test": "6\n7\n"}.items():
        (tmp_path / "lakes" / f"{split}.txt").write_text(ids, encoding="utf-8")
    return tmp_path / "lakes"


def test_a_new_data_set_is_one_file(lakes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert "lakes" in dataset_names()
    (tmp_path / "lakes.yaml").write_text(blocks("A new data set", "yaml")[0], encoding="utf-8")
    conf = REPOSITORY / "tests" / "conf"
    words = ("--config", str(conf / "segmentation.yaml"), "--dataset_config", str(tmp_path / "lakes.yaml"))
    words += ("--dataset.root", str(lakes), "--dataset.num_samples", "640")
    words += ("--epochs", "1", "--batch_size", "4", "--work_dir", str(tmp_path / "run"))
    results, _, _ = run(parse_arguments(RunArguments, "test", words))
    assert "accuracy" in results["test"] and "Lakes: 4 images in the train split, but 800 are published" in caplog.text


@pytest.fixture
def vera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The method of the walk-through: its file among those of the package, its row in the table."""
    code, row = blocks("A new method", "python")
    (tmp_path / "vera.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, f"{methods.__name__}.vera", raising=False)
    for name, place in ast.literal_eval(f"{{{row.strip()}}}").items():
        monkeypatch.setitem(METHODS, name, place)


@pytest.mark.usefixtures("vera")
def test_a_new_method_is_one_file_and_one_row(tmp_path: Path) -> None:
    assert "    vera      patch_embed, rank, target" in methods_help().splitlines()
    words = ["--config", str(REPOSITORY / "tests" / "conf" / "classification.yaml"), "--method", "{}", "--epochs", "1"]
    words += ["--finetune", "vera", "--work_dir", str(tmp_path / "run")]
    results, folder, _ = run(parse_arguments(RunArguments, "test", [*words, "--method.rank", "4"]))
    adapter = PeftConfig.from_pretrained(folder / "best")
    assert (adapter.peft_type, adapter.r) == ("VERA", 4) and results["parameters"]["encoder_trainable"] > 0
    with pytest.raises(ConfigError, match=r"finetune vera: 'method\.target' must be one of 'qv', 'qkvo'"):
        parse_arguments(RunArguments, "test", [*words, "--method.target", "everything"])
