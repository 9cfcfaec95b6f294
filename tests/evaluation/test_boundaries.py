"""Boundary F1 against distances of scipy, and what is no boundary."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from deflect_hf.evaluation.boundaries import Boundaries

IGNORE = 9
CLASSES = ["a", "b", "c"]


def found(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """Boundary F1 of (N, H, W) images, one at a time."""
    boundaries = Boundaries(len(CLASSES), IGNORE, torch.device("cpu"))
    for pair in zip(predictions, labels, strict=True):
        boundaries.update(*(torch.from_numpy(one)[None].long() for one in pair))
    return boundaries.result(CLASSES, Accelerator(cpu=True))


def outline(classes: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    other = (classes != k) & (labels != IGNORE)
    return (classes == k) & (labels != IGNORE) & ndimage.binary_dilation(other, np.ones((3, 3)))


def within(pixels: np.ndarray, of: np.ndarray) -> int:
    distances = ndimage.distance_transform_cdt(~of, "chessboard") if of.any() else np.full(of.shape, 99)
    return int((pixels & (distances <= 2)).sum())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.integers(1, 5))
def test_scores_are_those_of_distances_between_outlines(seed: int, height: int, width: int, size: int) -> None:
    draw = np.random.default_rng(seed)
    coarse = draw.choice([0, 1, 2, IGNORE], (2, 2, height, width), p=[0.5, 0.3, 0.1, 0.1]).repeat(size, 2)
    predictions, labels = coarse.repeat(size, 3)
    predictions[predictions == IGNORE] = 0
    scores = found(predictions, labels)
    for k, name in enumerate(CLASSES):
        pairs = [
            (outline(one, label, k), outline(label, label, k)) for one, label in zip(predictions, labels, strict=True)
        ]
        drawn, true = (sum(int(pair[side].sum()) for pair in pairs) for side in (0, 1))
        if not drawn + true:
            assert scores[name] is None
            continue
        precision = sum(within(one, other) for one, other in pairs) / max(drawn, 1)
        recall = sum(within(other, one) for one, other in pairs) / max(true, 1)
        assert scores[name] == pytest.approx(2 * precision * recall / max(precision + recall, 1e-12))


@pytest.mark.parametrize(("moved", "expected"), [(0, 1.0), (2, 1.0), (3, 0.0), (7, 0.0)])
def test_an_outline_two_pixels_off_is_found_and_one_farther_off_is_not(moved: int, expected: float) -> None:
    labels = np.zeros((1, 20, 20), dtype=int)
    predictions = labels.copy()
    labels[:, :, :10], predictions[:, :, : 10 + moved] = 1, 1
    scores = found(predictions, labels)
    assert scores == {"a": expected, "b": expected, "c": None}


def test_edges_of_images_and_of_what_is_ignored_are_no_boundary() -> None:
    labels = np.zeros((1, 8, 8), dtype=int)
    labels[:, :, 4:] = IGNORE
    assert found(labels.clip(max=0), labels) == {"a": None, "b": None, "c": None}
    predictions = np.zeros_like(labels)
    predictions[:, :, 5:] = 1  # where nobody knows the class
    assert found(predictions, labels) == {"a": None, "b": None, "c": None}
