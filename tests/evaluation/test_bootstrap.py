"""Intervals against a plain bootstrap and the binomial formula; the same whatever the batches.

Two processes are compared with one in tests/test_cli.py.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deflect_hf.config.tasks import TASKS
from deflect_hf.evaluation.bootstrap import Bootstrap, image_counts
from deflect_hf.evaluation.metrics import scores
from deflect_hf.evaluation.task_metrics import METRICS, Protocol
from deflect_hf.models.targets import KINDS

IGNORE = -100
CLASSES = ("a", "b", "c")
ALONE = Accelerator(cpu=True)


def maps(images: int, seed: int = 0) -> tuple[Tensor, Tensor, list[str]]:
    """Logits (B, 3, 8, 8) that are right more often in some images than in others, labels, names."""
    generator = torch.Generator().manual_seed(seed)
    labels = (3 * torch.rand(images, 8, 8, generator=generator) ** 1.5).long()
    skill = 3 * torch.rand(images, 1, 1, 1, generator=generator)
    logits = torch.randn(images, 3, 8, 8, generator=generator)
    logits += skill * torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = IGNORE
    return logits, labels, [f"image {k}" for k in range(images)]


def matrix_of(predictions: Tensor, labels: Tensor) -> Tensor:
    counted = labels != IGNORE
    return torch.bincount(3 * labels[counted] + predictions[counted], minlength=9).view(3, 3)


@given(st.integers(0, 10_000), st.sampled_from([(4, 5), ()]), st.sampled_from([IGNORE, 1]))
@settings(max_examples=20, deadline=None)
def test_counts_of_an_image_are_the_margins_of_its_confusion_matrix(
    seed: int, shape: tuple[int, ...], ignore_index: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    predictions = torch.randint(3, (4, *shape), generator=generator)
    labels = torch.randint(3, (4, *shape), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.4] = ignore_index
    counts = image_counts(predictions, labels, 3, ignore_index)
    for k in range(4):
        matrix = matrix_of(predictions[k : k + 1], labels[k : k + 1].masked_fill(labels[k] == ignore_index, IGNORE))
        assert torch.equal(counts[k], torch.stack([matrix.diagonal(), matrix.sum(dim=1), matrix.sum(dim=0)]))


def test_intervals_are_those_of_the_plain_bootstrap() -> None:
    logits, labels, names = maps(120)
    bootstrap = Bootstrap(3, IGNORE, replicates=4000)
    bootstrap.update(logits, labels, names)
    found = bootstrap.intervals(CLASSES, "present", ALONE)
    matrices = torch.stack([matrix_of(p[None], t[None]) for p, t in zip(logits.argmax(1), labels, strict=True)])
    rng = np.random.default_rng(3)
    drawn = [scores(matrices[torch.from_numpy(rng.integers(120, size=120))].sum(dim=0), CLASSES) for _ in range(2000)]
    for name in ("accuracy", "miou", "f1_macro"):
        expected = np.quantile([one[name] for one in drawn], [0.025, 0.975])
        assert found[name] == pytest.approx(expected, abs=0.1 * (expected[1] - expected[0]))
    for name in CLASSES:
        expected = np.quantile([one["per_class"][name]["iou"] for one in drawn], [0.025, 0.975])
        assert found["iou"][name] == pytest.approx(expected, abs=0.1 * (expected[1] - expected[0]))
    assert (found["level"], found["replicates"], found["images"]) == (0.95, 4000, 120)


def several(images: int) -> tuple[Tensor, Tensor, list[str]]:
    """Logits and labels (B, 3) of several classes, some unknown, some of equal probability, and names."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(images, 3, generator=generator) < 0.4).float()
    logits = (labels + torch.randn(images, 3, generator=generator)).round(decimals=1)
    labels[torch.rand(images, 3, generator=generator) < 0.2] = torch.nan
    return logits, labels, [f"image {k}" for k in range(images)]


