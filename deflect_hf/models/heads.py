"""Task heads on the tokens of a vision transformer.

Every head reads a list with one tensor per output layer. Segmentation heads take channels-last patch maps
(B, h, w, D) and return logits at whatever resolution they reach; the model brings them to the size of the image.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from deflect_hf.errors import BandError, ConfigError, DataError, listing
from deflect_hf.models.configuration import EncoderForSemanticSegmentationConfig, EncoderWithHeadConfig
from deflect_hf.models.rivals import double_conv, down_and_up, resized

AUXILIARY_LEVEL = 2
AUXILIARY_CHANNELS = 256
MAX_UPSAMPLING_STAGES = 2
TOKEN_CHANNELS = 48
UNET_LEVELS = 4


class SegmentationLogits(NamedTuple):
    """Logits (B, K, h, w) of a segmentation head, and of its auxiliary head where it has one that is in use."""

    logits: Tensor
    auxiliary: Tensor | None = None


class ConcatenatedLayers(nn.Module):
    """Several output layers as one tensor. Each has its own LayerNorm: the scale of tokens grows with depth."""

    def __init__(self, config: EncoderWithHeadConfig) -> None:
        super().__init__()
        size = config.encoder_config.hidden_size
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in config.feature_layers)
        self.out_features = size * len(self.norms)

    def forward(self, features: list[Tensor]) -> Tensor:
        """[(B, ..., D)] * L -> (B, ..., L * D)"""
        return torch.cat([norm(layer) for norm, layer in zip(self.norms, features, strict=True)], dim=-1)


class TokenHead(nn.Sequential):
    """``linear`` or ``mlp`` classifier on each position: [(B, ..., D)] * L -> (B, ..., K)."""

    def __init__(self, config: EncoderWithHeadConfig) -> None:
        layers = ConcatenatedLayers(config)
        modules: list[nn.Module] = [layers]
        width = layers.out_features
        if config.head == "mlp":
            modules += [nn.Linear(width, config.hidden_channels), nn.GELU()]
            width = config.hidden_channels
        super().__init__(*modules, nn.Dropout(config.dropout), nn.Linear(width, config.num_labels))


class TokenSegmentationHead(nn.Module):
    """``linear`` or ``mlp``: each patch is classified by itself (a 1 x 1 convolution)."""

    def __init__(self, config: EncoderForSemanticSegmentationConfig) -> None:
        super().__init__()
        self.classifier = TokenHead(config)

    def forward(self, features: list[Tensor]) -> SegmentationLogits:
        """[(B, h, w, D)] * L -> (B, K, h, w)"""
        return SegmentationLogits(self.classifier(features).permute(0, 3, 1, 2))


class ConvSegmentationHead(nn.Module):
    """``conv``: learned upsampling by up to 4, for detail below the patch size at a fraction of UPerNet's weights.

    Its GroupNorm, unlike UPerNet's BatchNorm, does not depend on the batch: a batch of one image trains.

    Raises:
        ConfigError: each doubling halves the channels, and there are too few for that.
    """

    def __init__(self, config: EncoderForSemanticSegmentationConfig) -> None:
        super().__init__()
        self.layers = ConcatenatedLayers(config)
        channels = config.hidden_channels
        self.reduce = nn.Linear(self.layers.out_features, channels)
        stages: list[nn.Module] = []
        doublings = min(MAX_UPSAMPLING_STAGES, int(math.log2(min(config.patch_size))))
        if channels < 2**doublings:
            raise ConfigError(f"head_channels={channels} must be at least {2**doublings} for the conv head.")
        for _ in range(doublings):
            half = channels // 2
            stages += [nn.ConvTranspose2d(channels, half, 2, stride=2), nn.GroupNorm(1, half), nn.GELU()]
            channels = half
        self.upsample = nn.Sequential(*stages)
        self.mix = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(1, channels), nn.GELU())
        self.classifier = nn.Sequential(nn.Dropout2d(config.dropout), nn.Conv2d(channels, config.num_labels, 1))

    def forward(self, features: list[Tensor]) -> SegmentationLogits:
        """[(B, h, w, D)] * L -> (B, K, 4h, 4w), less for patches below 4 pixels"""
        maps = self.reduce(self.layers(features)).permute(0, 3, 1, 2)
        return SegmentationLogits(self.classifier(self.mix(self.upsample(maps))))


class FeaturePyramid(nn.Module):
    """Four maps of one stride -> a pyramid at 4, 2, 1 and 1/2 times their resolution, the shallowest at the largest.

    Source: Feature2Pyramid of mmsegmentation, as used by PANGAEA's ``seg_upernet``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()

        def double() -> nn.ConvTranspose2d:
            return nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)

        quadruple = nn.Sequential(double(), nn.BatchNorm2d(channels), nn.GELU(), double())
        self.levels = nn.ModuleList([quadruple, double(), nn.Identity(), nn.MaxPool2d(kernel_size=2, stride=2)])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """[(B, D, h, w)] * 4 -> (B, D, 4h, 4w), (B, D, 2h, 2w), (B, D, h, w), (B, D, h // 2, w // 2)"""
        return [level(values) for level, values in zip(self.levels, maps, strict=True)]


