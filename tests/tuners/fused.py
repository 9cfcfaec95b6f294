"""Encoders of the published sizes without their weights: as transformers builds them, and with the published layers."""

import torch
from torch import nn
from transformers import ViTConfig, ViTModel

# width, blocks, heads, patch: ViT-S/8, ViT-B/16, ViT-L/16
SIZES = {"S": (384, 12, 6, 8), "B": (768, 12, 12, 16), "L": (1024, 24, 16, 16)}


class FusedBlock(nn.Module):
    """A block whose queries, keys and values come from one layer, as in timm and in the published encoders."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)


class FusedEncoder(nn.Module):
    """All that has parameters in the published encoders, but for the class token and the positions."""

    def __init__(self, width: int, depth: int, patch: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.ModuleList(FusedBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W): only the parameters are looked at."""
        return pixel_values


def fused_encoder(size: str) -> nn.Module:
    """An encoder with fused `qkv` on the meta device."""
    width, depth, _, patch = SIZES[size]
    with torch.device("meta"):
        return FusedEncoder(width, depth, patch)


def vit(size: str) -> nn.Module:
    """transformers' ViT on the meta device, with a layer each for q, k and v."""
    width, depth, heads, patch = SIZES[size]
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        patch_size=patch,
    )
    with torch.device("meta"):
        return ViTModel(config, add_pooling_layer=False)
