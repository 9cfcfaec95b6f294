"""A result folder that a run replaces while it is read."""

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
    replaced = iter([1, 2, 3])

    def read_while_replaced(folder: Path) -> set[str]:
        first = (folder / CONFIG).read_text()
        if (number := next(replaced, None)) is not None:
            write(tmp_path / "best", number)
        return {first} | read(folder)

    assert while_whole(tmp_path / named, read_while_replaced) == {"3"}
    assert while_whole(tmp_path / named, read) == {"3"}


def test_what_is_broken_is_told_at_once(tmp_path: Path) -> None:
    write(tmp_path / "best", 0)
    (tmp_path / "best" / "weights").unlink()
    calls: list[Path] = []
    with pytest.raises(CheckpointError, match="gone"):
        while_whole(tmp_path, lambda folder: (calls.append(folder), read(folder))[1])
    assert len(calls) == 1