class UperNetSegmentationHead(nn.Module):
    """``upernet``: feature pyramid, pyramid pooling and feature fusion, with an optional auxiliary FCN head.

    The decoder is transformers' ``UperNetHead``. Its convolutions before a BatchNorm have no bias, those of
    PANGAEA's do: the function is the same, with 12 x channels parameters less.

    Source: Xiao et al., Unified Perceptual Parsing for Scene Understanding (arXiv 1807.10221).
    """

    def __init__(self, config: EncoderForSemanticSegmentationConfig) -> None:
        super().__init__()
        size = config.encoder_config.hidden_size
        settings = UperNetConfig(
            hidden_size=config.hidden_channels, num_labels=config.num_labels, auxiliary_channels=AUXILIARY_CHANNELS
        )
        self.pyramid = FeaturePyramid(size)
        self.decode = UperNetHead(settings, in_channels=[size] * len(config.feature_layers))
        # transformers' head has no dropout: its classifier moves out to make room for one.
        self.decode.classifier = nn.Identity()
        self.classifier = nn.Sequential(
            nn.Dropout2d(config.dropout), nn.Conv2d(config.hidden_channels, config.num_labels, 1)
        )
        # Not called "auxiliary_head": PEFT's modules_to_save matches by the end of the name, and would wrap it twice.
        self.auxiliary: UperNetFCNHead | None = None
        if config.auxiliary_loss_weight:
            self.auxiliary = UperNetFCNHead(settings, [size] * len(config.feature_layers), in_index=AUXILIARY_LEVEL)

    def forward(self, features: list[Tensor]) -> SegmentationLogits:
        """[(B, h, w, D)] * 4 -> (B, K, 4h, 4w), and (B, K, h, w) of the auxiliary head in training

        Raises:
            DataError: the patch grid is smaller than 2 x 2, or a training batch holds a single image.
        """
        batch, height, width, _ = features[-1].shape
        if min(height, width) < 2:
            raise DataError(f"The upernet head needs a grid of 2 x 2 patches or more, not {height} x {width}.")
        if self.training and batch == 1:
            raise DataError(
                "The upernet head's BatchNorm cannot train on a batch of one image: use batches of 2 or more and drop "
                "an incomplete last batch, or choose the 'conv' head."
            )
        pyramid = self.pyramid([values.permute(0, 3, 1, 2) for values in features])
        auxiliary = self.auxiliary(pyramid) if self.auxiliary is not None and self.training else None
        return SegmentationLogits(self.classifier(self.decode(pyramid)), auxiliary)


