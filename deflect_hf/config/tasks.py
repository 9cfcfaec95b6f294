"""The tasks, one row each: what is predicted, of images or of each pixel, and by which scores it is judged.

What follows from a row lies where it belongs: losses and probabilities in ``models/targets.py``, the reading of labels
in ``data``, metrics in ``evaluation/task_metrics.py``, maps in ``inference/mapping.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Output = Literal["class", "labels", "value"]  # one of the classes, any number of the classes, a number with a unit

SCORES: dict[Output, tuple[str, ...]] = {
    "class": ("accuracy", "miou", "f1_macro"),
    "labels": ("map", "f1_macro"),
    "value": ("mae", "rmse", "r2"),
}
TITLES = {  # of scores
    "accuracy": "accuracy",
    "miou": "mIoU",
    "iou": "IoU",
    "map": "mAP",
    "ap": "AP",
    "f1_macro": "macro F1",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "boundary_f1": "boundary F1",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R2",
}
PROBLEM_TYPES: dict[Output, str | None] = {  # transformers' names
    "class": None,
    "labels": "multi_label_classification",
    "value": "regression",
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task."""

    name: str
    output: Output
    dense: bool  # whether every pixel gets a prediction, which makes maps
    metric: str  # the score by which the best model is chosen
    lower_is_better: bool = False  # whether that is one of errors
    pipeline: str | None = None  # what the Hub calls it, None where it has no name for it

    @property
    def scores(self) -> tuple[str, ...]:
        """The scores of a split as a whole."""
        return SCORES[self.output]

    @property
    def problem_type(self) -> str | None:
        """What the model's configuration calls it."""
        return PROBLEM_TYPES[self.output]

    def logged(self, scores: Mapping[str, Any]) -> dict[str, float]:
        """What the log tells of each validation: loss and scores, without those that do not exist."""
        return {name: scores[name] for name in ("loss", *self.scores) if scores[name] is not None}

    def rank(self, scores: Mapping[str, Any]) -> float:
        """A number that is larger for a better model."""
        score = float(scores[self.metric])
        return -score if self.lower_is_better else score

    def preference(self, scores: Mapping[str, Any]) -> list[float]:
        """Larger for the model of a run to keep: by its rank, and of models that are level by the loss.

        Few labels are soon all met, long before training has done what it can.
        """
        return [self.rank(scores), -float(scores["loss"])]


_ROWS = (
    Task(name="classification", output="class", dense=False, metric="accuracy", pipeline="image-classification"),
    Task(name="segmentation", output="class", dense=True, metric="miou", pipeline="image-segmentation"),
    Task(name="multi_label", output="labels", dense=False, metric="map", pipeline="image-classification"),
    Task(name="regression", output="value", dense=False, metric="rmse", lower_is_better=True),
    Task(name="pixel_regression", output="value", dense=True, metric="rmse", lower_is_better=True),
)
TASKS = {task.name: task for task in _ROWS}
TaskName = Literal["classification", "segmentation", "multi_label", "regression", "pixel_regression"]
MODEL_TYPES = {"deflect_image_classification": False, "deflect_semantic_segmentation": True}  # whether it is dense


def task_of(model_type: str, problem_type: str | None) -> Task:
    """The task of a model's configuration; that of classes for a ``problem_type`` that is none."""
    alike = [task for task in TASKS.values() if task.dense == MODEL_TYPES[model_type]]
    return next((task for task in alike if task.problem_type == problem_type), alike[0])
