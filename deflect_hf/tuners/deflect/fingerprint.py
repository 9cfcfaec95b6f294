"""Which frozen weights an adapter was trained on: a short hash, stored in its configuration."""

from __future__ import annotations

import hashlib

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from deflect_hf.tuners.deflect.architectures import Encoder, outermost_modules

SAMPLES = 16  # values of each tensor, evenly spread


@torch.no_grad()
def base_fingerprint(model: nn.Module, encoder: Encoder) -> str | None:
    """A hash over a sample of each frozen tensor of the embeddings and blocks; cheap whatever the model's size.

    Values are rounded to bfloat16, so that a base has one fingerprint in float32 and bfloat16. None where it cannot be
    told: other dtypes, quantised, sharded or empty weights, or other adapters inside.
    """
    modules = outermost_modules(model)
    digest = hashlib.sha256()
    for name in (encoder.embeddings, *encoder.blocks):
        if any(isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper) for part in modules[name].modules()):
            return None
        for key, value in modules[name].named_parameters():
            if "mask_token" in key:  # no part of the forward, and drawn at random where a checkpoint has none
                continue
            if type(value) is not nn.Parameter or value.dtype not in (torch.float32, torch.bfloat16):
                return None
            if value.is_meta or not value.numel():
                return None
            flat = value.detach().flatten()
            sample = flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES].to("cpu", torch.bfloat16)
            digest.update(f"{key} {tuple(value.shape)}".encode() + sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
