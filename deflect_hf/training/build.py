"""Configuration -> data splits, encoder, adapted model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from deflect_hf.artifacts.saved_model import model_class
from deflect_hf.config.run import RunArguments
from deflect_hf.config.tasks import TASKS
from deflect_hf.config.unused import refuse_unused
from deflect_hf.data import ImageDataset, build_transform, load_dataset_splits
from deflect_hf.data.adapt import ExampleReader
from deflect_hf.data.dataset import compare_with_training
from deflect_hf.data.load import described
from deflect_hf.data.transforms import for_evaluation
from deflect_hf.errors import ArchitectureError, ConfigError, DataError, listing
from deflect_hf.evaluation.evaluate import NAMED
from deflect_hf.methods import adapt, as_values, extra_bands, method_options, task_model
from deflect_hf.models import encoders, load_encoder
from deflect_hf.models.checkpointing import enable_checkpointing
from deflect_hf.models.configuration import OF_BANDS, as_pair, zoomed
from deflect_hf.spectral.selection import resolve_bands
from deflect_hf.training.optimization import balanced_weights
from deflect_hf.training.statistics import Statistics, statistics_of
from deflect_hf.tuners.statistics import store_statistics

ENCODER = "encoder"  # folder of a random one in that of its run


@dataclass
class Experiment:
    """Everything a run works on; ``config`` has the fitted values filled in."""

    config: RunArguments
    splits: dict[str, ImageDataset]
    model: nn.Module
    statistics: Statistics

    @property
    def train(self) -> ImageDataset:
        """The training split."""
        return self.splits["train"]


def check_method(config: RunArguments) -> RunArguments:
    """The configuration with the options of a method of PEFT complete; those of ours are from the start."""
    return config.replace(method=as_values(method_options(config.finetune, config.method)))


def load_splits(
    config: RunArguments, needed: tuple[str, ...], given: Mapping[str, Any] | None = None
) -> dict[str, ImageDataset]:
    """The splits with their transforms."""
    splits = load_dataset_splits(config.dataset, given=given)
    where = config.dataset.root or config.dataset.name
    missing = [name for name in needed if name not in splits]
    if missing:
        fix = (
            "name its images in a split file, or by `split` or `split_column` of scenes, add images"
            if given is None
            else "give validation= and test=, or more examples"
        )
        raise DataError(
            f"the data set {where} has no split {listing(missing)}, only {listing(splits)} with "
            f"{sum(map(len, splits.values()))} image(s) in all: {fix}, or, "
            "where splits are drawn, set dataset.val_fraction, dataset.test_fraction"
        )
    bare = [name for name, split in splits.items() if not split.is_labelled()]
    if bare:
        what, why = "label", "give some images labels, or take the split away."
        if TASKS[splits[bare[0]].task].dense:
            what = "measured pixel with a label"
            why = (
                "the masks hold nothing but ignored values or nodata, or the images nothing but nodata where the masks "
                "have labels. Correct dataset.class_values, ignore_values, nodata or the quality layer, or the files."
            )
        images = listing(splits[bare[0]].names, NAMED)
        raise DataError(f"{where}: no image of the {bare[0]} split has a {what} ({images}): {why}")
    splits = {
        name: split.with_transform(build_transform(config.augmentation, name), drawn=True)
        if name == "train"
        else for_evaluation(split, config.augmentation)
        for name, split in splits.items()
    }
    for split in splits.values():
        split.seed = config.seed  # of the random transforms; which image is in which split hangs on dataset.seed
    return splits


def base_statistics(config: RunArguments, statistics: Statistics, where: str) -> tuple[list[float], list[float]]:
    """Mean and deviation of the base bands: configured, else stored with the encoder, else those of the images."""
    arguments = config.encoder
    if arguments.mean is not None and arguments.std is not None:
        return arguments.mean, arguments.std
    bands, fix = resolve_bands(arguments.base_bands), "the files are broken, or give encoder.mean and encoder.std"
    return encoders.stored_normalisation(arguments) or statistics.of_bands(bands, where, fix)


def extra_statistics(
    config: RunArguments, statistics: Statistics, where: str
) -> tuple[list[float], list[float]] | tuple[None, None]:
    """Mean and deviation of the bands that only a wider patch embedding takes; none without such bands."""
    bands = extra_bands(statistics.bands, config.encoder.base_bands)
    if config.method.get("patch_embed", "frozen") == "frozen" or not bands:
        return None, None
    return statistics.of_bands(bands, where, "leave them out (dataset.bands), or keep --method.patch_embed frozen")


def target_options(train: ImageDataset, statistics: Statistics, where: str) -> dict[str, Any]:
    """What the model's configuration says of its labels: the kind of output, and the scale of values."""
    task = TASKS[train.task]
    if statistics.targets is None:
        return {"problem_type": task.problem_type}
    count, mean, std = (
        float(values) for values in (statistics.targets.count, statistics.targets.mean, statistics.targets.std)
    )
    if not count or not std > 0:
        found = f"the one value {mean:g}" if count else "no value"
        raise DataError(f"{where}: the labels of all training images hold {found}: there is nothing to learn.")
    return {
        "problem_type": task.problem_type,
        "target_mean": mean,
        "target_std": std,
        "target_unit": train.labels.unit,
    }


