"""What a map holds: the bands of each output, and the numbers that are stored for logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from deflect_hf.config.inference import SceneArguments
from deflect_hf.config.tasks import TASKS
from deflect_hf.figures import class_colors
from deflect_hf.inference.model import MapModel
from deflect_hf.raster.maps import Array, MapLayout

NODATA = 255  # of uint8 maps
STEPS = 250  # probability 1.0 in uint8: steps of 0.004


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
