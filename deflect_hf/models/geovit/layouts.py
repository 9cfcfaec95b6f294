"""Names of the tensors in published checkpoints, and their way into GeoViT: everything is used, listed or refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from deflect_hf.errors import CheckpointError, listing
from deflect_hf.models.geovit.configuration import GeoViTConfig
from deflect_hf.models.geovit.embeddings import GeoViTEmbeddings
from deflect_hf.models.geovit.modeling import GeoViTModel
from deflect_hf.models.geovit.sources import Source

PATCHES = "patch_embed.proj.weight"
# Part of a block here -> its name in the files.
PARTS = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.q_proj": "attn.qkv",
    "attention.k_proj": "attn.qkv",
    "attention.v_proj": "attn.qkv",
    "attention.o_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
FUSED = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
# Half precision tables still pass, another order of channels does not.
TABLE_TOLERANCE = 2e-3
MOST_NAMED = 12  # tensors in a message


class Layout(NamedTuple):
    """How a file names the parts of the encoder, below a prefix of its own."""

    blocks: str
    norm: str
    positions: str


class Origin(NamedTuple):
    """Tensor of the file that a tensor of GeoViT is taken from; ``third`` of q, k, v stacked by rows."""

    name: str
    third: int | None = None


LAYOUTS = (Layout("blocks", "norm", "pos_embed"), Layout("encoder", "encoder_norm", "encoder_pos_embed"))


def convert_tensors(
    tensors: Mapping[str, Tensor], source: Source, config: GeoViTConfig
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors as published -> those of ``GeoViTModel(config)`` in float32, and the names that were left out.

    A CheckpointError names a tensor that is missing, of another shape, not finite, or of another encoder.
    """
    prefix, layout = find_layout(tensors, source)
    with torch.device("meta"):
        targets = GeoViTModel(config).state_dict()
    origins = {name: _origin(name, prefix, layout) for name in targets}
    _check_names(tensors, source, {origin.name for origin in origins.values()}, prefix, layout)
    _check_shapes(tensors, source, targets, origins)
    _check_table(tensors, source, config, prefix + layout.positions)
    state = {name: _take(tensors[origin.name], origin.third) for name, origin in origins.items()}
    broken = [name for name, value in state.items() if not value.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"the checkpoint holds NaN or infinity in {listing((origins[name].name for name in broken), MOST_NAMED)}."
        )
    return state, sorted(set(tensors) - {origin.name for origin in origins.values()})


def find_layout(tensors: Mapping[str, Tensor], source: Source) -> tuple[str, Layout]:
    """Prefix of the encoder's tensors, and the layout below it (CheckpointError)."""
    prefixes = [name.removesuffix(PATCHES) for name in tensors if name.endswith(PATCHES)]
    if len(prefixes) != 1:
        raise CheckpointError(
            f"the checkpoint has {len(prefixes)} tensors '...{PATCHES}', one is needed. Is it that of {source.title}? "
            f"It has {listing(tensors, MOST_NAMED)}."
        )
    prefix = prefixes[0]
    if any(name.startswith(f"{prefix}encoder.encoders.") for name in tensors):
        raise CheckpointError(
            "the checkpoint comes from the xFormers build of Cross-Scale MAE ('encoder.encoders.0...'), whose norms by "
            "default stand behind the blocks, not before: a ViT would compute something else. It cannot be converted; "
            "take a checkpoint of their code without xFormers."
        )
    for layout in LAYOUTS:
        if f"{prefix}{layout.blocks}.0.norm1.weight" in tensors:
            return prefix, layout
    raise CheckpointError(f"the checkpoint names its blocks in no known way; it has {listing(tensors, MOST_NAMED)}.")


def _origin(target: str, prefix: str, layout: Layout) -> Origin:
    if target == "embeddings.cls_token":
        return Origin(f"{prefix}cls_token")
    if target == "embeddings.position_embeddings":
        return Origin(prefix + layout.positions)
    path, _, kind = target.rpartition(".")
    if path == "embeddings.patch_embeddings.projection":
        return Origin(f"{prefix}patch_embed.proj.{kind}")
    if path == "layernorm":
        return Origin(f"{prefix}{layout.norm}.{kind}")
    _, index, part = path.split(".", 2)
    third = FUSED.index(part) if part in FUSED else None
    return Origin(f"{prefix}{layout.blocks}.{index}.{PARTS[part]}.{kind}", third)


def _check_names(tensors: Mapping[str, Tensor], source: Source, needed: set[str], prefix: str, layout: Layout) -> None:
    own = tuple(prefix + part for part in (f"{layout.blocks}.", f"{layout.norm}.", "patch_embed.", "cls_token"))
    another = "it is another encoder of the same shapes. Choose its own --source."
    for names, told in (
        (needed - set(tensors), "the checkpoint of {title} lacks {count} tensors: {names}."),
        (
            {name for name in tensors if name.removeprefix(prefix).startswith(source.foreign)},
            f"the checkpoint has {{names}}, which that of {{title}} has not: {another}",
        ),
        (
            {start for start in source.own if not any(name.startswith(prefix + start) for name in tensors)},
            f"the checkpoint has no {{names}}, which that of {{title}} has: {another}",
        ),
        (
            {name for name in set(tensors) - needed if name.startswith(own)},
            "the checkpoint has {count} encoder tensors that {title} has not: {names}. It is another or a larger "
            "encoder, and without them it would not be itself. Choose its own --source.",
        ),
    ):
        if names:
            named = listing(sorted(names), MOST_NAMED)
            raise CheckpointError(told.format(title=source.title, count=len(names), names=named))


def _check_shapes(
    tensors: Mapping[str, Tensor], source: Source, targets: Mapping[str, Tensor], origins: Mapping[str, Origin]
) -> None:
    for target, origin in origins.items():
        expected = tuple(targets[target].shape)
        if origin.third is not None:
            expected = (3 * expected[0], *expected[1:])
        given = tensors[origin.name]
        if tuple(given.shape) != expected or not given.is_floating_point():
            raise CheckpointError(
                f"{origin.name} is {given.dtype} of shape {tuple(given.shape)}, but in {source.title} it has the shape "
                f"{expected}. Is it the checkpoint of another encoder? Choose its own --source."
            )


def _check_table(tensors: Mapping[str, Tensor], source: Source, config: GeoViTConfig, name: str) -> None:
    """A stored table of fixed positions is not used, but must be the one that GeoViT computes."""
    if config.position_embedding in ("learned", "sincos_gsd") or name not in tensors:
        return
    own = GeoViTEmbeddings(config).positions(config.grid_size, torch.ones(1))
    given = tensors[name].float()
    if given.shape != own.shape:
        raise CheckpointError(
            f"{name} has the shape {tuple(given.shape)}, but for {source.title} it is {tuple(own.shape)}: the "
            "checkpoint was made for another image size, number of frames or width."
        )
    difference = (given - own).abs().max().item()
    if not difference <= TABLE_TOLERANCE:
        raise CheckpointError(
            f"{name} differs by {difference:.2g} from the fixed sine-cosine positions of {source.title}: the "
            "checkpoint was trained with others, so GeoViT would not compute the same."
        )


def _take(tensor: Tensor, third: int | None) -> Tensor:
    part = tensor if third is None else tensor.chunk(3)[third]
    # A copy of its own: parts of one storage cannot be saved apart.
    return part.detach().to(torch.float32, copy=True).contiguous()
