"""What DEFLECT has to know of a vision transformer: one small table, and where its parts stand in a model.

A new architecture of the same build (embeddings, then blocks with q, k, v, o projections called through
transformers' attention interface) is one more row.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from deflect_hf.errors import ArchitectureError, ConfigError, listing
from deflect_hf.models.patch_embedding import patch_projection

DEFAULT_AUX_DIM = 64


@dataclass(frozen=True)
class Architecture:
    """Class names of the embeddings and the blocks, and how their attention is written.

    Attributes:
        attention: attribute of the block that is its attention module.
        output, scale, dropout: attributes of that module: its last projection, the factor of the scores, the dropout
            probability.
        rotary: whether queries and keys are rotated by `position_embeddings=(cos, sin)`.
        between: name of a norm between embeddings and blocks, if there is one.
        fused: timm's build: one layer `qkv`, kernels of its own, positions added by the model around.
    """

    embeddings: str
    block: str
    attention: str = "attention"
    output: str = "o_proj"
    scale: str = "scaling"
    dropout: str = "attention_dropout"
    rotary: bool = False
    between: str | None = None
    fused: bool = False


CLIP = ("self_attn", "out_proj", "scale", "dropout")
ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture("ViTEmbeddings", "ViTLayer"),
    Architecture("GeoViTEmbeddings", "ViTLayer"),
    Architecture("ViTMAEEmbeddings", "ViTMAELayer"),
    Architecture("ViTMSNEmbeddings", "ViTMSNLayer"),
    Architecture("DeiTEmbeddings", "DeiTLayer"),
    Architecture("IJepaEmbeddings", "IJepaLayer"),
    Architecture("BeitEmbeddings", "BeitLayer"),
    Architecture("Dinov2Embeddings", "Dinov2Layer"),
    Architecture("Dinov2WithRegistersEmbeddings", "Dinov2WithRegistersLayer"),
    Architecture("DINOv3ViTEmbeddings", "DINOv3ViTLayer", dropout="dropout", rotary=True),
    Architecture("SiglipVisionEmbeddings", "SiglipEncoderLayer", *CLIP),
    Architecture("CLIPVisionEmbeddings", "CLIPEncoderLayer", *CLIP, between="pre_layrnorm"),
    Architecture("PatchEmbed", "Block", "attn", "proj", dropout="attn_drop.p", between="norm_pre", fused=True),
)
# What the names of classes begin with, and why DEFLECT does not fit: another kind of model, not one more row.
REFUSED = {
    "Siglip2": "its images arrive cut into patches, so that their pixels cannot be told from their bands",
    "Swin": "it attends within windows and merges its tokens between stages, and DEFLECT needs one token per patch",
    "Hiera": "it pools its tokens between stages, and DEFLECT needs one token per patch",
    "Sam": "it attends within windows of a map, with scores that are no call of transformers' attention interface",
}
TIMM = (
    "what DEFLECT takes of timm: VisionTransformer with blocks of the class Block that take attn_mask (timm 1.0.16 or "
    "later) and Attention with one qkv, without gate and norm"
)
NO_ATTENTION = "it has no attention whose displacement could be deflected (a convolutional encoder, say)"


@dataclass(frozen=True)
class Encoder:
    """A vision transformer found inside a model.

    Attributes:
        target_modules: regular expression that matches the embeddings and the blocks, whatever the model around them.
        embeddings, between, blocks: their names in the model, blocks in order.
        num_channels, patch_size, hidden_size, num_heads, norm_eps: read from the modules themselves.
    """

    architecture: Architecture
    target_modules: str
    embeddings: str
    between: str | None
    blocks: tuple[str, ...]
    num_channels: int
    patch_size: tuple[int, int]
    hidden_size: int
    num_heads: int
    norm_eps: float | None

    @property
    def default_aux_dim(self) -> int:
        """Width of the radiometric stream when none is asked for: every head mixes the same number of channels."""
        return min(math.ceil(DEFAULT_AUX_DIM / self.num_heads) * self.num_heads, self.hidden_size)

    @property
    def sizes(self) -> dict[str, Any]:
        """What another encoder of the same architecture may have otherwise, in values that JSON keeps."""
        return {
            "hidden_size": self.hidden_size,
            "num_heads": self.num_heads,
            "norm_eps": self.norm_eps,
            "patch_size": list(self.patch_size),
            "blocks": len(self.blocks),
        }

    def targeted_blocks(self, layers_to_transform: int | list[int] | None) -> list[int]:
        """Positions of the deflected blocks, in order (ConfigError)."""
        depth = len(self.blocks)
        if layers_to_transform is None:
            return list(range(depth))
        layers = [layers_to_transform] if isinstance(layers_to_transform, int | str) else list(layers_to_transform)
        numbers = all(type(layer) is int for layer in layers)  # it may come from a file that anybody wrote
        positions = [layer + depth if layer < 0 else layer for layer in layers] if numbers else []
        if not positions or len(set(positions)) != len(positions) or not all(0 <= p < depth for p in positions):
            raise ConfigError(
                f"layers_to_transform={layers_to_transform!r} does not fit: this encoder has the blocks 0 to "
                f"{depth - 1} (-1 is the last one); name each at most once and at least one."
            )
        return sorted(positions)


def find_encoder(model: nn.Module) -> Encoder:
    """Find the one vision transformer inside `model`, adapted already or not (ArchitectureError)."""
    modules = outermost_modules(model)
    rows = {row.embeddings: row for row in ARCHITECTURES}
    found = [
        (name, module)
        for name, module in modules.items()
        if (row := rows.get(type(module).__name__)) and (not row.fused or _is_timm_vit(modules, name))
    ]
    if not found:
        known = listing(dict.fromkeys("timm's Block" if row.fused else row.block for row in ARCHITECTURES))
        raise ArchitectureError(
            f"deflect_hf finds no vision transformer that it knows in {type(model).__name__}: "
            f"{_what_is_missing(modules)}. It adapts models built of {known}. To add another one, enter its "
            "embeddings and block classes in deflect_hf.tuners.deflect.architectures.ARCHITECTURES."
        )
    if len(found) > 1:
        raise ArchitectureError(
            f"{type(model).__name__} holds {len(found)} vision transformers ({listing(name for name, _ in found)}); "
            "DEFLECT adapts one. Adapt the inner model of your choice instead."
        )
    name, embeddings = found[0]
    architecture = rows[type(embeddings).__name__]
    prefix = name[: len(name) - len(name.rpartition(".")[2])]
    blocks = [
        key for key, module in modules.items() if type(module).__name__ == architecture.block and key.startswith(prefix)
    ]
    container = blocks[0][len(prefix) :].rpartition(".")[0]
    norm: str | None = architecture.between
    if norm and not list(modules[prefix + norm].parameters()):
        norm = None  # timm's is an identity, mostly
    single = "|".join(re.escape(part) for part in (name[len(prefix) :], norm) if part)
    attention: Any = getattr(modules[blocks[0]], architecture.attention)
    projection = patch_projection(embeddings)
    return Encoder(
        architecture=architecture,
        target_modules=rf"(?:.*\.)?(?:{single}|{re.escape(container)}\.\d+)",
        embeddings=name,
        between=norm and prefix + norm,
        blocks=tuple(blocks),
        num_channels=projection.in_channels,
        patch_size=(projection.kernel_size[-2], projection.kernel_size[-1]),
        hidden_size=projection.out_channels,
        num_heads=projection.out_channels // attention.head_dim,
        norm_eps=next((cast(float, part.eps) for part in modules[blocks[0]].modules() if hasattr(part, "eps")), None),
    )


def _is_timm_vit(modules: Mapping[str, nn.Module], embeddings: str) -> bool:
    """Whether the model around this `PatchEmbed` is built as timm's VisionTransformer is; others use that name, too."""
    prefix = embeddings.rpartition(".")[0]
    model = modules[prefix]
    block: Any = modules.get(f"{prefix}.blocks.0".removeprefix("."))
    attention = getattr(block, "attn", None)
    return (
        hasattr(model, "_pos_embed")
        and type(block).__name__ == "Block"
        and "attn_mask" in inspect.signature(type(block).forward).parameters
        and hasattr(attention, "qkv")
        and getattr(attention, "gate", None) is None
        and isinstance(getattr(attention, "norm", nn.Identity()), nn.Identity)
    )


