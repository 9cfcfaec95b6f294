"""A dry run tells what a run would do, refuses what it would refuse, and writes nothing."""

import shutil
from pathlib import Path

import pytest

from deflect_hf.cli import train
from deflect_hf.training import rehearsal
from tests.tiny_runs import CONF


def dry_run(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    with pytest.raises(SystemExit) as ended:
        train([*([] if "--config" in words else [str(CONF / "segmentation.yaml")]), "--dry_run", *words])
    assert ended.value.code == status
    printed = capsys.readouterr()
    return printed.err if status else printed.out


def test_a_dry_run_tells_what_would_be_done_and_writes_nothing(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    told = " ".join(
        dry_run(capsys, "--work_dir", str(folder), "--accumulate", "2", "--lr", "auto", "--epochs", "1").split()
    )
    assert "train 28, val 6, test 6 images; 24 x 24 pixels, 16 x 16 in training; 7 bands: A, B, G, R, N, S1, S2" in told
    assert "water 4,029 (25.0 %)" in told and "--finetune deflect on cpu: 952 of 8,616 encoder parameters" in told
    assert (
        "660 of the mlp head" in told
        and "4 per epoch, each of 2 x 4 images; 1 epoch: 4 steps; learning rate auto: a test of at" in told
    )
    assert "s per step (median of 5)" in told and str(folder) in told
    assert not list(tmp_path.iterdir())
    told = dry_run(capsys, "--work_dir", str(folder), "--dataset.val_fraction", "0", status=2)
    assert "the data set synthetic has no split 'val', only 'train', 'test' with 40 image(s) in all: " in told
    assert (
        "by `split` or `split_column` of scenes, add images, or, where splits are drawn, set dataset.val_fraction"
        in told
    )
    assert not list(tmp_path.iterdir())


def test_the_time_is_that_of_all_steps_also_of_those_that_were_tried(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = rehearsal.step_seconds
    monkeypatch.setattr(rehearsal, "step_seconds", lambda loop: (tried(loop), (60.0, 0.0))[1])
    told = dry_run(capsys, "--work_dir", str(tmp_path / "run"), "--num_workers", "0")
    assert "14 steps; learning" in told  # each a minute; a third of it for four images of val, three times, and of test
    assert "about 0:16:00 (h:min:s)" in told


def test_a_dry_run_leaves_the_run_that_is_there_as_it_is(deflect_run, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    shutil.copytree(deflect_run[0], folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    config = ("--config", str(folder / "config.yaml"), "--work_dir", str(folder))
    assert "holds a run already" in dry_run(capsys, *config, status=2)
    told = dry_run(capsys, *config, "--resume_from", str(folder / "checkpoints" / "step-15"))
    assert "16 steps, 15 of them done" in told
    dry_run(capsys, *config, "--overwrite")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
