"""Accuracy, IoU and F1 from one integer confusion matrix, the same for images and for pixels.

Definition printed with every result: mIoU and macro F1 are means over the classes *present* in target or prediction
(``convention="present"``). With ``convention="pangaea"`` a class that is in neither counts 0, as in pangaea-bench.
Processes add up their confusion matrices, never their predictions, so that no image is counted twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator

Convention = Literal["present", "pangaea"]


class Confusion(nn.Module):
    """Counts of (target, prediction) pairs; pixels whose target is ``ignore_index`` are not counted."""

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        from torchmetrics.classification import MulticlassConfusionMatrix

        super().__init__()
        # sync_on_compute: the reduction is accelerate's, so that it also works without torch.distributed (TPU, one GPU)
        self.counter = MulticlassConfusionMatrix(num_classes, ignore_index=ignore_index, sync_on_compute=False)

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add (B, K) logits with (B,) labels, or (B, K, H, W) logits with (B, H, W) labels."""
        self.counter.update(logits.argmax(dim=1), labels)

    def matrix(self, accelerator: Accelerator | None = None) -> Tensor:
        """(K, K) int64 on the CPU, rows are targets and columns predictions, summed over all processes."""
        counts = self.counter.confmat
        if accelerator is not None:
            counts = accelerator.reduce(counts, reduction="sum")
        return counts.cpu().long()


def scores(matrix: Tensor, classes: Sequence[str], convention: Convention = "present") -> dict[str, Any]:
    """Accuracy, mIoU, macro F1 and the table per class of a (K, K) matrix (rows target, columns prediction).

    A score that does not exist (no such class at all) is ``None`` in the table, and left out of the means
    (``"present"``) or counted as 0 (``"pangaea"``).
    """
    counts = matrix.double()
    hits, targets, predictions = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    union = targets + predictions - hits
    present = union > 0
    iou = hits / union.clamp(min=1)
    f1 = 2 * hits / (targets + predictions).clamp(min=1)
    averaged = present if convention == "present" else torch.ones_like(present)

    def mean(values: Tensor) -> float:
        return float(values[averaged].mean()) if bool(averaged.any()) else 0.0

    total = counts.sum()
    table = {
        name: {
            "iou": float(iou[k]) if present[k] else None,
            "f1": float(f1[k]) if present[k] else None,
            "precision": float(hits[k] / predictions[k]) if predictions[k] else None,
            "recall": float(hits[k] / targets[k]) if targets[k] else None,
            "support": int(targets[k]),
        }
        for k, name in enumerate(classes)
    }
    return {
        "accuracy": float(hits.sum() / total) if total else 0.0,
        "miou": mean(iou),
        "f1_macro": mean(f1),
        "convention": convention,
        "per_class": table,
    }


def selection_metric(task: str) -> str:
    """The score by which the best checkpoint is chosen: accuracy of images, mIoU of maps."""
    return "accuracy" if task == "classification" else "miou"
