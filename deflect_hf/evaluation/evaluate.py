"""A model on a split: its scores, whole images or sliding windows, at the resolution of the labels."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, product
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from deflect_hf.errors import DataError, listing
from deflect_hf.evaluation.task_metrics import METRICS, Protocol

WINDOW_BATCH = 8
NAMED = 16  # images in a message


class Interrupted(Exception):
    """Work was left off, by all processes alike, because one of them was told to stop."""


def window_offsets(length: int, size: int) -> list[int]:
    """Starts of ceil(length / size) windows, evenly spread from 0 to ``length - size``.

    Source: the evaluation of pangaea-bench (Marsocci et al. 2024, arXiv 2412.04204).
    """
    count = -(-length // size)
    if count == 1:
        return [0]
    return [round(k * (length - size) / (count - 1)) for k in range(count)]


def sliding_logits(
    predict: Callable[[Tensor], Tensor],
    images: Sequence[Tensor],
    size: int | None,
    patch_size: tuple[int, int] = (1, 1),
) -> list[Tensor]:
    """(C, H, W) reflectance of images of any sizes -> (K, H, W) logits of each, averaged where windows overlap.

    Windows of one size make a batch, whichever images they are of. An image that is smaller than a window on one axis
    is taken whole along it, and filled up to whole patches, on the right or below, with NaN: pixels that were not
    measured. Maps of scenes are made the same way. Models that give (B, K) logits take whole images (no ``size``).
    """
    filled, windows = [], defaultdict[tuple[int, ...], list[tuple[int, int, int]]](list)
    for number, image in enumerate(images):
        sides = zip(image.shape[-2:], patch_size, strict=True)
        height, width = (side if size and side >= size else -(-side // step) * step for side, step in sides)
        filled.append(F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]), value=torch.nan))
        side_h, side_w = (min(size or side, side) for side in (height, width))
        places = product(window_offsets(height, side_h), window_offsets(width, side_w))
        windows[side_h, side_w] += [(number, top, left) for top, left in places]
    sums: dict[int, Tensor] = {}
    hits = [image.new_zeros(image.shape[-2:]) for image in filled]
    for (side_h, side_w), corners in windows.items():
        step = max(len(images), WINDOW_BATCH)
        for batch in (corners[first : first + step] for first in range(0, len(corners), step)):
            crops = [filled[number][..., top : top + side_h, left : left + side_w] for number, top, left in batch]
            for (number, top, left), logits in zip(batch, predict(torch.stack(crops)).float(), strict=True):
                if logits.ndim == 1:
                    sums[number] = logits
                    continue
                if number not in sums:
                    sums[number] = logits.new_zeros(len(logits), *hits[number].shape)
                sums[number][:, top : top + side_h, left : left + side_w] += logits
                hits[number][top : top + side_h, left : left + side_w] += 1
    found = []
    for number, image in enumerate(images):
        total, (height, width) = sums[number], image.shape[-2:]
        found.append(total if total.ndim == 1 else (total / hits[number])[:, :height, :width])
    return found


@torch.no_grad()
def predict_logits(
    model: nn.Module, images: Sequence[Tensor] | Tensor, window: int | None, patch_size: tuple[int, int] = (1, 1)
) -> list[Tensor]:
    """(C, H, W) reflectance each -> float32 logits, (K,) or (K, H, W) each, of whole images or of sliding windows."""
    return sliding_logits(lambda crops: model(pixel_values=crops).logits, list(images), window, patch_size)


def at_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, K, h, w) logits, (B, H, W) labels -> (B, K, H, W): bilinear where images were resized, labels were not."""
    if logits.ndim == 2 or logits.shape[2:] == labels.shape[1:]:
        return logits
    return F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[dict[str, Any]],
    accelerator: Accelerator,
    protocol: Protocol,
    replicates: int = 0,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Scores of a model on the images of ``loader``, summed over all processes.

    The model is put into evaluation mode and back. Give the model itself, not its distributed wrapper: processes may
    have different numbers of batches.

    Args:
        replicates: Of the bootstrap over images that adds ``"intervals"``, and with them the calibration of the
            confidence, to the scores of classes; 0 leaves them out.
        asked_to_stop: Called before each batch; where it holds, this process leaves out what is left.

    Raises:
        DataError: the images carry no labels, or only ignored ones; or the outputs on some of them are not finite.
        Interrupted: any of the processes was asked to stop.
    """
    training = model.training
    model.eval()
    metrics = METRICS[protocol.task.output](protocol, accelerator, replicates)
    target = protocol.target.unweighted()
    # sum of the losses, labelled pixels or images, processes that were asked to stop
    sums = torch.zeros(3, device=accelerator.device)
    losses: list[tuple[Tensor, Sequence[str]]] = []
    for batches in _together(loader, protocol.batch_size, asked_to_stop):
        images = [image for batch in batches for image in batch["pixel_values"].to(accelerator.device)]
        with accelerator.autocast():
            predicted = iter(predict_logits(model, images, protocol.window, protocol.patch_size))
        for batch in batches:
            labels = batch["labels"].to(accelerator.device)
            logits = list(islice(predicted, len(labels)))
            # masks larger than the images are scored one by one: their logits together might not fit the memory
            step = len(labels) if logits[0].ndim == 1 or logits[0].shape[1:] == labels.shape[1:] else 1
            for first in range(0, len(labels), step):
                some, names = slice(first, first + step), batch["name"][first : first + step]
                scored = at_labels(torch.stack(logits[some]), labels[some])
                metrics.update(scored, labels[some], names)
                weight = target.weight(labels[some])
                loss = target.loss(scored, labels[some]) * weight
                losses.append((loss, names))
                sums[:2] += torch.stack([loss, weight])
    sums[2] = float(asked_to_stop())
    model.train(training)
    total, weight, asked = accelerator.reduce(sums, reduction="sum").tolist()
    if asked:
        raise Interrupted
    if not math.isfinite(total):
        _refuse_overflow(losses)
    if not weight:
        bare = listing((str(name) for _, names in losses for name in names), NAMED)
        raise DataError(
            f"none of the images {bare} has a label: all of their pixels are ignored or not measured. Correct the "
            "classes' values, ignore_values or nodata"
        )
    return {"loss": total / max(weight, 1.0), **metrics.result()}


def _together(
    loader: Iterable[dict[str, Any]], size: int, asked_to_stop: Callable[[], bool]
) -> Iterator[list[dict[str, Any]]]:
    """The batches of ``loader``, each of one size of images, until they are ``size`` images at a time."""
    batches: list[dict[str, Any]] = []
    for batch in loader:
        if asked_to_stop():
            return
        if "labels" not in batch:
            raise DataError(f"{batch['name'][0]}: has no label, so there is nothing to evaluate against.")
        batches.append(batch)
        if sum(len(one["name"]) for one in batches) >= size:
            yield batches
            batches = []
    if batches:
        yield batches


def _refuse_overflow(losses: Iterable[tuple[Tensor, Sequence[str]]]) -> None:
    """Name the images of the batches, of all processes, whose loss is not finite."""
    images = gather_object([str(name) for loss, names in losses if not math.isfinite(float(loss)) for name in names])
    raise DataError(
        f"the model's outputs are not finite on the images {listing(images, NAMED)}: one of them holds values far from "
        "those of training (correct dataset.scale, offset or nodata), or the learning rate was too high."
    )
