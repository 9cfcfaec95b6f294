"""Losses that stay finite, and tied to the graph, when every label of a batch is ignored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def summed_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = -100,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(B, K, ...) logits, (B, ...) int64 labels -> scalar sum of the losses, scalar sum of the weights of the labels

    Their quotient is torch's mean; apart, they average exactly over batches and processes. In float32 always.
    """
    total = F.cross_entropy(
        logits.float(),
        labels,
        class_weights,
        ignore_index=ignore_index,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    labelled = labels != ignore_index
    weights = labelled.float() if class_weights is None else class_weights[labels.where(labelled, 0)] * labelled
    return total, weights.sum()


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = -100,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """(B, K, ...) logits, (B, ...) int64 labels -> scalar: torch's mean cross-entropy, 0 if all labels are ignored."""
    weights = None if class_weights is None else torch.tensor(class_weights, device=logits.device, dtype=torch.float32)
    total, weight = summed_cross_entropy(logits, labels, ignore_index, weights, label_smoothing)
    return total / weight.clamp(min=torch.finfo(torch.float32).tiny)


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, K) logits, (B, K) labels in [0, 1], NaN where unknown -> scalar: mean over the known labels."""
    known = labels.isfinite()
    terms = F.binary_cross_entropy_with_logits(logits.float(), labels.float().where(known, 0.0), reduction="none")
    return (terms * known).sum() / known.sum().clamp(min=1)


def squared_error(predictions: Tensor, labels: Tensor) -> Tensor:
    """(B, 1, H, W) predictions, (B, H, W) values, NaN where unknown -> scalar: mean over the known pixels."""
    known = labels.isfinite()
    error = predictions.float().squeeze(1) - labels.float().where(known, 0.0)
    return (error.square() * known).sum() / known.sum().clamp(min=1)
