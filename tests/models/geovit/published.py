"""Checkpoints with the names and shapes of the published ones, in small, and what their authors' models compute.

Written from the description of the files alone, without a line of the package: names as in timm and the masked
autoencoders, positions in float64 with numpy.
"""

import argparse
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deflect_hf.models.geovit.sources import SOURCES, Source

DEPTH, HEADS = 2, 4
CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "foundation_models"
OFFICIAL = {"scale-mae": "scalemae", "prithvi-eo-1": "prithvi"}  # names of the official code
# The width is a multiple of 16 for Prithvi; GSD positions need one of 4.
TINY = {"hidden_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": 128}


def config_file(source: str) -> Path:
    """The shipped configuration of an encoder."""
    return CONFIGS / f"{OFFICIAL.get(source, source.replace('-', '_'))}.yaml"


@dataclass
class Published:
    """How one published file is built, in small."""

    source: str
    patch: int = 8
    image: int = 32
    channels: int = 3
    frames: int | None = None
    wrapper: str | None = None
    prefix: str = ""
    blocks: str = "blocks"
    norm: str = "norm"
    positions: str = "pos_embed"
    kind: str = "plane"
    eps: float = 1e-6
    extra: dict[str, tuple[int, ...]] = field(default_factory=dict)
    around: dict[str, Any] = field(default_factory=dict)

    def tiny_source(self) -> Source:
        """The entry of the package's table with small sizes; everything else as it stands there."""
        config = {**SOURCES[self.source].config, **TINY, "patch_size": self.patch, "image_size": self.image}
        if self.frames is not None:
            config["num_frames"] = self.frames
        return dataclasses.replace(SOURCES[self.source], config=config)

    def tensors(self, width: int = 32) -> dict[str, Tensor]:
        """The encoder's tensors with random values, and random ones for the parts to be left out."""
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return 0.3 * torch.randn(shape, generator=generator)

        kernel = (self.patch, self.patch) if self.frames is None else (1, self.patch, self.patch)
        encoder = {
            "cls_token": random(1, 1, width),
            "patch_embed.proj.weight": random(width, self.channels, *kernel),
            "patch_embed.proj.bias": random(width),
            self.positions: self.stored_positions(width, random),
            f"{self.norm}.weight": 1 + random(width),
            f"{self.norm}.bias": random(width),
        }
        for i in range(DEPTH):
            shapes = {
                "norm1.weight": (width,),
                "norm1.bias": (width,),
                "attn.qkv.weight": (3 * width, width),
                "attn.qkv.bias": (3 * width,),
                "attn.proj.weight": (width, width),
                "attn.proj.bias": (width,),
                "norm2.weight": (width,),
                "norm2.bias": (width,),
                "mlp.fc1.weight": (4 * width, width),
                "mlp.fc1.bias": (4 * width,),
                "mlp.fc2.weight": (width, 4 * width),
                "mlp.fc2.bias": (width,),
            }
            encoder |= {f"{self.blocks}.{i}.{name}": random(*shape) for name, shape in shapes.items()}
        named = {self.prefix + name: value for name, value in encoder.items()}
        return named | {name: random(*shape) for name, shape in self.extra.items()}

    def stored_positions(self, width: int, random: Any) -> Tensor:
        side = self.image // self.patch
        if self.kind == "learned":
            return random(1, 1 + side * side, width)
        frames = self.frames or 1
        table = volume(frames, side, side, width) if self.frames else plane(side, side, width)
        return with_class_token(table)

    def save(self, path: Path, tensors: dict[str, Tensor] | None = None) -> Path:
        """Write the checkpoint as its authors did, with everything around the weights."""
        content: dict[str, Any] = self.tensors() if tensors is None else tensors
        if self.wrapper:
            content = {self.wrapper: content, **self.around}
        torch.save(content, path)
        return path


