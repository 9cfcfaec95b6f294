"""Tiny encoders of every supported family, and images for them."""

from collections.abc import Callable, Iterator

import pytest
import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from deflect_hf.models.geovit import GeoViTConfig, GeoViTModel

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
ENCODERS: dict[str, Callable[[], PreTrainedModel]] = {
    "vit": lambda: ViTModel(ViTConfig(**SIZES, intermediate_size=64)),
    "vit_mae": lambda: ViTMAEModel(ViTMAEConfig(**SIZES, intermediate_size=64)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SIZES, mlp_ratio=2)),
    "dinov2_with_registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES, mlp_ratio=2)),
    "geovit": lambda: GeoViTModel(GeoViTConfig(**SIZES, intermediate_size=64, position_embedding="sincos_gsd")),
    "dinov3_vit": lambda: DINOv3ViTModel(DINOv3ViTConfig(**SIZES, intermediate_size=64, num_register_tokens=2)),
}


@pytest.fixture(params=list(ENCODERS))
def encoder(request: pytest.FixtureRequest) -> PreTrainedModel:
    """One tiny random encoder per family: 4 blocks, D = 32, patch 8, pretrained on 32 x 32 pixels."""
    torch.manual_seed(0)
    return ENCODERS[request.param]().eval()


@pytest.fixture
def vit() -> ViTModel:
    torch.manual_seed(0)
    return ENCODERS["vit"]().eval()


@pytest.fixture
def images() -> torch.Tensor:
    """Two images at the size of the pretraining: (2, 3, 32, 32)."""
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def wide_images() -> torch.Tensor:
    """Two rectangular images of another size: (2, 3, 32, 48)."""
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _no_compiled_code_is_kept() -> Iterator[None]:
    """All compiled models share transformers' output decorator, and torch limits the recompilations per function."""
    yield
    torch.compiler.reset()


@pytest.fixture
def settings() -> Callable[[PreTrainedConfig], dict]:
    """All a configuration says, without where and in which precision it was loaded."""

    def read(config: PreTrainedConfig) -> dict:
        values = config.to_dict()
        nested = values.pop("encoder_config")
        return {name: value for name, value in (nested | values).items() if name not in ("_name_or_path", "dtype")}

    return read
