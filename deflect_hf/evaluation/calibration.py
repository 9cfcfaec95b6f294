"""Calibrated confidence: one temperature of the logits, fitted on validation, and the error that it leaves.

Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (arXiv 1706.04599).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deflect_hf.artifacts.saved_model import RESULTS
from deflect_hf.errors import CheckpointError
from deflect_hf.evaluation.bootstrap import by_name

PIXELS = 256  # of each image, spread over those with a label
MOST_ROWS = 2**17  # of all images, spread over them
LARGEST = 8.0  # temperature; the smallest is its inverse
POINTS, ROUNDS = 9, 5  # of the search, each round between the neighbours of the best point before
BINS = 15  # of confidence, as in the source


class Calibration:
    """Logits and labels of some pixels of each image; add batches with :meth:`update`, then ask for :meth:`result`."""

    def __init__(self, ignore_index: int) -> None:
        self.ignore_index = ignore_index
        self.images: list[tuple[str, Tensor, Tensor]] = []

    def update(self, logits: Tensor, labels: Tensor, names: Sequence[str]) -> None:
        """Add (B, K) logits with (B,) labels, or (B, K, H, W) logits with (B, H, W) labels, of B named images."""
        flat = logits.float().reshape(*logits.shape[:2], -1), labels.reshape(len(labels), -1)
        for name, scores, label in zip(names, *flat, strict=True):
            chosen = _spread((label != self.ignore_index).nonzero().squeeze(1), PIXELS)
            self.images.append((str(name), scores[:, chosen].T.cpu(), label[chosen].cpu()))

    def result(self, temperature: float | None) -> dict[str, Any]:
        """``temperature`` (None: it is fitted here) and the expected calibration error without and with it."""
        images = by_name(self.images)
        logits, labels = (torch.cat([image[k] for image in images]) for k in (1, 2))
        rows = _spread(torch.arange(len(labels)), MOST_ROWS)
        logits, labels = logits[rows], labels[rows]
        found = fit_temperature(logits, labels) if temperature is None else temperature
        return {
            "temperature": found,
            "ece": calibration_error(logits, labels),
            "ece_calibrated": calibration_error(logits / found, labels),
        }


def _spread(indices: Tensor, most: int) -> Tensor:
    if len(indices) <= most:
        return indices
    return indices[torch.linspace(0, len(indices) - 1, most, dtype=torch.float64).long()]


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """(N, K) logits, (N,) classes -> T, from 1/8 to 8, with the least negative log-likelihood of logits / T."""
    limit = math.log(LARGEST)
    best, reach = 0.0, limit
    for _ in range(ROUNDS):
        points = torch.linspace(max(best - reach, -limit), min(best + reach, limit), POINTS).tolist()
        losses = [float(torch.nn.functional.cross_entropy(logits / math.exp(point), labels)) for point in points]
        best, reach = points[losses.index(min(losses))], points[1] - points[0]
    return round(math.exp(best), 3)


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """(N, K) logits, (N,) classes -> mean distance of confidence and accuracy over bins of confidence, weighted."""
    confidence, chosen = logits.softmax(dim=1).double().max(dim=1)
    bins = (confidence * BINS).long().clamp_max(BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, confidence - (chosen == labels).double())
    return float(gaps.abs().sum() / max(1, len(labels)))


def known_temperature(results: Mapping[str, Any], folder: Path) -> float | None:
    """The temperature that was fitted for the model of a result folder; None where its run did not."""
    scores = results.get("val")
    found = scores.get("temperature") if isinstance(scores, Mapping) else None
    if found is not None and not (isinstance(found, int | float) and 0 < found < math.inf):
        raise CheckpointError(
            f"{folder / RESULTS}: val.temperature is {found!r}, not a positive number: evaluate again"
        )
    return found


def known_confusion(results: Mapping[str, Any], folder: Path, count: int) -> tuple[str, Any] | None:
    """The split that a model of ``count`` classes was tested on, else validated on, and its confusion matrix."""
    for split in dict.fromkeys(("test", "val", *results)):
        scores = results.get(split)
        if not isinstance(scores, Mapping) or "confusion_matrix" not in scores:
            continue
        rows = scores["confusion_matrix"]
        square = isinstance(rows, list) and all(isinstance(row, list) and len(row) == count for row in rows)
        if not square or len(rows) != count or any(type(cell) is not int or cell < 0 for row in rows for cell in row):
            raise CheckpointError(
                f"{folder / RESULTS}: {split}.confusion_matrix is not {count} x {count} whole numbers, a row and a "
                "column for each class of the model: evaluate again, or remove the file"
            )
        return split, rows
    return None


def kept_scores(confusion: tuple[str, Any] | None, temperature: float | None) -> dict[str, dict[str, Any]]:
    """The entries of ``results.json`` that the two are read from."""
    scores: dict[str, dict[str, Any]] = {}
    if confusion is not None:
        split, counts = confusion
        scores[split] = {"confusion_matrix": np.asarray(counts).tolist()}
    if temperature is not None:
        scores.setdefault("val", {})["temperature"] = temperature
    return scores
