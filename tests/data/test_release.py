"""Where a public release lies: found at another level, or fetched from a record and verified."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
import zipfile
from collections.abc import Iterator
from hashlib import md5
from pathlib import Path

import pytest

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data import load_dataset_splits, mados
from deflect_hf.data.zenodo import fetch_from_zenodo
from deflect_hf.errors import DataError
from tests.data.replicas import write_mados


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mados(tmp_path_factory.mktemp("release") / "data" / "MADOS")


def arguments(root: Path, **options: object) -> DatasetArguments:
    return DatasetArguments(name="mados", root=str(root), **options)


def test_another_level_of_the_folder_is_recognised(replica: Path, tmp_path: Path) -> None:
    assert len(load_dataset_splits(arguments(replica.parent))["train"]) == 6  # the folder that holds MADOS/
    with pytest.raises(DataError, match=rf"`root` is too deep, set it to {replica}\."):
        load_dataset_splits(arguments(replica / "Scene_0" / "10"))
    with pytest.raises(DataError, match=rf"`root` is one level too high, set it to {replica.parent}\."):
        load_dataset_splits(arguments(replica.parent.parent))
    with pytest.raises(DataError, match=r"does not hold MADOS \(splits/\): there is no such folder\. Set `root`"):
        load_dataset_splits(arguments(tmp_path / "nowhere"))
    (tmp_path / "MADOS.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"unpack 'MADOS.zip' first"):
        load_dataset_splits(arguments(tmp_path))


@pytest.fixture
def record(replica: Path, tmp_path: Path) -> Iterator[tuple[str, dict]]:
    """A server with a record that holds MADOS.zip; its address, and the record's entry to falsify."""
    folder = tmp_path / "server"
    folder.mkdir()
    with zipfile.ZipFile(folder / "MADOS.zip", "w") as archive:
        for path in sorted(replica.rglob("*")):
            archive.write(path, path.relative_to(replica.parent))
    content = (folder / "MADOS.zip").read_bytes()
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        entry = {"key": "MADOS.zip", "size": len(content), "checksum": f"md5:{md5(content).hexdigest()}"}
        entry["links"] = {"self": f"{address}/MADOS.zip"}
        yield address, entry
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def publish(tmp_path: Path, entry: dict) -> None:
    (tmp_path / "server" / str(mados.RECORD)).write_text(json.dumps({"files": [entry]}), encoding="utf-8")


def test_it_is_downloaded_once_and_verified(
    record: tuple[str, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, entry = record
    publish(tmp_path, entry)
    monkeypatch.setattr(mados, "fetch_from_zenodo", functools.partial(fetch_from_zenodo, api=address))
    root = tmp_path / "data"
    with pytest.raises(DataError, match="there is no such folder"):
        load_dataset_splits(arguments(root))
    assert len(load_dataset_splits(arguments(root, download=True))["train"]) == 6
    assert sorted(path.name for path in root.iterdir() if not path.name.startswith(".")) == ["MADOS"]
    publish(tmp_path, {**entry, "size": -1})  # would be refused
    assert len(load_dataset_splits(arguments(root, download=True))["train"]) == 6
    shutil.rmtree(root / "MADOS" / "splits")
    with pytest.raises(DataError, match=rf"{root / 'MADOS'} is there, but holds no MADOS \(splits/\): remove it"):
        load_dataset_splits(arguments(root, download=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checksum": "md5:" + 32 * "0"}, "has the md5 [0-9a-f]{32}, but 0{32} is published"),
        ({"checksum": "sha1:00"}, "states a checksum of the kind 'sha1'"),
        ({"key": "other.zip"}, "has no file 'MADOS.zip', only 'other.zip'"),
        ({"links": {}}, "does not describe the files of a record as expected"),
    ],
)
def test_a_download_that_is_not_as_published_is_refused(
    record: tuple[str, dict], tmp_path: Path, change: dict, message: str
) -> None:
    address, entry = record
    publish(tmp_path, {**entry, **change})
    with pytest.raises(DataError, match=message):
        fetch_from_zenodo(mados.RECORD, "MADOS.zip", tmp_path / "data", api=address)
    assert not (tmp_path / "data" / "MADOS.zip").exists()
