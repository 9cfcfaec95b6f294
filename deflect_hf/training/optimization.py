"""AdamW and the learning rate over the iterations."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from deflect_hf.config.run import OptimizerArguments, SchedulerArguments
from deflect_hf.errors import ConfigError


def build_optimizer(model: nn.Module, arguments: OptimizerArguments) -> AdamW:
    """AdamW over the trainable parameters; vectors (norms, biases) go undecayed unless ``decay_vectors``."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ConfigError("nothing to train: every parameter of the model is frozen, the head included")
    groups: list[dict[str, Any]] = [{"params": trainable}]
    if not arguments.decay_vectors:
        groups = [
            {"params": [parameter for parameter in trainable if parameter.ndim > 1]},
            {"params": [parameter for parameter in trainable if parameter.ndim <= 1], "weight_decay": 0.0},
        ]
    first, second = arguments.betas
    # a number, but in a test of rates and a dry run before one, which set the rate or forget what it does
    rate = arguments.lr if isinstance(arguments.lr, float) else 0.0
    return AdamW(groups, lr=rate, betas=(first, second), weight_decay=arguments.weight_decay)


def rate_factor(arguments: SchedulerArguments, step: int, total: int) -> float:
    """The factor on the learning rate at a 0-based ``step`` of ``total``."""
    ramp = round(arguments.warmup * total)
    if step < ramp:
        return (step + 1) / (ramp + 1)
    if arguments.name == "multistep" and arguments.milestones is not None and arguments.gamma is not None:
        passed = sum(step >= round(milestone * total) for milestone in arguments.milestones)
        return arguments.gamma**passed
    if arguments.name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, total - ramp)))
    return 1.0


def build_scheduler(optimizer: Optimizer, arguments: SchedulerArguments, total: int) -> LambdaLR:
    """The schedule, to be stepped once per optimizer step, ``total`` times in the run."""
    return LambdaLR(optimizer, lambda step: rate_factor(arguments, step, total))
