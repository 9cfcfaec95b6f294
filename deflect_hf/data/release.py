"""The files of a public release: its folder, found or downloaded, and its split files; what is missing, one by one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from filelock import FileLock

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data.download import unpack
from deflect_hf.data.public import PublicDataset, Row
from deflect_hf.data.splits import check_disjoint, check_unique, read_lines
from deflect_hf.errors import DataError, listing

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz")
_NAMED = 8  # problems that an error names one by one


def find_release(dataset: PublicDataset, args: DatasetArguments) -> Path:
    """The folder of the release, ``root`` or ``root/folder``; downloaded where ``args.download`` asks for it."""
    root = Path(str(args.root))
    found = _found(dataset, root)
    if found is None and args.download and dataset.fetch is not None:
        target = root / dataset.folder
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".download.lock"):  # one process of a distributed run fetches, the others wait
            found = _found(dataset, root)
            if found is None:
                if target.exists():
                    raise DataError(
                        f"{target} is there, but holds no {dataset.title} ({_shown(dataset.marks)}): remove it, and it "
                        f"is downloaded again, or give another `root`."
                    )
                archive = dataset.fetch(root)
                unpack(archive, target)
                archive.unlink()
                found = _found(dataset, root)
    if found is None:
        raise DataError(f"{root} does not hold {dataset.title} ({_shown(dataset.marks)}): {_hint(dataset, root)}")
    return found


def _found(dataset: PublicDataset, root: Path) -> Path | None:
    folders = (root, root / dataset.folder)
    return next((folder for folder in folders if any((folder / mark).exists() for mark in dataset.marks)), None)


def _shown(marks: Iterable[str]) -> str:
    return " or ".join(mark if Path(mark).suffix else f"{mark}/" for mark in marks)


def _hint(dataset: PublicDataset, root: Path) -> str:
    """Where it may be instead."""
    fetched = ", `download: true` fetches it" if dataset.fetch else ""
    published = f"it is published at {dataset.source}{fetched}."
    if not root.is_dir():
        return f"there is no such folder. Set `root` to where it lies; {published}"
    above = next(filter(None, (_found(dataset, parent) for parent in root.absolute().parents[:3])), None)
    if above is not None:
        return f"`root` is too deep, set it to {above}."
    below = next((child for child in sorted(root.iterdir()) if child.is_dir() and _found(dataset, child)), None)
    if below is not None:
        return f"`root` is one level too high, set it to {below}."
    inside = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    archives = [name for name in inside if name.endswith(_ARCHIVES)]
    if archives:
        return f"unpack {listing(archives)} first."
    return f"it holds {listing(inside, 5)}; {published}"


def folder_files(folder: Path) -> dict[str, int]:
    """Names of the files in a folder and their sizes in bytes; none where the folder is missing. Hidden are skipped."""
    try:
        with os.scandir(folder) as entries:
            return {one.name: one.stat().st_size for one in entries if one.is_file() and not one.name.startswith(".")}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}. Check its permissions.") from error


def problems_of(files: Iterable[str], sizes: Mapping[str, int], folder: str) -> list[str]:
    """Those of the ``files`` that a folder lacks or that are empty, in words."""
    return [f"{folder}/{file} is {'empty' if file in sizes else 'missing'}" for file in files if not sizes.get(file)]


def split_rows(
    dataset: PublicDataset, root: Path, files: Mapping[str, str], row_of: Callable[[str], tuple[Row, list[str]]]
) -> dict[str, list[Row]]:
    """One row for each line of each split file.

    Args:
        files: Split -> its file, below ``root``.
        row_of: From a line to its row, and what is wrong with its files.
    """
    problems: list[str] = []
    rows: dict[str, list[Row]] = {}
    for split, file in files.items():
        there = (root / file).is_file()
        lines = read_lines(root / file) if there else []
        if not lines:
            problems.append(f"{file} lists no images" if there else f"{file} is missing")
        found = [row_of(line) for line in lines]
        rows[split] = [row for row, _ in found]
        problems += [f"{problem} (listed in {file})" for _, faults in found for problem in faults]
    refuse_incomplete(dataset, root, problems)
    names = {split: [row["name"] for row in members] for split, members in rows.items()}
    for split, file in files.items():
        check_unique(names[split], root / file)
    check_disjoint(names, {split: root / file for split, file in files.items()})
    return rows


def refuse_incomplete(dataset: PublicDataset, root: Path, problems: Iterable[str]) -> None:
    """Complain about a broken folder file by file, the first several by name."""
    unique = list(dict.fromkeys(problems))
    if unique:
        more = f"; and {len(unique) - _NAMED} more" if len(unique) > _NAMED else ""
        raise DataError(
            f"{root} is not {dataset.title} as published, {len(unique)} problem(s): {'; '.join(unique[:_NAMED])}{more}."
            f" Copy it again, or download it again from {dataset.source}."
        )
