"""Networks without transformer blocks, to compare adapters with: a per-pixel MLP and a plain small U-Net.

They take the place of an encoder whose patches are single pixels, so that the task models, their heads, loss, windows
and files are those of every other method. An image of all bands arrives standardised; what was not measured is 0.

    train.py --finetune full --encoder.random.model_type deflect_unet --encoder.random.num_channels 7
        --encoder.base_bands A B G R N S1 S2 ...
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


@strict
class PixelConfig(PreTrainedConfig):
    """An encoder whose patches are pixels, with one block whose output a head may read."""

    num_channels: int = 3
    hidden_size: int = 64
    num_hidden_layers: int = 1
    patch_size: int = 1
    image_size: int | None = None


@strict
class PixelNetConfig(PixelConfig):
    """``PixelNet``: hidden layers of ``hidden_size`` channels on the bands of each pixel alone."""

    model_type = "deflect_pixel_mlp"
    hidden_layers: int = 2


@strict
class UNetConfig(PixelConfig):
    """``UNet``: ``levels`` resolutions, the first of ``hidden_size`` channels, each further one of twice as many."""

    model_type = "deflect_unet"
    hidden_size: int = 24
    levels: int = 4


class _PixelTokens(PreTrainedModel):
    """Tokens of single pixels, made by ``features``: (B, C + 1, H, W), the validity last -> (B, D, H, W)."""

    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    features: Any

    def get_input_embeddings(self) -> nn.Module:
        """The first layer."""
        return next(module for module in self.modules() if isinstance(module, nn.Conv2d))

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutput:
        """(B, C, H, W) standardised, 0 where not measured -> last_hidden_state (B, H * W, D)"""
        valid = (pixel_values != 0).any(dim=1, keepdim=True).to(pixel_values.dtype)
        maps = self.features(torch.cat([pixel_values, valid], dim=1))
        return BaseModelOutput(last_hidden_state=maps.flatten(2).transpose(1, 2))


class PixelNet(_PixelTokens):
    """An MLP on the bands of each pixel: what the spectrum says without any neighbour."""

    config_class = PixelNetConfig

    def __init__(self, config: PixelNetConfig) -> None:
        super().__init__(config)
        layers: list[nn.Module] = []
        width = config.num_channels + 1
        for _ in range(config.hidden_layers):
            layers += [nn.Conv2d(width, config.hidden_size, 1), nn.GELU()]
            width = config.hidden_size
        self.layers = nn.Sequential(*layers)
        self.post_init()

    def features(self, inputs: Tensor) -> Tensor:
        """(B, C + 1, H, W) -> (B, D, H, W)"""
        return self.layers(inputs)


class UNet(_PixelTokens):
    """Source: Ronneberger et al., U-Net (arXiv 1505.04597), with padding, BatchNorm and bilinear upsampling."""

    config_class = UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        widths = [config.hidden_size * 2**level for level in range(config.levels)]
        self.down = nn.ModuleList(
            double_conv(before, after)
            for before, after in zip([config.num_channels + 1, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(double_conv(3 * width, width) for width in widths[:-1])
        self.post_init()

    def features(self, inputs: Tensor) -> Tensor:
        """(B, C + 1, H, W) -> (B, D, H, W), of any size"""
        return down_and_up(self.down, self.up, inputs)


def down_and_up(down: nn.ModuleList, up: nn.ModuleList, inputs: Tensor, tokens: Tensor | None = None) -> Tensor:
    """(B, C, H, W), (B, T, h, w) that join the lowest level -> (B, D, H, W), of any size"""
    maps, skipped = inputs, []
    for level, conv in enumerate(down):
        if level:
            maps = F.max_pool2d(maps, 2, ceil_mode=True)
        if tokens is not None and level == len(down) - 1:
            maps = torch.cat([maps, resized(tokens, maps)], dim=1)
        maps = conv(maps)
        skipped.append(maps)
    for conv, skip in zip(reversed(up), reversed(skipped[:-1]), strict=True):
        maps = conv(torch.cat([skip, resized(maps, skip)], dim=1))
    return maps


def resized(maps: Tensor, like: Tensor) -> Tensor:
    """(B, D, h, w), (..., H, W) -> (B, D, H, W)"""
    return F.interpolate(maps, size=like.shape[-2:], mode="bilinear", align_corners=False)


def double_conv(before: int, after: int) -> nn.Sequential:
    """Two convolutions 3 x 3 with BatchNorm and ReLU: (B, before, H, W) -> (B, after, H, W)"""
    layers: list[nn.Module] = []
    for width in (before, after):
        layers += [nn.Conv2d(width, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)