def values(images: int) -> tuple[Tensor, Tensor, list[str]]:
    """Predictions (B, 1, 4, 4) and labels (B, 4, 4), some unknown, and names."""
    generator = torch.Generator().manual_seed(0)
    labels = 5 + torch.randn(images, 1, 1, generator=generator) + torch.randn(images, 4, 4, generator=generator)
    found = labels + torch.randn(images, 1, 1, generator=generator)
    labels[torch.rand(images, 4, 4, generator=generator) < 0.3] = torch.nan
    return found[:, None], labels, [f"image {k}" for k in range(images)]


def result(task: str, batch: tuple[Tensor, Tensor, list[str]], order: Tensor, size: int, replicates: int) -> dict:
    """The scores of a task's batch, its images in this order, ``size`` at a time."""
    output = TASKS[task].output
    protocol = Protocol(TASKS[task], [*CLASSES], KINDS[output](IGNORE, std=2.0), None, "present", mean=4.0, unit="m")
    metrics = METRICS[output](protocol, ALONE, replicates)
    for part in order.split(size):
        metrics.update(batch[0][part], batch[1][part], [batch[2][k] for k in part])
    return metrics.result()


TASKS_AND_DATA = [("multi_label", several, "f1_macro"), ("regression", values, "rmse")]


@pytest.mark.parametrize(("task", "data", "mean"), TASKS_AND_DATA)
def test_intervals_of_other_outputs_are_those_of_the_plain_bootstrap(task: str, data: Any, mean: str) -> None:
    batch = data(80)
    found = result(task, batch, torch.arange(80), 80, 1000)
    rng = np.random.default_rng(3)
    drawn = []
    for _ in range(400):
        order = torch.from_numpy(rng.integers(80, size=80))
        if task == "regression":  # its scores are of pixels: of one large image, as fast as of one of the 80
            predictions, labels = batch[0][order].reshape(1, 1, -1, 4), batch[1][order].reshape(1, -1, 4)
            drawn.append(result(task, (predictions, labels, ["all"]), torch.arange(1), 1, 0))
        else:
            drawn.append(result(task, batch, order, 80, 0))
    for name in TASKS[task].scores:
        low, high = np.quantile([one[name] for one in drawn], [0.025, 0.975])
        assert found["intervals"][name] == pytest.approx([low, high], abs=0.15 * (high - low)), name
        assert low < found[name] < high
    if task == "multi_label":
        low, high = np.quantile([one["per_class"]["b"]["ap"] for one in drawn], [0.025, 0.975])
        assert found["intervals"]["ap"]["b"] == pytest.approx([low, high], abs=0.15 * (high - low))
    parts = result(task, batch, torch.randperm(80, generator=torch.Generator().manual_seed(5)), 3, 1000)
    assert parts == found and found["intervals"]["images"] == 80
    one = result(task, tuple(each[:1] for each in batch), torch.arange(1), 1, 10)
    assert one["intervals"][mean] is None


def test_scores_of_several_labels_are_those_of_torchmetrics() -> None:
    from torchmetrics.functional import classification

    logits, labels, names = several(60)
    labels[:, 2] = labels[:, 2].where(labels[:, 2] != 1, 0.0)  # a class that no image has
    found = result("multi_label", (logits, labels, names), torch.arange(60), 7, 0)
    options: dict[str, Any] = {"num_labels": 3, "ignore_index": -1, "average": "none"}
    given = logits.sigmoid(), labels.nan_to_num(-1.0).long()
    for column, function in {
        "ap": classification.multilabel_average_precision,
        "f1": classification.multilabel_f1_score,
        "precision": classification.multilabel_precision,
        "recall": classification.multilabel_recall,
    }.items():
        expected = function(*given, **options).tolist()
        rows = [found["per_class"][name][column] for name in CLASSES]
        assert rows == [pytest.approx(expected[0]), pytest.approx(expected[1]), None], column
        if column in ("ap", "f1"):
            assert found["map" if column == "ap" else "f1_macro"] == pytest.approx(sum(rows[:2]) / 2)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_the_interval_of_an_accuracy_is_the_binomial_one(share: float) -> None:
    images = 500
    right = torch.arange(images) < share * images
    logits = torch.stack([right.float(), 1 - right.float()], dim=1)
    bootstrap = Bootstrap(2, IGNORE, replicates=4000)
    bootstrap.update(logits, torch.zeros(images, dtype=torch.int64), [str(k) for k in range(images)])
    half = 1.96 * math.sqrt(share * (1 - share) / images)
    low, high = bootstrap.intervals(["a", "b"], "present", ALONE)["accuracy"]
    assert (low, high) == pytest.approx((share - half, share + half), abs=0.08 * half)


