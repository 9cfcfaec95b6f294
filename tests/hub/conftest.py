"""A local Hub that this process talks to, and tiny trained runs to publish."""

import copy
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pytest
import transformers
from huggingface_hub import constants, hf_api

from deflect_hf.artifacts import saved_model as checkpoints
from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.run import RunArguments
from deflect_hf.hub.push import push
from deflect_hf.hub.sanitize import Base, stage
from deflect_hf.training.run import run
from tests.hub.server import Hub, running
from tests.hub.store import Repository

CONF = Path(__file__).resolve().parents[1] / "conf"


@contextmanager
def connected(cache: Path) -> Iterator[Hub]:
    """An empty Hub; the client in this process is alice's, with an empty cache, and knows no other Hub."""
    with running() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(cache),
            "HF_TOKEN_PATH": str(cache / "no-token"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_ETAG_TIMEOUT": 120,  # seconds; the machine may be busy
            "HF_HUB_DOWNLOAD_TIMEOUT": 120,
        }.items():
            patch.setattr(constants, name, value)
        # clients that are made once per process, with their endpoint
        patch.setattr(hf_api.api, "endpoint", server.url)
        patch.setattr(transformers.utils.hub, "_hf_api", None)
        patch.setenv("HF_TOKEN", "hf_alice")
        yield server
        huggingface_hub.close_session()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """An empty Hub that this process talks to."""
    with connected(tmp_path / "cache") as server:
        yield server


@pytest.fixture(scope="session")
def pushed(runs: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Repository]:
    """What a push makes of a run, by its method: to be put among the repositories of another Hub."""
    made: dict[str, Repository] = {}

    def get(method: str) -> Repository:
        if method not in made:
            with connected(tmp_path_factory.mktemp("cache")) as server:
                push(runs(method), "alice/land", picture=False)
                made[method] = server.repositories["alice/land"]
        return copy.deepcopy(made[method])

    return get


def environment(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    """The environment of another process that talks to the same Hub, as alice, with a cache in ``home``."""
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": "hf_alice"}
    own |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
    return {**os.environ, **own, **more}


def train(folder: Path, *words: str, task: str = "segmentation") -> Path:
    """A tiny run of one epoch; returns its folder."""
    few = ("--epochs", "1", "--dataset.num_samples", "16")
    argv = ["--config", str(CONF / f"{task}.yaml"), "--work_dir", str(folder), *few, *words]
    run(parse_arguments(RunArguments, "test", argv))
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run by its method, trained when it is first asked for."""
    made: dict[str, Path] = {}

    def get(method: str) -> Path:
        if method not in made:
            folder = tmp_path_factory.mktemp(method) / "run"
            options = () if method == "deflect" else ("--method", "{}")
            made[method] = train(folder, "--finetune", method, *options)
        return made[method]

    return get


def staged(folder: Path, method: str, runs: Callable[[str], Path]) -> Path:
    """What a push would publish, with its encoder on the Hub."""
    best = runs(method) / "best"
    config = checkpoints.read_config(best)
    config.encoder.random, config.encoder.name_or_path = None, "alice/encoder"
    folder.mkdir()
    stage(best, folder, config, Base("alice/encoder", "main"))
    return folder


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory, runs: Callable[[str], Path]) -> Path:
    return staged(tmp_path_factory.mktemp("good") / "deflect", "deflect", runs)


@pytest.fixture
def published(good: Path, tmp_path: Path) -> Path:
    """A copy of what a push publishes of an adapter whose encoder is on the Hub."""
    return shutil.copytree(good, tmp_path / "published")
