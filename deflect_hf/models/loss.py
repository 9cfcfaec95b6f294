"""Losses that stay finite, and tied to the graph, when every label of a batch is ignored; in float32 always."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = -100,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """(B, K, ...) logits, (B, ...) int64 labels -> scalar: torch's mean cross-entropy, 0 if all labels are ignored."""
    weights = None if class_weights is None else torch.tensor(class_weights, device=logits.device, dtype=torch.float32)
    options: dict[str, Any] = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
    total = F.cross_entropy(logits.float(), labels, weights, reduction="sum", **options)
    labelled = labels != ignore_index
    weight = labelled.float() if weights is None else weights[labels.where(labelled, 0)] * labelled
    return total / weight.sum().clamp(min=torch.finfo(torch.float32).tiny)


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, K) logits, (B, K) labels in [0, 1], NaN where unknown -> scalar: mean over the known labels."""
    known = labels.isfinite()
    terms = F.binary_cross_entropy_with_logits(logits.float(), labels.float().where(known, 0.0), reduction="none")
    return (terms * known).sum() / known.sum().clamp(min=1)


def squared_error(predictions: Tensor, labels: Tensor) -> Tensor:
    """(B, 1, ...) predictions, (B, ...) values, NaN where unknown -> scalar: mean over the known values."""
    known = labels.isfinite()
    error = predictions.float().squeeze(1) - labels.float().where(known, 0.0)
    return (error.square() * known).sum() / known.sum().clamp(min=1)
