"""How a model is evaluated, and the scores of each kind of output, summed over processes so that no image counts twice.

Classes: one confusion matrix, see ``metrics``. Labels: all probabilities are kept, because average precision ranks
them. Values: sums of each image in float64, and counts of (label, prediction) pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from deflect_hf.config.run import RunArguments
from deflect_hf.config.tasks import TASKS, Output, Task
from deflect_hf.data import ImageDataset
from deflect_hf.errors import ConfigError
from deflect_hf.evaluation.bootstrap import Bootstrap, by_name, interval, mean_intervals, replicate_weights
from deflect_hf.evaluation.boundaries import Boundaries
from deflect_hf.evaluation.calibration import Calibration
from deflect_hf.evaluation.metrics import Convention, scores
from deflect_hf.methods import task_model
from deflect_hf.models.targets import Target, target_of

BINS = 40  # of predictions and of labels
SPAN = 3.0  # deviations of the training labels from their mean that the bins cover; what is beyond is in the last ones
REPLICATES_AT_ONCE = 50  # of the bootstrap: memory does not grow with their number
THRESHOLD = 0.5  # probability from which an image has a class


@dataclass(frozen=True)
class Protocol:
    """How a model is evaluated."""

    task: Task
    classes: list[str]
    target: Target  # what the labels mean
    window: int | None  # side of the sliding windows; None for whole images
    convention: Convention  # of the means over classes
    # height and width of the encoder's patches, to whole ones of which images are filled up
    patch_size: tuple[int, int] = (1, 1)
    batch_size: int = 1  # of images whose windows are predicted together
    # mean, unit: of the training labels of a regression
    mean: float = 0.0
    unit: str | None = None
    # what logits are divided by for the confidence in a class; None: it is fitted to these images
    temperature: float | None = None

    @classmethod
    def of(cls, config: RunArguments, images: ImageDataset, model: nn.Module) -> Protocol:
        """How a run's configuration has its model evaluated on these images."""
        settings = task_model(model).config
        window, patch_size = evaluation_window(config, images.task), settings.patch_size
        if window is not None and any(window % side for side in patch_size):
            name = (
                "segmentor.window" if config.segmentor.window is not None else "the window of augmentation.random_crop"
            )
            side = max(1, round(window / patch_size[0])) * patch_size[0]
            raise ConfigError(
                f"{name} is {window}, no multiple of the encoder's patches, {patch_size[0]} x {patch_size[1]} pixels: "
                f"give {side}"
            )
        return cls(
            TASKS[images.task],
            images.classes,
            target_of(settings),
            window,
            config.metrics,
            patch_size,
            config.batch_size,
            settings.target_mean or 0.0,
            settings.target_unit,
        )


def evaluation_window(config: RunArguments, task: str) -> int | None:
    """Side of segmentation's sliding windows: as configured, else the training crop's, so that both see one scale."""
    if not TASKS[task].dense or config.segmentor.window is not None:
        return config.segmentor.window
    crop = config.augmentation.crop
    return max(crop) if crop is not None and config.augmentation.center_crop is None else None


