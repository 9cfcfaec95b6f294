"""Programs do not replace what none of them wrote, and do replace their own."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from deflect_hf.figures.__main__ import main as figures
from tests.figures.test_curves import write_run

CURVES = ("figures.__main__", "curves", "RUN", "--output")
DATASET = ("figures.__main__", "dataset", "--dataset.name", "synthetic", "--output", "OUT")
COST = ("benchmark.__main__", "cost", "--rows", "lora", "--output", "OUT")
RUN = ("--config", "configs/run/embedded.yaml")
ACCURACY = ("benchmark.__main__", "accuracy", "--rows", "lora", "--seeds", "0", "--lr", "1e-3", "--output", "OUT", *RUN)
PRETRAIN = ("benchmark.pretrain", "--images", "chips.npz", "--output", "OUT")
CONVERT = ("models.geovit.conversion", "--source", "scale-mae", "--checkpoint", "RUN/log.jsonl", "--output", "OUT")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ((*CURVES, "OUT/mine.png"), "mine.png"),
        ((*CURVES, "OUT/mine.jpg"), "mine.jpg"),
        (DATASET, "statistics_train.png"),
        (DATASET, "samples_train_07.png"),
        (COST, "cost.md"),
        (ACCURACY, "summary.json"),
        (PRETRAIN, "config.json"),
        (PRETRAIN, "checkpoint_mine"),
        (CONVERT, "model.safetensors"),
    ],
)
def test_a_file_that_no_program_here_wrote_stays(
    words: tuple[str, ...], name: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "RUN")
    np.savez(tmp_path / "chips.npz", rgb=np.random.default_rng(0).integers(0, 9999, (4, 32, 32, 3), dtype=np.uint16))
    foreign = tmp_path / "OUT" / name
    foreign.parent.mkdir()
    foreign.write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(f"deflect_hf.{words[0]}").main(list(words[1:]))
    assert foreign.read_text() == "mine" and "OUT" in capsys.readouterr().err


def test_a_picture_of_ours_is_drawn_again(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    for _ in range(2):
        figures(["curves", str(tmp_path / "run"), "--output", str(tmp_path / "curves.png")])
