"""Fit the statistics that standardise an adapter's pixel-set features, in one pass over the training images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from deflect_hf.errors import ConfigError, DataError, listing
from deflect_hf.spectral import RunningMoments, SpectralFeatures
from deflect_hf.tuners.deflect import DeflectEmbeddings
from deflect_hf.tuners.deflect.layer import SpectralInput

if TYPE_CHECKING:
    from accelerate import Accelerator

# Shares of a feature's size, or of 1 for a smaller one: float32 has seven digits, what varies less is rounding.
RESOLUTION = 1e-6


@torch.no_grad()
def fit_statistics(
    model: nn.Module,
    loader: Iterable[Any],
    adapter_name: str | None = None,
    accelerator: Accelerator | None = None,
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

    Returns:
        The moments: `mean`, `std` (2F) and the number of patches behind each feature.

    Raises:
        ConfigError: the model has no DEFLECT adapter of that name, or the adapter has no spectral road.
        DataError: no valid pixel was seen for a feature.
    """
    features, name = _features_of(model, adapter_name)
    device = features.feature_mean.device
    moments = RunningMoments(features.num_features)
    for batch in loader:
        pixel_values = batch["pixel_values"] if isinstance(batch, Mapping) else batch
        moments.update(features.raw_statistics(pixel_values.to(device)))
    if accelerator is not None:
        moments.reduce(accelerator)
    empty = [n for n, count in zip(features.statistic_names, moments.count.tolist(), strict=True) if not count]
    if empty:
        raise DataError(
            f"No valid pixel was seen for {listing(empty)}: the loader is empty, or the band is NaN everywhere. "
            "Fix: check the nodata values, or leave the band out."
        )
    size = moments.mean[: len(features.feature_names)].abs().clamp_min(1.0).repeat(2)
    std = torch.where(moments.std > RESOLUTION * size, moments.std, 0.0).tolist()
    mean = moments.mean.tolist()
    features.set_statistics(mean, std)
    config = _config_of(model, name)
    config.feature_mean, config.feature_std = mean, std
    return moments


def _features_of(model: nn.Module, adapter_name: str | None) -> tuple[SpectralFeatures, str]:
    layer = next((module for module in model.modules() if isinstance(module, DeflectEmbeddings)), None)
    if layer is None:
        raise ConfigError("The model has no DEFLECT adapter. Fix: get_peft_model(model, DeflectConfig(bands=[...])).")
    name = adapter_name or layer.adapter
    if name is None or name not in layer.deflect_input:
        raise ConfigError(f"No DEFLECT adapter {name!r} here; there are {listing(layer.deflect_input)}.")
    spectral = cast(SpectralInput, layer.deflect_input[name])
    if spectral.bands is None:
        raise ConfigError(f"The adapter {name!r} was made without bands=[...], so it has no features to standardise.")
    return spectral.features, name


def _config_of(model: nn.Module, adapter_name: str) -> Any:
    """The adapter's configuration, wherever PEFT or transformers keeps it."""
    for module in model.modules():
        configs = module.__dict__.get("peft_config")
        if isinstance(configs, dict) and adapter_name in configs:
            return configs[adapter_name]
    raise ConfigError(f"The configuration of the adapter {adapter_name!r} is not stored on the model.")
