"""Published archives (zip, tar and its compressed forms) -> folders: safe, checked, all or nothing."""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from filelock import FileLock
from tqdm import tqdm

from deflect_hf.errors import DataError

PathLike = str | os.PathLike[str]

# what zipfile and tarfile raise on damaged, encrypted or oddly compressed archives
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
    NotImplementedError,
)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_CHUNK = 1 << 20
_JUNK = "__MACOSX"  # what macOS adds to archives


def unpack(archive: PathLike, folder: PathLike) -> Path:
    """Unpack ``archive`` into the new folder ``folder`` and return it; a folder that is there already is left alone.

    The folder appears under its name only when all of it is there: an interrupted run starts anew, and of several
    processes one unpacks while the others wait. Where the archive holds a single folder of the same name, as
    ``MADOS.zip`` holds ``MADOS/``, that folder becomes ``folder``.

    Raises:
        DataError: The archive is missing, damaged or none; something in it would be written, or links, outside of
            the folder; or the disk has no room for it.
    """
    archive, folder = Path(archive), Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if folder.is_dir():
            return folder
        temporary = folder.parent / f".{folder.name}.unpacking"
        shutil.rmtree(temporary, ignore_errors=True)  # what an interrupted run left
        try:
            temporary.mkdir()
            _unpack_all(archive, temporary)
            inner = temporary / folder.name
            alone = inner.is_dir() and {path.name for path in temporary.iterdir()} <= {inner.name, _JUNK}
            (inner if alone else temporary).replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _unpack_all(archive: Path, folder: Path) -> None:
    if not archive.is_file():
        raise DataError(f"{archive} is not there: check the path.")
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder)
        elif tarfile.is_tarfile(archive):
            _unpack_tar(archive, folder)
        else:
            raise DataError(f"{archive} is no zip or tar archive, or is cut off: remove it and download it again.")
    except tarfile.FilterError as error:
        raise DataError(f"{archive} is refused: {error}. It is not what was published: remove it.") from error
    except (*_BROKEN, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            if error.errno in NO_ROOM:
                raise DataError(f"{folder.parent}: the disk is full. Make room, or give another `root`.") from error
            raise
        raise DataError(f"{archive} is damaged ({error}): remove it and download it again.") from error


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as source, _progress(archive) as progress:
        members = source.infolist()
        refuse_full_disk(folder.parent, sum(member.file_size for member in members), f"what {archive} unpacks to")
        for member in members:
            # zipfile takes names as they were before it replaced the backslashes of Windows
            _refuse_outside(archive, member.orig_filename)
            if (member.external_attr >> 16) & 0o170000 == 0o120000:
                raise DataError(f"{archive} holds the link {member.filename!r}: archives of data hold files only.")
            source.extract(member, folder)  # never writes more than the declared size, and checks the CRC
            progress.update(member.file_size)


def _unpack_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as source, _progress(archive) as progress:
        for member in source:
            _refuse_outside(archive, member.name)
            refuse_full_disk(folder.parent, member.size, f"{member.name} in {archive}")
            source.extract(member, folder, filter="data")  # no links to outside, no devices
            progress.update(member.size)
        while source.fileobj.read(_CHUNK):  # tarfile stops before the checksum at the end of the compressed stream
            pass


def _refuse_outside(archive: Path, name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0]:
        raise DataError(
            f"{archive} holds {name!r}, which would be written outside of its folder: it is not what was published, "
            f"remove it."
        )


def refuse_full_disk(folder: Path, needed: int, what: str) -> None:
    """Refuse to write what the disk has no room for.

    Raises:
        DataError: ``needed`` bytes are more than the disk of ``folder`` has free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"No room for {what}: it takes {needed / 1e9:.2f} GB, but {folder} has {free / 1e9:.2f} GB free. "
            f"Make room, or give another `root`."
        )


@contextmanager
def _progress(archive: Path) -> Iterator[tqdm]:
    with tqdm(desc=f"Unpacking {archive.name}", unit="B", unit_scale=True, disable=None) as bar:
        yield bar
