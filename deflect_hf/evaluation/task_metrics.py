"""The scores of each kind of output, added up batch by batch and over processes, so that no image is counted twice.

Classes: one confusion matrix, see ``metrics``. Labels: all probabilities are kept, because average precision ranks
them. Values: sums in float64 and counts of (label, prediction) pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from accelerate.utils import gather_object
from torch import Tensor

from deflect_hf.config.tasks import Output
from deflect_hf.evaluation.bootstrap import Bootstrap
from deflect_hf.evaluation.calibration import Calibration
from deflect_hf.evaluation.metrics import Confusion, scores

if TYPE_CHECKING:
    from accelerate import Accelerator

    from deflect_hf.evaluation import protocol as evaluation

BINS = 40  # of predictions and of labels
SPAN = 3.0  # deviations of the training labels from their mean that the bins cover; what is beyond is in the last ones
THRESHOLD = 0.5  # probability from which an image has a class


class Metrics(Protocol):
    """Scores of a split; add batches with :meth:`update`, then ask for :meth:`result`."""

    def __init__(self, protocol: evaluation.Protocol, accelerator: Accelerator, replicates: int) -> None: ...

    def update(self, logits: Tensor, labels: Tensor, names: Sequence[str]) -> None:
        """Add (B, K, ...) logits, or values, and their labels, of B named images."""

    def result(self) -> dict[str, Any]:
        """The scores over all processes, by name."""


class ClassMetrics:
    """Accuracy, mIoU, macro F1, the table per class, the confusion matrix, bootstrap intervals and calibration."""

    def __init__(self, protocol: evaluation.Protocol, accelerator: Accelerator, replicates: int) -> None:
        self.protocol, self.accelerator = protocol, accelerator
        count, ignore_index = len(protocol.classes), protocol.target.ignore_index
        self.confusion = Confusion(count, ignore_index).to(accelerator.device)
        self.bootstrap = Bootstrap(count, ignore_index, replicates) if replicates else None
        self.calibration = Calibration(ignore_index)

    def update(self, logits: Tensor, labels: Tensor, names: Sequence[str]) -> None:
        """Add (B, K) logits with (B,) labels, or (B, K, H, W) logits with (B, H, W) labels."""
        self.confusion.update(logits, labels)
        if self.bootstrap is not None:
            self.bootstrap.update(logits, labels, names)
            self.calibration.update(logits, labels, names)

    def result(self) -> dict[str, Any]:
        """The scores over all processes."""
        classes, convention = self.protocol.classes, self.protocol.convention
        matrix = self.confusion.matrix(self.accelerator)
        found = {**scores(matrix, classes, convention), "confusion_matrix": matrix.tolist()}
        if self.bootstrap is not None:
            found["intervals"] = self.bootstrap.intervals(classes, convention, self.accelerator)
            found |= self.calibration.result(self.protocol.temperature)
        return found


class LabelMetrics:
    """Mean average precision and macro F1 of several labels per image, by torchmetrics, and the table per class."""

    def __init__(self, protocol: evaluation.Protocol, accelerator: Accelerator, replicates: int) -> None:
        self.classes = protocol.classes
        self.batches: list[tuple[Tensor, Tensor]] = []

    def update(self, logits: Tensor, labels: Tensor, names: Sequence[str]) -> None:
        """Add (B, K) logits and (B, K) labels, NaN where unknown."""
        self.batches.append((logits.float().sigmoid().cpu(), labels.float().cpu()))

    def result(self) -> dict[str, Any]:
        """The scores over all processes; those of a class that no image has, or whose labels are unknown, are None."""
        from torchmetrics.functional import classification

        gathered = gather_object(self.batches)
        probabilities, labels = (torch.cat([batch[k] for batch in gathered]) for k in range(2))
        options: dict[str, Any] = {"num_labels": len(self.classes), "ignore_index": -1, "average": "none"}
        cut: dict[str, Any] = {"threshold": THRESHOLD, **options}
        known = labels.nan_to_num(-1.0).long()
        columns = {
            "ap": classification.multilabel_average_precision(probabilities, known, **options),
            "f1": classification.multilabel_f1_score(probabilities, known, **cut),
            "precision": classification.multilabel_precision(probabilities, known, **cut),
            "recall": classification.multilabel_recall(probabilities, known, **cut),
        }
        support = (known == 1).sum(dim=0).tolist()
        table = {
            name: {column: float(values[k]) if support[k] else None for column, values in columns.items()}
            | {"support": support[k]}
            for k, name in enumerate(self.classes)
        }
        present = [row for row in table.values() if row["support"]]
        means = {
            name: sum(float(row[column] or 0.0) for row in present) / max(1, len(present))
            for name, column in (("map", "ap"), ("f1_macro", "f1"))
        }
        return {**means, "threshold": THRESHOLD, "per_class": table}


class ValueMetrics:
    """Mean absolute error, root mean squared error, R2 and bias, in the unit of the labels."""

    def __init__(self, protocol: evaluation.Protocol, accelerator: Accelerator, replicates: int) -> None:
        self.accelerator = accelerator
        self.center, self.unit, std = protocol.mean, protocol.unit, protocol.target.std
        self.edges = torch.linspace(self.center - SPAN * std, self.center + SPAN * std, BINS + 1, dtype=torch.float64)
        self.sums = torch.zeros(6, dtype=torch.float64)
        self.pairs = torch.zeros(BINS * BINS, dtype=torch.int64)

    def update(self, logits: Tensor, labels: Tensor, names: Sequence[str]) -> None:
        """Add (B, 1, ...) predictions and (B, ...) labels, NaN where unknown."""
        known = labels.isfinite()
        label, prediction = labels[known].double().cpu(), logits.squeeze(1)[known].double().cpu()
        error, shifted = prediction - label, label - self.center
        terms = (torch.ones_like(label), error.abs(), error.square(), error, shifted, shifted.square())
        self.sums += torch.stack([term.sum() for term in terms])
        rows, columns = (torch.bucketize(values, self.edges[1:-1]) for values in (label, prediction))
        self.pairs += torch.bincount(rows * BINS + columns, minlength=BINS * BINS)

    def result(self) -> dict[str, Any]:
        """The scores over all processes; R2 is None where all labels are equal."""
        sums, pairs = self.sums, self.pairs
        if self.accelerator.num_processes > 1:  # each process's numbers, added in order: devices may lack float64
            gathered = gather_object([(sums, pairs)])
            sums, pairs = (torch.stack([one[k] for one in gathered]).sum(dim=0) for k in range(2))
        count, absolute, squared, error, shifted, shifted_squared = sums.tolist()
        variation = shifted_squared - shifted**2 / max(count, 1.0)
        return {
            "mae": absolute / max(count, 1.0),
            "rmse": (squared / max(count, 1.0)) ** 0.5,
            "r2": 1 - squared / variation if variation > 1e-12 * max(shifted_squared, 1e-30) else None,
            "bias": error / max(count, 1.0),
            "labels": int(count),
            "unit": self.unit,
            "pairs": {"edges": self.edges.tolist(), "counts": pairs.view(BINS, BINS).tolist()},
        }


METRICS: dict[Output, type[Metrics]] = {"class": ClassMetrics, "labels": LabelMetrics, "value": ValueMetrics}
