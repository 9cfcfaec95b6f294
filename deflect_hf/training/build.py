"""Configuration -> data splits, encoder, adapted model."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from deflect_hf.artifacts.saved_model import model_class
from deflect_hf.config.combinations import refuse_idle_keys
from deflect_hf.config.run import RunArguments
from deflect_hf.config.schema import check_types
from deflect_hf.data import ImageDataset, build_transform, load_dataset_splits
from deflect_hf.data.order import Rank, evaluation_loader
from deflect_hf.errors import ArchitectureError, DataError, listing
from deflect_hf.evaluation.losses import balanced_weights
from deflect_hf.methods import adapt, as_values, extra_bands, method_options
from deflect_hf.models.encoders import build_encoder, chosen_gsd, set_gsd, stored_normalisation, with_encoder_size
from deflect_hf.spectral.features import RunningMoments
from deflect_hf.spectral.selection import resolve_bands, select_bands

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


@dataclass
class Experiment:
    """Everything a run works on; ``config`` has the fitted values filled in."""

    config: RunArguments
    splits: dict[str, ImageDataset]
    model: nn.Module

    @property
    def train(self) -> ImageDataset:
        """The training split."""
        return self.splits["train"]


def check_method(config: RunArguments) -> RunArguments:
    """The configuration with the method's options complete.

    Raises:
        ConfigError: an option that the method does not have, or a value of the wrong type.
    """
    origins = dict.fromkeys(config.method, f"method ({config.finetune})")
    options = method_options(
        config.finetune, config.method, lambda schema, values: check_types(schema, values, origins)
    )
    return dataclasses.replace(config, method=as_values(options))


def load_splits(config: RunArguments, needed: tuple[str, ...]) -> dict[str, ImageDataset]:
    """The splits with their transforms.

    Raises:
        DataError: a needed split is empty, or the masks of a split have no label.
    """
    splits = load_dataset_splits(config.dataset)
    where = config.dataset.root or config.dataset.name
    missing = [name for name in needed if name not in splits]
    if missing:
        raise DataError(
            f"the data set {where} has no split {listing(missing)}, only {listing(splits)}: name the images in a split "
            "file, or set dataset.val_fraction, dataset.test_fraction"
        )
    bare = [name for name, split in splits.items() if not split.is_labelled()]
    if bare:
        raise DataError(
            f"{where}: no pixel of the {bare[0]} split has a label, all of its masks hold nothing but ignored values "
            "or nodata. Correct dataset.class_values and dataset.ignore_values, or the masks"
        )
    splits = {name: split.with_transform(build_transform(config.augmentation, name)) for name, split in splits.items()}
    for split in splits.values():
        split.seed = config.seed  # of the random transforms; which image is in which split hangs on dataset.seed
    return splits


def base_statistics(
    config: RunArguments, train: ImageDataset, accelerator: Accelerator
) -> tuple[list[float], list[float]]:
    """Mean and deviation of the base bands: configured, else stored with the encoder, else fitted on ``train``."""
    arguments = config.encoder
    if arguments.mean is not None and arguments.std is not None:
        return arguments.mean, arguments.std
    stored = stored_normalisation(arguments)
    if stored is not None:
        return stored
    bands = resolve_bands(arguments.base_bands)
    fix = "the files are broken, or give encoder.mean and encoder.std"
    return fitted_statistics(config, train, accelerator, bands, fix)


def extra_statistics(
    config: RunArguments, train: ImageDataset, accelerator: Accelerator
) -> tuple[list[float], list[float]] | tuple[None, None]:
    """Mean and deviation on ``train`` of the bands that only a wider patch embedding takes; none without such bands.

    Raises:
        DataError: one of these bands does not vary.
    """
    bands = extra_bands(train.bands, config.encoder.base_bands)
    if config.method.get("patch_embed", "frozen") == "frozen" or not bands:
        return None, None
    fix = "leave them out (dataset.bands), or keep --method.patch_embed frozen"
    return fitted_statistics(config, train, accelerator, bands, fix)


def fitted_statistics(
    config: RunArguments, train: ImageDataset, accelerator: Accelerator, bands: Sequence[str], fix: str
) -> tuple[list[float], list[float]]:
    """Mean and deviation of some bands over all measured pixels of the training split.

    Args:
        fix: What to do about bands that do not vary.

    Raises:
        DataError: nothing was measured in one of them, or it does not vary.
    """
    positions = select_bands(train.bands, bands)
    moments = RunningMoments(len(positions))
    for batch in plain_loader(config, train, accelerator):
        moments.update(batch["pixel_values"][:, positions].movedim(1, -1))
    moments.reduce(accelerator)
    empty = [band for band, count in zip(bands, moments.count.tolist(), strict=True) if not count]
    if empty:
        raise DataError(
            f"{config.dataset.root or config.dataset.name}: no training image has a valid pixel in the band(s) "
            f"{listing(empty)}: correct the nodata values, or leave the bands out"
        )
    mean, std = moments.mean.tolist(), moments.std.tolist()
    flat = [band for band, deviation in zip(bands, std, strict=True) if not deviation > 0]
    if flat:
        raise DataError(
            f"{config.dataset.root or config.dataset.name}: the band(s) {listing(flat)} have one value in all of the "
            f"training images: {fix}"
        )
    return mean, std


def plain_loader(config: RunArguments, split: ImageDataset, accelerator: Accelerator) -> Any:
    """Every image of a split once over all processes, without random transforms."""
    fixed = split.with_transform(build_transform(config.augmentation, "val"))
    return evaluation_loader(fixed, config.batch_size, config.num_workers, Rank.of(accelerator))


def whole_patches(loader: Iterable[dict[str, Any]], patch_size: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """The batches of ``loader``, of any image size, without what exceeds whole patches on the right and below.

    For the statistics of patches: training and evaluation cut windows of whole patches out of larger images.

    Raises:
        DataError: an image is smaller than a patch.
    """
    rows, columns = patch_size
    for batch in loader:
        height, width = batch["pixel_values"].shape[-2:]
        if height < rows or width < columns:
            raise DataError(
                f"{batch['name'][0]} has {height} x {width} pixels, less than one patch of the encoder ({rows} x "
                f"{columns}). Fix: give larger images, --dataset.image_size, or an encoder with smaller patches."
            )
        kept = batch["pixel_values"][..., : height // rows * rows, : width // columns * columns]
        yield {**batch, "pixel_values": kept}


def count_labels(config: RunArguments, train: ImageDataset, accelerator: Accelerator) -> list[int]:
    """Labels of each class in the training split, pixels or images, summed over all processes."""
    counts = torch.zeros(train.num_classes, dtype=torch.int64, device=accelerator.device)
    for batch in plain_loader(config, train, accelerator):
        labels = batch["labels"][batch["labels"] != train.ignore_index]
        counts += torch.bincount(labels.flatten(), minlength=train.num_classes).to(counts.device)
    total: list[int] = accelerator.reduce(counts, reduction="sum").tolist()
    return total


def head_options(config: RunArguments, task: str) -> dict[str, Any]:
    """The fields of the model's configuration that the segmentor group sets."""
    segmentor = config.segmentor
    options: dict[str, Any] = {
        "head": segmentor.head,
        "output_layers": segmentor.output_layers,
        "head_channels": segmentor.channels,
        "head_dropout": segmentor.dropout,
        "label_smoothing": segmentor.loss.label_smoothing,
    }
    if task == "segmentation":
        options["auxiliary_loss_weight"] = segmentor.auxiliary_loss
    elif segmentor.pooling is not None:
        options["pooling"] = segmentor.pooling
    return options


