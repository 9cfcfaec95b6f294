"""The way to the Hub: whole files that are what was announced, and each failure as one sentence.

`huggingface_hub` does the transfers and keeps the cache. Added here: files are compared with the hash that the Hub
keeps of them, because the client compares sizes only, and one that differs leaves the cache at once. (Its
`verify_repo_checksums` needs the network, and this has to work without as well.)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, errors, snapshot_download
from huggingface_hub.utils import filter_repo_objects, validate_repo_id
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from deflect_hf.errors import DeflectError, HubError

LOG_IN = "`hf auth login`, the variable HF_TOKEN, or the argument token"
GIT_HASH, SHA256_HASH = 40, 64  # hexadecimal digits

Inspect = Callable[[str, Mapping[str, int]], None]


@dataclass(frozen=True)
class Announced:
    """What the Hub says about a commit: sizes in bytes and hashes of its files."""

    commit: str
    sizes: Mapping[str, int]
    hashes: Mapping[str, str]
    license: str | None


@dataclass(frozen=True)
class Hub:
    """How the Hub is reached: with which token, through which cache, or through the cache alone."""

    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False

    @property
    def api(self) -> HfApi:
        """The client."""
        return HfApi(token=self.token, library_name="deflect_hf")

    @property
    def offline(self) -> bool:
        """Whether only the cache may be read."""
        return self.local_files_only or constants.is_offline_mode()

    def announced(self, repo_id: str, revision: str | None) -> Announced:
        """Files and commit of a revision (HubError: it cannot be asked, or there is no such thing)."""
        with as_hub_error(repo_id, revision):
            info = self.api.model_info(repo_id, revision=revision, files_metadata=True)
        files = info.siblings or []
        return Announced(
            str(info.sha),
            {file.rfilename: file.size or 0 for file in files},
            {file.rfilename: file.lfs.sha256 if file.lfs is not None else str(file.blob_id) for file in files},
            info.card_data.get("license") if info.card_data is not None else None,
        )

    def fetch(self, repo_id: str, revision: str | None, patterns: Sequence[str], inspect: Inspect) -> Path:
        """The folder of a commit in the cache, named after it, with all files that match ``patterns``, checked.

        Args:
            inspect: gets the repository's name and the size of each of its files before any is downloaded, and raises
                to refuse.

        Raises:
            HubError: they cannot be had, or are not what the Hub announced; such a file is removed from the cache.
        """
        announced = None if self.offline else self.announced(repo_id, revision)
        if announced is not None:
            inspect(repo_id, announced.sizes)
        with as_hub_error(repo_id, revision):
            folder = Path(
                snapshot_download(
                    repo_id,
                    revision=revision,
                    allow_patterns=list(patterns),
                    cache_dir=self.cache_dir,
                    token=self.token,
                    endpoint=self.api.endpoint,
                    local_files_only=self.offline,
                    library_name="deflect_hf",
                )
            )
        names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        if announced is None:
            inspect(repo_id, {name: (folder / name).stat().st_size for name in names})
        elif folder.name != announced.commit:
            raise HubError(f"{repo_id} changed while it was fetched: do it again.")
        for name in filter_repo_objects(names, allow_patterns=list(patterns)):
            path = folder / name
            if announced is not None:
                verify(path, announced.hashes[name], f"{repo_id}: {name}")
            elif path.is_symlink():  # the cache names what it keeps by its hash
                verify(path, Path(os.readlink(path)).name, f"{repo_id}: {name}")
        return folder


def file_hash(path: Path, like: str) -> str:
    """The hash of a file, git's name of its content or SHA-256, whichever ``like`` is (HubError: it is neither)."""
    if len(like) not in (GIT_HASH, SHA256_HASH):
        raise HubError(f"{path.name}: the Hub gives {like!r} as its hash, which is neither git's nor SHA-256.")
    with path.open("rb") as file:
        return git_hash(file.read()) if len(like) == GIT_HASH else sha_fileobj(file).hex()


