"""Whatever goes wrong on the way is said in one sentence, and leaves nothing behind that a later load would trust."""

import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, file_download

import deflect_hf
from deflect_hf.errors import CheckpointError, HubError
from deflect_hf.hub.push import push
from tests.hub.server import Hub
from tests.hub.store import Repository

Runs = Callable[[str], Path]
IMAGES = torch.full((1, 7, 16, 16), 900.0)
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def serving(hub: Hub, pushed: Callable[[str], Repository], monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A Hub with alice/land; the client waits no seconds between its attempts."""
    hub.repositories["alice/land"] = pushed("deflect")
    monkeypatch.setattr(file_download, "time", types.SimpleNamespace(sleep=lambda seconds: None))
    return hub


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("swap", "alice/land: adapter_model.safetensors has another hash than the Hub announced"),
        ("short", "alice/land: the transfer from or to {hub} failed, and nothing of it was kept: Consistency check"),
        ("drop", "alice/land: the transfer from or to {hub} failed, and nothing of it was kept: "),
    ],
)
def test_a_broken_download_is_refused_and_not_kept(how: str, message: str, serving: Hub) -> None:
    serving.break_file(WEIGHTS, how)
    with pytest.raises(HubError) as caught:
        deflect_hf.load_predictor("alice/land")
    assert str(caught.value).startswith(message.format(hub=serving.url)) and "\n" not in str(caught.value)
    assert not [path for path in Path(constants.HF_HUB_CACHE).rglob(WEIGHTS) if path.exists()]
    with pytest.raises(HubError, match="alice/land is not complete in the cache"):
        deflect_hf.load_predictor("alice/land", local_files_only=True)
    serving.broken.clear()
    assert deflect_hf.load_predictor("alice/land")(IMAGES).shape == (1, 4, 16, 16)


def test_a_file_that_changed_in_the_cache_is_noticed(serving: Hub) -> None:
    deflect_hf.load_predictor("alice/land")
    (path,) = Path(constants.HF_HUB_CACHE).rglob(WEIGHTS)
    blob = path.resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"\1")
    with pytest.raises(HubError, match="has another hash than the Hub announced"):
        deflect_hf.load_predictor("alice/land", local_files_only=True)
    deflect_hf.load_predictor("alice/land")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("alice/nothing", {}, "alice/nothing: there is no such model on http://127.0.0.1"),
        ("alice/land", {"revision": "step-9"}, "alice/land has no revision 'step-9': give a branch, a tag or a commit"),
        ("alice/land", {"token": "hf_wrong"}, "alice/land: the Hub does not know this token. Give a valid one: "),
        (__file__, {}, f"{__file__} is a file: give the folder of the run"),
        ("land", {}, "There is no folder 'land' on this machine, and 'land' is no name of a repository on the Hub: "),
        ("a/b/c", {}, "There is no folder 'a/b/c' on this machine, and 'a/b/c' is no name of a repository"),
        ("../land", {}, "There is no folder '../land' on this machine, and '../land' is no name of a repository"),
    ],
)
def test_what_is_not_there_is_named(name: str, options: dict, message: str, serving: Hub) -> None:
    with pytest.raises(HubError) as caught:
        deflect_hf.load_predictor(name, **options)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_a_hub_that_is_down_is_said_and_the_cache_suffices(serving: Hub) -> None:
    expected = deflect_hf.load_predictor("alice/land")(IMAGES)
    serving.down = True
    with pytest.raises(HubError, match=r"alice/land: the Hub answered with an error: Server error '503"):
        deflect_hf.load_predictor("alice/land")
    assert torch.equal(deflect_hf.load_predictor("alice/land", local_files_only=True)(IMAGES), expected)


def test_a_repository_without_a_trained_model_is_refused_before_its_files_are_fetched(hub: Hub) -> None:
    hub.put("alice/old", {"adapter_model.bin": b"pickle", "config.json": b"{}"})
    with pytest.raises(CheckpointError) as caught:
        deflect_hf.load_predictor("alice/old")
    assert str(caught.value) == (
        "alice/old holds no adapter_model.safetensors or head.safetensors or model.safetensors, only "
        "'adapter_model.bin': such a file may run any program when it is opened, so it is not. Ask its author for "
        "safetensors."
    )
    assert not [request for request in hub.requests if "/resolve/" in request]


def test_a_hub_that_cannot_be_reached_is_said(serving: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"alice/land: the transfer from or to http://127\.0\.0\.1:9 failed"):
        deflect_hf.load_predictor("alice/land")


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        ("hf_wrong", "alice/land", "alice/land: the Hub does not know this token. Give a valid one: `hf auth login`"),
        ("hf_bob", "alice/land", "'bob' may not write to alice/land with this token. Give a token with the right to"),
        ("hf_reader", "alice/new", "'alice' may not write to alice/new with this token. Give a token with the right"),
        (None, "alice/land", "alice/land: no token of the Hub was found. Give one: `hf auth login`, the variable HF_"),
        ("hf_alice", "land", "'land' is no name of a repository on the Hub: give user/name, letters, digits and -_. ."),
    ],
)
def test_what_may_not_be_pushed_is_said_before_anything_goes_up(
    token: str | None, repo_id: str, message: str, hub: Hub, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create("alice/land")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError) as caught:
        push(runs("frozen"), repo_id, token=token, picture=False)
    assert str(caught.value).startswith(message)
    assert not [request for request in hub.requests if "preupload" in request]


def test_what_is_to_be_private_does_not_go_to_a_public_place(hub: Hub, runs: Runs) -> None:
    hub.create("alice/land")
    with pytest.raises(HubError, match="alice/land is there already and public, but it was to be private"):
        push(runs("frozen"), "alice/land", private=True, picture=False)
    with pytest.raises(HubError, match="'refs/pr/1' is no name of a branch: letters, digits"):
        push(runs("frozen"), "alice/land", revision="refs/pr/1", picture=False)


def test_a_push_while_offline_is_refused(hub: Hub, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="alice/land: nothing can be pushed while HF_HUB_OFFLINE is set: unset it"):
        push(runs("frozen"), "alice/land", picture=False)
