"""The one pass over the training set before the first step: all that a run fits on its images and labels.

Mean and deviation of the bands, the moments of DEFLECT's pixel-set features, the labels of each class, and quantiles
of each band. Checkpoints keep what was found, so that a run that goes on looks at no image before its next step.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from deflect_hf.config.run import RunArguments
from deflect_hf.config.tasks import TASKS
from deflect_hf.data import ImageDataset, build_transform
from deflect_hf.data.contract import QUANTILES, check_reflectance, refuse_dark
from deflect_hf.data.fills import FILLS, Fills, lifted, report_lifted
from deflect_hf.data.order import Rank, evaluation_loader
from deflect_hf.data.scene_reader import SceneReader
from deflect_hf.errors import CheckpointError, ConfigError, DataError, listing
from deflect_hf.spectral.features import RunningMoments, SpectralFeatures
from deflect_hf.spectral.selection import select_bands
from deflect_hf.tuners.deflect import DeflectConfig

logger = logging.getLogger(__name__)

MOMENTS = ("pixels", "features", "targets")
SAMPLE = 2**18  # pixels that the quantiles are of, spread over all images
COLUMNS = ("image", "mask")  # of tables whose rows name files
NAMED = 5  # files that a message names one by one


@dataclass(frozen=True)
class Statistics:
    """What was found in a training split."""

    bands: list[str]  # of the images, in order
    formulas: dict[str, str]  # of the indices among the features
    pixels: RunningMoments  # moments of the bands, over all measured pixels
    # moments of the pixel-set features of DEFLECT, over all patches; None for other methods
    features: RunningMoments | None
    labels: list[int]  # of each class, pixels or images; empty for a regression
    quantiles: dict[str, list[float]]  # band -> its values at ``QUANTILES``, empty where nothing was measured
    targets: RunningMoments | None = None  # moments of the labels of a regression, else None
    present: list[list[int]] | None = None  # the classes of each image, for the balanced sampler; None for the other
    stamps: list[list[int]] | None = None  # size and time of each file; None in a checkpoint of the version before

    def state(self) -> dict[str, Any]:
        """Plain numbers, from which :meth:`from_state` makes the same."""
        moments = {name: getattr(self, name) for name in MOMENTS}
        return {**vars(self), **{name: found and found.state() for name, found in moments.items()}}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Statistics:
        """What :meth:`state` gave."""
        moments = {name: state.get(name) for name in MOMENTS}
        return cls(**{**state, **{name: found and RunningMoments.from_state(found) for name, found in moments.items()}})

    def image_weights(self) -> list[float] | None:
        """How often each image is to be drawn: as its rarest class asks for, each of which is drawn alike; or None.

        An image without a label counts as those of the most frequent class.
        """
        if self.present is None:
            return None
        images = Counter(index for classes in self.present for index in classes)
        lowest = 1 / max(images.values())
        return [max((1 / images[index] for index in classes), default=lowest) for classes in self.present]

    def of_bands(self, bands: Sequence[str], where: str, fix: str) -> tuple[list[float], list[float]]:
        """Mean and deviation of some of the bands.

        Args:
            where: what a complaint calls the data set.
            fix: what to do about bands that do not vary.
        """
        positions = select_bands(self.bands, bands)
        count, mean, std = (
            values[positions].tolist() for values in (self.pixels.count, self.pixels.mean, self.pixels.std)
        )
        empty = [band for band, measured in zip(bands, count, strict=True) if not measured]
        if empty:
            raise DataError(
                f"{where}: no training image has a valid pixel in the band(s) {listing(empty)}: correct the nodata "
                "values, or leave the bands out"
            )
        flat = [band for band, deviation in zip(bands, std, strict=True) if not deviation > 0]
        if flat:
            raise DataError(f"{where}: the band(s) {listing(flat)} have one value in all of the training images: {fix}")
        return mean, std


def pixel_set_features(
    config: RunArguments, train: ImageDataset, patch_size: tuple[int, int]
) -> SpectralFeatures | None:
    """The features that ``--finetune deflect`` standardises, None for other methods."""
    if config.finetune != "deflect":
        return None
    adapter = DeflectConfig(
        bands=train.bands,
        base_bands=config.encoder.base_bands,
        unit=train.processor.unit,
        indices=config.method["indices"],
    )
    return SpectralFeatures(train.bands, adapter.formulas or {}, patch_size, bounds=adapter.index_bounds)


@torch.no_grad()
def look_at(
    config: RunArguments, train: ImageDataset, features: SpectralFeatures | None, accelerator: Accelerator
) -> Statistics:
    """Read every training image once over all processes, without random transforms."""
    device = accelerator.device
    pixels = RunningMoments(len(train.bands))
    patches = None if features is None else RunningMoments(features.to(device).num_features)
    labels = torch.zeros(train.num_classes, dtype=torch.int64)
    targets = RunningMoments(1) if TASKS[train.task].output == "value" else None
    fills = torch.zeros(len(FILLS), dtype=torch.int64)
    unmeasured = Fills(train.processor.scale, train.processor.offset)
    bright: list[str] = []
    plain = (train.processor.scale, train.processor.offset) == (1e-4, 0.0)
    present: dict[str, list[int]] = {}
    balanced = config.sampler == "balanced"
    if balanced and train.draw is not None:
        raise ConfigError("sampler: balanced does nothing for windows of scenes, which are drawn by class already")
    sample: list[Tensor] = []
    fixed = train.with_transform(build_transform(config.augmentation, "val"))
    for number, batch in enumerate(
        evaluation_loader(fixed, config.batch_size, config.num_workers, Rank.of(accelerator))
    ):
        values = batch["pixel_values"]
        pixels.update(values.movedim(1, -1))
        if train.processor.unit == "reflectance":
            unmeasured.update(values)
            bright += lifted(batch["name"], values) if plain else []
        if targets is not None:
            targets.update(batch["labels"].unsqueeze(-1))
            fills += torch.stack([(batch["labels"] == fill).sum() for fill in FILLS])
        else:
            labels += label_counts(batch["labels"], train)
        if balanced:
            counts = [label_counts(label[None], train) for label in batch["labels"]]
            found = [count.nonzero().flatten().tolist() for count in counts]
            present |= dict(zip(batch["name"], found, strict=True))
        every = max(1, values[0, 0].numel() * len(train) // SAMPLE)
        sample.append(values.flatten(2)[..., ::every].transpose(0, 1).flatten(1))
        if features is not None and patches is not None:
            if number == 0 and config.dataset.unit_check and train.processor.unit == "reflectance":
                check_reflectance(values, "the first batch of pixel_values", train.bands)
            patches.update(features.raw_statistics(whole_patches(values.to(device), features.patch_size)))
    pixels.reduce(accelerator)
    unmeasured.counts = accelerator.reduce(unmeasured.counts.to(device), reduction="sum")
    fills = accelerator.reduce(fills.to(device), reduction="sum")
    bright = gather_object(bright)
    if accelerator.is_main_process:
        unmeasured.report("the training split")
        report_lifted(bright, len(train))
        report_flat(train.bands, pixels)
        report_label_fills(fills.tolist())
    if patches is not None:
        patches.reduce(accelerator)
    if targets is not None:
        targets.reduce(accelerator)
    labels = accelerator.reduce(labels.to(device), reduction="sum")
    if isinstance(train.reader, SceneReader) and len(train) < len(train.reader.cells):
        labels = torch.from_numpy(train.reader.label_counts())  # rows stand for several cells, of which one was read
    absent = [name for name, count in zip(train.classes, labels.tolist(), strict=True) if not count]
    if absent and targets is None and accelerator.is_main_process:
        logger.warning(
            "nothing in the training split is labelled %s, which the model cannot learn: is it in `classes` by "
            "mistake, are `class_values` right, or has the split too few images?",
            listing(absent),
        )
    sampled = torch.cat(gather_object(sample), dim=1)
    quantiles = {band: _quantiles(values) for band, values in zip(train.bands, sampled, strict=True)}
    if config.dataset.unit_check and train.processor.unit == "reflectance":
        refuse_dark(quantiles, "the training split")
    everywhere = dict(pair for part in gather_object([present]) for pair in part.items()) if balanced else {}
    return Statistics(
        bands=train.bands,
        formulas={} if features is None else features.formulas,
        pixels=pixels,
        features=patches,
        labels=labels.tolist(),
        quantiles=quantiles,
        targets=targets,
        present=[everywhere[name] for name in train.names] if balanced else None,
        stamps=stamps_of(files_of(train)),
    )


def report_flat(bands: Sequence[str], pixels: RunningMoments) -> None:
    """Log bands that say nothing."""
    flat = [band for band, deviation in zip(bands, pixels.std.tolist(), strict=True) if deviation == 0]
    if flat:
        logger.warning(
            "the band(s) %s have one value in all of the training images, of which nothing can be learned: are they "
            "filled? Correct the files, or leave them out (`bands`)",
            listing(flat),
        )


def report_label_fills(counts: Sequence[int]) -> None:
    """Log numbers among the labels of a regression that seldom are values."""
    for fill, count in zip(FILLS, counts, strict=True):
        if count:
            logger.warning(
                "%d label(s) of the training split are %g, which the model learns as any value: if it means that the "
                "value is not known, say so (`ignore_values`, the nodata tag of masks, an empty cell of a table)",
                count,
                fill,
            )


def label_counts(labels: Tensor, train: ImageDataset) -> Tensor:
    """Labels of a batch, of classes -> (K,) int64 pixels or images of each class."""
    if labels.is_floating_point():
        return (labels == 1).sum(dim=0)
    return torch.bincount(labels[labels != train.ignore_index].flatten(), minlength=train.num_classes)


def _quantiles(values: Tensor) -> list[float]:
    measured = values[values.isfinite()]
    if not len(measured):
        return []
    quantiles: list[float] = measured.double().quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    return quantiles


def whole_patches(pixel_values: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> the same without what exceeds whole patches on the right and below; NaN fills up a first one.

    Training and evaluation cut windows of whole patches out of larger images, and pad smaller ones.
    """
    (height, width), (rows, columns) = pixel_values.shape[-2:], patch_size
    cut = pixel_values[..., : max(height // rows, 1) * rows, : max(width // columns, 1) * columns]
    padding = (0, max(columns - width, 0), 0, max(rows - height, 0))
    return F.pad(cut, padding, value=torch.nan) if any(padding) else cut


def statistics_of(
    config: RunArguments,
    train: ImageDataset,
    patch_size: tuple[int, int],
    accelerator: Accelerator,
    stored: Mapping[str, Any] | None,
) -> Statistics:
    """Those of the run that goes on, which its checkpoint holds, else of a pass over the training split."""
    features = pixel_set_features(config, train, patch_size)
    if stored is None:
        return look_at(config, train, features, accelerator)
    statistics = Statistics.from_state(stored)
    own = (train.bands, {} if features is None else features.formulas, train.num_classes)
    if own != (statistics.bands, statistics.formulas, len(statistics.labels)):
        raise CheckpointError(
            f"the checkpoint does not fit this run: it is of {len(statistics.labels)} classes, the bands "
            f"{listing(statistics.bands)} and the indices {listing(statistics.formulas)}. Resume with the "
            "configuration that the run was started with."
        )
    if statistics.stamps is not None and accelerator.is_main_process:
        files = files_of(train)
        warn_of_other_files(files, stamps_of(files), statistics.stamps)
    return statistics


def files_of(train: ImageDataset) -> list[str]:
    """The files of a split, as far as its rows or scenes name them."""
    if isinstance(train.reader, SceneReader):
        layers = [product.layers or () for product in train.reader.products]
        found = {label.path for label in train.reader.labels} | {info.path for info in train.reader.infos}
        return sorted(found | {layer.file for some in layers for layer in some})
    columns = [train.table[name] for name in COLUMNS if name in getattr(train.table, "column_names", ())]
    return sorted({str(path) for column in columns for path in column})


def stamps_of(files: Sequence[str]) -> list[list[int]]:
    """(n, 2) size in bytes and time of change in seconds of each file; zeros for folders and what is not on disk."""
    found = []
    for file in files:
        known = os.stat(file) if Path(file).is_file() else None
        found.append([0, 0] if known is None else [known.st_size, int(known.st_mtime)])
    return found


def warn_of_other_files(files: Sequence[str], now: Sequence[Sequence[int]], then: Sequence[Sequence[int]]) -> None:
    """Name the files that are not those of the run before: of another size, or of another time where others are not.

    A copy of all files has other times, and tells nothing.
    """
    pairs = list(zip(files, now, then, strict=False))
    later = [file for file, new, old in pairs if new[1] != old[1]]
    copied = len(later) == sum(any(new) for _, new, _ in pairs)
    other = [file for file, new, old in pairs if new[0] != old[0] or (new[1] != old[1] and not copied)]
    if not other and len(now) == len(then):
        return
    logger.warning(
        "%d of %d files of the training split are not those that the run was started with: %s (normalisation and class "
        "weights stay those of the files before; start anew for others)",
        *(len(other), len(now), listing((Path(f).name for f in other), NAMED) if other else "another number of them"),
    )
