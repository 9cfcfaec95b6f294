"""One temperature of the logits: found where it is known, kept by the run, and the error that is left of confidence."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from deflect_hf.artifacts.saved_model import RESULTS, read_results
from deflect_hf.errors import CheckpointError
from deflect_hf.evaluation.calibration import (
    PIXELS,
    Calibration,
    calibration_error,
    fit_temperature,
    known_confusion,
    known_temperature,
)


def drawn(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of three classes, and classes drawn by exactly their probabilities."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, 3, generator=generator)
    return logits, torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_factor_of_the_logits(factor: float) -> None:
    logits, labels = drawn(20_000, seed=0)
    assert fit_temperature(logits * factor, labels) == pytest.approx(factor, rel=0.05)


def test_the_error_is_that_of_bins_counted_by_hand() -> None:
    logits, labels = drawn(500, seed=1)
    likely = (3 * logits).softmax(dim=1).double().numpy()
    sure, right = likely.max(axis=1), likely.argmax(axis=1) == labels.numpy()
    bins = np.minimum((sure * 15).astype(int), 14)
    expected = sum(abs(sure[bins == k].mean() - right[bins == k].mean()) * (bins == k).mean() for k in set(bins))
    assert calibration_error(3 * logits, labels) == pytest.approx(expected)


def test_labelled_pixels_alone_are_taken_spread_over_each_image_in_any_order() -> None:
    logits, labels = drawn(2 * 40 * 40, seed=2)
    images = 3 * logits.reshape(2, 40, 40, 3).permute(0, 3, 1, 2)
    masks = labels.reshape(2, 40, 40).clone()
    masks[:, :20] = 9
    images[:, :, :20] = 1e4  # would be heard of
    found = []
    for order in ([0, 1], [1, 0]):
        calibration = Calibration(ignore_index=9)
        for k in order:
            calibration.update(images[k : k + 1], masks[k : k + 1], [f"image {k}"])
        assert [len(label) for _, _, label in calibration.images] == [PIXELS, PIXELS]
        found.append(calibration.result(None))
    assert found[0] == found[1]
    assert found[0]["temperature"] == pytest.approx(3, rel=0.3) and found[0]["ece_calibrated"] < found[0]["ece"]
    assert calibration.result(2.0)["temperature"] == 2.0


def test_a_run_knows_its_temperature_or_says_that_it_has_none(tmp_path: Path) -> None:
    assert known_temperature(read_results(tmp_path), tmp_path) is None
    for scores, expected in (({}, None), ({"val": {"miou": 0.5}}, None), ({"val": {"temperature": 1.7}}, 1.7)):
        (tmp_path / RESULTS).write_text(json.dumps(scores))
        assert known_temperature(read_results(tmp_path), tmp_path) == expected
    (tmp_path / RESULTS).write_text(json.dumps({"val": {"temperature": 0}}))
    with pytest.raises(CheckpointError, match=r"results.json: val.temperature is 0, not a positive number"):
        known_temperature(read_results(tmp_path), tmp_path)


@pytest.mark.parametrize(
    "matrix", [[[1, 0]], [[1, 0], [1]], [[1, 0], [1, -1]], [[1, 0], [1, "x"]], [[1, 0], [1.5, 0]], "x"]
)
def test_counts_that_are_none_of_the_model_are_refused(matrix: object, tmp_path: Path) -> None:
    assert known_confusion({"test": "x", "val": {"confusion_matrix": [[1, 0], [2, 3]]}}, tmp_path, 2) == (
        "val",
        [[1, 0], [2, 3]],
    )
    with pytest.raises(CheckpointError, match=r"results.json: test.confusion_matrix is not 2 x 2 whole numbers"):
        known_confusion({"test": {"confusion_matrix": matrix}}, tmp_path, 2)
