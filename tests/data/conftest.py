"""Tiny data folders, written on the spot."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deflect_hf.raster.write import write_raster

BANDS = ("B", "G", "R", "N")


def stored_image(seed: int, height: int = 6, width: int = 8) -> np.ndarray:
    """(4, H, W) int16 digital numbers."""
    return np.random.default_rng(seed).integers(300, 4000, (len(BANDS), height, width)).astype(np.int16)


@pytest.fixture
def segmentation_folder(tmp_path: Path) -> Path:
    """Ten images ``a0 .. a9`` of 6 x 8 pixels with masks of stored values 1 and 2, and 0 for not labelled."""
    root = tmp_path / "segments"
    for index in range(10):
        write_raster(root / "images" / f"a{index}.tif", stored_image(index), descriptions=BANDS)
        mask = np.random.default_rng(100 + index).integers(0, 3, (1, 6, 8)).astype(np.uint8)
        write_raster(root / "masks" / f"a{index}.tif", mask)
    return root


@pytest.fixture
def class_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes class folders: ``class_folder(forest=4, river=6)``; the files name no bands."""

    def make(**counts: int) -> Path:
        root = tmp_path / "classes"
        for rank, (name, count) in enumerate(counts.items()):
            for index in range(count):
                write_raster(root / name / f"{name}_{index}.tif", stored_image(100 * rank + index))
        return root

    return make
