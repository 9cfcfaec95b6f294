"""Published checkpoints in small, and GeoViT of every kind of position."""

from pathlib import Path

import pytest
import torch

from deflect_hf.models.geovit import GeoViTConfig, GeoViTModel
from tests.models.geovit.published import PUBLISHED, Published
from tests.tuners.tiny import SIZES

KINDS = {
    "learned": {},
    "sincos": {},
    "sincos_gsd": {},
    "sincos_3d": {"num_channels": 6, "num_frames": 3, "layer_norm_eps": 1e-5},
}


def make_encoder(kind: str, **overrides: object) -> GeoViTModel:
    """A tiny encoder in evaluation mode, with random weights."""
    torch.manual_seed(0)
    return GeoViTModel(GeoViTConfig(position_embedding=kind, **{**SIZES, **KINDS[kind], **overrides})).eval()


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def encoder(kind: str) -> GeoViTModel:
    return make_encoder(kind)


@pytest.fixture
def pixels(encoder: GeoViTModel) -> torch.Tensor:
    """Two rectangular images of another size than the pretraining's: (2, C, 32, 48)."""
    return torch.randn(2, encoder.config.num_channels, 32, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=list(PUBLISHED))
def published(request: pytest.FixtureRequest) -> Published:
    return PUBLISHED[request.param]


@pytest.fixture
def checkpoint(published: Published, tmp_path: Path) -> Path:
    """A file with the names, wrapping and additions of the published one."""
    return published.save(tmp_path / "published.pth")