def build(config: RunArguments, work_dir: Path, accelerator: Accelerator) -> Experiment:
    """Data, encoder, head and adapter of a run, on the CPU and ready to be trained.

    Raises:
        DeflectError: whatever the user's configuration or data got wrong.
    """
    config = check_method(config)
    refuse_idle_keys(config)
    config = with_encoder_size(config)
    splits = load_splits(config, ("train", "val"))
    train = splits["train"]
    refuse_idle_keys(config, train.task)
    train.processor.trained_size = list(train.reader.read(train.table[0]).values.shape[-2:])
    options = head_options(config, train.task)
    encoder = build_encoder(config, work_dir, accelerator)
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
    gsd = chosen_gsd(config.encoder, train.gsd_m)
    set_gsd(encoder, gsd)
    mean, std = base_statistics(config, train, accelerator)
    extra_mean, extra_std = extra_statistics(config, train, accelerator)
    weights = config.segmentor.loss.class_weights
    if weights == "balanced":
        weights = balanced_weights(count_labels(config, train, accelerator), train.classes)
    torch.manual_seed(config.seed)
    model = model_class(train.task).from_encoder(
        encoder,
        id2label=dict(enumerate(train.classes)),
        ignore_index=train.ignore_index,
        class_weights=weights,
        **options,
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
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, mean=mean, std=std, gsd=gsd))
    return Experiment(config, splits, adapted)
