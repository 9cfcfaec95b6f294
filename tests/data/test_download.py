"""Files over HTTP and from the Hub: resumed, verified, all or nothing."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deflect_hf.data.download import fetch, fetch_from_hub
from deflect_hf.errors import DataError
from tests.data.web import FileServer, Mischief, serving, serving_hub

CONTENT = bytes(range(256)) * 40
MD5 = hashlib.md5(CONTENT).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving({"/data.zip": CONTENT}) as files:
        yield files


def left(folder: Path) -> set[str]:
    """Files that a user sees."""
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_a_file_is_fetched_verified_and_not_fetched_again(server: FileServer, tmp_path: Path) -> None:
    target = tmp_path / "new" / "data.zip"
    for _ in range(2):
        assert fetch(f"{server.url}/data.zip", target, sha256=SHA256.upper(), md5=MD5, size=len(CONTENT)) == target
    assert target.read_bytes() == CONTENT and left(target.parent) == {"data.zip"}
    assert server.ranges == [None]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drops=st.lists(st.integers(1, len(CONTENT) // 4 - 1), max_size=4), ignored=st.booleans())
def test_broken_connections_are_resumed_where_they_broke(
    server: FileServer, tmp_path: Path, drops: list[int], ignored: bool
) -> None:
    server.log.clear()
    server.mischief.extend(Mischief(drop_after=drop) for drop in drops)
    server.mischief.append(Mischief(ignore_range=ignored))
    target = tmp_path / "data.zip"
    target.unlink(missing_ok=True)
    fetch(f"{server.url}/data.zip", target, sha256=SHA256, backoff_s=0.0)
    server.mischief.clear()
    assert target.read_bytes() == CONTENT and left(tmp_path) == {"data.zip"}
    arrived = [sum(drops[:number]) for number in range(len(drops) + 1)]
    assert server.ranges == [f"bytes={have}-" if have else None for have in arrived]


def test_a_server_that_stalls_is_asked_again_after_longer_and_longer_waits(
    server: FileServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.mischief.extend([Mischief(status=503), Mischief(stall_s=0.5), Mischief(status=502)])
    fetch(f"{server.url}/data.zip", tmp_path / "data.zip", md5=MD5, timeout_s=0.2, backoff_s=0.01)
    waits = [message.split("; next try in ") for message in caplog.messages]
    assert [wait for _, wait in waits] == ["0.01 s", "0.02 s", "0.04 s"]
    assert "the server answers 503" in waits[0][0] and "timed out" in waits[1][0]


def test_a_later_run_goes_on_from_what_an_earlier_one_kept(server: FileServer, tmp_path: Path) -> None:
    target = tmp_path / "data.zip"
    server.mischief.extend([Mischief(drop_after=700), Mischief(status=503), Mischief(status=503)])
    with pytest.raises(DataError) as caught:
        fetch(f"{server.url}/data.zip", target, tries=3, backoff_s=0.0)
    assert str(caught.value) == (
        f"{server.url}/data.zip cannot be fetched, 3 tries in a row failed (the server answers 503). 700 bytes have "
        f"arrived and are kept: run it again to go on from there."
    )
    assert (tmp_path / "data.zip.part").read_bytes() == CONTENT[:700]
    fetch(f"{server.url}/data.zip", target, md5=MD5)
    assert server.ranges[-1] == "bytes=700-" and target.read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_fetched_from_its_start(server: FileServer, tmp_path: Path) -> None:
    target = tmp_path / "data.zip"
    server.mischief.append(Mischief(drop_after=700))
    with pytest.raises(DataError, match="1 tries in a row"):
        fetch(f"{server.url}/data.zip", target, tries=1)
    server.files["/data.zip"] = CONTENT[::-1]
    assert fetch(f"{server.url}/data.zip", target).read_bytes() == CONTENT[::-1]
    assert left(tmp_path) == {"data.zip"}


@pytest.mark.parametrize(("kept", "ranges"), [(CONTENT, 1), (CONTENT + b"more", 2)])
def test_a_kept_part_that_is_whole_is_taken_and_one_too_long_is_not(
    server: FileServer, tmp_path: Path, kept: bytes, ranges: int
) -> None:
    (tmp_path / "data.zip.part").write_bytes(kept)
    assert fetch(f"{server.url}/data.zip", tmp_path / "data.zip", backoff_s=0.0).read_bytes() == CONTENT
    assert len(server.ranges) == ranges


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (404, "the server does not have it (HTTP 404). Check the address."),
        (403, "the server does not allow it (HTTP 403). Check the address."),
        (400, "the server says Bad Request (HTTP 400). Check the address."),
    ],
)
def test_refusals_are_final(server: FileServer, tmp_path: Path, status: int, text: str) -> None:
    server.mischief.append(Mischief(status=status))
    with pytest.raises(DataError) as caught:
        fetch(f"{server.url}/data.zip", tmp_path / "data.zip")
    assert str(caught.value) == f"{server.url}/data.zip: {text}"
    assert len(server.ranges) == 1 and not left(tmp_path)


def test_a_server_that_is_not_there_is_said(tmp_path: Path) -> None:
    with serving({}) as gone:
        pass
    with pytest.raises(DataError, match=r"2 tries in a row failed \(.*[Cc]onnection refused\)\. Nothing has arrived"):
        fetch(f"{gone.url}/data.zip", tmp_path / "data.zip", tries=2, backoff_s=0.0)


def test_wrong_bytes_are_removed(server: FileServer, tmp_path: Path) -> None:
    target, wrong = tmp_path / "data.zip", "0" * 32
    with pytest.raises(DataError) as caught:
        fetch(f"{server.url}/data.zip", target, md5=wrong)
    assert str(caught.value) == (
        f"{server.url}/data.zip has the md5 {MD5}, but {wrong} is published: it has been removed. Try again; if it "
        f"stays so, the file at this address is another one by now."
    )
    with pytest.raises(DataError, match=r"data.zip has 10240 bytes, but 99 are published: it is another file"):
        fetch(f"{server.url}/data.zip", target, size=99)
    assert not left(tmp_path)
    target.write_bytes(b"mine")
    with pytest.raises(DataError, match=r"data.zip has 4 bytes, but 10240 are published: remove it, and it is fetched"):
        fetch(f"{server.url}/data.zip", target, size=len(CONTENT))
    assert target.read_bytes() == b"mine"


def test_a_full_disk_is_said(server: FileServer, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "data.zip.part").symlink_to("/dev/full")
    with pytest.raises(DataError) as caught:
        fetch(f"{server.url}/data.zip", tmp_path / "data.zip")
    assert str(caught.value) == f"{tmp_path / 'data.zip.part'}: the disk is full. Make room, or give another `root`."


def test_of_several_processes_one_fetches(server: FileServer, tmp_path: Path) -> None:
    server.mischief.append(Mischief(drop_after=10))
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=fetch, args=(f"{server.url}/data.zip", tmp_path / "data.zip")) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert server.ranges == [None, "bytes=10-"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with serving_hub({"them/theirs/main/sub/data.zip": CONTENT}, monkeypatch) as files:
        yield files


def test_files_of_the_hub(hub: FileServer, tmp_path: Path) -> None:
    path = fetch_from_hub("them/theirs", "sub/data.zip", tmp_path, md5=MD5)
    assert path == tmp_path / "sub" / "data.zip" and path.read_bytes() == CONTENT
    with pytest.raises(DataError, match=r"data.zip of them/theirs on the Hub has the md5 .* it has been removed"):
        fetch_from_hub("them/theirs", "sub/data.zip", tmp_path, md5="0" * 32)
    assert not path.exists()
    with pytest.raises(DataError, match=r"other.zip of them/theirs on the Hub cannot be fetched: .*404"):
        fetch_from_hub("them/theirs", "other.zip", tmp_path)


def test_without_the_hub_the_file_can_be_put_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError) as caught:
        fetch_from_hub("them/theirs", "data.zip", tmp_path)
    assert str(caught.value) == (
        f"data.zip of them/theirs on the Hub cannot be fetched: the Hub cannot be reached, or HF_HUB_OFFLINE is set. "
        f"Fetch the file elsewhere and put it into {tmp_path}."
    )
