"""The data set that training and evaluation see: stored images in, examples in reflectance out."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from deflect_hf.config.data import DatasetArguments
from deflect_hf.config.tasks import TASKS
from deflect_hf.data.collate import IGNORED
from deflect_hf.data.kept import example_file, kept
from deflect_hf.data.order import example_generator
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.errors import DataError, counted, listing
from deflect_hf.raster.validity import HUGE

if TYPE_CHECKING:
    from datasets import Dataset as Table

logger = logging.getLogger(__name__)

SAMPLED_IMAGES = 32  # of each split, compared with the images of a trained model
Example = dict[str, Any]
Transform = Callable[[Example, torch.Generator], Example]


@dataclass(frozen=True)
class Stored:
    """One example as a reader finds it."""

    values: np.ndarray  # (C, H, W) stored values, channels in the order of ``bands``
    bands: Sequence[str]
    # (H, W) stored mask values; or of the whole image a class id, a value, or 0, 1, NaN of each class; None: no labels
    target: np.ndarray | int | float | Sequence[float] | None
    where: str  # file name of the image, for error messages
    valid: np.ndarray | None = None  # (C, H, W) bool, or None where the reader knows of no invalid pixels
    # (H, W) bool, False where the mask itself says nodata; None: everywhere valid
    target_valid: np.ndarray | None = None
    target_where: str = ""  # file name of the mask, for error messages
    target_nodata: float | None = None  # the nodata tag of the mask


class Reader(Protocol):
    """Reads the example that one row of the table describes."""

    def read(self, row: Mapping[str, Any]) -> Stored:
        """Read it as it is stored."""


@dataclass(frozen=True)
class Labels:
    """What labels mean."""

    task: str  # one of TASKS
    classes: tuple[str, ...]  # class names in label order; of a regression the name of the value
    values: tuple[int, ...] = ()  # stored mask value of each class (segmentation)
    ignore_values: tuple[int, ...] = ()  # stored mask values that mean "not labelled"
    ignore_index: int = -100
    unit: str | None = None  # of the value of a regression
    colors: tuple[tuple[int, int, int], ...] = ()  # red, green and blue of each class, where the masks are painted

    def __post_init__(self) -> None:
        known: dict[str | float, str] = {}
        for name in self.classes:
            plain: str | float = unicodedata.normalize("NFC", name).casefold().strip()
            with contextlib.suppress(ValueError):
                plain = float(plain) if name.isascii() else plain
            other = known.setdefault(plain, name)
            if plain == "":
                raise DataError(f"a class is called {name!r}, among {listing(self.classes)}: give it a name.")
            if other != name:
                raise DataError(
                    f"the classes {other!r} and {name!r} differ in case, spaces or in how a letter or number is "
                    "written alone: write them alike."
                )

    @classmethod
    def of(cls, args: DatasetArguments, task: str, classes: Sequence[str]) -> Labels:
        """What ``args`` say of labels with these classes, or of the value of that name."""
        if TASKS[task].output == "value":
            return cls(task, tuple(classes), ignore_values=tuple(args.ignore_values), unit=args.target_unit)
        if not TASKS[task].dense:
            return cls(task, tuple(classes), ignore_index=args.ignore_index)
        values = tuple(range(len(classes)) if args.class_values is None else args.class_values)
        return cls(task, tuple(classes), values, tuple(args.ignore_values), args.ignore_index, None, args.colors)

    @property
    def unknown(self) -> float:
        """The label of what is not labelled."""
        return self.ignore_index if TASKS[self.task].output == "class" else math.nan

    @property
    def dtype(self) -> torch.dtype:
        """Of labels."""
        return torch.int64 if TASKS[self.task].output == "class" else torch.float32

    def encode(
        self, mask: np.ndarray, valid: np.ndarray | None, where: str, nodata: float | None = None
    ) -> torch.Tensor:
        """``(H, W) stored mask values -> (H, W) labels``, ``unknown`` where ignored or invalid.

        Raises:
            DataError: The mask holds a value that is neither a class nor ignored, or a class that it tags as nodata.
        """
        if TASKS[self.task].output == "value":
            known = ~np.isin(mask, self.ignore_values) & (True if valid is None else valid)
            huge = mask[known & (np.abs(mask) > HUGE)]
            if huge.size:
                raise DataError(
                    f"{where} holds {huge[0]:.7g}, which is no value of a regression: tag it as nodata (gdal_edit.py "
                    "-a_nodata)."
                )
            return torch.from_numpy(np.where(known, mask, np.nan).astype(np.float32))
        for name, value in zip(self.classes, self.values, strict=True):
            if value == nodata and value in mask:
                raise DataError(
                    f"{where} tags {value} as nodata, which is the value of class {name!r}: remove the tag "
                    f"(gdal_edit.py -unsetnodata; save a PNG without transparency), or take the class out of `classes` "
                    f"if these pixels have no label."
                )
        labels = np.full(mask.shape, self.ignore_index, dtype=np.int64)
        known = np.isin(mask, self.ignore_values) if valid is None else np.isin(mask, self.ignore_values) | ~valid
        for index, value in enumerate(self.values):
            hit = mask == value
            labels[hit & ~known] = index
            known |= hit
        if not known.all():
            unknown = [int(value) for value in np.unique(mask[~known])]
            ignored = f", ignored are {list(self.ignore_values)}" if self.ignore_values else ""
            raise DataError(
                f"{where} holds unknown class value(s) {unknown[:10]}: known are {list(self.values)} "
                f"({listing(self.classes)}){ignored}; "
                f"correct `class_values` or add them to `ignore_values`."
            )
        return torch.from_numpy(labels)


class ImageDataset(torch.utils.data.Dataset):
    """Examples ``{"pixel_values": (C, H, W) float32 reflectance, "labels": tensor, "name": str}``.

    ``labels`` are int64 class ids, a scalar (classification) or (H, W) (segmentation), or float32: a scalar
    (regression), (H, W) (pixel_regression), or (K,) of 0 and 1 (multi_label). NaN in ``pixel_values`` marks what is not
    a measurement; a pixel without any valid band has the label ``ignore_index``, NaN if labels are floats. Backed by a
    table of Hugging Face ``datasets``; images are read when asked for.

    Random transforms draw from a generator seeded by (seed, epoch, index), so an example looks the same whatever
    process or worker reads it, and a resumed run sees what an uninterrupted one would have seen.

    Args:
        table: One row per example, with at least a column ``name``.
        reader: Reads the stored image and target of a row.
        processor: Turns stored values into reflectance.
        labels: What the labels mean.
        gsd_m: Pixel size on the ground of the examples, in metres, before any transform.
    """

    def __init__(
        self,
        table: Table,
        reader: Reader,
        processor: MultispectralImageProcessor,
        labels: Labels,
        gsd_m: float | None = None,
        seed: int = 0,
    ) -> None:
        self.table = table
        self.reader = reader
        self.processor = processor
        self.labels = labels
        self.gsd_m = gsd_m
        self.seed = seed
        self.transform: Transform | None = None
        self.resize_labels = True
        self.draw: Callable[[Any, torch.Generator], Any] | None = None
        self.folder: Path | None = None
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by persistent workers too

    @property
    def bands(self) -> list[str]:
        """Band codes of the channels of ``pixel_values``."""
        return list(self.processor.bands)

    @property
    def task(self) -> str:
        """One of :data:`~deflect_hf.config.tasks.TASKS`."""
        return self.labels.task

    @property
    def classes(self) -> list[str]:
        """Class names in label order."""
        return list(self.labels.classes)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.labels.classes)

    @property
    def ignore_index(self) -> int:
        """Label of pixels that do not count."""
        return self.labels.ignore_index

    @property
    def names(self) -> list[str]:
        """Ids of the examples, in order."""
        return list(self.table["name"])

    def with_transform(
        self, transform: Transform | None, resize_labels: bool = True, drawn: bool = False
    ) -> ImageDataset:
        """The same examples, passed through ``transform(example, generator)``.

        Without ``resize_labels``, masks keep their stored size where ``image_size`` resizes the images: for scores.
        With ``drawn``, a reader of scenes draws its windows anew in each epoch: ``reader.draw(row, generator)``.
        """
        draw = getattr(self.reader, "draw", None) if drawn else None
        return self._changed(transform=transform, resize_labels=resize_labels, draw=draw)

    def select(self, indices: Sequence[int]) -> ImageDataset:
        """The examples at ``indices``, in that order."""
        return self._changed(table=self.table.select(list(indices)))

    def with_processor(self, processor: MultispectralImageProcessor) -> ImageDataset:
        """The same examples, read by another processor."""
        return self._changed(processor=processor)

    def kept_in(self, folder: Path) -> ImageDataset:
        """The same examples: each is decoded once, kept in a file of the folder, and then read from there."""
        return self._changed(folder=folder)

    def _changed(self, **changes: Any) -> ImageDataset:
        changed = copy.copy(self)
        vars(changed).update(changes, _epoch=torch.zeros_like(self._epoch).share_memory_())
        return changed

    def set_epoch(self, epoch: int) -> None:
        """Make the random transforms draw anew for this epoch, in the workers of a running loader as well."""
        self._epoch.fill_(epoch)

    def is_labelled(self) -> bool:
        """Whether any image has a label, or a measured pixel with one; they are read until one has."""
        if self.task == "classification":
            return True
        if not TASKS[self.task].dense:
            targets = (row["target"] if "target" in row else self.reader.read(row).target for row in self.table)
            return any(bool(np.isfinite(np.asarray(target, dtype=float)).any()) for target in targets)
        labels = (self[index].get("labels") for index in range(len(self)))
        return any(one is not None and bool((one.isfinite() & (one != self.labels.unknown)).any()) for one in labels)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Example:
        row = self.table[index]
        generator = example_generator(self.seed, int(self._epoch), index)
        if self.draw is not None:
            row = self.draw(row, generator)
        example: Example = {**self._tensors(row), "name": row["name"]}
        if self.transform is not None:
            example = self.transform(example, generator)
            if self.ignore_index != IGNORED and "labels" in example:  # which labels of classes alone have
                example["labels"][example["labels"] == IGNORED] = self.ignore_index
        return example

    def _tensors(self, row: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        if self.folder is None:
            return self._decoded(row)
        processor = {**vars(self.processor), "trained_size": None, "quantiles": None}  # which training notes later
        path = self.folder / example_file(row, (self.reader, self.labels, self.resize_labels, processor))
        return kept(path, lambda: self._decoded(row))

    def _decoded(self, row: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        stored = self.reader.read(row)
        pixels = self.processor.convert(stored.values, stored.bands, stored.valid, stored.where)
        tensors = {"pixel_values": pixels}
        if isinstance(stored.target, np.ndarray):
            where = stored.target_where or stored.where
            labels = self.labels.encode(stored.target, stored.target_valid, where, stored.target_nodata)
            # numpy is twenty times as fast as torch
            unseen = torch.from_numpy(~np.isfinite(pixels.numpy()).any(axis=0))
            if labels.shape != unseen.shape and self.resize_labels:
                labels = resize_labels(labels, *unseen.shape)
            elif labels.shape != unseen.shape:
                unseen = resize_labels(unseen, *labels.shape).bool()
            labels[unseen] = self.labels.unknown
            tensors["labels"] = labels
        elif stored.target is not None:
            labels = torch.tensor(stored.target, dtype=self.labels.dtype)
            seen = np.isfinite(pixels.numpy()).any()  # of an image without a measurement nothing can be said
            tensors["labels"] = labels if seen else torch.full_like(labels, self.labels.unknown)
        return tensors


def make_datasets(
    rows_by_split: Mapping[str, Sequence[Mapping[str, Any]]],
    reader: Reader,
    processor: MultispectralImageProcessor,
    labels: Labels,
    gsd_m: float | None,
    seed: int,
    title: str,
) -> dict[str, ImageDataset]:
    """One data set per split, from one row per example; the log says how many images ``title`` has in each.

    Args:
        rows_by_split: Rows with a ``name``, for classification a ``label``, and whatever ``reader`` looks at.
        gsd_m: Pixel size on the ground of the examples, in metres.
    """
    from datasets import Dataset as Table  # not where a scene is mapped, which uses the readers alone

    for split, rows in rows_by_split.items():
        counts = Counter(labels.classes[row["label"]] for row in rows) if labels.task == "classification" else {}
        per_class = "".join(f", {name} {counts[name]}" for name in counts)
        logger.info("%s: %s split, %s%s", title, split, counted(len(rows), "image"), per_class)
    return {
        split: ImageDataset(Table.from_list([*rows]), reader, processor, labels, gsd_m, seed)
        for split, rows in rows_by_split.items()
    }


def compare_with_training(
    datasets: dict[str, ImageDataset], trained: MultispectralImageProcessor | None, where: str
) -> None:
    """Refuse splits whose values are shifted or scaled against those that a model was trained on."""
    for split, images in datasets.items():
        if trained is not None and images.processor.unit_check:
            chosen = range(0, len(images), max(1, len(images) // SAMPLED_IMAGES))
            stored = [images.reader.read(images.table[index]) for index in chosen]
            converted = [images.processor.convert(one.values, one.bands, one.valid, one.where) for one in stored]
            pixels = [values.flatten(1) for values in converted]
            trained.contract.check_values(torch.cat(pixels, dim=1), f"{where}, {split} split")


def resize_labels(labels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """``(H, W) labels -> (height, width) labels``, nearest neighbour on pixel centers."""
    # float64 holds every class id exactly
    resized = F.interpolate(labels[None, None].double(), size=(height, width), mode="nearest-exact")[0, 0]
    return resized.to(torch.float32 if labels.is_floating_point() else torch.int64)
