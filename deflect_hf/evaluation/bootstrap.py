"""Confidence intervals of scores over images, by a Poisson bootstrap that needs no list of pixels' predictions.

In each replicate an image counts as often as a Poisson(1) number says. The numbers of an image are drawn from a
generator seeded by its name, so the intervals do not depend on the order of the images, the size of the batches or the
number of processes, and processes add up integers. An image's pixels stay together, because they are not independent;
images of one place are not independent either, and intervals over them are too narrow.

Of one class per image or pixel, each replicate keeps the hits, targets and predictions of each class rather than a
whole confusion matrix, since every score is made of them: ``3 * classes * replicates`` numbers, 24 MB for 1000 classes,
and per image some 0.1 ms. Of other outputs a few numbers of each image are kept, and weighted at the end.

Source: J. A. Hanley and B. MacGibbon, "Creating non-parametric bootstrap samples using Poisson frequencies", Computer
Methods and Programs in Biomedicine 83 (2006); N. Chamandy et al., "Estimating uncertainty for massive data streams",
Google technical report (2012).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from deflect_hf.evaluation.metrics import Convention, class_scores

REPLICATES = 1000
LEVEL = 0.95
SEED = 0
FEWEST_IMAGES = 2  # of one image alone, every replicate has the same score


class Bootstrap:
    """Replicates of a split's counts; add batches with :meth:`update`, then ask for :meth:`intervals`."""

    def __init__(self, num_classes: int, ignore_index: int, replicates: int = REPLICATES) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        # float64 adds and multiplies counts below 2^53 exactly, in any order
        self.totals = torch.zeros(replicates, 3 * num_classes, dtype=torch.float64)
        self.images = torch.zeros(1 + num_classes, dtype=torch.int64)  # labelled ones, those with each class

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor, names: Sequence[str]) -> None:
        """Add (B, K) logits with (B,) labels, or (B, K, H, W) logits with (B, H, W) labels, of B named images."""
        counts = image_counts(logits.argmax(dim=1), labels, self.num_classes, self.ignore_index).cpu()  # (B, 3, K)
        weights = replicate_weights(names, self.totals.shape[0]).double()
        self.totals += weights @ counts.flatten(1).double()
        present = counts.sum(dim=1) > 0  # (B, K)
        self.images += torch.cat([present.any(dim=1, keepdim=True), present], dim=1).sum(dim=0)

    def intervals(self, classes: Sequence[str], convention: Convention, accelerator: Accelerator) -> dict[str, Any]:
        """95 % percentile intervals ``[low, high]`` of ``accuracy``, ``miou``, ``f1_macro`` and each class's ``iou``.

        Over all processes. None where fewer than two images have a label, or the class. A class that a replicate lacks
        is left out of that replicate as ``convention`` says.
        """
        parts = (part.to(accelerator.device) for part in (self.totals.long(), self.images))
        totals, images = (accelerator.reduce(part, reduction="sum").cpu() for part in parts)
        labelled, *with_class = images.tolist()
        counts = totals.unflatten(1, (3, self.num_classes))
        drawn = counts[counts[:, 1].sum(dim=1) > 0]  # few images may all be left out of a replicate
        hits, targets, predictions = drawn.double().unbind(dim=1)
        found = class_scores(hits, targets, predictions, convention)
        iou = found.iou.where(found.present, torch.nan)
        means = {"accuracy": found.accuracy, "miou": found.miou, "f1_macro": found.f1_macro}
        return {
            **mean_intervals(means, labelled, len(totals)),
            "iou": {name: interval(iou[:, k], with_class[k]) for k, name in enumerate(classes)},
        }


def mean_intervals(means: Mapping[str, Tensor], images: int, replicates: int) -> dict[str, Any]:
    """The intervals of (R,) replicates of each score over ``images`` labelled ones, and what they are."""
    intervals = {name: interval(values, images) for name, values in means.items()}
    return {"level": LEVEL, "replicates": replicates, "images": images, **intervals}


def replicate_weights(names: Sequence[str], replicates: int) -> Tensor:
    """(R, B) uint8: how often each of B named images counts in each replicate."""

    def drawn(name: str) -> np.ndarray:
        identity = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "big")
        return np.random.default_rng([SEED, identity]).poisson(1.0, replicates).astype(np.uint8)

    return torch.from_numpy(np.stack([drawn(name) for name in names], axis=1))


def by_name(images: list[Any]) -> list[Any]:
    """What all processes kept of each image, name first, in the order of the names: the same sums on any number."""
    return sorted(gather_object(images), key=lambda image: str(image[0]))


def image_counts(predictions: Tensor, labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """(B, ...) predicted and true classes -> (B, 3, K) int64 hits, targets and predictions of each image's labels."""
    images = labels.shape[0]
    predictions, labels = predictions.reshape(images, -1), labels.reshape(images, -1)
    labelled = labels != ignore_index
    first = num_classes * torch.arange(images, device=labels.device).unsqueeze(1)

    def counted(values: Tensor, which: Tensor) -> Tensor:
        return torch.bincount((first + values)[which], minlength=images * num_classes).view(images, num_classes)

    hits = counted(labels, labelled & (labels == predictions))
    return torch.stack([hits, counted(labels, labelled), counted(predictions, labelled)], dim=1)


def interval(values: Tensor, images: int) -> list[float] | None:
    """Percentile interval of (R,) replicates, without those in which the score does not exist; None of one image."""
    values = values[~values.isnan()]
    if images < FEWEST_IMAGES or not len(values):
        return None
    tail = (1 - LEVEL) / 2
    return torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
