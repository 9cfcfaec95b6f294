"""Rows of the accuracy benchmark without a pretrained encoder: what the bands of a pixel, and a plain U-Net, reach.

`pixel` is an MLP on all bands of each pixel alone (`pixel:width=128`), `unet` a small U-Net from scratch on all bands
(`unet:width=32,levels=5`). The loop that trains them is that of all other rows, with the same crops, splits and steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deflect_hf.config.run import EncoderArguments, RunArguments, SegmentorArguments
from deflect_hf.data import load_dataset_splits
from deflect_hf.errors import ConfigError, listing, nearest
from deflect_hf.models.encoders import with_encoder_size

# name of the row -> type of the model, and its options with the fields that they set
RIVALS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "pixel": ("deflect_pixel_mlp", {"width": "hidden_size", "layers": "hidden_layers"}),
    "unet": ("deflect_unet", {"width": "hidden_size", "levels": "levels"}),
}


def rival_options(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the rival's configuration (ConfigError)."""
    _, known = RIVALS[method]
    for name, value in options.items():
        if name not in known:
            raise ConfigError(
                f"{name} is no option of the row {method!r}; it has {listing(known)}.{nearest(name, known)}"
            )
        if type(value) is not int or value < 1:
            raise ConfigError(f"the row {method!r}: {name}={value!r} must be a whole number from 1 on.")
    return {known[name]: value for name, value in options.items()}


def rival_config(config: RunArguments, method: str, options: Mapping[str, Any]) -> RunArguments:
    """The configuration of a run that trains the rival in place of encoder, adapter and head, with the same images.

    Args:
        config: of the other rows, with their encoder, whose size crops and windows may have.
    """
    config = with_encoder_size(config)
    images = next(iter(load_dataset_splits(config.dataset).values()))
    fields = {"model_type": RIVALS[method][0], "num_channels": len(images.bands), **rival_options(method, options)}
    encoder = EncoderArguments(random=fields, random_seed=config.seed, base_bands=list(images.bands))
    former = config.segmentor
    segmentor = SegmentorArguments(
        pooling="mean" if images.task == "classification" else None,
        window=former.window,
        loss=former.loss,
        optimizer=former.optimizer,
        scheduler=former.scheduler,
    )
    return config.replace(finetune="full", method={}, encoder=encoder, segmentor=segmentor)
