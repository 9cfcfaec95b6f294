"""What the training loop adds to the models' own loss: exact averaging, balanced class weights, a soft Dice term."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deflect_hf.errors import DataError


def label_weight(labels: Tensor, ignore_index: int, class_weights: Sequence[float] | None) -> Tensor:
    """(B, ...) labels -> scalar float32: what the models' mean cross-entropy was divided by.

    Mean loss times this weight can be summed over batches and processes and divided by the summed weights: the mean
    over all labels, however unevenly the ignored ones are spread.
    """
    labelled = labels != ignore_index
    if class_weights is None:
        return labelled.sum().float()
    weights = torch.tensor(class_weights, dtype=torch.float32, device=labels.device)
    return (weights[labels.masked_fill(~labelled, 0)] * labelled).sum()


def soft_dice(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """(B, K, ...) logits, (B, ...) labels -> scalar 1 - mean Dice over the classes that the batch's labels hold.

    Zero, and still tied to the graph, when every label is ignored.

    Source: F. Milletari et al., "V-Net", 3DV 2016 (arXiv 1606.04797), with linear instead of squared denominators.
    """
    labelled = (labels != ignore_index).flatten()
    probabilities = logits.float().softmax(dim=1).transpose(0, 1).flatten(1) * labelled
    targets = F.one_hot(labels.flatten().masked_fill(~labelled, 0), logits.shape[1]).T * labelled
    overlap = 2 * (probabilities * targets).sum(dim=1)
    size = probabilities.sum(dim=1) + targets.sum(dim=1)
    present = targets.sum(dim=1) > 0
    loss = (1 - overlap / size.clamp(min=1e-6)) * present
    return loss.sum() / present.sum().clamp(min=1)


def balanced_weights(counts: Sequence[int], classes: Sequence[str]) -> list[float]:
    """Weights total / (K * count), whose mean over the training labels is 1."""
    missing = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if missing:
        raise DataError(
            f"segmentor.loss.class_weights: balanced needs every class in the training split, but no label there is "
            f"{', '.join(map(repr, missing))}: give a list of weights instead."
        )
    return [sum(counts) / (len(counts) * count) for count in counts]
