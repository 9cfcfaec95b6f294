"""What is minimised beside the models' own loss, by AdamW, and the learning rate over the iterations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from deflect_hf.config.run import LossArguments, OptimizerArguments, SchedulerArguments
from deflect_hf.errors import ConfigError, DataError
from deflect_hf.models.targets import Target


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


def with_terms(own: Tensor, logits: Tensor, labels: Tensor, target: Target, weights: LossArguments) -> Tensor:
    """A model's own loss on (B, K, ...) logits and their labels -> scalar: its weighted sum with the other terms."""
    loss: Tensor = weights.cross_entropy * own
    if weights.focal:
        loss = loss + weights.focal * focal(logits, labels, target, weights.focal_gamma)
    for weight, alpha in ((weights.dice, 0.5), (weights.tversky, weights.tversky_alpha)):
        if weight:
            loss = loss + weight * tversky(logits, labels, target, alpha)
    return loss


def focal(logits: Tensor, labels: Tensor, target: Target, gamma: float) -> Tensor:
    """(B, K, ...) logits and their labels of classes -> scalar: the mean loss of the known labels, easy ones less.

    The terms of the cross-entropy, with its class weights, times (1 - p)^gamma of the label's probability p.

    Source: T.-Y. Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017 (arXiv 1708.02002).
    """
    known = target.known(labels)
    weights: Tensor = known.float()
    if labels.is_floating_point():
        terms = F.binary_cross_entropy_with_logits(logits.float(), labels.where(known, 0.0), reduction="none")
    else:
        index = labels.masked_fill(~known, 0)
        terms = F.cross_entropy(logits.float(), index, reduction="none")
        if target.class_weights is not None:
            weights = weights * torch.tensor(target.class_weights, device=labels.device)[index]
    terms = (1 - torch.exp(-terms)).clamp(min=1e-6) ** gamma * terms
    return (terms * weights).sum() / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)


def tversky(logits: Tensor, labels: Tensor, target: Target, alpha: float = 0.5) -> Tensor:
    """(B, K, ...) logits and their labels of classes -> scalar 1 - mean Tversky index over those that the labels hold.

    ``alpha`` is the cost of pixels (or images, of several labels each) taken for a class that they are not of, 1 -
    ``alpha`` that of missed ones; 0.5 is the soft Dice loss. Zero, and still tied to the graph, without known labels.

    Source: S. Salehi et al., "Tversky loss function for image segmentation", MLMI 2017 (arXiv 1706.05721); F. Milletari
    et al., "V-Net", 3DV 2016 (arXiv 1606.04797) for Dice, here with linear instead of squared denominators.
    """
    known = target.known(labels)
    if labels.is_floating_point():  # (K, B)
        known, targets = known.T, labels.where(known, 0.0).T
    else:  # (K, N), N labels in all
        known = known.flatten()
        targets = F.one_hot(labels.flatten().masked_fill(~known, 0), logits.shape[1]).T * known
    probabilities = target.predict(logits.float()).transpose(0, 1).flatten(1) * known
    hits = (probabilities * targets).sum(dim=1)
    size, predicted = targets.sum(dim=1), probabilities.sum(dim=1)
    index = hits / (hits + alpha * (predicted - hits) + (1 - alpha) * (size - hits)).clamp(min=1e-6)
    present = size > 0
    return ((1 - index) * present).sum() / present.sum().clamp(min=1)


def balanced_weights(counts: Sequence[int], classes: Sequence[str]) -> list[float]:
    """Weights total / (K * count), whose mean over the training labels is 1."""
    missing = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if missing:
        raise DataError(
            f"segmentor.loss.class_weights: balanced needs every class in the training split, but no label there is "
            f"{', '.join(map(repr, missing))}: give a list of weights instead."
        )
    return [sum(counts) / (len(counts) * count) for count in counts]
