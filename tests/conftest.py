"""Fixtures shared by all tests."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

# the same examples in every run, however slow the machine and whatever modules the tests before have loaded (constants
# of those would be drawn); --hypothesis-profile default searches for others
settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")
providers._get_local_constants = lambda: providers._local_constants


def shared_data_dir() -> Path | None:
    """The folder with the real images: ``$DEFLECT_SHARED_DATA``, else ``shared/data`` beside the checkout."""
    candidates = [os.environ.get("DEFLECT_SHARED_DATA"), Path(__file__).resolve().parents[2] / "shared" / "data"]
    return next((Path(path) for path in candidates if path and Path(path).is_dir()), None)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real images; tests that need it are skipped where it is absent."""
    path = shared_data_dir()
    if path is None:
        pytest.skip("real images are not here: set DEFLECT_SHARED_DATA to the folder that holds water/ and eurosat200/")
    return path


@pytest.fixture
def reflectance() -> torch.Tensor:
    """(2, 6, 32, 32) plausible reflectance in the order of the tiny models' bands B, G, R, N, S1, S2."""
    return 0.02 + 0.4 * torch.rand(2, 6, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session", autouse=True)
def empty_curves() -> Iterator[None]:
    """Runs in this process draw no curves: that takes half of a tiny run's time. `tests/test_cli.py` looks at some."""
    from deflect_hf.figures.colors import new_figure, save

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deflect_hf.training.run.curves_figure", lambda path, _: save(new_figure(0.1, 0.1), path))
        yield


@pytest.fixture(scope="session")
def deflect_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A run's folder and its results: two epochs of eight steps."""
    from tests.training.test_run import train

    folder = tmp_path_factory.mktemp("deflect") / "run"
    return folder, train(folder, "--ckpt_steps", "5")


@pytest.fixture(autouse=True)
def own_log() -> None:
    """Entry points called in a test or in a shared fixture set our's log level and handler: tests start bare."""
    logger = logging.getLogger("deflect_hf")
    logger.setLevel(logging.NOTSET)
    logger.handlers.clear()
