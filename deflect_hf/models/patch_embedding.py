"""The convolution that embeds the patches, and what it takes to show it further bands."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from deflect_hf.errors import ArchitectureError

Projection = nn.Conv2d | nn.Conv3d


def patch_projection(embeddings: nn.Module) -> Projection:
    """The convolution in the embeddings, or in the patch embedding, of a vision transformer (ArchitectureError)."""
    found = next((module for module in embeddings.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)), None)
    if found is None:
        raise ArchitectureError(f"{type(embeddings).__name__} embeds its patches without a convolution.")
    return found


def widen(encoder: PreTrainedModel, channels: int) -> None:
    """Let the encoder take `channels` channels, the new ones last and without influence: their kernel is zero.

    So the widened encoder is the same function of its old channels as before, and a checkpoint of the narrow one can
    be brought to the same state again.
    """
    embedding = encoder.get_input_embeddings()
    projection = patch_projection(embedding)
    kernel = projection.weight
    zeros = kernel.new_zeros(kernel.shape[0], channels - kernel.shape[1], *kernel.shape[2:])
    wider = nn.Parameter(torch.cat([kernel.detach(), zeros], dim=1), requires_grad=kernel.requires_grad)
    # transformers would draw a parameter without this mark anew when a task model is put around the encoder
    wider._is_hf_initialized = True  # type: ignore[attr-defined]
    projection.weight, projection.in_channels = wider, channels
    for module in embedding.modules():
        if hasattr(module, "num_channels"):
            module.num_channels = channels
    encoder.config.num_channels = channels
