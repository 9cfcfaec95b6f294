"""Task models on tiny encoders, adapted by every method."""

from typing import Any

import torch
from torch import nn

from deflect_hf.methods import METHODS, adapt
from deflect_hf.models import EncoderForImageClassification
from tests.tuners.tiny import BANDS, make_encoder

BASE = {"base_mean": [0.1, 0.12, 0.14], "base_std": [0.1, 0.1, 0.1]}
EXTRA = {"extra_mean": [0.3, 0.2, 0.1], "extra_std": [0.1, 0.2, 0.3]}
OPTIONS: dict[str, dict[str, Any]] = {"deflect": {"aux_dim": 16}, "peft:VeraConfig": {"target": "qv", "r": 4}}
EVERY = (*METHODS, "peft:VeraConfig")
WIDE = tuple(name for name in EVERY if name != "deflect")


def task_model(encoder: str = "vit") -> EncoderForImageClassification:
    torch.manual_seed(0)
    return EncoderForImageClassification.from_encoder(make_encoder(encoder), num_labels=3)


def adapted(method: str, encoder: str = "vit", **options: Any) -> nn.Module:
    statistics = {**BASE, **(EXTRA if options.get("patch_embed", "frozen") != "frozen" else {})}
    return adapt(task_model(encoder), method, bands=BANDS, **statistics, **{**OPTIONS.get(method, {}), **options})


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}
