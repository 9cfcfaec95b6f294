"""A result folder that a run replaces while it is read."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from deflect_hf.artifacts.saved_model import while_whole
from deflect_hf.errors import CheckpointError
from deflect_hf.files import CONFIG, atomic_dir


def write(best: Path, number: int) -> None:
    with atomic_dir(best) as folder:
        for name in (CONFIG, "config.json", "weights"):
            (folder / name).write_text(str(number))


def read(folder: Path) -> set[str]:
    try:
        return {(folder / name).read_text() for name in (CONFIG, "config.json", "weights")}
    except OSError as error:
        raise CheckpointError("gone") from error


@pytest.mark.parametrize("named", [".", "best"])
def test_what_is_read_is_one_model(named: str, tmp_path: Path) -> None:
    write(tmp_path / "best", 0)
    end = threading.Event()

    def swap() -> None:
        number = 1
        while not end.is_set():
            write(tmp_path / "best", number)
            number += 1
            end.wait(0.005)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        found = [while_whole(tmp_path / named, read) for _ in range(100)]
    finally:
        end.set()
        thread.join()
    assert all(len(one) == 1 for one in found) and len({*map(str, found)}) > 1


def test_what_is_broken_is_told_at_once(tmp_path: Path) -> None:
    write(tmp_path / "best", 0)
    (tmp_path / "best" / "weights").unlink()
    calls: list[Path] = []
    with pytest.raises(CheckpointError, match="gone"):
        while_whole(tmp_path, lambda folder: (calls.append(folder), read(folder))[1])
    assert len(calls) == 1