def verify(path: Path, expected: str, name: str) -> None:
    """Compare a file of the cache with its hash, and remove it from the cache if it differs (HubError)."""
    found = file_hash(path, expected)
    if found != expected:
        blob = path.resolve()
        path.unlink()
        blob.unlink(missing_ok=True)
        raise HubError(
            f"{name} has another hash than the Hub announced ({found}, not {expected}): it was changed or broken on "
            "its way, and was removed from the cache. Fetch it again."
        )


def check_repo_id(repo_id: str) -> None:
    """Refuse what cannot be the name of a repository (HubError)."""
    try:
        validate_repo_id(repo_id)
        valid = repo_id.count("/") == 1
    except errors.HFValidationError:
        valid = False
    if not valid:
        raise HubError(f"{repo_id!r} is no name of a repository on the Hub: give user/name, letters, digits and -_. .")


@contextmanager
def as_hub_error(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turn what the client raises into a HubError that says what happened and what to do."""
    try:
        yield
    except DeflectError:
        raise
    except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise HubError(_explain(repo_id, revision, error)) from error


def _explain(repo_id: str, revision: str | None, error: Exception) -> str:
    """One sentence on a failure of the network, the Hub, the access rights or the cache."""
    endpoint, reason = constants.ENDPOINT, _first_line(error)
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    match error:
        case errors.LocalTokenNotFoundError():
            return f"{repo_id}: no token of the Hub was found. Give one: {LOG_IN}."
        case errors.OfflineModeIsEnabled() | errors.LocalEntryNotFoundError():
            return _not_cached(repo_id if revision is None else f"{repo_id} (revision {revision!r})", repo_id, error)
        case errors.GatedRepoError():
            return f"{repo_id} is gated: accept its conditions on its page, and log in with that account ({LOG_IN})."
        case errors.RevisionNotFoundError():
            commits = f"{endpoint}/{repo_id}/commits/main"
            return f"{repo_id} has no revision {revision!r}: give a branch, a tag or a commit of it ({commits})."
        case errors.EntryNotFoundError():
            return f"{repo_id} lacks a file that is needed: {reason}"
        case errors.RepositoryNotFoundError():
            folder = "" if Path(repo_id).is_dir() else ", and no such folder here"
            return (
                f"{repo_id}: there is no such model on {endpoint}, or this token may not read it{folder}. Check the "
                f"name; for a private one give a token that may: {LOG_IN}."
            )
        case errors.HfHubHTTPError() if status == 401:
            return f"{repo_id}: the Hub does not know this token. Give a valid one: {LOG_IN}."
        case errors.HfHubHTTPError() if status == 403:
            return f"{repo_id}: this token has no permission for that. Give one that may write there: {LOG_IN}."
        case errors.HfHubHTTPError():
            return f"{repo_id}: the Hub answered with an error: {reason}"
        case RuntimeError() if error.__cause__ is not None:
            reason = _first_line(error.__cause__)
    return (
        f"{repo_id}: the transfer from or to {endpoint} failed, and nothing of it was kept: {reason} Try again; what "
        "is complete in the cache is loaded with local_files_only=True, or HF_HUB_OFFLINE=1."
    )


def _not_cached(which: str, repo_id: str, error: Exception) -> str:
    folder = "" if Path(repo_id).is_dir() else " There is no folder of that name here either."
    if constants.is_offline_mode():
        return f"{which} is not complete in the cache, and HF_HUB_OFFLINE forbids to fetch it: unset that once.{folder}"
    if error.__cause__ is None:
        return f"{which} is not complete in the cache, and only the cache may be read: allow the download once.{folder}"
    return f"{which} is not in the cache, and {constants.ENDPOINT} cannot be reached: {_first_line(error.__cause__)}"


def _first_line(error: BaseException) -> str:
    """The first line of a message that says something, as a sentence."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if line.endswith((".", "!", "?")) else f"{line}."
