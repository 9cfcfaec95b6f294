"""Small georeferenced scenes, and models whose output is known without running them."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.inference.predictor import Predictor
from deflect_hf.raster.header import RasterInfo
from deflect_hf.raster.write import write_raster

BANDS = ["R", "G", "N"]
PATCH = 8
UTM = (20.0, 0.0, 600000.0, 0.0, -20.0, 4800000.0)


class Stub(nn.Module):
    """A segmentation model as far as prediction looks at it."""

    def __init__(self, side: int = 32) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            patch_size=(PATCH, PATCH), encoder_config=SimpleNamespace(image_size=side), problem_type=None
        )
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(2, len(BANDS), 1, 1, generator=generator) * 8)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, pixel_values: Tensor) -> Any:
        """(B, C, H, W) reflectance -> logits (B, 2, H, W)"""
        self.seen.append(tuple(pixel_values.shape))
        return SimpleNamespace(logits=self.predict(torch.nan_to_num(pixel_values)))

    def predict(self, pixel_values: Tensor) -> Tensor:
        """Every pixel by itself."""
        return F.conv2d(pixel_values, self.weight)


class PerPatch(Stub):
    """Every patch by itself, as long as windows lie on whole patches."""

    def predict(self, pixel_values: Tensor) -> Tensor:
        """The mean of each patch decides for all its pixels."""
        coarse = F.avg_pool2d(pixel_values, PATCH)
        return F.conv2d(coarse, self.weight).repeat_interleave(PATCH, -1).repeat_interleave(PATCH, -2)


class Local(Stub):
    """Every pixel sees REACH pixels around it, and zeros beyond the window."""

    REACH = 2

    def predict(self, pixel_values: Tensor) -> Tensor:
        """A box around each pixel decides for it."""
        side = 2 * self.REACH + 1
        kernel = self.weight.expand(-1, -1, side, side) / side**2
        return F.conv2d(pixel_values, kernel, padding=self.REACH)


class WindowDependent(Stub):
    """What a pixel becomes depends on its place in the window: the worst case for seams."""

    def predict(self, pixel_values: Tensor) -> Tensor:
        """Pixels as above, plus a ramp over the window for the first class."""
        ramp = torch.linspace(-1, 1, pixel_values.shape[-1]) * torch.tensor([1.0, 0.0])[:, None, None]
        return F.conv2d(pixel_values, self.weight) + ramp


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as source:
        return source.read()


def predictor_of(model: nn.Module, **processor: Any) -> Predictor:
    """A predictor of two classes."""
    options: dict[str, Any] = {"scale": 1e-4, "source_bands": BANDS, "gsd_m": 20.0, **processor}
    return Predictor(
        model, MultispectralImageProcessor(BANDS, **options), task="segmentation", classes=("land", "water")
    )


def info_of(values: np.ndarray, crs: str | None = "EPSG:32635", **changes: Any) -> RasterInfo:
    """The header of a scene (C, H, W) in UTM."""
    count, height, width = values.shape
    info = RasterInfo(
        "scene", count, height, width, str(values.dtype), ("",) * count, (1.0,) * count, (0.0,) * count,
        (None,) * count, crs, UTM, 20.0,
    )  # fmt: skip
    return dataclasses.replace(info, **changes)


def stored(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(3, height, width) int16 reflectance x 10000."""
    return np.random.default_rng(seed).integers(200, 4000, (len(BANDS), height, width)).astype(np.int16)


def write_scene(path: Path, values: np.ndarray, nodata: float | None = -9999, **changes: Any) -> Path:
    """A GeoTIFF that names its bands."""
    bands = changes.pop("descriptions", BANDS)
    write_raster(path, values, like=info_of(values, **changes), nodata=nodata, descriptions=bands)
    return path


def probabilities_of(predictor: Predictor, values: np.ndarray) -> np.ndarray:
    """(2, H, W) of a whole scene at once; its sides are multiples of the patch."""
    return predictor(values)[0].numpy()


def map_of(predictor: Predictor, scene: Path | str, target: Path, **options: Any) -> Path:
    """The map of a scene; probabilities unless ``options`` say otherwise."""
    predictor.predict_raster(scene, target, **{"output": "probabilities", "window": 32, **options})
    return target


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of four rows and columns of windows, so that a small scene has several."""
    for name, value in {"WINDOWS_PER_BLOCK": 1, "LEAST_WINDOWS": 4, "SUMS_BYTES": 1}.items():
        monkeypatch.setattr(f"deflect_hf.inference.blocks.{name}", value)
