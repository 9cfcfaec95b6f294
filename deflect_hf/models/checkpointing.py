"""Recompute in the backward pass what is cheap to compute, and keep the rest: selective activation checkpointing."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from deflect_hf.errors import ArchitectureError

ATTENTION = "aten::_scaled_dot_product"
QKV = 3  # timm's layer of queries, keys and values is this many times as wide as its input


def keep_attention(context: Any, operator: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    """Policy of `torch.utils.checkpoint`: keep the results of attention and of its projections, no others.

    Of a block's forward pass, norms, the MLP's first product and its activation are then computed twice: they are most
    of what a frozen block keeps. Projections are known by their weight, (D, D) or (D, 3 D).
    """
    keep = operator.name().startswith(ATTENTION)
    if operator.name() in ("aten::addmm", "aten::mm"):
        width, outputs = arguments[-1].shape
        keep = outputs in (width, QKV * width)
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def enable_checkpointing(model: PreTrainedModel, selective: bool) -> None:
    """Let each block compute in the backward pass what it did not keep: all, or as [`keep_attention`] says."""
    options: dict[str, Any] = {"use_reentrant": False}
    if selective:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, keep_attention)
    # transformers before 5.19 knows the second name alone, later ones warn of it
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable(options)
    except ValueError as error:
        raise ArchitectureError(
            f"gradient_checkpointing: the blocks of {type(model).__name__} cannot be computed again in the backward "
            "pass. Fix: leave it null."
        ) from error
