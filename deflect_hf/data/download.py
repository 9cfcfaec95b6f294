"""Files from where data sets are published: resumed after a broken connection, verified, all or nothing."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from filelock import FileLock
from tqdm import tqdm

from deflect_hf.data.archives import NO_ROOM, PathLike, refuse_full_disk, unpack
from deflect_hf.errors import DataError

__all__ = ["fetch", "fetch_from_hub", "unpack"]

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that another try may change
_MEANINGS = {401: "asks for a login", 403: "does not allow it", 404: "does not have it", 410: "does not have it"}


class _BrokenError(Exception):
    """The transfer ended early; another try may go on from there."""


@dataclass(frozen=True)
class _Published:
    """What is known of the published file; None: unknown."""

    size: int | None
    digests: dict[str, str]

    def problem(self, path: Path) -> str | None:
        """What is wrong with the file, or None."""
        if self.size is not None and path.stat().st_size != self.size:
            return f"has {path.stat().st_size} bytes, but {self.size} are published"
        for algorithm, wanted in self.digests.items():
            with path.open("rb") as file:
                found = hashlib.file_digest(file, algorithm).hexdigest()
            if found != wanted.lower():
                return f"has the {algorithm} {found}, but {wanted} is published"
        return None


def fetch(
    url: str,
    target: PathLike,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    size: int | None = None,
    tries: int = 5,
    backoff_s: float = 1.0,
    timeout_s: float = 60.0,
) -> Path:
    """Fetch a file over HTTP and return its path; a file that is there already and is the published one is kept.

    What has arrived is kept as ``target.part`` and the next try, in this run or a later one, goes on from there. The
    file appears under its name only when size and checksum are right. Of several processes one fetches, the others
    wait.

    Args:
        sha256: Checksum as published, in hexadecimal.
        md5: As ``sha256``, where only that one is published.
        size: Published number of bytes.
        tries: Broken connections in a row, without a byte more, until giving up.
        backoff_s: Seconds before the second try; twice as long before each further one.
        timeout_s: Seconds without an answer that count as a broken connection.

    Raises:
        DataError: The server does not have the file or does not give it away, cannot be reached, the file is not the
            published one (it is removed then), or the disk is full.
    """
    target = Path(target)
    digests = {name: value for name, value in (("sha256", sha256), ("md5", md5)) if value is not None}
    published = _Published(size, digests)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if target.is_file():
            problem = published.problem(target)
            if problem is not None:
                raise DataError(f"{target} {problem}: remove it, and it is fetched again from {url}.")
            return target
        part = target.with_name(f"{target.name}.part")
        _transfer_with_patience(url, part, size, tries, backoff_s, timeout_s)
        problem = published.problem(part)
        _etag_file(part).unlink(missing_ok=True)
        if problem is not None:
            part.unlink()
            raise DataError(
                f"{url} {problem}: it has been removed. Try again; if it stays so, the file at this address is "
                f"another one by now."
            )
        part.replace(target)
    return target


def _transfer_with_patience(
    url: str, part: Path, size: int | None, tries: int, backoff_s: float, timeout_s: float
) -> None:
    failures = 0
    while True:
        before = _size(part)
        try:
            return _transfer(url, part, size, timeout_s)
        except _BrokenError as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures >= tries:
                arrived = _size(part)
                kept = f"{arrived} bytes have arrived and are kept: run it again to go on from there."
                raise DataError(
                    f"{url} cannot be fetched, {failures} tries in a row failed ({error}). "
                    + (kept if arrived else "Nothing has arrived: check address and network, then run it again.")
                ) from error
            wait_s = backoff_s * 2 ** (failures - 1)
            logger.warning("%s: %s after %d bytes; next try in %g s", url, error, _size(part), wait_s)
            time.sleep(wait_s)


def _transfer(url: str, part: Path, size: int | None, timeout_s: float) -> None:
    """One try: add to ``part`` what it lacks.

    Raises:
        _BrokenError: It may work next time.
        DataError: It will not.
    """
    have = _size(part)
    etag = _etag_file(part)
    headers = {"User-Agent": "deflect_hf", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if etag.is_file():  # the rest only if the file is still the one that the first part came from
            headers["If-Range"] = etag.read_text(encoding="utf-8")
    with _open(urllib.request.Request(url, headers=headers), timeout_s) as response:
        begin, total = _extent(response)
        if response.status == 416:  # nothing after what is there
            if total == have:
                return
            part.unlink()
            raise _BrokenError("the part that was kept does not fit")
        if size is not None and total is not None and total != size:
            part.unlink(missing_ok=True)
            raise DataError(f"{url} has {total} bytes, but {size} are published: it is another file by now.")
        if begin not in (0, have):
            raise DataError(f"{url}: the server was asked for the bytes from {have} on, but sends others.")
        if begin == 0 and response.headers.get("ETag", "").startswith('"'):
            etag.write_text(response.headers["ETag"], encoding="utf-8")
        if total is not None:
            refuse_full_disk(part.parent, total - begin, url)
        with part.open("ab" if begin else "wb") as file:
            _copy(response, file, part.name.removesuffix(".part"), begin, total)
    if total is not None and _size(part) < total:
        raise _BrokenError("the connection was closed")


def _open(request: urllib.request.Request, timeout_s: float) -> Any:
    """The response, also when it is the refusal (416) of a range that the file does not have."""
    try:
        return urllib.request.urlopen(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return error
        with error:
            if error.code in _PASSING:
                raise _BrokenError(f"the server answers {error.code}") from error
            meaning = _MEANINGS.get(error.code, f"says {error.reason}")
            raise DataError(
                f"{request.full_url}: the server {meaning} (HTTP {error.code}). Check the address."
            ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(f"{getattr(error, 'reason', error)}") from error


def _extent(response: Any) -> tuple[int, int | None]:
    """First byte that the response holds, and the size of the whole file if the server says so."""
    length = response.headers.get("Content-Length")
    if response.status not in (206, 416):
        return 0, None if length is None else int(length)
    # bytes 5-9/10, or bytes */10 where there are none
    span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    begin = span.partition("-")[0]
    return int(begin) if begin.isdecimal() else -1, int(total) if total.isdecimal() else None


def _copy(response: Any, file: IO[bytes], name: str, begin: int, total: int | None) -> None:
    with tqdm(desc=name, initial=begin, total=total, unit="B", unit_scale=True, disable=None) as progress:
        while True:
            try:
                chunk = response.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _BrokenError(f"the connection broke: {error}") from error
            if not chunk:
                return
            try:
                file.write(chunk)
                file.flush()
            except OSError as error:
                if error.errno in NO_ROOM:
                    raise DataError(f"{file.name}: the disk is full. Make room, or give another `root`.") from error
                raise
            progress.update(len(chunk))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _etag_file(part: Path) -> Path:
    return part.with_name(f".{part.name}.etag")


def fetch_from_hub(
    repo_id: str, filename: str, folder: PathLike, *, md5: str | None = None, revision: str | None = None
) -> Path:
    """Fetch one file of a data set on the Hugging Face Hub into ``folder`` and return its path.

    The Hub's client resumes and checks the size; a login (``hf auth login``) is used where there is one.

    Raises:
        DataError: The Hub does not have the file or does not give it away, cannot be reached, the file is not the
            published one (it is removed then), or the disk is full.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    where = f"{filename} of {repo_id} on the Hub"
    try:
        path = Path(
            hf_hub_download(repo_id, filename, repo_type="dataset", revision=revision, local_dir=os.fspath(folder))
        )
    except LocalEntryNotFoundError as error:
        raise DataError(
            f"{where} cannot be fetched: the Hub cannot be reached, or HF_HUB_OFFLINE is set. Fetch the file elsewhere "
            f"and put it into {folder}."
        ) from error
    except GatedRepoError as error:
        raise DataError(f"{where} needs its terms accepted on its page, and then a login: hf auth login.") from error
    except (HfHubHTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise DataError(f"{folder}: the disk is full. Make room, or give another `root`.") from error
        raise DataError(f"{where} cannot be fetched: {' '.join(str(error).split())}") from error
    problem = _Published(None, {} if md5 is None else {"md5": md5}).problem(path)
    if problem is not None:
        path.unlink()
        raise DataError(f"{where} {problem}: it has been removed. Try again.")
    return path
