"""Scores against scikit-learn, and their conventions."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from deflect_hf.config.tasks import TASKS
from deflect_hf.evaluation.metrics import scores
from deflect_hf.evaluation.task_metrics import ClassMetrics, Protocol
from deflect_hf.models.targets import OneClass

IGNORE = -100


def class_metrics(count: int) -> ClassMetrics:
    classes = [f"c{k}" for k in range(count)]
    return ClassMetrics(Protocol(TASKS["segmentation"], classes, OneClass(IGNORE), None, "present"), Accelerator(), 0)


def random_maps(seed: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, classes, 6, 7, generator=generator)
    labels = torch.randint(classes, (5, 6, 7), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = IGNORE
    return logits, labels


@given(st.integers(0, 10_000), st.integers(2, 6))
@settings(max_examples=25, deadline=None)
def test_scores_equal_scikit_learn(seed: int, classes: int) -> None:
    logits, labels = random_maps(seed, classes)
    metrics = class_metrics(classes)
    for part in (slice(2), slice(2, None)):  # uneven batches
        metrics.update(logits[part], labels[part], ["a"])
    result = metrics.result()
    counted = labels != IGNORE
    target, predicted = labels[counted].numpy(), logits.argmax(1)[counted].numpy()
    assert np.sum(result["confusion_matrix"]) == counted.sum()
    assert result["accuracy"] == pytest.approx(reference.accuracy_score(target, predicted))
    assert result["miou"] == pytest.approx(reference.jaccard_score(target, predicted, average="macro"))
    assert result["f1_macro"] == pytest.approx(reference.f1_score(target, predicted, average="macro"))
    labelled = list(range(classes))
    precision = reference.precision_score(target, predicted, labels=labelled, average=None, zero_division=np.nan)
    for k, value in enumerate(precision):
        found = result["per_class"][f"c{k}"]["precision"]
        assert (found is None and np.isnan(value)) or found == pytest.approx(value)


def test_absent_classes_follow_the_convention() -> None:
    matrix = torch.tensor([[6, 2, 0], [0, 4, 0], [0, 0, 0]])
    present = scores(matrix, ["a", "b", "c"])
    assert present["miou"] == pytest.approx((6 / 8 + 4 / 6) / 2)
    assert present["per_class"]["c"] == {"iou": None, "f1": None, "precision": None, "recall": None, "support": 0}
    pangaea = scores(matrix, ["a", "b", "c"], "pangaea")
    assert pangaea["miou"] == pytest.approx((6 / 8 + 4 / 6) / 3)
    assert pangaea["accuracy"] == pytest.approx(present["accuracy"], abs=1e-6) == pytest.approx(10 / 12)


def test_the_pangaea_convention_divides_as_its_evaluator_does() -> None:
    """Expected: its formulas in float64 on the same counts, in percent; few counts make the small numbers visible."""
    matrix = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0]])
    found = scores(matrix, ["a", "b", "c"], "pangaea")
    iou = [100 * hits / (union + 1e-6) for hits, union in ((1, 2), (1, 2), (0, 0))]
    pairs = [(100 * hits / (rows + 1e-6), 100 * hits / (columns + 1e-6))
             for hits, rows, columns in ((1, 1, 2), (1, 2, 1), (0, 0, 0))]  # fmt: skip
    f1 = [2 * p * r / (p + r + 1e-6) for p, r in pairs]
    assert 100 * found["miou"] == pytest.approx(sum(iou) / 3, rel=1e-13)
    assert 100 * found["f1_macro"] == pytest.approx(sum(f1) / 3, rel=1e-13)
    assert found["accuracy"] == pytest.approx(2 / (3 + 1e-6), rel=1e-13)
    row = found["per_class"]["a"]
    assert (row["precision"], row["recall"]) == (0.5, 1.0)  # its log has them the other way round


def test_a_class_that_is_only_predicted_is_present_and_wrong() -> None:
    result = scores(torch.tensor([[3, 1], [0, 0]]), ["a", "b"])
    assert result["per_class"]["b"]["iou"] == 0.0
    assert result["per_class"]["b"]["recall"] is None
    assert result["miou"] == pytest.approx((3 / 4 + 0) / 2)


def test_nothing_labelled_scores_zero() -> None:
    metrics = class_metrics(2)
    metrics.update(torch.randn(2, 2, 3, 3), torch.full((2, 3, 3), IGNORE), ["a", "b"])
    result = metrics.result()
    assert (result["accuracy"], result["miou"], result["f1_macro"]) == (0.0, 0.0, 0.0)
