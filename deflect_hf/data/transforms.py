"""Random and fixed transforms of an example: image, validity (NaN) and target move together.

Every transform maps ``(example, generator) -> example`` without touching its input, works on any number of bands, and
draws only from the generator it is given (see :func:`deflect_hf.data.order.example_generator`). Resizing is not among
them: ``image_size`` of the data set does it, so that it is saved with the adapter and the pixel size is tracked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from deflect_hf.config.data import AugmentationArguments
from deflect_hf.data.collate import fill_up
from deflect_hf.data.dataset import Example, ImageDataset, Transform

FOCUS_TRIALS = 20


def build_transform(args: AugmentationArguments, split: str) -> Transform | None:
    """The transforms of a split (random ones for ``"train"`` only), or None when there are none."""
    steps: list[Transform] = []
    if split != "train":
        steps += [partial(center_crop, size=args.center_crop)] if args.center_crop is not None else []
        return partial(compose, steps=steps) if steps else None
    if args.crop is not None:
        steps.append(partial(random_crop, size=args.crop, focus=args.focus_crop, keep_smaller=args.keep_smaller))
    for dimension, probability in ((-1, args.horizontal_flip), (-2, args.vertical_flip)):
        if probability > 0:
            steps.append(partial(random_flip, probability=probability, dimension=dimension))
    if args.rot90:
        steps.append(random_rot90)
    if args.band_gain or args.band_offset or args.band_noise:
        steps.append(partial(radiometry, gain=args.band_gain, offset=args.band_offset, noise=args.band_noise))
    return partial(compose, steps=steps) if steps else None


def for_evaluation(images: ImageDataset, args: AugmentationArguments) -> ImageDataset:
    """The same images with nothing random, and with masks of their stored size unless the middle is cut out."""
    return images.with_transform(build_transform(args, "val"), resize_labels=args.center_crop is not None)


def compose(example: Example, generator: torch.Generator, steps: Sequence[Transform]) -> Example:
    """Transforms one after the other."""
    for step in steps:
        example = step(example, generator)
    return example


def random_crop(
    example: Example, generator: torch.Generator, size: Sequence[int], focus: bool, keep_smaller: bool
) -> Example:
    """A random window; with ``focus``, drawn again (at most FOCUS_TRIALS times) until it holds a labelled pixel.

    Where sparse labels make that fail, a window around a random labelled pixel is taken; an image without any keeps
    its last draw. A smaller image is filled up with pixels that were not measured; with ``keep_smaller`` it is taken
    whole along an axis that it is smaller along, as evaluation's sliding windows do.
    """
    if keep_smaller:
        size = [min(pair) for pair in zip(size, example["pixel_values"].shape[-2:], strict=True)]
    example = fill_up(example, *size)
    (height, width), (rows, columns) = size, _room(example, size)
    labels = example["labels"] if focus and _has_mask(example) else torch.empty(0)
    labelled = labels.isfinite() if labels.is_floating_point() else labels >= 0
    top, left = _draw(rows, generator), _draw(columns, generator)
    if bool(labelled.any()):
        for _ in range(FOCUS_TRIALS):
            if bool(labelled[top : top + height, left : left + width].any()):
                break
            top, left = _draw(rows, generator), _draw(columns, generator)
        else:
            points = labelled.nonzero()
            row, column = points[_draw(len(points), generator)].tolist()
            top = min(max(row - _draw(height, generator), 0), rows - 1)
            left = min(max(column - _draw(width, generator), 0), columns - 1)
    return _crop(example, top, left, size)


def center_crop(example: Example, generator: torch.Generator, size: Sequence[int]) -> Example:
    """The middle of the image, filled up where it is smaller."""
    example = fill_up(example, *size)
    rows, columns = _room(example, size)
    return _crop(example, (rows - 1) // 2, (columns - 1) // 2, size)


def random_flip(example: Example, generator: torch.Generator, probability: float, dimension: int) -> Example:
    """Mirror along ``dimension`` (-1: left to right, -2: top to bottom) with a probability."""
    if float(torch.rand((), generator=generator)) >= probability:
        return example
    return _on_grid(example, lambda grid: grid.flip(dimension))


def random_rot90(example: Example, generator: torch.Generator) -> Example:
    """Turn by a random multiple of 90 degrees; images that are not square only by 0 or 180, so that sizes stay."""
    height, width = example["pixel_values"].shape[-2:]
    turns = _draw(4, generator) if height == width else 2 * _draw(2, generator)
    return _on_grid(example, lambda grid: torch.rot90(grid, turns, dims=(-2, -1)))


def radiometry(example: Example, generator: torch.Generator, gain: float, offset: float, noise: float) -> Example:
    """Errors of calibration and atmosphere: a factor and a summand of each band, and noise of each value.

    They are drawn for reflectance, before any spectral index is computed from it; what is NaN stays NaN.
    """
    pixels = example["pixel_values"]
    factor, summand = 2 * torch.rand(2, len(pixels), 1, 1, generator=generator) - 1
    changed = pixels * (1 + gain * factor) + offset * summand
    if noise:
        changed = changed + noise * torch.randn(pixels.shape, generator=generator)
    return {**example, "pixel_values": changed}


def _has_mask(example: Example) -> bool:
    return "labels" in example and example["labels"].ndim == 2


def _draw(stop: int, generator: torch.Generator) -> int:
    return int(torch.randint(stop, (), generator=generator))


def _room(example: Example, size: Sequence[int]) -> tuple[int, int]:
    """How many places a window has, down and across."""
    height, width = example["pixel_values"].shape[-2:]
    return height - size[0] + 1, width - size[1] + 1


def _on_grid(example: Example, change: Callable[[torch.Tensor], torch.Tensor]) -> Example:
    """Apply one change to the image and, where there is one, the mask."""
    result = {**example, "pixel_values": change(example["pixel_values"])}
    if _has_mask(example):
        result["labels"] = change(example["labels"])
    return result


def _crop(example: Example, top: int, left: int, size: Sequence[int]) -> Example:
    height, width = size
    return _on_grid(example, lambda grid: grid[..., top : top + height, left : left + width].contiguous())
