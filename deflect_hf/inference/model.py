"""What maps need of a model, whatever computes it, PEFT or an exported file without it, and what they hold of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deflect_hf.config.inference import SceneArguments
from deflect_hf.config.tasks import TASKS
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.errors import ConfigError, DataError, listing
from deflect_hf.figures import class_colors
from deflect_hf.raster.maps import Array, MapLayout
from deflect_hf.spectral.selection import match_bands

Facts = Sequence[tuple[str, str]]
NODATA = 255  # of uint8 maps
STEPS = 250  # probability 1.0 in uint8: steps of 0.004


def chosen_device(device: str | torch.device | None) -> torch.device:
    """Where to predict; None: the accelerator if there is one, else the CPU (ConfigError: torch has no such device)."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    try:
        chosen = torch.device(device if device is not None else accelerator or "cpu")
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's three ways to say so
        there = listing(["cpu", *([] if accelerator is None else [str(accelerator)])])
        raise ConfigError(
            f"device={str(device)!r}: torch cannot compute there; on this machine it is {there}."
        ) from error
    return chosen


def in_unit(
    processor: MultispectralImageProcessor, source_bands: Sequence[str] | None, scale: Any, offset: Any
) -> MultispectralImageProcessor:
    """The processor for images of which reflectance is value * scale + offset; lists go by their channels."""
    channels = source_bands or processor.source_bands or processor.bands

    def of_bands(name: str, value: Any) -> Any:
        if np.ndim(value) == 0:
            return value
        if len(value) != len(channels):
            raise ConfigError(
                f"{name} has {len(value)} values for the {len(channels)} channels {listing(channels)}: give one "
                "number, or one per channel, in their order."
            )
        found = match_bands(channels, processor.bands, processor.needed_bands)
        return [value[position or 0] for position in found]

    own = {"scale": of_bands("scale", scale), "offset": of_bands("offset", offset), "nodata": ()}
    return MultispectralImageProcessor.from_dict({**processor.to_dict(), **own})


class MapModel:
    """(B, C, H, W) reflectance -> logits, and how images are read for it."""

    processor: MultispectralImageProcessor
    task: str  # one of TASKS
    classes: tuple[str, ...]  # their names, in the order of the logits
    # what the training masks stored for each class, where that was not its number
    class_values: tuple[int, ...] | None = None
    colors: tuple[tuple[int, int, int], ...] = ()  # red, green and blue of each class, where the masks were painted
    device = torch.device("cpu")
    precision: torch.dtype | None = None
    window: int | None = None  # images larger than this side are cut, as in evaluation; None: they are taken whole
    patch_size: tuple[int, int]  # height and width of the encoder's patches
    token_size: tuple[int, int]  # of what a token stands for: less than a patch where the encoder sees images enlarged
    input_size: tuple[int, int] | None = None  # the only height and width that the model takes; None: any
    pretrained_size: tuple[int, int] | None = None  # those of the encoder's pretraining, where they are known
    unit: str | None = None  # of values
    # name of a split it was scored on, and its counts (rows are targets, columns predictions)
    confusion: tuple[str, Any] | None = None
    # what logits are divided by for the confidence in a class; None: it is not calibrated
    temperature: float | None = None

    def forward(self, pixel_values: Tensor, window: int | None) -> Tensor:
        """(B, C, H, W) reflectance -> (B, K) or (B, K, H, W) float32 logits on ``device``."""
        raise NotImplementedError

    @property
    def embedding_size(self) -> int:
        """Length D of a token of the encoder."""
        raise NotImplementedError

    def embeddings(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) reflectance -> (B, D, h, w) float32 patch tokens of the encoder's last layer, on ``device``."""
        raise NotImplementedError

    def digest(self) -> str:
        """Checksum of all that predicts."""
        raise NotImplementedError

    def origin(self) -> Facts:
        """Names and values that say in a report what the model was made of."""
        raise NotImplementedError


def refuse_overflow(logits: Tensor, pixel_values: Tensor, where: str, fix: str) -> None:
    """Refuse logits that are no numbers, which would pass for those of pixels that were not measured."""
    if bool(logits.isfinite().all()):
        return
    known = torch.where(pixel_values.isfinite(), pixel_values, 0.0)
    raise DataError(
        f"{where}: the model's computation overflows on values from {known.min():.9g} to {known.max():.9g} (after "
        f"scale and offset): {fix}"  # 9 digits are a whole float32, to be given as a fill value
    )


def measured_only(predicted: Tensor, pixel_values: Tensor) -> Tensor:
    """(B, K) or (B, K, H, W) predictions -> the same, NaN where (B, C, H, W) reflectance was measured in no band."""
    measured = torch.isfinite(pixel_values).any(dim=1, keepdim=True)
    if predicted.ndim == 2:
        measured = measured.flatten(1).any(dim=1, keepdim=True)
    return torch.where(measured.to(predicted.device), predicted, torch.nan)


def map_layout(predictor: MapModel, arguments: SceneArguments) -> tuple[MapLayout, Callable[[Array], Array]]:
    """What the bands of the map are, and what makes stored values (count, h, W) of logits (K, h, W)."""
    classes = predictor.classes
    if arguments.output == "embeddings":
        names = tuple(f"embedding_{number}" for number in range(predictor.embedding_size))
        return MapLayout("float32", float("nan"), names), _values
    if TASKS[predictor.task].output == "value":
        return MapLayout("float32", float("nan"), classes, unit=predictor.unit or ""), _values
    if arguments.output in ("classes", "confidence"):
        colors = (class_colors(classes, predictor.colors) * 255).round().astype(int).tolist()
        values = predictor.class_values or ()
        made = MapLayout("uint8", NODATA, ("class",), (1.0,), classes, values, tuple(map(tuple, colors)))
        if arguments.output == "confidence":
            made = dataclasses.replace(made, descriptions=("class", "confidence"), scales=(1.0, 1 / STEPS))
        if arguments.output == "classes" and arguments.polygons is None:
            return made, _classes
        return made, partial(_classes_and_confidence, temperature=predictor.temperature or 1.0)
    if arguments.dtype == "uint8":
        return MapLayout("uint8", NODATA, classes, (1 / STEPS,) * len(classes)), _stepped_probabilities
    return MapLayout("float32", float("nan"), classes), _probabilities


def _classes(logits: Array) -> Array:
    return np.where(np.isnan(logits[:1]), NODATA, logits.argmax(axis=0, keepdims=True)).astype(np.uint8)


def _values(logits: Array) -> Array:
    return logits.astype(np.float32)


def _classes_and_confidence(logits: Array, temperature: float) -> Array:
    return np.concatenate([_classes(logits), _stepped_probabilities(logits / temperature).max(axis=0, keepdims=True)])


def _probabilities(logits: Array) -> Array:
    return torch.from_numpy(logits).softmax(dim=0).numpy()


def _stepped_probabilities(logits: Array) -> Array:
    return np.nan_to_num(np.rint(_probabilities(logits) * STEPS), nan=NODATA).astype(np.uint8)
