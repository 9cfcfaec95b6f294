"""The base encoder of a run: loaded or random, its image size, its normalisation, its ground sampling distance."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel

from deflect_hf.config.data import ENCODER_SIZE
from deflect_hf.config.run import EncoderArguments, RunArguments
from deflect_hf.errors import ConfigError, brief, nearest
from deflect_hf.models.configuration import as_pair
from deflect_hf.models.loading import adopt_encoder, load_encoder_config
from deflect_hf.spectral.selection import resolve_bands, select_bands

NORMALISATION = "normalisation.json"
# of a random encoder; the largest published vision transformer has 48 blocks of width 6144
MOST_BLOCKS = 512
LARGEST_SIZE = 65_536


def random_config(arguments: EncoderArguments) -> PreTrainedConfig:
    """The configuration that ``encoder.random`` describes (ConfigError)."""
    fields = dict(arguments.random or {})
    kind = fields.pop("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        near = nearest(str(kind), CONFIG_MAPPING.keys())
        raise ConfigError(f"encoder.random.model_type: transformers knows no {kind!r}.{near} For instance 'vit'")
    known = CONFIG_MAPPING[kind]().to_dict()
    for name in fields:
        if name not in known:
            raise ConfigError(f"encoder.random: a {kind!r} has no field {name!r}.{nearest(name, known)}")
        if type(known[name]) is int and known[name] > 0:
            _refuse_size(name, fields[name])
    with _buildable(kind):
        config: PreTrainedConfig = CONFIG_MAPPING[kind](**fields)
    image, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if image and patch and min(a // b for a, b in zip(as_pair(image), as_pair(patch), strict=True)) < 1:
        raise ConfigError(f"encoder.random: no patch of {patch} pixels fits into an image of {image}")
    return config


def _refuse_size(name: str, value: Any) -> None:
    limit = MOST_BLOCKS if name == "num_hidden_layers" else LARGEST_SIZE
    if not all(type(side) is int and 1 <= side <= limit for side in (value if isinstance(value, list) else [value])):
        raise ConfigError(f"encoder.random.{name} must be a whole number from 1 to {limit}, not {value!r:.80}")


@contextmanager
def _buildable(kind: str) -> Iterator[None]:
    """Whatever transformers raises for fields that do not go together becomes a ConfigError."""
    try:
        yield
    except Exception as error:
        raise ConfigError(f"encoder.random: transformers cannot build this {kind!r}: {brief(error)}") from error


def random_encoder(arguments: EncoderArguments) -> PreTrainedModel:
    """A randomly initialised encoder, the same for the same seed (ConfigError)."""
    config = random_config(arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arguments.random_seed)
        with _buildable(config.model_type):
            model: PreTrainedModel = AutoModel.from_config(config)
    # made with it and taken off: without, the same seed would draw other weights
    return adopt_encoder(model)


def encoder_config(arguments: EncoderArguments) -> PreTrainedConfig:
    """The configuration of the encoder that is loaded, or drawn at random."""
    if arguments.name_or_path is None:
        return random_config(arguments)
    return load_encoder_config(arguments.name_or_path, revision=arguments.revision)


def pretraining_size(arguments: EncoderArguments) -> list[int]:
    """[height, width] in pixels of the encoder's pretraining images, rounded down to whole patches (ConfigError)."""
    config = encoder_config(arguments)
    image, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if not image or not patch:
        raise ConfigError(
            f"the size 'encoder' is not known: the configuration of this {config.model_type!r} has no image_size and "
            "patch_size. Give [height, width] in pixels"
        )
    return [side // step * step for side, step in zip(as_pair(image), as_pair(patch), strict=True)]


def with_encoder_size(config: RunArguments) -> RunArguments:
    """The configuration with numbers where it says that images or crops are of the encoder's size."""
    dataset, augmentation = config.dataset, config.augmentation
    if ENCODER_SIZE not in (dataset.image_size, augmentation.random_crop):
        return config
    size = pretraining_size(config.encoder)
    if dataset.image_size == ENCODER_SIZE:
        dataset = dataset.replace(image_size=size)
    if augmentation.random_crop == ENCODER_SIZE:
        augmentation = augmentation.replace(random_crop=size, keep_smaller=True)
    return config.replace(dataset=dataset, augmentation=augmentation)


def chosen_gsd(arguments: EncoderArguments, gsd_m: float | None) -> float | None:
    """The ground sampling distance in numbers, None for the checkpoint's own; ``data`` is ``gsd_m``, in metres."""
    if arguments.gsd != "data":
        return arguments.gsd
    if gsd_m is None:
        raise ConfigError(
            "encoder.gsd: data, but the size of the data set's pixels on the ground is not known: give dataset.gsd_m "
            "in metres, or a number here"
        )
    return gsd_m


def set_gsd(encoder: PreTrainedModel, gsd: float | None) -> None:
    """Let the encoder's positions be those of this ground sampling distance; None leaves them (ConfigError)."""
    if gsd is None:
        return
    if getattr(encoder.config, "position_embedding", None) != "sincos_gsd":
        raise ConfigError(
            f"encoder.gsd: the positions of this {encoder.config.model_type!r} encoder do not depend on a ground "
            "sampling distance, as Scale-MAE's do: leave it null"
        )
    encoder.config.gsd = gsd


def stored_normalisation(arguments: EncoderArguments) -> tuple[list[float], list[float]] | None:
    """Mean and deviation that the pretraining wrote beside the encoder, in the order of the base bands."""
    path = Path(arguments.name_or_path or "") / NORMALISATION
    if arguments.name_or_path is None or not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        positions = select_bands(stored["bands"], resolve_bands(arguments.base_bands))
        mean, std = ([float(stored[name][k]) for k in positions] for name in ("mean", "std"))
        if not all(map(math.isfinite, [*mean, *std])) or min(std) <= 0:
            raise ValueError(f"mean {mean} must be finite and std {std} above 0")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ConfigError(f"{path}: cannot be read: {brief(error)}; give encoder.mean and encoder.std") from error
    return mean, std
