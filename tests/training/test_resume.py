"""Interrupted runs: killed, told to stop, without space, damaged; resumed in place or elsewhere."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from deflect_hf.artifacts import saved_model as checkpoints
from deflect_hf.errors import CheckpointError
from deflect_hf.evaluation import evaluate as evaluation
from deflect_hf.training import checkpoint, run
from deflect_hf.training.checkpoint import TRAINING, list_checkpoints
from deflect_hf.training.distributed_exit import Preemption
from deflect_hf.training.loop import TrainingLoop
from tests.training.test_run import lines, losses, torch_file, train


def lines_without_time(folder: Path) -> list[dict]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines(folder)]


def train_until(
    now: Callable[..., bool], owner: Any, name: str, folder: Path, *words: str, by: signal.Signals = signal.SIGTERM
) -> None:
    """Train; where ``now`` holds of the arguments of a call of ``owner.name``, the process is told to stop."""
    called = getattr(owner, name)

    def told_to_stop(*arguments: Any) -> Any:
        result = called(*arguments)
        if now(*arguments):
            signal.raise_signal(by)
        return result

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(owner, name, told_to_stop)
        with pytest.raises(SystemExit, match=str(128 + by)):
            train(folder, *words)


def test_resumed_losses_equal_uninterrupted_ones(deflect_run, tmp_path: Path) -> None:
    folder, results = deflect_run
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["step-15", "step-16"]  # one within the second epoch, one at its end
    work_dir = tmp_path / "part"
    resumed = train(work_dir, "--resume_from", str(folder / "checkpoints" / "step-15"))
    assert (
        checkpoints.read_config(work_dir).resume_from is checkpoints.read_config(work_dir / "best").resume_from is None
    )
    expected = losses(folder)
    assert losses(work_dir) == {16: expected[16]}
    assert resumed["test"] == results["test"] and resumed["val"] == results["val"]
    assert torch_file(work_dir, "step-16").keys() == torch_file(folder, "step-16").keys()
    for name, tensor in torch_file(work_dir, "step-16").items():
        assert torch.equal(tensor, torch_file(folder, "step-16")[name]), name


def test_a_killed_run_goes_on_from_its_last_checkpoint(
    deflect_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    step, save = TrainingLoop.step, torch.save

    def stop(self: TrainingLoop, group: list) -> bool:
        if self.progress.step == 11:
            raise KeyboardInterrupt
        return step(self, group)

    def full(tensors: dict, path: Path) -> None:
        if path.parent.name == "step-9.partial":
            raise RuntimeError("PytorchStreamWriter failed writing file data.pkl: file write failed")
        save(tensors, path)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingLoop, "step", stop)
        patched.setattr(checkpoint.torch, "save", full)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, "--ckpt_steps", "3")
    assert "the checkpoint of step 9 could not be written (PytorchStreamWriter failed writing" in caplog.text
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-6", "step-8"]  # 8 ended the first epoch
    assert not list(tmp_path.rglob("*.partial"))
    shutil.rmtree(tmp_path / "checkpoints" / "step-8")
    resumed = train(tmp_path, "--ckpt_steps", "3", "--resume_from", "last")
    assert lines_without_time(tmp_path) == lines_without_time(deflect_run[0])
    assert resumed["test"] == deflect_run[1]["test"]


def test_sigterm_stops_after_a_step_and_damaged_checkpoints_are_passed_over(
    deflect_run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    train_until(lambda loop, *_: loop.progress.step == 11, TrainingLoop, "_log_step", tmp_path, "--ckpt_steps", "5")
    assert signal.getsignal(signal.SIGTERM) == handler
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-10", "step-11"]
    broken = tmp_path / "checkpoints" / "step-11"
    (broken / TRAINING).write_bytes((broken / TRAINING).read_bytes()[:-1])
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 12, "epo')  # killed while writing
    with pytest.raises(CheckpointError, match=r"step-11 is damaged: .* not as they were written; .*from .*step-10\."):
        train(tmp_path, "--resume_from", str(broken))
    resumed = train(tmp_path, "--ckpt_steps", "5", "--resume_from", "last")
    assert f"{broken} is damaged" in caplog.text
    assert lines_without_time(tmp_path) == lines_without_time(deflect_run[0])
    assert resumed["test"] == deflect_run[1]["test"] and resumed["best_epoch"] == deflect_run[1]["best_epoch"]


def test_ctrl_c_saves_once_and_ends_at_once_the_second_time(tmp_path: Path, caplog, capfd, monkeypatch) -> None:
    monkeypatch.setattr(signal, "default_int_handler", handler := signal.getsignal(signal.SIGINT))  # jobs ignore it
    caplog.set_level("INFO")
    at_three = lambda loop, *_: loop.progress.step == 3  # noqa: E731
    train_until(at_three, TrainingLoop, "_log_step", tmp_path / "one", by=signal.SIGINT)
    assert [path.name for path in list_checkpoints(tmp_path / "one")] == ["step-3"]
    assert "stopped by SIGINT after step 3: --resume_from last goes on" in caplog.text
    assert "Ctrl-C: this step is finished and saved; once more ends it at once" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is handler
    twice = Preemption()
    with pytest.raises(KeyboardInterrupt), twice:
        for _ in range(2):  # the second is the launcher's
            signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr("deflect_hf.training.distributed_exit.PASSED_ON", -1.0)
        signal.raise_signal(signal.SIGINT)


def test_sigterm_in_a_validation_leaves_the_state_before_it(deflect_run, tmp_path: Path) -> None:
    predicted: list[tuple] = []

    def at_the_first(*arguments: Any) -> bool:
        predicted.append(arguments)
        return len(predicted) == 1

    train_until(at_the_first, evaluation, "predict_logits", tmp_path, "--ckpt_steps", "5")
    assert len(predicted) == 1  # of the batches that validation has
    state = list_checkpoints(tmp_path)[-1]
    progress = json.loads((state / "progress.json").read_text())
    assert (state.name, progress["epoch"], progress["evaluated"], progress["best_step"]) == ("step-8", 1, 0, None)
    resumed = train(tmp_path, "--ckpt_steps", "5", "--resume_from", "last")
    assert lines_without_time(tmp_path) == lines_without_time(deflect_run[0])
    assert resumed["test"] == deflect_run[1]["test"] and best_weights(tmp_path) == best_weights(deflect_run[0])


def test_patience_ends_a_run_and_stays_at_its_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "deflect_hf")
    words = ("--patience", "1", "--epochs", "4", "--segmentor.optimizer.lr", "1e-12")
    results = train(tmp_path, *words)
    assert results["best_epoch"] == 1 and results["steps"] == 16 and results["stopped_early"]
    assert "stopped early after step 16 of 32: 1 evaluations in a row brought nothing better than" in caplog.text
    again = train(tmp_path, *words, "--resume_from", "last")
    assert again["test"] == results["test"] and again["steps"] == 16


def test_a_run_by_steps_evaluates_within_epochs_and_resumes_before_an_evaluation(deflect_run, tmp_path: Path) -> None:
    words = ("--epochs", "null", "--max_steps", "10", "--eval_interval", "null", "--eval_steps", "3")
    words += ("--ckpt_steps", "1", "--ckpt_keep", "9", "--segmentor.scheduler.name", "cosine")
    whole = train(tmp_path / "whole", *words)
    assert [line["step"] for line in lines(tmp_path / "whole") if "val" in line] == [3, 6, 9, 10]
    assert [line["epoch"] for line in lines(tmp_path / "whole") if "val" in line] == [0, 0, 1, 1]
    rates = {line["step"]: line["lr"] for line in lines(tmp_path / "whole") if "lr" in line}
    assert max(rates) == 10 and 0 <= rates[10] < 1e-6 < rates[9] and not whole["stopped_early"]
    first = losses(deflect_run[0])
    assert losses(tmp_path / "whole")[1] == first[1]  # the same first batch

    def after_nine(*_: Any) -> bool:
        return bool(lines(tmp_path / "part")[-1]["step"] == 9)

    train_until(after_nine, evaluation, "predict_logits", tmp_path / "part", *words)
    part = train(tmp_path / "part", *words, "--resume_from", "last")
    assert lines_without_time(tmp_path / "part") == lines_without_time(tmp_path / "whole")
    assert part["test"] == whole["test"] and part["best_step"] == whole["best_step"]
    assert best_weights(tmp_path / "part") == best_weights(tmp_path / "whole")


def best_weights(folder: Path) -> bytes:
    return (folder / "best" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("earlier_version", [False, True])
def test_a_run_resumed_elsewhere_ends_with_the_best_model_so_far(
    deflect_run, tmp_path: Path, earlier_version: bool
) -> None:
    # a first epoch that no later one beats: its model has to come from the folder of the interrupted run
    first = tmp_path / "first"
    shutil.copytree(deflect_run[0], first)
    state = first / "checkpoints" / "step-15"
    progress = json.loads((state / "progress.json").read_text())
    result = json.loads((first / "best" / "results.json").read_text())
    score = 2.0 if earlier_version else [2.0, -result["val"]["loss"]]
    best = {"best_score": score, "best_epoch": 1, "best_step": 8}
    (state / "progress.json").write_text(json.dumps(progress | best))
    (state / checkpoint.DIGEST).write_text(checkpoint.digest(state))
    found = {"best_epoch": 1, "best_step": 8, "val": {**result["val"], "accuracy": 2}}
    (first / "best" / "results.json").write_text(json.dumps(found))
    resumed = train(tmp_path / "copied", "--resume_from", str(state))
    assert resumed["best_epoch"] == 1 and best_weights(tmp_path / "copied") == best_weights(first)

    # nothing keeps it: the second epoch, which follows, is the best there is
    shutil.rmtree(first / "best")
    resumed = train(tmp_path / "lost", "--resume_from", str(state))
    assert resumed["best_epoch"] == 2 and [line["step"] for line in lines(tmp_path / "lost") if "val" in line] == [16]
    # nor does anything follow: the resumed model is
    shutil.rmtree(tmp_path / "lost" / "best")
    again = train(tmp_path / "lost", "--resume_from", "last")
    assert again["test"] == resumed["test"] and again["best_epoch"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # a frozen encoder that computes something else
        ("--encoder.random.num_attention_heads 4", r"with encoder\.random .*num_attention_heads.*not "),
        ("--encoder.random_seed 7", r"with encoder\.random_seed 0, not 7"),
        # the optimizer goes on as it was: a new learning rate would do nothing
        (
            "--segmentor.optimizer.lr 0.5 --segmentor.optimizer.decay_vectors false",
            r"optimizer\.lr 0\.01, not 0\.5, segmentor\.optimizer\.decay_vectors True, not F",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_left_as_it_is(
    words: str, message: str, deflect_run, tmp_path: Path
) -> None:
    work_dir = tmp_path / "run"
    shutil.copytree(deflect_run[0], work_dir)
    before = {path: path.read_bytes() for path in sorted(work_dir.rglob("*")) if path.is_file()}
    with pytest.raises(CheckpointError, match=message):
        train(work_dir, "--resume_from", "last", *words.split())
    assert {path: path.read_bytes() for path in sorted(work_dir.rglob("*")) if path.is_file()} == before


@pytest.mark.parametrize(
    ("module", "name", "told"),
    [(run, "atomic_dir", "File too large (os error 27)"), (checkpoints, "save_model", "No space left (os error 28)")],
    ids=["before training", "the best model"],
)
def test_a_full_disk_is_told_whoever_meets_it(
    module: Any, name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, *_: Any) -> None:
        if folder.is_dir():
            (folder / "half").write_text("")
        raise SafetensorError(f"Error while serializing: I/O error: {told}")

    monkeypatch.setattr(module, name, full)
    with pytest.raises(CheckpointError, match=r"no space is left on the disk\. Fix: free some, then go on with --resu"):
        train(tmp_path, "--epochs", "1")
    assert not list(tmp_path.rglob("half"))


def test_others_may_read_a_run_as_far_as_the_umask_lets_them(deflect_run) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in (deflect_run[0] / "best").iterdir() if path.is_file()}
    assert set(modes.values()) == {(deflect_run[0] / "best").stat().st_mode & 0o666}
