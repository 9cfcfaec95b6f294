"""Files of the Hub and of Zenodo: verified, all or nothing. Archives: unpacked whole, and nothing outside."""

import hashlib
import io
import stat
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from deflect_hf.data.download import fetch_from_hub, fetch_from_zenodo, unpack
from deflect_hf.errors import DataError
from tests.data.web import serving_hub, serving_zenodo

CONTENT = bytes(range(256)) * 40
DOI = "10.5281/zenodo.7"
FILES = {"set/a.txt": b"first", "set/deep/b.bin": bytes(3000)}


def test_files_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_hub({"them/theirs/main/sub/data.zip": CONTENT}, monkeypatch):
        path = fetch_from_hub("them/theirs", "sub/data.zip", tmp_path, md5=hashlib.md5(CONTENT).hexdigest())
        assert path == tmp_path / "sub" / "data.zip" and path.read_bytes() == CONTENT
        with pytest.raises(DataError, match=r"data.zip of them/theirs on the Hub has the md5 .* it has been removed"):
            fetch_from_hub("them/theirs", "sub/data.zip", tmp_path, md5="0" * 32)
        assert not path.exists()
        with pytest.raises(DataError, match=r"other.zip of them/theirs on the Hub cannot be fetched: .*404"):
            fetch_from_hub("them/theirs", "other.zip", tmp_path)
    with pytest.raises(DataError, match=rf"the Hub cannot be reached, or .* and put it into {tmp_path}\."):
        fetch_from_hub("them/theirs", "data.zip", tmp_path)


def test_files_of_zenodo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_zenodo({"data.zip": CONTENT}, monkeypatch) as server:
        server.broken["/files/data.zip"] = 2  # tried again from the start
        for _ in range(2):
            assert fetch_from_zenodo(DOI, "data.zip", tmp_path).read_bytes() == CONTENT
        assert server.asked.count("/files/data.zip") == 3
        with pytest.raises(DataError, match=r"other.zip of .* cannot be fetched: .* by hand from https://doi\.org/10"):
            fetch_from_zenodo(DOI, "other.zip", tmp_path)
        server.files["/7"] = b"<html>"
        with pytest.raises(DataError, match=r"data.zip of doi:10\.5281/zenodo\.7 cannot be fetched"):
            fetch_from_zenodo(DOI, "data.zip", tmp_path)
    (tmp_path / "data.zip").unlink()
    with serving_zenodo({"data.zip": CONTENT}, monkeypatch, md5="0" * 32), pytest.raises(DataError, match="MD5 hash"):
        fetch_from_zenodo(DOI, "data.zip", tmp_path)
    assert not list(tmp_path.iterdir())


def make_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: Mapping[str, bytes], *links: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for link in links:
            archive.addfile(link)
    return path


def make(path: Path, files: Mapping[str, bytes]) -> Path:
    return (make_zip if path.suffix == ".zip" else make_tar)(path, files)


def tree(folder: Path) -> dict[str, bytes]:
    """Content of each file below ``folder``."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar"])
@pytest.mark.parametrize(
    ("folder", "found"),
    [("set", {"a.txt": b"first", "deep/b.bin": bytes(3000)}), ("other", FILES)],
    ids=["its only folder has the name", "it has another name"],
)
def test_an_archive_becomes_a_folder(tmp_path: Path, name: str, folder: str, found: Mapping[str, bytes]) -> None:
    target = tmp_path / "data" / folder
    half = target.with_name(f".{folder}.unpacking")
    half.mkdir(parents=True)
    (half / "stale").write_bytes(b"of an interrupted run")
    unpack(make(tmp_path / name, FILES), target)
    assert tree(target) == found and [path.name for path in target.parent.iterdir()] == [folder]


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/out.txt", "set/../../out.txt", "C:/out.txt", "..\\out.txt"])
def test_nothing_is_written_outside(tmp_path: Path, name: str) -> None:
    archive = make(tmp_path / "a.zip", {"set/a.txt": b"first", name: b"evil"})
    with pytest.raises(DataError, match=r"a\.zip is refused: '.*' would be written outside of its folder\. It is not"):
        unpack(archive, tmp_path / "data" / "set")
    tar = make(tmp_path / "a.tar", {"set/a.txt": b"first", name: b"evil"})
    if ".." in name.split("/"):
        with pytest.raises(DataError, match=r"a\.tar is refused: .* It is not what was published: remove it\."):
            unpack(tar, tmp_path / "data" / "set")
        assert not tree(tmp_path / "data")
    else:  # tar's own filter makes the name a harmless one
        unpack(tar, tmp_path / "data" / "set")
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip", "a.tar", "data"}


def test_links_that_lead_outside_and_devices_are_refused(tmp_path: Path) -> None:
    away, device, inside = (tarfile.TarInfo(name) for name in ("set/away", "set/device", "set/inside"))
    away.type, away.linkname = tarfile.SYMTYPE, "../../secret"
    device.type = tarfile.CHRTYPE
    inside.type, inside.linkname = tarfile.SYMTYPE, "a.txt"
    for number, link in enumerate((away, device)):
        with pytest.raises(DataError, match=r"tar.gz is refused: '.*set/.* is not what was published: remove it\."):
            unpack(make_tar(tmp_path / f"{number}.tar.gz", FILES, link), tmp_path / "data" / "set")
    assert not tree(tmp_path / "data")
    unpack(make_tar(tmp_path / "good.tar.gz", FILES, inside), tmp_path / "data" / "set")
    assert (tmp_path / "data" / "set" / "inside").read_bytes() == b"first"

    link = zipfile.ZipInfo("set/away")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(make_zip(tmp_path / "link.zip", FILES), "a") as archive_file:
        archive_file.writestr(link, "../../secret")
    with pytest.raises(DataError, match=r"link.zip is refused: 'set/away' is a link"):
        unpack(tmp_path / "link.zip", tmp_path / "zipped")


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_damage_is_said_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    files = {"set/a.bin": bytes(range(256)) * 100, "set/b.bin": bytes(range(255, -1, -1)) * 100}
    archive = make(tmp_path / name, files)
    whole = archive.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    for number, content in enumerate((bytes(flipped), whole[: len(whole) // 2], b"<html>not here</html>", b"")):
        archive.write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} is (damaged|no zip).*: remove it and download it again\."):
            unpack(archive, tmp_path / f"set{number}")
    assert set(tree(tmp_path)) == {name}


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extractall", full)
    with pytest.raises(DataError, match=rf"{tmp_path}: the disk is full\. Make room, or give another `root`\."):
        unpack(make(tmp_path / "a.zip", FILES), tmp_path / "set")