def head_options(config: RunArguments, train: ImageDataset, statistics: Statistics, where: str) -> dict[str, Any]:
    """The fields of the model's configuration that the segmentor group sets."""
    segmentor = config.segmentor
    options: dict[str, Any] = {
        "head": segmentor.head,
        "output_layers": segmentor.output_layers,
        "zoom": segmentor.zoom,
        "head_channels": segmentor.channels,
        "head_dropout": segmentor.dropout,
        "label_smoothing": segmentor.loss.label_smoothing,
    }
    options |= target_options(train, statistics, where)
    if TASKS[train.task].dense:
        options["auxiliary_loss_weight"] = segmentor.auxiliary_loss
        if segmentor.head in OF_BANDS:
            mean, std = statistics.of_bands(statistics.bands, where, "leave them out (dataset.bands)")
            options |= {"pixel_bands": statistics.bands, "pixel_mean": mean, "pixel_std": std}
    elif segmentor.pooling is not None:
        options["pooling"] = segmentor.pooling
    return options


def base_encoder(config: RunArguments, work_dir: Path, continued: bool) -> PreTrainedModel:
    """The encoder to adapt: loaded, or drawn at random, which the run in ``work_dir`` that goes on has done already."""
    arguments, folder = config.encoder, work_dir / ENCODER
    if arguments.name_or_path is not None:
        return load_encoder(arguments.name_or_path, revision=arguments.revision, quantization=arguments.quantization)
    if continued and (folder / "config.json").is_file():
        return load_encoder(folder)
    encoder = encoders.random_encoder(arguments).eval()
    encoder.name_or_path = encoder.config.name_or_path = str(folder)
    return encoder


def build(
    config: RunArguments,
    work_dir: Path,
    accelerator: Accelerator,
    continued: bool = False,
    stored: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
) -> Experiment:
    """Data, encoder, head and adapter of a run, ready to be trained; nothing is written.

    Args:
        continued: the run in ``work_dir`` goes on, with the random encoder that is there.
        stored: statistics of the run that goes on, from its checkpoint.
        given: data sets of a program by split, in place of the one that the configuration names.
    """
    config = check_method(config)
    config = encoders.with_encoder_size(config)
    splits = load_splits(config, ("train", "val"), given)
    train = splits["train"]
    if given is not None:
        config = config.replace(dataset=described(config.dataset, train))
    refuse_unused(config, train.task)
    if config.cache_images and isinstance(train.reader, ExampleReader):
        raise ConfigError("cache_images keeps what files hold, but a program reads these examples: leave it out")
    train.processor.trained_size = list(train.reader.read(train.table[0]).values.shape[-2:])
    encoder = base_encoder(config, work_dir, continued)
    if getattr(encoder, "is_loaded_in_8bit", False):
        raise ConfigError(
            f"{config.encoder.name_or_path}: torch can make no checkpoint of layers that bitsandbytes keeps in 8 bits. "
            "Fix: give the encoder in full precision, and encoder.quantization: int8"
        )
    channels = getattr(encoder.config, "num_channels", None)
    if channels is None:
        raise ArchitectureError(
            f"a {encoder.config.model_type!r} takes no images: give a vision transformer as the encoder"
        )
    if channels != len(config.encoder.base_bands):
        raise ArchitectureError(
            f"the encoder takes {channels} channels, but encoder.base_bands names {len(config.encoder.base_bands)}: "
            f"{listing(config.encoder.base_bands)}"
        )
    zoom = config.segmentor.zoom
    token_size = zoomed(as_pair(encoder.config.patch_size), zoom)
    gsd = encoders.chosen_gsd(config.encoder, None if train.gsd_m is None else train.gsd_m / zoom)
    encoders.set_gsd(encoder, gsd)
    where = config.dataset.root or config.dataset.name
    statistics = statistics_of(config, train, token_size, accelerator, stored)
    train.processor.quantiles = statistics.quantiles
    if stored is None:
        held_out = {split: images for split, images in splits.items() if split != "train"}
        compare_with_training(held_out, train.processor, str(where))
    mean, std = base_statistics(config, statistics, where)
    extra_mean, extra_std = extra_statistics(config, statistics, where)
    weights = config.segmentor.loss.class_weights
    if weights == "balanced":
        weights = balanced_weights(statistics.labels, train.classes)
    torch.manual_seed(config.seed)
    model = model_class(train.task).from_encoder(
        encoder,
        id2label=dict(enumerate(train.classes)),
        ignore_index=train.ignore_index,
        class_weights=weights,
        **head_options(config, train, statistics, where),
    )
    adapted = adapt(
        model,
        config.finetune,
        bands=train.bands,
        base_bands=config.encoder.base_bands,
        base_mean=mean,
        base_std=std,
        extra_mean=extra_mean,
        extra_std=extra_std,
        unit=train.processor.unit,
        revision=config.encoder.revision,
        **config.method,
    )
    if config.gradient_checkpointing is not None:
        enable_checkpointing(task_model(adapted), config.gradient_checkpointing == "selective")
    if statistics.features is not None:
        store_statistics(adapted, statistics.features)
    config = config.replace(encoder=config.encoder.replace(mean=mean, std=std, gsd=gsd))
    return Experiment(config, splits, adapted, statistics)
