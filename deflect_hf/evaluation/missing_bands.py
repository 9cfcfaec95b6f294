"""What a trained model still knows when a band is missing: its scores with one band at a time taken away."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from deflect_hf.errors import ConfigError, listing
from deflect_hf.evaluation.evaluate import Protocol, evaluate
from deflect_hf.methods import deflect_config, further_bands, task_model

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

MEANS = ("accuracy", "miou", "f1_macro")


def without_band(loader: Iterable[dict[str, Any]], channel: int) -> Iterator[dict[str, Any]]:
    """The batches of ``loader`` with one channel of ``pixel_values`` (B, C, H, W) all NaN, as for a missing band."""
    for batch in loader:
        pixel_values = batch["pixel_values"].clone()
        pixel_values[:, channel] = torch.nan
        yield {**batch, "pixel_values": pixel_values}


def scores_without_bands(
    model: nn.Module,
    loader: Iterable[dict[str, Any]],
    accelerator: Accelerator,
    protocol: Protocol,
    scores: Mapping[str, Any],
) -> dict[str, Any]:
    """Scores of a model on ``loader``, read once per band, with each band beyond its base bands missing.

    A model that was not trained with band dropout is evaluated too, which shows what it leans on.

    Args:
        scores: those with all bands, on the same images.

    Returns:
        ``band_dropout`` of the training, and ``scores``: the means for no band missing (``""``) and for each band.

    Raises:
        ConfigError: the model sees its base bands alone, so there is nothing to drop.
    """
    bands = further_bands(model)
    if not bands:
        raise ConfigError(
            "--drop_bands: this model sees its base bands alone, so there is no band to drop. Give the folder of a "
            "model trained on further bands: with --finetune deflect, or with --method.patch_embed."
        )
    config = deflect_config(model)
    channels = (task_model(model).config if config is None else config).bands or []
    band_dropout = 0.0 if config is None else config.band_dropout
    if not band_dropout:
        logger.warning(
            "trained without band dropout: the scores say what the model leans on, but images that lack %s are refused "
            "(train with --finetune deflect --method.band_dropout)",
            listing(bands),
        )
    table = {"": {name: scores[name] for name in MEANS}}
    for band in bands:
        found = evaluate(model, without_band(loader, channels.index(band)), accelerator, protocol)
        table[band] = {name: found[name] for name in MEANS}
    return {"band_dropout": band_dropout, "scores": table}
