"""Archives from where data sets are published: fetched, verified, unpacked safely, all or nothing."""

from __future__ import annotations

import lzma
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from deflect_hf.errors import NO_ROOM, DataError
from deflect_hf.files import temp_dir

# what zipfile and tarfile raise on damaged, encrypted or oddly compressed archives
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError, OSError)
_CHUNK = 1 << 20
_JUNK = "__MACOSX"  # what macOS adds to archives


def fetch_from_zenodo(doi: str, name: str, folder: Path) -> Path:
    """Fetch the file ``name`` of a record into ``folder``, verified against the record's checksum; return its path.

    A file that is there already and is the published one is kept. A broken connection is tried again from the start.
    """
    import pooch
    from requests import RequestException

    storage = pooch.create(path=folder, base_url=f"doi:{doi}", retry_if_failed=4)
    try:
        storage.load_registry_from_doi()
        return Path(storage.fetch(name, progressbar=sys.stderr.isatty()))
    except (RequestException, ValueError, KeyError, TypeError, OSError) as error:
        _refuse_full_disk(error, folder)
        raise DataError(
            f"{name} of doi:{doi} cannot be fetched: {' '.join(str(error).split())}. Try again, or fetch the file by "
            f"hand from https://doi.org/{doi} and put it into {folder}."
        ) from error


def fetch_from_hub(
    repo_id: str, name: str, folder: Path, *, md5: str | None = None, revision: str | None = None
) -> Path:
    """Fetch one file of a data set on the Hugging Face Hub into ``folder`` and return its path.

    The Hub's client resumes and checks the size; a login (``hf auth login``) is used where there is one.
    """
    import pooch
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    where = f"{name} of {repo_id} on the Hub"
    try:
        path = Path(hf_hub_download(repo_id, name, repo_type="dataset", revision=revision, local_dir=folder))
    except LocalEntryNotFoundError as error:
        raise DataError(
            f"{where} cannot be fetched: the Hub cannot be reached, or HF_HUB_OFFLINE is set. Fetch the file elsewhere "
            f"and put it into {folder}."
        ) from error
    except GatedRepoError as error:
        raise DataError(f"{where} needs its terms accepted on its page, and then a login: hf auth login.") from error
    except (HfHubHTTPError, OSError) as error:
        _refuse_full_disk(error, folder)
        raise DataError(f"{where} cannot be fetched: {' '.join(str(error).split())}") from error
    if md5 is not None and (found := pooch.file_hash(str(path), alg="md5")) != md5:
        path.unlink()
        raise DataError(f"{where} has the md5 {found}, but {md5} is published: it has been removed. Try again.")
    return path


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar archive into the new folder ``folder``, which appears only when all of it is there.

    Where the archive holds a single folder of the same name, as ``MADOS.zip`` holds ``MADOS/``, that becomes
    ``folder``.
    """
    with temp_dir(folder.with_name(f".{folder.name}.unpacking")) as temporary:
        try:
            if zipfile.is_zipfile(archive):
                _unpack_zip(archive, temporary)
            elif tarfile.is_tarfile(archive):
                with tarfile.open(archive) as source:
                    source.extractall(temporary, filter="data")  # nothing outside, no links to outside, no devices
                    while source.fileobj and source.fileobj.read(_CHUNK):  # up to the checksum at its end
                        pass
            else:
                raise DataError(f"{archive} is no zip or tar archive, or is cut off: remove it and download it again.")
        except tarfile.FilterError as error:
            raise DataError(f"{archive} is refused: {error}. It is not what was published: remove it.") from error
        except _BROKEN as error:
            _refuse_full_disk(error, folder.parent)
            raise DataError(f"{archive} is damaged ({error}): remove it and download it again.") from error
        inner = temporary / folder.name
        alone = inner.is_dir() and {path.name for path in temporary.iterdir()} <= {inner.name, _JUNK}
        (inner if alone else temporary).rename(folder)


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as source:
        for member in source.infolist():
            # the name as it was before zipfile replaced the backslashes of Windows
            path = PurePosixPath(member.orig_filename.replace("\\", "/"))
            outside = path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0]
            link = (member.external_attr >> 16) & 0o170000 == 0o120000
            if outside or link:
                raise DataError(
                    f"{archive} is refused: {member.orig_filename!r} "
                    f"{'is a link' if link else 'would be written outside of its folder'}. It is not what was "
                    f"published: remove it."
                )
        source.extractall(folder)  # checks the CRC of each


def _refuse_full_disk(error: Exception, folder: Path) -> None:
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        raise DataError(f"{folder}: the disk is full. Make room, or give another `root`.") from error
