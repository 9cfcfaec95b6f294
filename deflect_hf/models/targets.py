"""What the labels of a task mean to a model: which are known, the loss over them, what logits become.

Labels of one class are numbers, ``ignore_index`` where unknown; those of the other kinds are floats, NaN where unknown.
Losses are in float32 always; they stay finite, and tied to the graph, when every label of a batch is unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from deflect_hf.config.tasks import PROBLEM_TYPES, Output
from deflect_hf.errors import DataError, listing


@dataclass(frozen=True)
class Target:
    """Labels that belong to (B, K, ...) logits; see the subclasses."""

    ignore_index: int = -100
    # class_weights, label_smoothing: of the cross-entropy over one of K classes
    class_weights: Sequence[float] | None = None
    label_smoothing: float = 0.0
    std: float = 1.0  # of values, in their unit: errors are counted in it

    def label_shape(self, logits: Tensor) -> torch.Size:
        """(B, K, ...) logits -> the shape of their labels."""
        return torch.Size((logits.shape[0], *logits.shape[2:]))

    def known(self, labels: Tensor) -> Tensor:
        """Labels -> bool of their shape."""
        return labels.isfinite()

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K, ...) logits and their labels -> scalar mean over the known labels, 0 without any."""
        raise NotImplementedError

    def weight(self, labels: Tensor) -> Tensor:
        """Labels -> scalar float32: what the mean of :meth:`loss` was divided by.

        Mean loss times this weight can be summed over batches and processes and divided by the summed weights: the
        mean over all labels, however unevenly the unknown ones are spread.
        """
        return self.known(labels).sum().float()

    def predict(self, logits: Tensor) -> Tensor:
        """(B, K, ...) logits -> (B, K, ...) probabilities or values."""
        raise NotImplementedError

    def unweighted(self) -> Self:
        """The same for scores: every label counts alike."""
        return replace(self, class_weights=None, label_smoothing=0.0)


class OneClass(Target):
    """One of K classes: (B, ...) int64 labels; probabilities add up to 1."""

    def known(self, labels: Tensor) -> Tensor:
        """(B, ...) labels -> (B, ...) bool."""
        return labels != self.ignore_index

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K, ...) logits, (B, ...) labels -> scalar: torch's mean cross-entropy."""
        if labels.is_floating_point():
            raise DataError(f"labels are {labels.dtype}: of classes they are whole numbers, labels.long().")
        labels = labels.long()  # masks of 8 bits, say
        try:
            total = F.cross_entropy(
                logits.float(),
                labels,
                self._class_weights(labels),
                ignore_index=self.ignore_index,
                reduction="sum",
                label_smoothing=self.label_smoothing,
            )
        except IndexError:
            outside = labels[self.known(labels) & ((labels < 0) | (labels >= logits.shape[1]))].unique().tolist()
            raise DataError(
                f"labels hold {listing(map(str, outside[:4]))}, but the model has the classes 0 to "
                f"{logits.shape[1] - 1}, and unknown is {self.ignore_index} (ignore_index of its configuration)."
            ) from None
        return total / self.weight(labels).clamp(min=torch.finfo(torch.float32).tiny)

    def weight(self, labels: Tensor) -> Tensor:
        """(B, ...) labels -> scalar: their number, or the sum of their classes' weights."""
        weights = self._class_weights(labels)
        if weights is None:
            return super().weight(labels)
        known = self.known(labels)
        return (weights[labels.masked_fill(~known, 0)] * known).sum()

    def _class_weights(self, labels: Tensor) -> Tensor | None:
        weights = self.class_weights
        return None if weights is None else torch.tensor(weights, dtype=torch.float32, device=labels.device)

    def predict(self, logits: Tensor) -> Tensor:
        """(B, K, ...) logits -> (B, K, ...) probabilities."""
        return logits.softmax(dim=1)


class AnyClasses(Target):
    """Any number of K classes: (B, K) labels, 0 or 1; a probability for each class."""

    def label_shape(self, logits: Tensor) -> torch.Size:
        """(B, K) logits -> the same."""
        return logits.shape

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K) logits, (B, K) labels -> scalar."""
        known = self.known(labels)
        terms = F.binary_cross_entropy_with_logits(logits.float(), labels.float().where(known, 0.0), reduction="none")
        return (terms * known).sum() / self.weight(labels).clamp(min=1)

    def predict(self, logits: Tensor) -> Tensor:
        """(B, K) logits -> (B, K) probabilities."""
        return logits.sigmoid()


class Value(Target):
    """A number: (B, 1, ...) predictions and (B, ...) labels in its unit."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, 1, ...) predictions, (B, ...) labels -> scalar: squared error in units of the deviation."""
        known = self.known(labels)
        error = logits.float().squeeze(1) - labels.float().where(known, 0.0)
        return (error.square() * known).sum() / self.weight(labels).clamp(min=1) / self.std**2

    def predict(self, logits: Tensor) -> Tensor:
        """(B, 1, ...) predictions, which are values."""
        return logits


KINDS: dict[Output, type[Target]] = {"class": OneClass, "labels": AnyClasses, "value": Value}


def target_of(config: Any) -> Target:
    """The labels of a model with this configuration."""
    kinds = {PROBLEM_TYPES[output]: kind for output, kind in KINDS.items()}
    std = 1.0 if config.target_std is None else config.target_std
    return kinds.get(config.problem_type, OneClass)(
        config.ignore_index, config.class_weights, config.label_smoothing, std
    )
