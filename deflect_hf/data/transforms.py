"""Random and fixed transforms of an example: image, validity (NaN) and target move together.

Every transform maps ``(example, generator) -> example`` without touching its input, works on any number of bands, and
draws only from the generator it is given (see :func:`deflect_hf.data.dataset.example_generator`). Resizing is not among
them: ``image_size`` of the data set does it, so that it is saved with the adapter and the pixel size is tracked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from deflect_hf.config.data import AugmentationArguments
from deflect_hf.data.collate import fill_up
from deflect_hf.data.dataset import Example, ImageDataset, Transform

FOCUS_TRIALS = 20


def build_transform(args: AugmentationArguments, split: str) -> Transform | None:
    """The transforms of a split (random ones for ``"train"`` only), or None when there are none."""
    steps: list[Transform] = []
    if split == "train":
        if args.crop is not None:
            height, width = args.crop
            steps.append(RandomCrop(height, width, args.focus_crop, args.keep_smaller))
        if args.horizontal_flip > 0:
            steps.append(RandomFlip(args.horizontal_flip, dimension=-1))
        if args.vertical_flip > 0:
            steps.append(RandomFlip(args.vertical_flip, dimension=-2))
        if args.rot90:
            steps.append(RandomRot90())
        if args.band_gain or args.band_offset or args.band_noise:
            steps.append(RandomRadiometry(args.band_gain, args.band_offset, args.band_noise))
    elif args.center_crop is not None:
        steps.append(CenterCrop(args.center_crop[0], args.center_crop[1]))
    return Compose(steps) if steps else None


def for_evaluation(images: ImageDataset, args: AugmentationArguments) -> ImageDataset:
    """The same images with nothing random, and with masks of their stored size unless the middle is cut out."""
    return images.with_transform(build_transform(args, "val"), resize_labels=args.center_crop is not None)


@dataclass(frozen=True)
class Compose:
    """Transforms one after the other."""

    steps: Sequence[Transform]

    def __call__(self, example: Example, generator: torch.Generator) -> Example:
        """Apply the steps in order."""
        for step in self.steps:
            example = step(example, generator)
        return example


@dataclass(frozen=True)
class RandomCrop:
    """A random window; with ``focus``, drawn again (at most FOCUS_TRIALS times) until it holds a labelled pixel.

    Where sparse labels make that fail, a window around a random labelled pixel is taken; an image without any keeps
    its last draw. A smaller image is filled up with pixels that were not measured; with ``keep_smaller`` it is taken
    whole along an axis that it is smaller along, as evaluation's sliding windows do.
    """

    height: int
    width: int
    focus: bool = False
    keep_smaller: bool = False

    def __call__(self, example: Example, generator: torch.Generator) -> Example:
        """Cut a random window out of image and mask."""
        if self.keep_smaller:
            height, width = example["pixel_values"].shape[-2:]
            fitting = RandomCrop(min(self.height, height), min(self.width, width), self.focus)
            return fitting(example, generator)
        example = fill_up(example, self.height, self.width)
        rows, columns = _room(example, self.height, self.width)
        labelled = None
        if self.focus and _has_mask(example):
            labels = example["labels"]
            labelled = labels.isfinite() if labels.is_floating_point() else labels >= 0
        top, left = _draw(rows, generator), _draw(columns, generator)
        if labelled is not None and bool(labelled.any()):
            for _ in range(FOCUS_TRIALS):
                if bool(labelled[top : top + self.height, left : left + self.width].any()):
                    break
                top, left = _draw(rows, generator), _draw(columns, generator)
            else:
                points = labelled.nonzero()
                row, column = points[_draw(len(points), generator)].tolist()
                top = min(max(row - _draw(self.height, generator), 0), rows - 1)
                left = min(max(column - _draw(self.width, generator), 0), columns - 1)
        return _crop(example, top, left, self.height, self.width)


@dataclass(frozen=True)
class CenterCrop:
    """The middle of the image, filled up where it is smaller."""

    height: int
    width: int

    def __call__(self, example: Example, generator: torch.Generator) -> Example:
        """Cut the middle out of image and mask."""
        example = fill_up(example, self.height, self.width)
        rows, columns = _room(example, self.height, self.width)
        return _crop(example, (rows - 1) // 2, (columns - 1) // 2, self.height, self.width)


@dataclass(frozen=True)
class RandomFlip:
    """Mirror along ``dimension`` (-1: left to right, -2: top to bottom) with a probability."""

    probability: float
    dimension: int = -1

    def __call__(self, example: Example, generator: torch.Generator) -> Example:
        """Mirror image and mask, or leave both."""
        if float(torch.rand((), generator=generator)) >= self.probability:
            return example
        return _on_grid(example, lambda grid: grid.flip(self.dimension))


@dataclass(frozen=True)
class RandomRot90:
    """Turn by a random multiple of 90 degrees; images that are not square only by 0 or 180, so that sizes stay."""

    def __call__(self, example: Example, generator: torch.Generator) -> Example:
        """Turn image and mask together."""
        height, width = example["pixel_values"].shape[-2:]
        turns = _draw(4, generator) if height == width else 2 * _draw(2, generator)
        return _on_grid(example, lambda grid: torch.rot90(grid, turns, dims=(-2, -1)))


@dataclass(frozen=True)
class RandomRadiometry:
    """Errors of calibration and atmosphere: a factor and a summand of each band, and noise of each value.

    They are drawn for reflectance, before any spectral index is computed from it.
    """

    gain: float
    offset: float
    noise: float

    def __call__(self, example: Example, generator: torch.Generator) -> Example:
        """Change the image alone; what is NaN stays NaN."""
        pixels = example["pixel_values"]
        factor, summand = 2 * torch.rand(2, len(pixels), 1, 1, generator=generator) - 1
        changed = pixels * (1 + self.gain * factor) + self.offset * summand
        if self.noise:
            changed = changed + self.noise * torch.randn(pixels.shape, generator=generator)
        return {**example, "pixel_values": changed}


def _has_mask(example: Example) -> bool:
    return "labels" in example and example["labels"].ndim == 2


def _draw(stop: int, generator: torch.Generator) -> int:
    return int(torch.randint(stop, (), generator=generator))


def _room(example: Example, height: int, width: int) -> tuple[int, int]:
    """How many places a window has, down and across."""
    have_height, have_width = example["pixel_values"].shape[-2:]
    return have_height - height + 1, have_width - width + 1


def _on_grid(example: Example, change: Callable[[torch.Tensor], torch.Tensor]) -> Example:
    """Apply one change to the image and, where there is one, the mask."""
    result = {**example, "pixel_values": change(example["pixel_values"])}
    if _has_mask(example):
        result["labels"] = change(example["labels"])
    return result


def _crop(example: Example, top: int, left: int, height: int, width: int) -> Example:
    return _on_grid(example, lambda grid: grid[..., top : top + height, left : left + width].contiguous())
