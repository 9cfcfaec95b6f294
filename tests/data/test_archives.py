"""Archives become folders: all of it or nothing, and nothing outside."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from deflect_hf.data.archives import unpack
from deflect_hf.errors import DataError

FILES = {"set/a.txt": b"first", "set/deep/b.bin": bytes(3000)}


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


def tree(folder: Path) -> dict[str, bytes]:
    """Content of each file a user sees below ``folder``."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar"])
@pytest.mark.parametrize(
    ("folder", "found"),
    [("set", {"a.txt": b"first", "deep/b.bin": bytes(3000)}), ("other", FILES)],
    ids=["its only folder has the name", "it has another name"],
)
def test_an_archive_becomes_a_folder(tmp_path: Path, name: str, folder: str, found: Mapping[str, bytes]) -> None:
    archive = (make_zip if name.endswith("zip") else make_tar)(tmp_path / name, FILES)
    target = tmp_path / "data" / folder
    assert unpack(archive, target) == target
    assert tree(target) == found
    assert {path.name for path in target.parent.iterdir()} == {folder, f".{folder}.lock"}


def test_a_folder_that_is_there_is_left_alone_and_one_half_done_is_made_anew(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", FILES)
    half = tmp_path / ".set.unpacking"
    half.mkdir()
    (half / "stale").write_bytes(b"of an interrupted run")
    assert tree(unpack(archive, tmp_path / "set")) == {"a.txt": b"first", "deep/b.bin": bytes(3000)}
    (tmp_path / "set" / "a.txt").write_bytes(b"mine")
    assert tree(unpack(archive, tmp_path / "set"))["a.txt"] == b"mine"


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/out.txt", "set/../../out.txt", "C:/out.txt", "..\\out.txt"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_nothing_is_written_outside(tmp_path: Path, name: str, kind: str) -> None:
    make = make_zip if kind == "zip" else make_tar
    archive = make(tmp_path / f"a.{kind}", {"set/a.txt": b"first", name: b"evil"})
    with pytest.raises(DataError) as caught:
        unpack(archive, tmp_path / "data" / "set")
    assert str(caught.value) == (
        f"{archive} holds {name!r}, which would be written outside of its folder: it is not what was published, "
        f"remove it."
    )
    assert not tree(tmp_path / "data")


def test_links_that_lead_outside_and_devices_are_refused(tmp_path: Path) -> None:
    away, device, inside = (tarfile.TarInfo(name) for name in ("set/away", "set/device", "set/inside"))
    away.type, away.linkname = tarfile.SYMTYPE, "../../secret"
    device.type = tarfile.CHRTYPE
    inside.type, inside.linkname = tarfile.SYMTYPE, "a.txt"
    for number, link in enumerate((away, device)):
        archive = make_tar(tmp_path / f"{number}.tar.gz", FILES, link)
        with pytest.raises(DataError, match=r"tar.gz is refused: '.*set/.* is not what was published: remove it\."):
            unpack(archive, tmp_path / "data" / "set")
    assert not tree(tmp_path / "data")
    unpack(make_tar(tmp_path / "good.tar.gz", FILES, inside), tmp_path / "data" / "set")
    assert (tmp_path / "data" / "set" / "inside").read_bytes() == b"first"

    link = zipfile.ZipInfo("set/away")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(make_zip(tmp_path / "link.zip", FILES), "a") as archive_file:
        archive_file.writestr(link, "../../secret")
    with pytest.raises(DataError, match=r"link.zip holds the link 'set/away': archives of data hold files only\."):
        unpack(tmp_path / "link.zip", tmp_path / "zipped")


def test_more_than_the_disk_has_room_for_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    def grow(path: Path, kind: str) -> Path:
        """Declare 2**62 bytes for a member of a few."""
        if kind == "tar":
            member = tarfile.TarInfo("set/bomb")
            member.size = 2**62
            path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
            return path
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("set/bomb", b"few")
            archive.filelist[0].file_size = 2**62
        return path

    for kind in ("zip", "tar"):
        archive = grow(tmp_path / f"bomb.{kind}", kind)
        with pytest.raises(
            DataError, match=r"^No room for .*: it takes 4611686018\.43 GB, but .* has [\d.]+ GB free\."
        ):
            unpack(archive, tmp_path / kind)
        assert not (tmp_path / kind).exists()


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_damage_is_said_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    files = {"set/a.bin": bytes(range(256)) * 100, "set/b.bin": bytes(range(255, -1, -1)) * 100}
    archive = (make_zip if name.endswith("zip") else make_tar)(tmp_path / name, files)
    whole = archive.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    for number, content in enumerate((bytes(flipped), whole[: len(whole) // 2], b"<html>not here</html>", b"")):
        archive.write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} is (damaged|no zip).*: remove it and download it again\."):
            unpack(archive, tmp_path / f"set{number}")
    assert set(tree(tmp_path)) == {name}
    archive.unlink()
    with pytest.raises(DataError, match="is not there: check the path"):
        unpack(archive, tmp_path / "set")