def test_batches_and_their_order_change_nothing() -> None:
    logits, labels, names = maps(11)
    whole, parts = (Bootstrap(3, IGNORE, replicates=50) for _ in range(2))
    whole.update(logits, labels, names)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(5))
    for batch in order.split(3):  # the last one has two
        parts.update(logits[batch], labels[batch], [names[k] for k in batch])
    assert torch.equal(whole.totals, parts.totals) and torch.equal(whole.images, parts.images)
    assert whole.intervals(CLASSES, "present", ALONE) == parts.intervals(CLASSES, "present", ALONE)


def test_weights_follow_the_name() -> None:
    logits, labels, names = maps(4)

    def totals(names: list[str]) -> Tensor:
        bootstrap = Bootstrap(3, IGNORE, 200)
        bootstrap.update(logits, labels, names)
        return bootstrap.totals

    assert torch.equal(totals(names), totals(names))
    assert not torch.equal(totals(names), totals([f"other {name}" for name in names]))


def test_what_no_second_image_holds_has_no_interval() -> None:
    logits, labels, names = maps(6)
    logits[:, 2] = -9.0
    labels[labels == 2] = 1
    labels[0, 0, 0] = 2  # one image with the last class
    labels[5] = IGNORE
    bootstrap = Bootstrap(4, IGNORE, replicates=60)
    bootstrap.update(torch.nn.functional.pad(logits, (0, 0, 0, 0, 0, 1), value=-9.0), labels, names)
    found = bootstrap.intervals([*CLASSES, "d"], "present", ALONE)
    assert found["images"] == 5
    assert found["iou"]["c"] is None and found["iou"]["d"] is None
    assert found["iou"]["a"][0] < found["iou"]["a"][1]
    alone = Bootstrap(3, IGNORE, replicates=60)
    alone.update(logits[1:2], labels[1:2], names[1:2])
    result = alone.intervals(CLASSES, "present", ALONE)
    assert [result[name] for name in ("accuracy", "miou", "f1_macro")] == [None] * 3


def test_replicates_without_a_class_say_nothing_about_it() -> None:
    labels = torch.tensor([[0, 0], [0, 0], [0, 1], [0, 1]])
    logits = torch.nn.functional.one_hot(labels, 2).transpose(1, 2).float()
    bootstrap = Bootstrap(2, IGNORE, replicates=300)  # 14 % of the replicates leave out both images of the second class
    bootstrap.update(logits, labels, ["w", "x", "y", "z"])
    assert bootstrap.intervals(["a", "b"], "present", ALONE)["iou"] == {"a": [1.0, 1.0], "b": [1.0, 1.0]}


def test_absent_classes_follow_the_convention() -> None:
    labels = torch.zeros(3, 4, dtype=torch.int64)
    logits = torch.nn.functional.one_hot(labels, 2).transpose(1, 2).float()  # all right, no second class
    bootstrap = Bootstrap(2, IGNORE, replicates=300)  # 5 % of the replicates leave out all three images
    bootstrap.update(logits, labels, ["x", "y", "z"])
    assert bootstrap.intervals(["a", "b"], "present", ALONE)["miou"] == [1.0, 1.0]
    assert bootstrap.intervals(["a", "b"], "pangaea", ALONE)["miou"] == pytest.approx([0.5, 0.5])