TRAINING_STATE = {"optimizer": {"state": {}}, "epoch": 799, "args": argparse.Namespace(lr=1e-4, model="mae")}
MAE_DECODER = {
    "mask_token": (1, 1, 16),
    "decoder_pos_embed": (1, 17, 16),
    "decoder_embed.weight": (16, 32),
    "decoder_embed.bias": (16,),
    "decoder_blocks.0.attn.qkv.weight": (48, 16),
    "decoder_norm.weight": (16,),
    "decoder_pred.weight": (192, 16),
}
PRITHVI_2_DECODER = {f"decoder.{name}": shape for name, shape in MAE_DECODER.items()}
TL_SCALES = {
    "encoder.temporal_embed_enc.scale": (1,),
    "encoder.location_embed_enc.scale": (1,),
    "decoder.temporal_embed_dec.scale": (1,),
    "decoder.location_embed_dec.scale": (1,),
}
CROSS_SCALE = {"wrapper": "model", "blocks": "encoder", "norm": "encoder_norm", "positions": "encoder_pos_embed"}
CROSS_SCALE_DECODER = {"decoder.0.norm1.weight": (16,), "mask_token": (1, 1, 16)}
PRITHVI: dict[str, Any] = {"channels": 6, "kind": "volume"}
PRITHVI_2 = {**PRITHVI, "frames": 4, "eps": 1e-5, "prefix": "encoder.", "extra": PRITHVI_2_DECODER}
_ALL = (
    Published(
        "scale-mae",
        wrapper="model",
        around=TRAINING_STATE,
        extra={
            **{name: shape for name, shape in MAE_DECODER.items() if not name.startswith("decoder_pred")},
            "mask_token_decoder": (1, 1, 16),
            "fpn.fpn1.0.weight": (16, 16, 2, 2),
            "fcn_high.proj.weight": (16, 16, 1, 1),
        },
    ),
    Published(
        "dino-mc",
        patch=4,
        wrapper="teacher",
        prefix="backbone.",
        kind="learned",
        extra={"head.mlp.0.weight": (64, 32), "head.last_layer.weight_v": (50, 8)},
        around={
            **TRAINING_STATE,
            # rates come out of a schedule of numpy's
            "optimizer": {"param_groups": [{"lr": np.float64(5e-4), "weight_decay": np.float64(0.04)}]},
            "student": {"module.backbone.cls_token": torch.zeros(1, 1, 32)},
        },
    ),
    Published(
        "cross-scale-mae-base",
        **CROSS_SCALE,
        around=TRAINING_STATE,
        extra={**CROSS_SCALE_DECODER, "decoder_pred.weight": (192, 16)},
    ),
    Published("cross-scale-mae-large", **CROSS_SCALE, extra={**CROSS_SCALE_DECODER, "predictor.0.weight": (32, 32)}),
    Published("satmae", wrapper="model", around=TRAINING_STATE, extra=MAE_DECODER),
    Published("prithvi-eo-1", **PRITHVI, frames=3, extra=MAE_DECODER),
    Published("prithvi-eo-2-300m", **PRITHVI_2),
    Published("prithvi-eo-2-600m-tl", **{**PRITHVI_2, "extra": {**PRITHVI_2_DECODER, **TL_SCALES}}, patch=14, image=56),
)
PUBLISHED = {one.source: one for one in _ALL}


def axis(positions: np.ndarray, width: int) -> np.ndarray:
    """(M,) -> (M, width): sines, then cosines."""
    frequencies = 1.0 / 10000 ** (np.arange(width // 2) / (width / 2))
    angles = np.outer(positions, frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def plane(rows: int, columns: int, width: int, scale: float = 1.0) -> np.ndarray:
    """(rows * columns, width), token by token."""
    tokens = [(row, column) for row in range(rows) for column in range(columns)]
    down, across = np.array(tokens, dtype=float).T * scale
    return np.concatenate([axis(across, width // 2), axis(down, width // 2)], axis=1)


def volume(frames: int, rows: int, columns: int, width: int) -> np.ndarray:
    """(frames * rows * columns, width), token by token."""
    tokens = [(t, y, x) for t in range(frames) for y in range(rows) for x in range(columns)]
    t, y, x = np.array(tokens, dtype=float).T
    space, time = width * 6 // 16, width * 4 // 16
    return np.concatenate([axis(x, space), axis(y, space), axis(t, time)], axis=1)


def with_class_token(table: np.ndarray) -> Tensor:
    """(N, D) -> (1, 1 + N, D) float32, zeros first."""
    return torch.from_numpy(np.concatenate([np.zeros((1, table.shape[1])), table])).float()[None]


def reference_forward(published: Published, tensors: dict[str, Tensor], x: Tensor, positions: Tensor) -> Tensor:
    """(B, C, [T,] H, W) -> (B, 1 + N, D): the authors' pre-norm ViT on their own tensors, after the final norm."""
    w = {name.removeprefix(published.prefix): value for name, value in tensors.items()}
    convolve = F.conv2d if published.frames is None else F.conv3d
    kernel = w["patch_embed.proj.weight"]
    tokens = convolve(x, kernel, w["patch_embed.proj.bias"], stride=kernel.shape[2:]).flatten(2).transpose(1, 2)
    width = tokens.shape[-1]
    tokens = torch.cat([w["cls_token"].expand(len(x), -1, -1), tokens], dim=1) + positions

    def norm(values: Tensor, name: str) -> Tensor:
        return F.layer_norm(values, (width,), w[f"{name}.weight"], w[f"{name}.bias"], published.eps)

    for i in range(DEPTH):
        block = f"{published.blocks}.{i}"
        qkv = F.linear(norm(tokens, f"{block}.norm1"), w[f"{block}.attn.qkv.weight"], w[f"{block}.attn.qkv.bias"])
        q, k, v = qkv.unflatten(-1, (3, HEADS, width // HEADS)).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) * (width // HEADS) ** -0.5).softmax(dim=-1)
        mixed = (attention @ v).transpose(1, 2).flatten(2)
        tokens = tokens + F.linear(mixed, w[f"{block}.attn.proj.weight"], w[f"{block}.attn.proj.bias"])
        inner = F.gelu(
            F.linear(norm(tokens, f"{block}.norm2"), w[f"{block}.mlp.fc1.weight"], w[f"{block}.mlp.fc1.bias"])
        )
        tokens = tokens + F.linear(inner, w[f"{block}.mlp.fc2.weight"], w[f"{block}.mlp.fc2.bias"])
    return norm(tokens, published.norm)
