"""Tiny encoders of every architecture, with random weights, and adapters on them."""

from typing import Any

import peft
import pytest
import torch
import transformers
from packaging.version import Version
from peft import PeftModel, get_peft_model
from torch import nn

from deflect_hf import DeflectConfig

IMAGE = 32
PATCH = 8
DEPTH = 3
WIDTH = 32
HEADS = 4
BANDS = ["B", "G", "R", "N", "S1", "S2"]
SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": 64,
    "image_size": IMAGE,
    "patch_size": PATCH,
}
NEEDED = getattr(transformers.integrations.peft, "MIN_PEFT_VERSION", "0")
native_adapters = pytest.mark.skipif(
    Version(peft.__version__) < Version(NEEDED),
    reason=f"transformers {transformers.__version__} wants PEFT {NEEDED} for its own adapters",
)
# The architectures that every test runs on: each has something of its own.
ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTConfig", "ViTModel", {}),
    "vit_mae": ("ViTMAEConfig", "ViTMAEModel", {"mask_ratio": 0.5}),
    "dinov2_with_registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", {"mlp_ratio": 2}),
    # Without the rescaling that it draws at random in training, two runs can be compared.
    "dinov3_vit": ("DINOv3ViTConfig", "DINOv3ViTModel", {"pos_embed_rescale": None}),
}
FURTHER: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dinov2": ("Dinov2Config", "Dinov2Model", {"mlp_ratio": 2}),
    "deit": ("DeiTConfig", "DeiTModel", {}),
    "vit_msn": ("ViTMSNConfig", "ViTMSNModel", {}),
    "ijepa": ("IJepaConfig", "IJepaModel", {}),
    "beit": ("BeitConfig", "BeitModel", {"use_relative_position_bias": True, "drop_path_rate": 0.0}),
    "siglip": ("SiglipVisionConfig", "SiglipVisionModel", {}),
    "clip": ("CLIPVisionConfig", "CLIPVisionModel", {}),
}


def make_encoder(name: str = "vit", attention: str = "sdpa", model: str = "", **overrides: Any) -> nn.Module:
    """A tiny encoder in evaluation mode; `model` names another class of the same family."""
    config_name, model_name, extra = {**ENCODERS, **FURTHER}[name]
    config = getattr(transformers, config_name)(**{**SIZES, **extra, **overrides}, attn_implementation=attention)
    torch.manual_seed(0)
    encoder = getattr(transformers, model or model_name)(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in encoder.named_parameters():
            # Some classes leave register and mask tokens uninitialised, and layer scales may start near zero.
            if "token" in parameter_name or "lambda" in parameter_name:
                parameter.normal_(std=0.5)
    return encoder


def spectral_config(**overrides: Any) -> DeflectConfig:
    """A small adapter with the spectral road on."""
    fields = {"bands": BANDS, "base_mean": [0.1, 0.12, 0.14], "base_std": [0.1, 0.1, 0.1], "aux_dim": 16, "rank": 4}
    return DeflectConfig(**{**fields, **overrides})


def randomise(module: nn.Module, scale: float = 0.3, seed: int = 0) -> nn.Module:
    """Add random values to every trainable parameter, so that an adapter does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter))
    return module


def adapted(name: str = "vit", attention: str = "sdpa", trained: bool = True, **overrides: Any) -> PeftModel:
    """An adapted tiny encoder; `trained` gives the adapter random weights."""
    model = get_peft_model(make_encoder(name, attention), spectral_config(**overrides)).eval()
    return randomise(model) if trained else model


def run(model: nn.Module, pixel_values: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """Last hidden state; masked autoencoders get the same mask each time."""
    patches = (pixel_values.shape[-2] // PATCH) * (pixel_values.shape[-1] // PATCH)
    if getattr(model.config, "model_type", "") == "vit_mae":
        noise = torch.rand(len(pixel_values), patches, generator=torch.Generator().manual_seed(5))
        kwargs.setdefault("noise", noise)
    return model(pixel_values=pixel_values, **kwargs).last_hidden_state


def weighed(tokens: torch.Tensor) -> torch.Tensor:
    """A sum to take gradients of; behind a layer norm, those of a sum of squares are zero."""
    return (tokens * torch.linspace(-1, 1, tokens.numel()).view(tokens.shape)).sum()


def base_pixels(reflectance: torch.Tensor) -> torch.Tensor:
    """What the frozen model is given for `reflectance` in the order of `BANDS`: R, G, B, normalised."""
    rgb = reflectance[:, [BANDS.index(band) for band in ("R", "G", "B")]]
    mean = torch.tensor([0.1, 0.12, 0.14]).view(1, 3, 1, 1)
    return (rgb - mean) / torch.tensor([0.1, 0.1, 0.1]).view(1, 3, 1, 1)
