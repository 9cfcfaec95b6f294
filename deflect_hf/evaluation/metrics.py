"""Accuracy, IoU and F1 from one integer confusion matrix, the same for images and for pixels.

Definition printed with every result: mIoU and macro F1 are means over the classes *present* in target or prediction
(``convention="present"``). With ``convention="pangaea"`` a class that is in neither counts 0, and the divisions are
guarded by the same small numbers as in pangaea-bench, so that equal confusion matrices give equal scores. (What that
project logs as precision is recall and the other way round; here both are what their names say.)
Processes add up their confusion matrices, never their predictions, so that no image is counted twice.

Source: the evaluator of pangaea-bench (Marsocci et al. 2024, arXiv 2412.04204).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Convention = Literal["present", "pangaea"]


class ClassScores(NamedTuple):
    """Scores of (..., K) counts: (..., K) per class, (...) as means; NaN where a mean does not exist.

    Classes that are not ``present`` in target or prediction score 0.
    """

    present: Tensor
    iou: Tensor
    f1: Tensor
    accuracy: Tensor
    miou: Tensor
    f1_macro: Tensor


def class_scores(hits: Tensor, targets: Tensor, predictions: Tensor, convention: Convention) -> ClassScores:
    """(..., K) float64 counts of each class: both target and prediction, target, prediction."""
    union = targets + predictions - hits
    present = union > 0
    if convention == "present":
        averaged = present
        iou = hits / union.clamp(min=1)
        f1 = 2 * hits / (targets + predictions).clamp(min=1)
        accuracy = hits.sum(dim=-1) / targets.sum(dim=-1)
    else:
        averaged = torch.ones_like(present)
        iou = hits / (union + 1e-6)
        precision, recall = hits / (predictions + 1e-6), hits / (targets + 1e-6)
        f1 = 2 * precision * recall / (precision + recall + 1e-8)  # 1e-6 in percent
        accuracy = hits.sum(dim=-1) / (targets.sum(dim=-1) + 1e-6)
    miou, f1_macro = ((values * averaged).sum(dim=-1) / averaged.sum(dim=-1) for values in (iou, f1))
    return ClassScores(present, iou, f1, accuracy, miou, f1_macro)


def scores(matrix: Tensor, classes: Sequence[str], convention: Convention = "present") -> dict[str, Any]:
    """Accuracy, mIoU, macro F1 and the table per class of a (K, K) matrix (rows target, columns prediction).

    A score that does not exist (no such class at all) is ``None`` in the table, and left out of the means
    (``"present"``) or counted as 0 (``"pangaea"``).
    """
    counts = matrix.double()
    hits, targets, predictions = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    found = class_scores(hits, targets, predictions, convention)
    table = {
        name: {
            "iou": float(found.iou[k]) if found.present[k] else None,
            "f1": float(found.f1[k]) if found.present[k] else None,
            "precision": float(hits[k] / predictions[k]) if predictions[k] else None,
            "recall": float(hits[k] / targets[k]) if targets[k] else None,
            "support": int(targets[k]),
        }
        for k, name in enumerate(classes)
    }
    return {
        "accuracy": float(found.accuracy.nan_to_num(0.0)),
        "miou": float(found.miou.nan_to_num(0.0)),
        "f1_macro": float(found.f1_macro.nan_to_num(0.0)),
        "convention": convention,
        "per_class": table,
    }
