"""The folder of a run: one run at a time, and nothing lost."""

import multiprocessing
import os
import shutil
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from accelerate import Accelerator

from deflect_hf.errors import ConfigError, DeflectError
from deflect_hf.training.loop import TrainingLoop
from deflect_hf.training.work_dir import run_lock
from tests.training.test_run import ONE_EPOCH, train


def hold(work_dir: Path, accelerator: Accelerator, theirs: Connection, told: Connection) -> None:
    """Hold the folder, as does a process that is forked, like the workers of a data loader, and that outlives this."""
    theirs.close()
    with run_lock(work_dir, accelerator):
        if os.fork() > 0:
            told.send("held")
        told.poll(None)  # until the test is over
    os._exit(0)


def test_a_second_run_is_refused_until_the_first_ends_however_it_ends(tmp_path: Path) -> None:
    work_dir, accelerator = tmp_path / "runs" / "one", Accelerator(cpu=True)
    ours, told = pipe = multiprocessing.Pipe()
    holder = multiprocessing.get_context("fork").Process(target=hold, args=(work_dir, accelerator, *pipe))
    holder.start()
    told.close()  # a holder that ends has said all
    try:
        assert ours.recv() == "held"
        message = r"one is in use: another run trains there at this moment\. Fix: wait"
        with pytest.raises(ConfigError, match=message), run_lock(work_dir, accelerator):
            pytest.fail("two runs in one folder")
    finally:
        holder.kill()
        holder.join()
    for _ in range(2):  # and again in the same process
        with run_lock(work_dir, accelerator):
            pass
    ours.close()


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_is_replaced_when_asked_and_when_the_new_one_has_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, *ONE_EPOCH)
    (tmp_path / "notes.txt").write_text("mine")
    before = files(tmp_path)
    with pytest.raises(ConfigError, match="holds a run already: give another --work_dir, continue it with"):
        train(tmp_path, *ONE_EPOCH)
    with pytest.raises(ConfigError, match="aux_dim"):
        train(tmp_path, *ONE_EPOCH, "--overwrite", "--method.aux_dim", "7")
    with pytest.raises(ConfigError, match=r"encoder\.name_or_path is .*, a part of the run that --overwrite would"):
        own = ("--encoder.random", "null", "--encoder.name_or_path", str(tmp_path / "encoder"))
        train(tmp_path, *ONE_EPOCH, "--overwrite", *own)
    assert files(tmp_path) == before
    with monkeypatch.context() as patched:
        patched.setattr(TrainingLoop, "train", lambda self: 1 / 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                train(tmp_path, *ONE_EPOCH, "--overwrite")
    assert (tmp_path / "results.json.former").read_bytes() == before[tmp_path / "results.json"]
    assert files(tmp_path / "best.former") and not (tmp_path / "best").exists()
    train(tmp_path, *ONE_EPOCH, "--overwrite", "--seed", "1")
    assert not list(tmp_path.glob("*.former")) and (tmp_path / "notes.txt").exists()


def test_what_no_run_wrote_stays(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("mine")
    for more in ((), ("--overwrite",), ("--resume_from", "last")):
        with pytest.raises(DeflectError, match=r"holds 'results\.json', which no run wrote|holds a finished run"):
            train(tmp_path, *ONE_EPOCH, *more)
    assert (tmp_path / "results.json").read_text() == "mine"


def test_a_users_encoder_beside_the_run_stays(deflect_run, tmp_path: Path) -> None:
    shutil.copytree(deflect_run[0] / "encoder", tmp_path / "encoder")
    before = files(tmp_path / "encoder")
    for more in ((), ("--overwrite",)):
        own = ("--encoder.random", "null", "--encoder.name_or_path", str(tmp_path / "encoder"))
        train(tmp_path, *ONE_EPOCH, *own, *more)
        assert files(tmp_path / "encoder") == before


def test_links_to_other_disks_are_kept(tmp_path: Path) -> None:
    run, scratch = tmp_path / "run", tmp_path / "scratch"
    run.mkdir()
    for name in ("best", "checkpoints", "encoder"):
        (scratch / name).mkdir(parents=True)
        (run / name).symlink_to(scratch / name)
    first = train(run, *ONE_EPOCH, "--ckpt_steps", "4")
    again = train(run, *ONE_EPOCH, "--ckpt_steps", "4", "--resume_from", str(run / "checkpoints" / "step-4"))
    assert again["test"] == first["test"]
    assert train(run, *ONE_EPOCH, "--ckpt_steps", "4", "--overwrite")["test"] == first["test"]
    assert all((run / name).is_symlink() and files(scratch / name) for name in ("best", "checkpoints", "encoder"))
    assert sorted(path.name for path in scratch.iterdir()) == ["best", "checkpoints", "encoder"]
