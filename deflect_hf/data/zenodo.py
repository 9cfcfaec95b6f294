"""Files of a Zenodo record, verified against the checksums that Zenodo publishes with them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from deflect_hf.data.download import fetch
from deflect_hf.errors import DataError, listing

API = "https://zenodo.org/api/records"


def fetch_from_zenodo(record: int, name: str, folder: Path, api: str = API) -> Path:
    """Fetch the file ``name`` of a record into ``folder`` and return its path.

    Size and md5 are those that the record states.

    Raises:
        DataError: As :func:`~deflect_hf.data.download.fetch`, or the record does not have the file.
    """
    url = f"{api}/{record}"
    with tempfile.TemporaryDirectory() as scratch:
        answer = fetch(url, Path(scratch) / "record.json").read_text(encoding="utf-8")
    try:
        files = {file["key"]: file for file in json.loads(answer)["files"]}
        found = files.get(name)
        if found is None:
            raise DataError(f"{url} has no file {name!r}, only {listing(files)}: fetch the data by hand.")
        algorithm, _, checksum = found["checksum"].partition(":")
        address, size = found["links"]["self"], int(found["size"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{url} does not describe the files of a record as expected: fetch {name} by hand.") from error
    if algorithm != "md5":
        raise DataError(f"{url} states a checksum of the kind {algorithm!r} for {name}, not md5: fetch it by hand.")
    return fetch(address, folder / name, md5=checksum, size=size)