class BandsHead(nn.Module):
    """What ``pixel`` and ``unet`` share: they read the tokens and, standardised, the bands of each pixel.

    A patch token says what is around a pixel, and its own spectrum what it is. The statistics of the bands are in the
    configuration, and saved with it.
    """

    def __init__(self, config: EncoderForSemanticSegmentationConfig) -> None:
        super().__init__()
        self.bands, self.mean, self.std = config.pixel_bands or [], config.pixel_mean or [], config.pixel_std or []
        self.layers = ConcatenatedLayers(config)
        self.reduce = nn.Linear(self.layers.out_features, TOKEN_CHANNELS)

    def read(self, features: list[Tensor], pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """[(B, h, w, D)] * L, (B, C, H, W) reflectance, NaN where not measured -> (B, T, h, w), (B, 2C, H, W)

        The second are the standardised bands, 0 where not measured, and which of them were.

        Raises:
            BandError: the images have other channels than the bands of the training.
        """
        if pixel_values.shape[1] != len(self.bands):
            raise BandError(
                f"pixel_values has {pixel_values.shape[1]} channels, but the head reads {len(self.bands)} bands: "
                f"{listing(self.bands)}."
            )
        tokens = self.reduce(self.layers(features)).permute(0, 3, 1, 2)
        # channel by channel with plain numbers: no copy of a list to the device at each step
        planes = [(pixel_values[:, k].float() - self.mean[k]) / self.std[k] for k in range(len(self.bands))]
        values = torch.stack(planes, dim=1)
        valid = values.isfinite()
        return tokens, torch.cat([torch.where(valid, values, 0.0), valid.float()], dim=1).to(tokens.dtype)


class PixelSegmentationHead(BandsHead):
    """``pixel``: upsampled tokens, the standardised bands and which of them were measured, in an MLP of each pixel.

    Detail below the patch size at a tenth of the parameters of ``conv``. With an auxiliary loss the MLP is also trained
    without tokens, and its answer is the mean of both, so that what the pixel itself says is not overlooked where few
    labels do not ask for it.
    """

    def __init__(self, config: EncoderForSemanticSegmentationConfig) -> None:
        super().__init__(config)
        self.auxiliary = config.auxiliary_loss_weight > 0
        width = config.hidden_channels
        self.mlp = nn.Sequential(
            nn.Conv2d(TOKEN_CHANNELS + 2 * len(self.bands), width, 1),
            nn.GELU(),
            nn.Conv2d(width, width, 1),
            nn.GELU(),
            nn.Dropout2d(config.dropout),
            nn.Conv2d(width, config.num_labels, 1),
        )

    def forward(self, features: list[Tensor], pixel_values: Tensor) -> SegmentationLogits:
        """[(B, h, w, D)] * L, (B, C, H, W) reflectance, NaN where not measured -> (B, K, H, W)

        With an auxiliary loss, in training: these, and what the pixels say without tokens.
        """
        tokens, pixels = self.read(features, pixel_values)
        tokens = resized(tokens, pixels)
        logits = self.mlp(torch.cat([tokens, pixels], dim=1))
        if not self.auxiliary:
            return SegmentationLogits(logits)
        alone = self.mlp(torch.cat([torch.zeros_like(tokens), pixels], dim=1))
        return SegmentationLogits(logits, alone) if self.training else SegmentationLogits((logits + alone) / 2)


class UNetSegmentationHead(BandsHead):
    """``unet``: a small U-Net on the standardised bands; the tokens join its lowest level and enter the classifier.

    For classes that the shapes between pixel and patch tell. The first of its four levels has ``hidden_channels``, each
    further one twice as many.
    """

    def __init__(self, config: EncoderForSemanticSegmentationConfig) -> None:
        super().__init__(config)
        widths = [config.hidden_channels * 2**level for level in range(UNET_LEVELS)]
        entering = [2 * len(self.bands), *widths[:-1]]
        entering[-1] += TOKEN_CHANNELS
        self.down = nn.ModuleList(double_conv(before, after) for before, after in zip(entering, widths, strict=True))
        self.up = nn.ModuleList(double_conv(3 * width, width) for width in widths[:-1])
        self.norm = nn.LayerNorm(widths[0] + TOKEN_CHANNELS)
        self.classifier = nn.Sequential(
            nn.Dropout(config.dropout), nn.Linear(widths[0] + TOKEN_CHANNELS, config.num_labels)
        )

    def forward(self, features: list[Tensor], pixel_values: Tensor) -> SegmentationLogits:
        """[(B, h, w, D)] * L, (B, C, H, W) reflectance, NaN where not measured -> (B, K, H, W)

        Raises:
            DataError: training on one image that is a single position at the lowest level, without a variance.
        """
        tokens, pixels = self.read(features, pixel_values)
        if self.training and len(pixels) == 1 and max(pixels.shape[-2:]) <= 2 ** (UNET_LEVELS - 1):
            raise DataError(
                "The unet head's BatchNorm cannot train on a batch of one image of "
                f"{pixels.shape[-2]} x {pixels.shape[-1]} pixels: use batches of 2 or more, or larger images."
            )
        maps = torch.cat([down_and_up(self.down, self.up, pixels, tokens), resized(tokens, pixels)], dim=1)
        return SegmentationLogits(self.classifier(self.norm(maps.permute(0, 2, 3, 1))).permute(0, 3, 1, 2))


def segmentation_head(config: EncoderForSemanticSegmentationConfig) -> nn.Module:
    """The head of ``config``: [(B, h, w, D)] * L, for ``pixel`` and ``unet`` also images -> ``SegmentationLogits``."""
    classes: dict[str, type[nn.Module]] = {
        "conv": ConvSegmentationHead,
        "upernet": UperNetSegmentationHead,
        "pixel": PixelSegmentationHead,
        "unet": UNetSegmentationHead,
    }
    return classes.get(config.head, TokenSegmentationHead)(config)
