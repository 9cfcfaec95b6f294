"""Examples of another library's data set -> those that training here takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset as Table

from deflect_hf.data.dataset import ImageDataset, Labels, Stored
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.errors import ConfigError, DataError, listing

IMAGES = ("pixel_values", "image")
TARGETS = ("labels", "mask", "label")


def adapt_dataset(
    dataset: Any,
    bands: Sequence[str],
    *,
    task: str,
    classes: Sequence[str],
    class_values: Sequence[int] | None = None,
    ignore_values: Sequence[int] = (),
    ignore_index: int = -100,
    processor: MultispectralImageProcessor | None = None,
    seed: int = 0,
    **options: Any,
) -> ImageDataset:
    """Adapt anything with a length whose ``dataset[index]`` is a dict, as those of torchgeo or Hugging Face datasets.

    An example has ``pixel_values`` or ``image``, (C, H, W) numbers (array, tensor or nested lists), and ``labels``,
    ``mask`` or ``label``: a class value, or (H, W) of them. Its other keys are left aside.

    Args:
        bands: Names of the C channels, in their order; or of those that a model gets, with ``source_bands``.
        task: ``"classification"`` or ``"segmentation"``.
        classes: Class names in label order.
        class_values: What stands for each class in the examples; None: 0, 1, 2, ...
        ignore_values: Values of a mask that mean "not labelled"; they become ``ignore_index``.
        processor: That of a trained model: its bands and size stand. None: all bands are handed on.
        options: What the numbers mean, as in :class:`~deflect_hf.data.processor.MultispectralImageProcessor`:
            ``source_bands``, ``scale``, ``offset``, ``nodata``, ``unit``, ``gsd_m``. Without a scale they are taken
            for reflectance.

    Raises:
        ConfigError: An unknown task, or classes and their values that do not fit.
        DataError: The first example is not of that kind; the message says what was found. Others, when they are read.
        BandError: A band is unknown, or the trained model needs one that is not there.
        UnitError: The trained model expects another unit.
    """
    if task not in ("classification", "segmentation"):
        raise ConfigError(f"Unknown task {task!r}: choose 'classification' or 'segmentation'.")
    values = tuple(range(len(classes)) if class_values is None else class_values)
    if len(values) != len(classes) or len(set(values)) != len(values) or set(values) & set(ignore_values):
        raise ConfigError(
            f"class_values={list(values)}: give one value of its own for each of the {len(classes)} classes, "
            f"none of which is among ignore_values={list(ignore_values)}."
        )
    if isinstance(dataset, Mapping) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        kind = "a mapping of splits, choose one of them" if isinstance(dataset, Mapping) else type(dataset).__name__
        raise DataError(f"dataset is {kind}: give something with a length and dataset[index], such as a list of dicts.")
    if len(dataset) == 0:
        raise DataError(f"dataset ({type(dataset).__name__}) has no examples.")
    own = MultispectralImageProcessor(bands, **options)
    codes = tuple(own.source_bands or own.bands)
    if processor is not None:
        own = MultispectralImageProcessor.for_images(
            type(dataset).__name__,
            codes,
            processor,
            scale=own.scale,
            offset=own.offset,
            nodata=own.nodata,
            unit=own.unit,
            unit_check=own.unit_check,
            gsd_m=own.gsd_m,
        )
    labels = Labels(task, tuple(classes), values, tuple(ignore_values), ignore_index)
    reader = ExampleReader(dataset, codes, labels)
    rows = [{"name": f"{index:06d}", "index": index} for index in range(len(dataset))]
    size = reader.read(rows[0]).values.shape[-2:]
    own.trained_size = [*size] if processor is None else None
    gsd_m = own.gsd_m if own.size is None else own.effective_gsd_m(size[0])
    return ImageDataset(Table.from_list(rows), reader, own, labels, gsd_m, seed)


@dataclass(frozen=True)
class ExampleReader:
    """Reads the example of a row's ``index``; its channels are ``bands``."""

    dataset: Any
    bands: tuple[str, ...]
    labels: Labels

    def read(self, row: Mapping[str, Any]) -> Stored:
        """Read it."""
        where = f"example {row['index']} of {type(self.dataset).__name__}"
        example = self.dataset[row["index"]]
        if not isinstance(example, Mapping):
            raise DataError(
                f"{where} is a {type(example).__name__}: it must be a dict with 'image' and 'mask' or 'label'."
            )
        image = _numbers(_entry(example, IMAGES, where), f"the image of {where}")
        if image.ndim != 3 or image.shape[0] != len(self.bands):
            last = image.ndim == 3 and image.shape[-1] == len(self.bands)
            raise DataError(
                f"the image of {where} has the shape {image.shape}: it must be (C, H, W), with C = {len(self.bands)} "
                f"for the bands {listing(self.bands)}.{' The channels are its last axis: move them first.' * last}"
            )
        target = _numbers(_entry(example, TARGETS, where), f"the label of {where}")
        if target.dtype.kind == "f" and np.array_equal(target, np.round(target)):
            target = target.astype(np.int64)
        if target.dtype.kind not in "iub":
            raise DataError(f"the label of {where} holds {target.dtype}: class values are whole numbers.")
        if self.labels.task == "classification":
            if target.size != 1 or int(target.item()) not in self.labels.values:
                found = target.item() if target.size == 1 else f"of shape {target.shape}"
                raise DataError(
                    f"the label of {where} is {found}: it must be one of {list(self.labels.values)} "
                    f"({listing(self.labels.classes)})."
                )
            return Stored(image, self.bands, self.labels.values.index(int(target.item())), where)
        if target.ndim == 3 and target.shape[0] == 1:
            target = target[0]
        if target.shape != image.shape[1:]:
            raise DataError(f"the mask of {where} has the shape {target.shape}, but its image is {image.shape[1:]}.")
        return Stored(image, self.bands, target.astype(np.int64), where, target_where=f"the mask of {where}")


def _entry(example: Mapping[str, Any], keys: tuple[str, ...], where: str) -> Any:
    found = [key for key in keys if example.get(key) is not None]
    if len(found) != 1:
        raise DataError(f"{where} has {listing(example)}: give exactly one of {listing(keys)}.")
    return example[found[0]]


def _numbers(value: Any, what: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{what} is a {type(value).__name__}, no array of numbers: {error}") from error
    if array.dtype.kind not in "iufb":
        raise DataError(f"{what} is a {type(value).__name__} of {array.dtype}: give an array of numbers.")
    return array
