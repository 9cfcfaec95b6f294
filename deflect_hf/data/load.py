"""A description of a data set, or data sets that a program hands over -> splits, by the same keys."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deflect_hf.config.data import DatasetArguments
from deflect_hf.config.readers import dataset_module
from deflect_hf.config.tasks import TASKS
from deflect_hf.data.adapt import TARGETS, adapt_dataset, for_model, is_indexed
from deflect_hf.data.dataset import ImageDataset
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.data.splits import hold_out, keep_share, refuse_idle_shares, split_indices
from deflect_hf.errors import ConfigError, DataError, listing
from deflect_hf.spectral.selection import resolve_bands
from deflect_hf.spectral.sensors import get_sensor

logger = logging.getLogger(__name__)

LOOKED_AT = 16  # examples, for what their labels mean
READING = (
    *("sensor", "source_bands", "scale", "offset", "nodata", "gsd_m"),
    *("classes", "class_values", "ignore_values", "target", "target_unit"),
)


def load_dataset_splits(
    args: DatasetArguments,
    processor: MultispectralImageProcessor | None = None,
    given: Mapping[str, Any] | None = None,
) -> dict[str, ImageDataset]:
    """Build the splits of a data set, among ``"train"``, ``"val"`` and ``"test"``.

    Args:
        args: What the data set is; see the help of each field.
        processor: That of a trained model: its bands, unit and size stand, whatever ``args`` says about them. Scale,
            offset and nodata values belong to the files and come from ``args`` and the files, failing those from it.
        given: Data sets of a program by the names of their splits, which ``args`` says how to read.

    Raises:
        ConfigError: A value of ``args`` does not fit the data set.
        DataError: A file or folder is missing, empty or inconsistent; the message names it.
        BandError: A band is missing or cannot be named.
        UnitError: The images are of another unit than those the model was trained on.
    """
    if given is not None:
        return given_splits(args, given, processor)
    splits: dict[str, ImageDataset] = dataset_module(args.name).load(args, processor)
    return splits


def given_splits(
    args: DatasetArguments, given: Mapping[str, Any], processor: MultispectralImageProcessor | None = None
) -> dict[str, ImageDataset]:
    """The splits of ``given``; what of ``"val"`` and ``"test"`` is not there is held out of ``"train"``.

    Args:
        given: Data sets as :func:`~deflect_hf.data.adapt.adapt_dataset` takes them, or makes them.
        processor: That of a trained model, as in :func:`load_dataset_splits`.
    """
    splits = {split: adapt(args, dataset, processor) for split, dataset in given.items()}
    _refuse_unlike(splits)
    _report_shared(given)
    refuse_idle_shares(args, [f"{split}_fraction" for split in splits if split != "train"])
    train = splits.get("train")
    if train is None:
        return splits
    strata = _classes_of(train) if len(splits) < 3 or args.limited_label < 1 else []
    kept = list(range(len(train)))
    if len(splits) == 1:
        parts = split_indices(strata, args)
        splits |= {split: train.select(parts[split]) for split in parts}
        kept = parts["train"]
    elif "val" not in splits:
        kept, held = hold_out(strata, args.val_fraction, args.seed)
        splits["val"] = train.select(held)
    elif "test" not in splits:
        refuse_idle_shares(args, ["test_fraction"])
    if args.limited_label < 1:
        kept = [kept[i] for i in keep_share([strata[i] for i in kept], args.limited_label, args.seed)]
    return {**splits, "train": train.select(kept)}


def _report_shared(given: Mapping[str, Any]) -> None:
    """Log examples that were given for two splits: one data set, or lists that share some."""
    for (first, examples), (second, others) in itertools.combinations(given.items(), 2):
        lists = isinstance(examples, list | tuple) and isinstance(others, list | tuple)
        shared = len(set(map(id, examples)) & set(map(id, others))) if lists else len(others) * (examples is others)
        if shared:
            logger.warning(
                "%d example(s) of the %s split are those of the %s split, too, so that its scores say nothing of other "
                "images: keep each example in one split",
                *(shared, second, first),
            )


def adapt(args: DatasetArguments, dataset: Any, processor: MultispectralImageProcessor | None) -> ImageDataset:
    """One of them, read as ``args`` say; one that is adapted already as it was said there."""
    if isinstance(dataset, ImageDataset):
        if processor is None:
            said = [key for key in READING if getattr(args, key) != DatasetArguments.model_fields[key].default]
            if said:
                raise ConfigError(f"dataset.{said[0]}: adapt_dataset has made this data set, it is to be given there.")
            return dataset
        return dataset.with_processor(for_model(dataset.processor, type(dataset).__name__, processor))
    sensor = get_sensor(args.sensor) if args.sensor is not None else None
    source_bands = args.source_bands or (list(sensor.codes) if sensor is not None else args.bands)
    if source_bands is None:
        raise ConfigError("the channels of the images have no names: give dataset.bands, or dataset.sensor.")
    task = args.task or _task_of(dataset)
    classes = [] if TASKS[task].output == "value" else args.classes or _class_names(dataset)
    if not classes and TASKS[task].output != "value":
        raise ConfigError("the classes have no names: give dataset.classes, in the order of their values.")
    as_told = (
        *("class_values", "ignore_values", "ignore_index", "target", "target_unit"),
        *("seed", "gsd_m", "unit_check", "size"),
    )
    usual = sensor or processor  # the files of a trained model's images had its scale
    preset = {key: getattr(usual, key) for key in ("scale", "offset", "nodata", "unit")} if usual is not None else {}
    own_words = {key: getattr(args, key) for key in ("scale", "offset", "nodata") if getattr(args, key) is not None}
    return adapt_dataset(
        dataset,
        source_bands if args.bands is None else resolve_bands(args.bands, sensor),
        task=task,
        classes=classes,
        processor=processor,
        source_bands=resolve_bands(source_bands, sensor),
        **{key: getattr(args, key) for key in as_told},
        **{**preset, **own_words},
    )


def _refuse_unlike(splits: Mapping[str, ImageDataset]) -> None:
    """All splits are for one model: the same task, classes and channels (DataError)."""
    (first, one), *others = splits.items()
    for split, images in others:
        for what, own, found in (
            ("the task", one.task, images.task),
            ("the classes", listing(one.labels.classes), listing(images.labels.classes)),
            ("the bands", listing(one.bands), listing(images.bands)),
        ):
            if own != found:
                raise DataError(
                    f"By their examples, or by adapt_dataset, {what} of {first} and {split} differ: {own}, and {found}."
                )


def described(args: DatasetArguments, images: ImageDataset) -> DatasetArguments:
    """``args`` with what they leave to the data set."""
    labels, stored = images.labels, images.processor.source_bands or images.bands
    named: dict[str, Any] = {"classes": [*labels.classes], "class_values": [*labels.values] or None}
    if TASKS[labels.task].output == "value":
        named = {"target": labels.classes[0], "target_unit": labels.unit}
    return args.replace(
        task=labels.task,
        bands=images.bands,
        source_bands=[*stored],
        **named,
    )


def _classes_of(images: ImageDataset) -> Sequence[Any]:
    """The class of each image, so that a share has some of each; of masks nothing is known."""
    if images.task != "classification":
        return [None] * len(images)
    return [images.reader.read(row).target for row in images.table]


def _task_of(dataset: Any) -> str:
    """Masks are for segmentation, vectors for several labels; what cannot be looked at, ``adapt_dataset`` refuses.

    Raises:
        DataError: Vectors that may be meant as either task.
    """
    if not is_indexed(dataset):
        return "classification"
    shape = np.shape(_target(dataset, 0))
    if len(shape) != 1 or shape[0] < 2:
        return "segmentation" if len(shape) > 1 else "classification"
    if all(sorted(np.ravel(_target(dataset, index)))[-2:] == [0, 1] for index in range(min(len(dataset), LOOKED_AT))):
        raise DataError(
            f"Each label of the first examples has a single 1 among {shape[0]} numbers. If an image may show several "
            "classes, give dataset.task='multi_label'; if it shows one, give the number of its class, label.argmax()."
        )
    return "multi_label"


def _target(dataset: Any, index: int) -> Any:
    """The label of an example as it is; 0 where there is none."""
    example = dataset[index] if len(dataset) else None
    found = [example[key] for key in TARGETS if key in example] if isinstance(example, Mapping) else []
    return found[0] if found else 0


def _class_names(dataset: Any) -> list[str]:
    """Those that torchgeo's data sets and the labels of Hugging Face's have."""
    features = getattr(dataset, "features", None) or {}
    found = [
        getattr(features[key], "names", None) for key in TARGETS if isinstance(features, Mapping) and key in features
    ]
    return [str(name) for name in (found[0] if found and found[0] else getattr(dataset, "classes", None) or [])]
