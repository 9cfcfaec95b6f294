"""Files that are whole or not there, and state folders that know when they are damaged."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from deflect_hf.errors import CheckpointError
from deflect_hf.files import atomic_dir, recover, write_text
from deflect_hf.training import states

CPU = torch.device("cpu")
TOLD = {"epoch": 1, "batch": 0}
COUNTED = {"images": 20, "batch_size": 2, "accumulate": 2, "processes": 1}  # 5 steps in an epoch of 10 batches


def write(work_dir: Path, step: int) -> Path:
    tensors = {"weight": torch.full((3,), float(step))}
    return states.write_state(work_dir, step, {**TOLD, "step": step}, tensors, {"random": [states.random_state(CPU)]})


def test_what_was_there_stays_until_the_new_folder_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "best"
    with atomic_dir(target) as folder:
        (folder / "file").write_text("old")
    with pytest.raises(OSError, match="full"), atomic_dir(target) as folder:
        (folder / "file").write_text("new")
        raise OSError("full")
    assert [path.name for path in tmp_path.iterdir()] == ["best"] and (target / "file").read_text() == "old"


@pytest.mark.parametrize(
    ("left", "found"),
    [
        (("best", "best.partial"), "best"),  # killed while writing
        (("best.partial", "best.replaced"), "best.replaced"),  # between the two renames
        (("best", "best.replaced"), "best"),  # before the end
        (("best.partial",), None),
    ],
)
def test_a_killed_replacement_is_settled(left: tuple[str, ...], found: str | None, tmp_path: Path) -> None:
    for name in left:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    recover(tmp_path / "best")
    assert [path.name for path in tmp_path.iterdir()] == ([] if found is None else ["best"])
    if found is not None:
        assert (tmp_path / "best" / "file").read_text() == found


def test_a_text_is_replaced_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "one")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a", "two\udc80")
    assert (tmp_path / "a").read_text() == "one"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("file", "harm", "told"),
    [
        (states.TRAINED, truncate, "trained.safetensors has 83 bytes instead of 84"),
        (states.TRAINED, flip, "trained.safetensors is not as it was written"),
        (states.TRAINING, truncate, "training.pt has"),
        (states.TRAINING, Path.unlink, "FileNotFoundError: "),
        (states.PROGRESS, truncate, None),  # the last line break
        (states.PROGRESS, lambda path: path.write_text("{"), "JSONDecodeError: "),
        (states.PROGRESS, lambda path: path.write_text("[]"), "TypeError: "),
    ],
)
def test_damage_is_noticed_and_the_state_before_is_taken(
    file: str, harm: Callable[[Path], None], told: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = write(tmp_path, 5), write(tmp_path, 10)
    harm(second / file)
    found = states.damage(second)
    assert (found is None) == (told is None) and (found or "").startswith(told or "")
    assert states.state_to_resume(tmp_path, "last") == (second if told is None else first)
    assert ("is damaged" in caplog.text) == (told is not None)
    if told is not None:
        with pytest.raises(CheckpointError, match=rf"step-10 is damaged: .*; resume from {first}\.$"):
            states.state_to_resume(tmp_path / "elsewhere", str(second))


def test_a_run_whose_checkpoints_are_all_damaged_is_not_thrown_away(tmp_path: Path) -> None:
    for step in (5, 10):
        truncate(write(tmp_path, step) / states.TRAINED)
    with pytest.raises(CheckpointError, match=r"step-5 is damaged: .*; no other is whole\. Start anew with --over"):
        states.state_to_resume(tmp_path, "last")


def edit(folder: Path, **entries: int) -> None:
    told = json.loads((folder / states.PROGRESS).read_text())
    (folder / states.PROGRESS).write_text(json.dumps({**told, **entries}))


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"step": 7}, "step is 7 in progress.json, but 8 by epoch 1 and batch 5"),
        ({"batch": 6}, None),  # the same step, of which it is the second batch
        ({"batch": 7}, "step is 8 in progress.json, but 9 by epoch 1 and batch 7"),
        ({"step": 3, "epoch": 0}, "step is 3 in progress.json, but 8 by the schedule in training.pt"),
        ({"accumulate": 0}, "ZeroDivisionError: "),
    ],
)
def test_a_step_that_nothing_else_counts_is_noticed(entries: dict[str, int], told: str | None, tmp_path: Path) -> None:
    def write_counted(step: int, epoch: int, batch: int) -> Path:
        counts = {"step": step, "epoch": epoch, "batch": batch, **COUNTED}
        return states.write_state(tmp_path, step, counts, {}, {"schedule": {"last_epoch": step}})

    first, second = write_counted(6, 1, 2), write_counted(8, 1, 5)
    assert states.damage(first) is None and states.damage(second) is None
    edit(second, **entries)
    found = states.damage(second)
    assert (found is None) == (told is None) and (found or "").startswith(told or "")
    assert states.state_to_resume(tmp_path, "last") == (second if told is None else first)
    renamed = first.rename(first.with_name("step-7"))
    assert states.damage(renamed) == "step is 6 in progress.json, but 7 by the folder's name"
    copied = renamed.rename(first.with_name("step-6 copy"))
    assert states.damage(copied) is None
    assert states.states(tmp_path) == [second]  # a copy under another name is nobody's checkpoint, and no obstacle


def test_what_may_be_resumed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(CheckpointError, match=r"is not there, so there is nothing to resume; start without --resume"):
        states.state_to_resume(tmp_path / "run", "last")
    (tmp_path / "run").mkdir()
    assert states.state_to_resume(tmp_path / "run", "last") is None  # killed before its first checkpoint
    assert "the run starts from the beginning" in caplog.text
    with pytest.raises(CheckpointError, match=r"is no checkpoint to resume from: it has no progress\.json"):
        states.state_to_resume(tmp_path, str(tmp_path))
    for step in (5, 10, 100):
        write(tmp_path, step)
    states.keep_newest(tmp_path, 2)
    (tmp_path / "checkpoints" / "step-105.partial").mkdir()
    (tmp_path / "checkpoints" / "step-10").rename(tmp_path / "checkpoints" / "step-10.replaced")
    states.settle_states(tmp_path)
    assert [path.name for path in states.states(tmp_path)] == ["step-10", "step-100"]
    states.drop_states_after(tmp_path, 50)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-10"]
    assert "the run goes on from step 50: its later checkpoints are removed (step-100)" in caplog.text
    caplog.clear()
    states.drop_states_after(tmp_path, 10)
    assert not caplog.text


def test_random_states_of_all_generators_go_on(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    folder = write(tmp_path, 1)
    drawn = draw()
    told, tensors, training = states.read_state(folder)
    assert told == {**TOLD, "step": 1} and tensors["weight"].tolist() == [1.0, 1.0, 1.0]
    states.set_random_state(training["random"][0], CPU)
    assert draw() == drawn
    # written on the CPU: a GPU's own generator goes on as it is
    states.set_random_state(training["random"][0], torch.device("cuda"))
    assert draw() == drawn
