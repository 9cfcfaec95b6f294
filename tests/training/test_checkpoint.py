"""Files that are whole or not there, and checkpoints that know when they are damaged."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from deflect_hf.errors import CheckpointError
from deflect_hf.files import atomic_dir, recover, write_text
from deflect_hf.training import checkpoint
from deflect_hf.training.checkpoint import DIGEST, PROGRESS, TRAINING

CPU = torch.device("cpu")


def write(work_dir: Path, step: int) -> Path:
    checkpoint.write_checkpoint(work_dir, {"step": step}, {"model": {"weight": torch.full((3,), float(step))}})
    return work_dir / "checkpoints" / f"step-{step}"


def test_what_was_there_stays_until_the_new_folder_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "best"
    with atomic_dir(target) as folder:
        (folder / "file").write_text("old")
    with pytest.raises(OSError, match="full"), atomic_dir(target) as folder:
        (folder / "file").write_text("new")
        raise OSError("full")
    assert [path.name for path in tmp_path.iterdir()] == ["best"] and (target / "file").read_text() == "old"


def test_a_folder_is_replaced_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    link = tmp_path / "run" / "best"
    link.symlink_to(tmp_path / "scratch" / "best")
    for content in ("old", "new"):
        with atomic_dir(link) as folder:
            (folder / "file").write_text(content)
    recover(link)
    assert link.is_symlink() and (tmp_path / "scratch" / "best" / "file").read_text() == "new"


@pytest.mark.parametrize(
    ("left", "found"),
    [
        (("best", "best.partial"), "best"),  # killed while writing
        (("best.partial", "best.replaced"), "best.replaced"),  # between the two renames
        (("best", "best.replaced"), "best"),  # before the end
        (("best.partial",), None),
    ],
)
def test_a_killed_replacement_is_ended(left: tuple[str, ...], found: str | None, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("file", "harm", "found"),
    [
        *((name, truncate, "are not as they were written") for name in (PROGRESS, TRAINING, DIGEST)),
        (TRAINING, Path.unlink, r"FileNotFoundError: .*training\.pt"),
        (PROGRESS, lambda path: path.write_text("[]"), "are not as they were written"),
    ],
)
def test_damage_is_noticed_and_the_checkpoint_before_is_taken(
    file: str, harm: Callable[[Path], None], found: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = write(tmp_path, 5), write(tmp_path, 10)
    assert checkpoint.find_checkpoint(tmp_path, "last") == second and not caplog.text
    harm(second / file)
    assert checkpoint.find_checkpoint(tmp_path, "last") == first
    assert f"{second} is damaged" in caplog.text
    with pytest.raises(CheckpointError, match=rf"step-10 is damaged: .*{found}.*; resume from {first}\.$"):
        checkpoint.find_checkpoint(tmp_path / "elsewhere", str(second))
    truncate(first / file)
    with pytest.raises(CheckpointError, match=r"step-5 is damaged: .*; no other is whole\. Start anew with --over"):
        checkpoint.find_checkpoint(tmp_path, "last")


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    folder, rng = write(tmp_path, 5), np.random.default_rng(0)
    for name in (PROGRESS, TRAINING, DIGEST):
        content = (folder / name).read_bytes()
        for position in rng.choice(len(content), 40):
            flipped = bytearray(content)
            flipped[position] ^= 1 << rng.integers(8)
            (folder / name).write_bytes(flipped)
            assert checkpoint.damage(folder) is not None, (name, position)
        (folder / name).write_bytes(content)
    assert checkpoint.damage(folder) is None


def test_a_checkpoint_under_another_name(tmp_path: Path) -> None:
    renamed = write(tmp_path, 5).rename(tmp_path / "checkpoints" / "step-7")
    assert checkpoint.damage(renamed) == "it is of step 5"
    copied = renamed.rename(tmp_path / "checkpoints" / "step-5 copy")
    assert checkpoint.damage(copied) is None
    assert checkpoint.list_checkpoints(tmp_path) == []  # nobody's checkpoint, and no obstacle


def test_what_may_be_resumed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert checkpoint.find_checkpoint(tmp_path, "last") is None  # killed before its first checkpoint
    assert "the run starts from the beginning" in caplog.text
    (tmp_path / "results.json").touch()
    with pytest.raises(CheckpointError, match="holds a finished run and no checkpoint"):
        checkpoint.find_checkpoint(tmp_path, "last")
    with pytest.raises(CheckpointError, match=r"is no checkpoint to resume from: it has no progress\.json"):
        checkpoint.find_checkpoint(tmp_path, str(tmp_path))
    for step in (10, 100):
        write(tmp_path, step)
    (tmp_path / "checkpoints" / "step-105.partial").mkdir()
    (tmp_path / "checkpoints" / "step-10").rename(tmp_path / "checkpoints" / "step-10.replaced")
    checkpoint.recover_checkpoints(tmp_path)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step-10", "step-100"]
    checkpoint.drop_checkpoints_after(tmp_path, 50)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-10"]
    assert "the run goes on from step 50: its later checkpoints are removed (step-100)" in caplog.text


def test_random_states_of_all_generators_go_on(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    torch.save(checkpoint.random_state(CPU), tmp_path / "state")
    drawn = draw()
    for device in (CPU, torch.device("cuda")):  # written on the CPU: a GPU's own generator goes on as it is
        checkpoint.set_random_state(torch.load(tmp_path / "state", weights_only=True), device)
        assert draw() == drawn