def _what_is_missing(modules: Mapping[str, nn.Module]) -> str:
    """Why none of these modules is an encoder that DEFLECT knows, in a clause."""
    kinds = [type(module).__name__ for module in modules.values()]
    for start, reason in REFUSED.items():
        if any(kind.startswith(start) for kind in kinds):
            return f"{start} is refused, since {reason}"
    if not any("Attention" in kind for kind in kinds):
        return NO_ATTENTION
    if "PatchEmbed" in kinds and "Block" in kinds:
        return f"it is not {TIMM}"
    projected = any(all(hasattr(part, f"{key}_proj") for key in "qkv") for part in modules.values())
    lacking = {
        "a module of embeddings with a convolution over the patches": any(kind.endswith("Embeddings") for kind in kinds)
        and any(isinstance(module, nn.Conv2d | nn.Conv3d) for module in modules.values()),
        "attention with q_proj, k_proj and v_proj, called through transformers' attention interface": projected,
    }
    return "it lacks " + (" and ".join(what for what, there in lacking.items() if not there) or "a row in the table")


def block_layers(model: nn.Module, encoder: Encoder, kind: type[nn.Module]) -> list[str]:
    """Names of the modules of one kind in the blocks of an encoder that was found in `model`."""
    inside = tuple(f"{block}." for block in encoder.blocks)
    return [
        name
        for name, module in outermost_modules(model).items()
        if isinstance(module, kind) and name.startswith(inside)
    ]


def outermost_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Module name -> module as it was before adaptation, leaving out what lies inside the wrappers of adapters."""
    modules: dict[str, nn.Module] = {}
    wrappers: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{wrapper}.") for wrapper in wrappers):
            continue
        if isinstance(module, BaseTunerLayer) and hasattr(module, "base_layer"):
            wrappers.append(name)
            module = module.get_base_layer()
        elif isinstance(module, AuxiliaryTrainingWrapper):
            wrappers.append(name)
        modules[name] = module
    return modules
