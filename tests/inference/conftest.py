"""A scene with a hole, and a model whose classes are those of the patches."""

from pathlib import Path

import numpy as np
import pytest

from deflect_hf.inference.predictor import Predictor
from tests.inference.scenes_and_models import PerPatch, predictor_of, stored, write_scene


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return stored(352, 96)


@pytest.fixture
def scene(tmp_path: Path, values: np.ndarray) -> Path:
    holes = values.copy()
    holes[:, 100:120, 30:50] = -9999
    return write_scene(tmp_path / "in.tif", holes)


@pytest.fixture
def predictor() -> Predictor:
    return predictor_of(PerPatch())
