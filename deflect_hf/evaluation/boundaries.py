"""Boundary F1: how well the outlines of the mapped classes follow those of the labels, which IoU of areas hides.

Source: Csurka et al., "What is a good evaluation measure for semantic segmentation?", BMVC 2013. Ours: the tolerance is
in pixels, whatever the size of an image, distances are along the larger of both axes (a square), and pixels are added
up over the images, as those of IoU are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

TOLERANCE = 2  # pixels


class Boundaries:
    """Boundary pixels of each class that have a counterpart; add batches with :meth:`update`, then :meth:`result`."""

    def __init__(self, num_classes: int, ignore_index: int, device: torch.device) -> None:
        self.ignore_index = ignore_index
        # of each class: boundary pixels of the labels, those of them near a predicted one, and the other way round
        self.counts = torch.zeros(num_classes, 4, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add (B, H, W) predicted and true classes."""
        labelled = labels != self.ignore_index
        for k, counts in enumerate(self.counts):
            true, found = (boundary(classes == k, labelled) for classes in (labels, predictions))
            pixels = (true, true & near(found), found, found & near(true))
            counts += torch.stack([one.sum() for one in pixels])

    def result(self, classes: Sequence[str], accelerator: Accelerator) -> dict[str, float | None]:
        """The score of each class over all processes, None of a class without any boundary."""
        totals = accelerator.reduce(self.counts, reduction="sum").double().cpu()
        true, hit_true, found, hit_found = totals.unbind(dim=1)
        recall, precision = hit_true / true.clamp(min=1), hit_found / found.clamp(min=1)
        scores = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
        return {
            name: float(score) if known else None
            for name, score, known in zip(classes, scores, true + found > 0, strict=True)
        }


def boundary(inside: Tensor, labelled: Tensor) -> Tensor:
    """(B, H, W) pixels of a class, and those with a label -> its labelled pixels beside labelled ones of another class.

    The edges of the image and of what is ignored are no boundary: nobody knows what is beyond.
    """
    return inside & labelled & near(~inside & labelled, 1)


def near(pixels: Tensor, distance: int = TOLERANCE) -> Tensor:
    """(B, H, W) -> pixels that are at most so far from one of ``pixels`` along both axes."""
    return F.max_pool2d(pixels.float().unsqueeze(1), 2 * distance + 1, 1, distance).squeeze(1) > 0
