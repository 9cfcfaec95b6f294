"""The picture on a model card: an image, its labels and the prediction."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from deflect_hf.artifacts import saved_model as checkpoints
from deflect_hf.data import ImageDataset, build_transform, load_dataset_splits
from deflect_hf.data.dataset import Example
from deflect_hf.errors import DeflectError
from deflect_hf.evaluation.report import draw_panel
from deflect_hf.figures.dataset import spread
from deflect_hf.hub.sanitize import PICTURE
from deflect_hf.inference.predictor import Predictor

logger = logging.getLogger(__name__)

LOOKED_AT = 8  # images among which the one that is drawn is chosen


def draw_prediction(folder: Path) -> Path | None:
    """Write ``prediction.png`` into a result folder: an image of the test split, its labels, and the prediction.

    None, and a line in the log, where the data is not here any more.
    """
    config = checkpoints.read_config(folder)
    try:
        predictor = Predictor.from_folder(folder)
        splits = load_dataset_splits(config.dataset, predictor.processor)
        split = next(name for name in ("test", "val", "train") if name in splits)
        images = splits[split].with_transform(build_transform(config.augmentation, "val"))
        example = varied_example(images)
        logits = predictor.logits(example["pixel_values"][None])
    except (DeflectError, StopIteration) as error:
        logger.warning("no picture of a prediction: %s", error)
        return None
    return draw_panel(folder / PICTURE, images, example, logits, predictor.unit, f"{split} split")


def varied_example(images: ImageDataset) -> Example:
    """Of a few examples spread over a split, the one that shows most classes, or values."""

    def classes(example: Example) -> int:
        labels = example.get("labels")
        return len(np.unique(labels[labels != images.ignore_index])) if labels is not None else 0

    return max((images[index] for index in spread(len(images), LOOKED_AT)), key=classes)
