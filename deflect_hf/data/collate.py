"""Examples of a data set -> a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import psutil
import torch
import torch.nn.functional as F

from deflect_hf.errors import ConfigError, DataError, listing

Example = dict[str, Any]
IGNORED = -100  # label of pixels that were filled up, where nobody says which it is


def collate_examples(examples: Sequence[Example]) -> Example:
    """Examples -> a batch: ``pixel_values`` (B, C, H, W), ``labels`` (B,) or (B, H, W), ``name`` list of str.

    Raises:
        DataError: The images differ in size; the message names them.
    """
    sizes: dict[tuple[int, ...], list[str]] = {}
    for example in examples:
        sizes.setdefault(tuple(example["pixel_values"].shape[-2:]), []).append(str(example["name"]))
    if len(sizes) > 1:
        found = "; ".join(f"{height} x {width}: {listing(names[:3])}" for (height, width), names in sizes.items())
        raise DataError(
            f"Images of different sizes make no batch ({found}): resize or crop them (`image_size`, `random_crop`, "
            f"`center_crop`), or use batches of one."
        )
    batch: Example = {"pixel_values": torch.stack([example["pixel_values"] for example in examples])}
    if "labels" in examples[0]:
        batch["labels"] = torch.stack([example["labels"] for example in examples])
    batch["name"] = [example["name"] for example in examples]
    return batch


def refuse_beyond_memory(key: str, number: int, shape: Sequence[int]) -> None:
    """Refuse as many images, or windows, of this shape in float32 as the machine has no memory for."""
    needed, there = 4 * number * math.prod(shape), psutil.virtual_memory().total
    if needed > there:
        size = " x ".join(map(str, shape))
        raise ConfigError(
            f"{key}: {number} of {size} values in float32 take {needed / 2**30:,.0f} GiB, this machine has "
            f"{there / 2**30:,.0f}: give a smaller number."
        )


def fill_up(example: Example, height: int, width: int, ignore_index: int = IGNORED) -> Example:
    """An image, or a batch of them, not smaller than this: what is added, right and below, was not measured."""
    have_height, have_width = example["pixel_values"].shape[-2:]
    margins = (0, max(width - have_width, 0), 0, max(height - have_height, 0))
    if not any(margins):
        return example
    filled = {**example, "pixel_values": F.pad(example["pixel_values"], margins, value=torch.nan)}
    labels = example.get("labels")
    if labels is not None and labels.ndim == example["pixel_values"].ndim - 1:  # a mask
        unknown = torch.nan if labels.is_floating_point() else ignore_index
        filled["labels"] = F.pad(labels, margins, value=unknown)
    return filled


def collate_filled_up(examples: Sequence[Example], ignore_index: int = IGNORED) -> Example:
    """As :func:`collate_examples`, smaller images filled up to the largest of them."""
    height, width = (max(example["pixel_values"].shape[axis] for example in examples) for axis in (-2, -1))
    return collate_examples([fill_up(example, height, width, ignore_index) for example in examples])


def batches_of_one_size(examples: Sequence[Example]) -> list[Example]:
    """Examples of any sizes -> batches, each of images of one size and labels of one size."""
    groups: dict[tuple[torch.Size, ...], list[Example]] = {}
    for example in examples:
        sizes = tuple(value.shape for value in example.values() if isinstance(value, torch.Tensor))
        groups.setdefault(sizes, []).append(example)
    return [collate_examples(group) for group in groups.values()]
