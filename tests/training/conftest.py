"""Fixtures shared by the tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.test_run import train


@pytest.fixture(scope="session")
def deflect_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A run's folder and its results: two epochs of eight steps."""
    folder = tmp_path_factory.mktemp("deflect") / "run"
    return folder, train(folder, "--ckpt_steps", "5")
