"""The folder of a public release: found, or fetched where it is published."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data.archives import unpack
from deflect_hf.data.public import PublicDataset
from deflect_hf.errors import DataError, listing

ARCHIVES = ("*.zip", "*.tar", "*.tar.gz", "*.tgz")

Fetch = Callable[[Path], Path]


@dataclass(frozen=True)
class Release:
    """How a public data set lies on disk.

    Attributes:
        folder: Name that its own folder has by custom; `root` may be that folder or the one that holds it.
        marks: Paths in it by which it is known; one of them is enough.
    """

    public: PublicDataset
    folder: str
    marks: tuple[str, ...]

    @property
    def _marks(self) -> str:
        return " or ".join(mark if Path(mark).suffix else f"{mark}/" for mark in self.marks)

    def within(self, folder: Path) -> bool:
        """Whether the release lies directly in ``folder``."""
        return any((folder / mark).exists() for mark in self.marks)

    def find(self, args: DatasetArguments, fetch: Fetch | None = None) -> Path:
        """The folder of the release: ``root``, or ``root/folder``.

        Args:
            fetch: Fetches the published archive into a folder and returns its path; called where the release is not
                there and ``args.download`` asks for it. The archive is unpacked into ``root/folder`` and removed.

        Raises:
            DataError: It is not there, and where it seems to be; or it cannot be fetched.
        """
        root = Path(str(args.root))
        if args.download and fetch is not None and not self._found(root):
            self._download(root, fetch)
        found = self._found(root)
        if found is None:
            raise DataError(f"{root} does not hold {self.public.title} ({self._marks}): {self._hint(root, fetch)}")
        return found

    def _found(self, root: Path) -> Path | None:
        return next((folder for folder in (root, root / self.folder) if self.within(folder)), None)

    def _download(self, root: Path, fetch: Fetch) -> None:
        target = root / self.folder
        if target.exists():
            raise DataError(
                f"{target} is there, but holds no {self.public.title} ({self._marks}): remove it, and it is "
                f"downloaded again, or give another `root`."
            )
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".download.lock"):  # one process of a distributed run fetches, the others wait
            if self._found(root) is None:
                archive = fetch(root)
                unpack(archive, target)
                archive.unlink()

    def _hint(self, root: Path, fetch: Fetch | None) -> str:
        """Where it may be instead."""
        published = f"it is published at {self.public.source}{', `download: true` fetches it' if fetch else ''}."
        if not root.is_dir():
            return f"there is no such folder. Set `root` to where it lies; {published}"
        levels = [*root.absolute().parents[:3]]
        above = next((parent for parent in levels if self._found(parent) is not None), None)
        if above is not None:
            return f"`root` is too deep, set it to {self._found(above)}."
        below = next((child for child in sorted(root.iterdir()) if child.is_dir() and self._found(child)), None)
        if below is not None:
            return f"`root` is one level too high, set it to {below}."
        archives = sorted(path.name for pattern in ARCHIVES for path in root.glob(pattern))
        if archives:
            return f"unpack {listing(archives)} first."
        inside = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
        more = " ..." if len(inside) > 5 else ""
        return f"it holds {listing(inside[:5])}{more}; {published}"


def folder_files(folder: Path) -> dict[str, int]:
    """Names of the files in a folder and their sizes in bytes; none where the folder is missing. Hidden are skipped."""
    try:
        with os.scandir(folder) as entries:
            return {
                entry.name: entry.stat().st_size
                for entry in entries
                if entry.is_file() and not entry.name.startswith(".")
            }
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}. Check its permissions.") from error