class ClassMetrics:
    """Accuracy, mIoU, macro F1, the table per class and the confusion matrix.

    With replicates also bootstrap intervals, calibration and, of maps, the scores of boundaries.
    """

    def __init__(self, protocol: Protocol, accelerator: Accelerator, replicates: int) -> None:
        from torchmetrics.classification import MulticlassConfusionMatrix

        self.protocol, self.accelerator = protocol, accelerator
        count, ignore_index = len(protocol.classes), protocol.target.ignore_index
        # the reduction is accelerate's, so that it also works without torch.distributed (TPU, one GPU)
        confusion = MulticlassConfusionMatrix(count, ignore_index=ignore_index, sync_on_compute=False)
        self.confusion = confusion.to(accelerator.device)
        self.bootstrap = Bootstrap(count, ignore_index, replicates) if replicates else None
        self.calibration = Calibration(ignore_index)
        dense = protocol.task.dense and replicates > 0
        self.boundaries = Boundaries(count, ignore_index, accelerator.device) if dense else None

    def update(self, logits: Tensor, labels: Tensor, names: Sequence[str]) -> None:
        """Add (B, K) logits with (B,) labels, or (B, K, H, W) logits with (B, H, W) labels."""
        self.confusion.update(logits.argmax(dim=1), labels)
        if self.bootstrap is not None:
            self.bootstrap.update(logits, labels, names)
            self.calibration.update(logits, labels, names)
        if self.boundaries is not None:
            self.boundaries.update(logits.argmax(dim=1), labels)

    def result(self) -> dict[str, Any]:
        """The scores over all processes."""
        classes, convention = self.protocol.classes, self.protocol.convention
        matrix = self.accelerator.reduce(self.confusion.confmat, reduction="sum").cpu().long()
        found = {**scores(matrix, classes, convention), "confusion_matrix": matrix.tolist()}
        if self.bootstrap is not None:
            found["intervals"] = self.bootstrap.intervals(classes, convention, self.accelerator)
            found |= self.calibration.result(self.protocol.temperature)
        if self.boundaries is not None:
            outlines = self.boundaries.result(classes, self.accelerator)
            known = [score for score in outlines.values() if score is not None]
            found["boundary_f1"] = sum(known) / len(known) if known else None
            for name, row in found["per_class"].items():
                row |= {"boundary_f1": outlines[name], "support": row.pop("support")}  # the support stays last
        return found


class LabelMetrics:
    """Mean average precision and macro F1 of several labels per image, the table per class, and intervals."""

    def __init__(self, protocol: Protocol, accelerator: Accelerator, replicates: int) -> None:
        self.classes, self.replicates = protocol.classes, replicates
        self.images: list[tuple[str, Tensor, Tensor]] = []

    def update(self, logits: Tensor, labels: Tensor, names: Sequence[str]) -> None:
        """Add (B, K) logits and (B, K) labels, NaN where unknown."""
        self.images += zip(names, logits.float().sigmoid().cpu(), labels.float().cpu(), strict=True)

    def result(self) -> dict[str, Any]:
        """The scores over all processes; those of a class that no image has, or whose labels are unknown, are None."""
        images = by_name(self.images)
        names = [name for name, *_ in images]
        probabilities, labels = (torch.stack([image[k] for image in images]) for k in (1, 2))
        found = label_scores(probabilities, labels, torch.ones(1, len(names)))
        support = found.pop("support")[0].int().tolist()
        table = {
            name: {column: float(values[0, k]) if support[k] else None for column, values in found.items()}
            | {"support": support[k]}
            for k, name in enumerate(self.classes)
        }
        means = {name: float(values[0].nan_to_num(0.0)) for name, values in label_means(found).items()}
        scores: dict[str, Any] = {**means, "threshold": THRESHOLD, "per_class": table}
        if self.replicates:
            parts = [
                label_scores(probabilities, labels, weights)
                for weights in replicate_weights(names, self.replicates).split(REPLICATES_AT_ONCE)
            ]
            drawn = {column: torch.cat([part[column] for part in parts]) for column in found}
            known = int(labels.isfinite().any(dim=1).sum())
            scores["intervals"] = mean_intervals(label_means(drawn), known, self.replicates)
            scores["intervals"]["ap"] = {
                name: interval(drawn["ap"][:, k], support[k]) for k, name in enumerate(self.classes)
            }
        return scores


