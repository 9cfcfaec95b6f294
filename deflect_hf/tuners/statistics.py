"""Fit the statistics that standardise an adapter's pixel-set features, in one pass over the training images."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from deflect_hf.data.contract import check_reflectance
from deflect_hf.errors import ConfigError, DataError, listing
from deflect_hf.spectral.features import RunningMoments
from deflect_hf.spectral.selection import select_bands
from deflect_hf.tuners.deflect import DeflectConfig, DeflectEmbeddings
from deflect_hf.tuners.deflect.spectral_input import SpectralInput

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

# Shares of a feature's size, or of 1 for a smaller one: float32 has seven digits, what varies less is rounding.
RESOLUTION = 1e-6
LARGEST_SHIFT = 1.5  # standard deviations; of the mean over a training set, which seldom leaves one standard deviation


@torch.no_grad()
def fit_statistics(
    model: nn.Module,
    loader: Iterable[Any],
    adapter_name: str | None = None,
    accelerator: Accelerator | None = None,
    unit_check: bool = True,
) -> RunningMoments:
    """Fit mean and standard deviation of the 2F pixel-set features and store them in the adapter.

    One streaming pass in float64 (Welford), over valid pixels only; the result does not depend on the batch size, nor
    on the number of processes when `accelerator` is given and the loader is sharded by it. A feature that does not
    vary gets the standard deviation 0, with which it is only centred: dividing by what is left of rounding would blow
    it up in the first image in which it does vary.

    Args:
        model: a model with a DEFLECT adapter made with `bands=[...]`.
        loader: batches with `pixel_values` (B, C, H, W) reflectance in the adapter's band order, or such tensors.
        adapter_name: which adapter. `None`: the active one.
        accelerator: reduces the moments across its processes.
        unit_check: refuse images whose values cannot be reflectance, judged by the first batch. `False` only for data
            known to be extreme.

    Returns:
        The moments: `mean`, `std` (2F) and the number of patches behind each feature.

    Raises:
        ConfigError: the model has no DEFLECT adapter of that name, or the adapter has no spectral road.
        DataError: no valid pixel was seen for a feature, or a batch holds no `pixel_values`.
        UnitError: the images are digital numbers, 8-bit or standardised values.
    """
    spectral = _spectral_input(model, adapter_name)
    features, config = spectral.features, spectral.config
    device = features.feature_mean.device
    moments = RunningMoments(features.num_features)
    for number, batch in enumerate(loader):
        pixel_values = batch.get("pixel_values") if isinstance(batch, Mapping) else batch
        if isinstance(pixel_values, np.ndarray):
            pixel_values = torch.from_numpy(pixel_values)
        if not isinstance(pixel_values, torch.Tensor):
            found = f"keys {listing(map(str, batch))}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
            raise DataError(
                f"Batch {number} is neither a tensor of pixel_values nor a dictionary that has one under "
                f"'pixel_values', but {found}. Fix: name it so in the data set or the collate_fn."
            )
        if pixel_values.ndim != 4:
            raise DataError(
                f"The pixel_values of batch {number} have the shape {tuple(pixel_values.shape)}, not (B, C, H, W): "
                "give a DataLoader, not the images one by one."
            )
        if number == 0 and unit_check and config.unit == "reflectance":
            check_reflectance(pixel_values, "the first batch of pixel_values", config.bands or ())
        moments.update(features.raw_statistics(pixel_values.to(device)))
    if accelerator is not None:
        moments.reduce(accelerator)
    store_statistics(model, moments, adapter_name)
    return moments


def store_statistics(model: nn.Module, moments: RunningMoments, adapter_name: str | None = None) -> None:
    """Standardise the adapter's features by their moments over the training images, see :func:`fit_statistics`."""
    spectral = _spectral_input(model, adapter_name)
    features, config = spectral.features, spectral.config
    empty = [n for n, count in zip(features.statistic_names, moments.count.tolist(), strict=True) if not count]
    if empty:
        raise DataError(
            f"No valid pixel was seen for {listing(empty)}: the loader is empty, or the band is NaN everywhere. "
            "Fix: check the nodata values, or leave the band out."
        )
    size = moments.mean[: len(features.feature_names)].abs().clamp_min(1.0).repeat(2)
    varying = torch.where(moments.std > RESOLUTION * size, moments.std, 0.0)
    # More digits than float32 has, and fewer than depend on the images' order: adapters that assume the same can be
    # averaged.
    mean, std = ([float(f"{value:.9g}") for value in values.tolist()] for values in (moments.mean, varying))
    _warn_of_shift(config, mean)
    spectral.set_statistics(mean, std)


def _warn_of_shift(config: DeflectConfig, means: Sequence[float]) -> None:
    """Warn if the frozen encoder is shown base bands far from what it was trained on: a mean in another unit, say.

    `means` are those of the features, which begin with the bands.
    """
    base_bands = config.base_bands or []
    # By position, since one near-infrared band may stand for the other.
    positions = select_bands(config.bands or [], base_bands)
    assumed = zip(base_bands, positions, config.base_mean or [], config.base_std or [], strict=False)
    for band, position, mean, std in assumed:
        shift = (means[position] - mean) / std
        if abs(shift) > LARGEST_SHIFT:
            logger.warning(
                "band %s has the mean %.3g, but base_mean is %.3g and base_std %.3g: the frozen encoder is shown "
                "values %.1f standard deviations away from its own. Are they in reflectance, as the images?",
                *(band, means[position], mean, std, shift),
            )


def _spectral_input(model: nn.Module, adapter_name: str | None) -> SpectralInput:
    layer = next((module for module in model.modules() if isinstance(module, DeflectEmbeddings)), None)
    if layer is None:
        raise ConfigError("The model has no DEFLECT adapter. Fix: get_peft_model(model, DeflectConfig(bands=[...])).")
    name = adapter_name or layer.adapter
    if name is None or name not in layer.deflect_input:
        raise ConfigError(f"No DEFLECT adapter {name!r} here; there are {listing(layer.deflect_input)}.")
    spectral: SpectralInput = layer.deflect_input[name]
    if spectral.bands is None:
        raise ConfigError(f"The adapter {name!r} was made without bands=[...], so it has no features to standardise.")
    return spectral
