"""Examples of another library's data set -> those that training here takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset as Table

from deflect_hf.config.tasks import TASKS, Output
from deflect_hf.data.contract import refuse_order
from deflect_hf.data.dataset import ImageDataset, Labels, Stored
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.errors import ConfigError, DataError, listing
from deflect_hf.raster.validity import unmasked

IMAGES = ("pixel_values", "image")
TARGETS = ("labels", "mask", "label")


def adapt_dataset(
    dataset: Any,
    bands: Sequence[str],
    *,
    task: str,
    classes: Sequence[str] = (),
    class_values: Sequence[int] | None = None,
    ignore_values: Sequence[int] = (),
    ignore_index: int = -100,
    target: str | None = None,
    target_unit: str | None = None,
    processor: MultispectralImageProcessor | None = None,
    seed: int = 0,
    **options: Any,
) -> ImageDataset:
    """Adapt anything with a length whose ``dataset[index]`` is a dict, as those of torchgeo or Hugging Face datasets.

    An example has ``pixel_values`` or ``image``, (C, H, W) numbers (array, tensor or nested lists), and ``labels``,
    ``mask`` or ``label``, by the task: a class value (classification), (H, W) of them (segmentation), 0 or 1 for each
    class (multi_label), a number (regression) or (H, W) of them (pixel_regression); NaN is an unknown label of the last
    three. Its other keys are left aside.

    Args:
        bands: Names of the C channels, in their order; or of those that a model gets, with ``source_bands``.
        task: One of :data:`~deflect_hf.config.tasks.TASKS`.
        classes: Class names in label order; of a regression there are none.
        class_values: What stands for each class in the examples; None: 0, 1, 2, ...
        ignore_values: Values of a mask that mean "not labelled".
        target: Name of a regression's value; None: ``"value"``.
        target_unit: Its unit, which scores and maps carry.
        processor: That of a trained model: its bands and size stand. None: all bands are handed on.
        options: What the numbers mean, as in :class:`~deflect_hf.data.processor.MultispectralImageProcessor`:
            ``source_bands``, ``scale``, ``offset``, ``nodata``, ``unit``, ``gsd_m``. Without a scale they are taken
            for reflectance.

    Raises:
        ConfigError: An unknown task, or something else than what its labels need.
        DataError: The first example is not of that kind; the message says what was found. Others, when they are read.
        BandError: A band is unknown, or the trained model needs one that is not there.
        UnitError: The trained model expects another unit.
    """
    labels = _labels(task, classes, class_values, ignore_values, ignore_index, target, target_unit)
    if not is_indexed(dataset):
        kind = "a mapping of splits, choose one of them" if isinstance(dataset, Mapping) else type(dataset).__name__
        raise DataError(f"dataset is {kind}: give something with a length and dataset[index], such as a list of dicts.")
    if len(dataset) == 0:
        raise DataError(f"dataset ({type(dataset).__name__}) has no examples.")
    own = MultispectralImageProcessor(bands, **options)
    codes = tuple(own.source_bands or own.bands)
    if processor is not None:
        own = for_model(own, type(dataset).__name__, processor)
    reader = ExampleReader(dataset, codes, labels)
    rows = [{"name": f"{index:06d}", "index": index} for index in range(len(dataset))]
    size = reader.read(rows[0]).values.shape[-2:]
    own.trained_size = [*size] if processor is None else None
    gsd_m = own.gsd_m if own.size is None else own.effective_gsd_m(size[0])
    return ImageDataset(Table.from_list(rows), reader, own, labels, gsd_m, seed)


def for_model(
    own: MultispectralImageProcessor, where: str, trained: MultispectralImageProcessor
) -> MultispectralImageProcessor:
    """The processor of the images that ``own`` is for, with what a trained model takes of them."""
    meaning = {key: getattr(own, key) for key in ("scale", "offset", "nodata", "unit", "unit_check", "gsd_m")}
    return MultispectralImageProcessor.for_images(where, own.source_bands or own.bands, trained, **meaning)


def is_indexed(dataset: Any) -> bool:
    """Whether it has a length and numbered examples, as a list or a ``torch.utils.data.Dataset`` has."""
    return hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and not isinstance(dataset, (str, Mapping))


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
        given, labelled = _entry(example, IMAGES, where), _entry(example, TARGETS, where)
        image = _numbers(given, f"the image of {where}")
        if image.ndim != 3 or image.shape[0] != len(self.bands):
            last = image.ndim == 3 and image.shape[-1] == len(self.bands)
            raise DataError(
                f"the image of {where} has the shape {image.shape}: it must be (C, H, W), with C = {len(self.bands)} "
                f"for the bands {listing(self.bands)}.{' The channels are its last axis: move them first.' * last}"
            )
        refuse_order(given, self.bands, f"the image of {where}")
        target = _numbers(labelled, f"the label of {where}", "a number, or an array of numbers")
        valid, known = unmasked(given), unmasked(labelled)
        kind = TASKS[self.labels.task]
        if not kind.dense:
            of_image: dict[Output, Callable[[np.ndarray, str], int | float | list[float]]]
            of_image = {"class": self._class_id, "labels": self._of_each_class, "value": self._value}
            return Stored(image, self.bands, of_image[kind.output](target, where), where, valid)
        if target.ndim == 3 and target.shape[0] == 1:
            target, known = target[0], None if known is None else known[0]
        if target.shape != image.shape[1:]:
            raise DataError(f"the mask of {where} has the shape {target.shape}, but its image is {image.shape[1:]}.")
        target = _whole(target, where) if kind.output == "class" else _finite(target, where)
        return Stored(image, self.bands, target, where, valid, known, f"the mask of {where}")

    def _class_id(self, target: np.ndarray, where: str) -> int:
        target = _whole(target, where)
        if target.size != 1 or int(target.item()) not in self.labels.values:
            found = target.item() if target.size == 1 else f"of shape {target.shape}"
            raise DataError(
                f"the label of {where} is {found}: it must be one of {list(self.labels.values)} "
                f"({listing(self.labels.classes)})."
            )
        return self.labels.values.index(int(target.item()))

    def _of_each_class(self, target: np.ndarray, where: str) -> list[float]:
        classes = self.labels.classes
        if target.shape != (len(classes),) or not (np.isin(target, (0, 1)) | np.isnan(target)).all():
            found = f"{target.tolist()}" if target.size <= len(classes) else f"of shape {target.shape}"
            raise DataError(
                f"the label of {where} is {found}: it must be {len(classes)} numbers, 1 for each of the classes "
                f"{listing(classes)} that the image shows, 0 for others, NaN if it is not known."
            )
        return [float(value) for value in target]

    def _value(self, target: np.ndarray, where: str) -> float:
        if target.size != 1:
            raise DataError(f"the label of {where} has the shape {target.shape}: a regression's is one number.")
        return float(_finite(target, where).item())


def _labels(
    task: str,
    classes: Sequence[str],
    class_values: Sequence[int] | None,
    ignore_values: Sequence[int],
    ignore_index: int,
    target: str | None,
    target_unit: str | None,
) -> Labels:
    if task not in TASKS:
        raise ConfigError(f"Unknown task {task!r}: choose one of {listing(TASKS)}.")
    kind = TASKS[task]
    told = {"classes": classes, "class_values": class_values, "ignore_values": ignore_values}
    told |= {"target": target, "target_unit": target_unit}
    of_output = {"class": {"classes", "class_values"}, "labels": {"classes"}, "value": {"target", "target_unit"}}
    used = of_output[kind.output] | ({"ignore_values"} if kind.dense or kind.output == "class" else set())
    idle = [key for key, value in told.items() if key not in used and value not in (None, (), [])]
    if idle:
        raise ConfigError(f"{idle[0]} does nothing for task={task!r}: leave it out.")
    if kind.output == "value":
        return Labels(task, (target or "value",), ignore_values=tuple(ignore_values), unit=target_unit)
    if len(classes) < 2:
        raise ConfigError(f"classes={list(classes)}: task={task!r} needs the names of two or more, in label order.")
    if kind.output == "labels":
        return Labels(task, tuple(classes))
    values = tuple(range(len(classes)) if class_values is None else class_values)
    if len(values) != len(classes) or len(set(values)) != len(values) or set(values) & set(ignore_values):
        raise ConfigError(
            f"class_values={list(values)}: give one value of its own for each of the {len(classes)} classes, "
            f"none of which is among ignore_values={list(ignore_values)}."
        )
    return Labels(task, tuple(classes), values, tuple(ignore_values), ignore_index)


def _whole(target: np.ndarray, where: str) -> np.ndarray:
    if target.dtype.kind == "f" and not np.array_equal(target, np.round(target)):
        raise DataError(
            f"the label of {where} holds {target.dtype}: class values are whole numbers; for other numbers, task is "
            "'regression' or 'pixel_regression'."
        )
    return target.astype(np.int64)


def _finite(target: np.ndarray, where: str) -> np.ndarray:
    if np.isinf(target).any():
        raise DataError(f"the label of {where} holds infinity: write NaN where it is not known.")
    return target.astype(np.float64)


def _entry(example: Mapping[str, Any], keys: tuple[str, ...], where: str) -> Any:
    found = [key for key in keys if example.get(key) is not None]
    if len(found) != 1:
        empty = [key for key in keys if key in example and example[key] is None]
        told = f" ({listing(empty)} is None)" if empty else ""
        raise DataError(f"{where} has {listing(example)}{told}: give exactly one of {listing(keys)}.")
    return example[found[0]]


def _numbers(value: Any, what: str, wanted: str = "an array of numbers") -> np.ndarray:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{what} is a {type(value).__name__}, no array of numbers: {error}") from error
    if array.dtype.kind not in "iufb":
        raise DataError(f"{what} is a {type(value).__name__} of {array.dtype}: give {wanted}.")
    return array