def label_scores(probabilities: Tensor, labels: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """(N, K) probabilities, (N, K) labels, (R, N) weights of the images -> (R, K) of each score, NaN without the class.

    Average precision is the mean of the precisions at the probabilities of the images with the class, images of equal
    probability being taken together; F1, precision and recall are those of the threshold.
    """
    weights, known = weights.double(), labels.isfinite().double()
    true = (labels == 1).double()
    taken = (probabilities > THRESHOLD).double() * known
    hits, support, found = (weights @ counted for counted in (true * taken, true, taken))

    def average_precision(k: int) -> Tensor:
        values, order = probabilities[:, k].sort(descending=True)
        ends = torch.cat([values.diff() != 0, torch.ones(1, dtype=torch.bool)])
        ranked = weights[:, order]
        right = (ranked * true[order, k]).cumsum(dim=1)[:, ends]
        precision = right / (ranked * known[order, k]).cumsum(dim=1)[:, ends].clamp(min=1)
        gained = right.diff(dim=1, prepend=torch.zeros(len(right), 1))
        return (gained * precision).sum(dim=1)

    columns = {
        "ap": torch.stack([average_precision(k) for k in range(labels.shape[1])], dim=1) / support,
        "f1": 2 * hits / (support + found),
        "precision": hits / found.clamp(min=1),
        "recall": hits / support,
    }
    return {name: values.where(support > 0, torch.nan) for name, values in columns.items()} | {"support": support}


def label_means(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """(R, K) scores -> (R,) means over the classes that images have; NaN without any."""
    return {name: columns[column].nanmean(dim=1) for name, column in (("map", "ap"), ("f1_macro", "f1"))}


class ValueMetrics:
    """Mean absolute error, root mean squared error, R2 and bias, in the unit of the labels, and intervals."""

    def __init__(self, protocol: Protocol, accelerator: Accelerator, replicates: int) -> None:
        self.accelerator, self.replicates = accelerator, replicates
        self.center, self.unit, std = protocol.mean, protocol.unit, protocol.target.std
        self.edges = torch.linspace(self.center - SPAN * std, self.center + SPAN * std, BINS + 1, dtype=torch.float64)
        self.images: list[tuple[str, Tensor]] = []
        self.pairs = torch.zeros(BINS * BINS, dtype=torch.int64)

    def update(self, logits: Tensor, labels: Tensor, names: Sequence[str]) -> None:
        """Add (B, 1, ...) predictions and (B, ...) labels, NaN where unknown."""
        for name, values, targets in zip(names, logits.squeeze(1), labels, strict=True):
            known = targets.isfinite()
            label, prediction = targets[known].double().cpu(), values[known].double().cpu()
            error, shifted = prediction - label, label - self.center
            terms = (torch.ones_like(label), error.abs(), error.square(), error, shifted, shifted.square())
            self.images.append((name, torch.stack([term.sum() for term in terms])))
            rows, columns = (torch.bucketize(one, self.edges[1:-1]) for one in (label, prediction))
            self.pairs += torch.bincount(rows * BINS + columns, minlength=BINS * BINS)

    def result(self) -> dict[str, Any]:
        """The scores over all processes; R2 is None where all labels are equal."""
        images = by_name(self.images)
        names, sums = [name for name, _ in images], torch.stack([terms for _, terms in images])
        pairs = torch.stack(gather_object([self.pairs])).sum(dim=0)
        found = {name: value.item() for name, value in value_scores(sums.sum(dim=0)).items()}
        scores: dict[str, Any] = {
            **{name: None if name == "r2" and math.isnan(value) else value for name, value in found.items()},
            "labels": int(sums[:, 0].sum()),
            "unit": self.unit,
            "pairs": {"edges": self.edges.tolist(), "counts": pairs.view(BINS, BINS).tolist()},
        }
        if self.replicates:
            parts = replicate_weights(names, self.replicates).split(REPLICATES_AT_ONCE)
            drawn = value_scores(torch.cat([weights.double() @ sums for weights in parts]))
            known = int((sums[:, 0] > 0).sum())
            scores["intervals"] = mean_intervals(drawn, known, self.replicates)
        return scores


def value_scores(sums: Tensor) -> dict[str, Tensor]:
    """(..., 6) sums of 1, |error|, error^2, error, label and label^2 -> (...) scores, NaN where there is none."""
    count, absolute, squared, error, label, label_squared = sums.unbind(dim=-1)
    variation = label_squared - label.square() / count
    varied = variation > 1e-12 * label_squared.clamp(min=1e-30)
    return {
        "mae": absolute / count,
        "rmse": (squared / count).sqrt(),
        "r2": (1 - squared / variation).where(varied, torch.nan),
        "bias": error / count,
    }


METRICS: dict[Output, type[ClassMetrics | LabelMetrics | ValueMetrics]] = {
    "class": ClassMetrics,
    "labels": LabelMetrics,
    "value": ValueMetrics,
}
