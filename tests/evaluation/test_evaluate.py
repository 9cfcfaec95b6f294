"""Sliding windows, and what evaluation makes of images of any size."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deflect_hf.config.tasks import TASKS
from deflect_hf.errors import DataError
from deflect_hf.evaluation.evaluate import (
    Interrupted,
    Protocol,
    evaluate,
    predict_logits,
    sliding_logits,
    window_offsets,
)
from deflect_hf.models.targets import OneClass

IGNORE = -100
PROTOCOL = Protocol(TASKS["segmentation"], ["a", "b"], OneClass(IGNORE), window=8, convention="present")


@given(st.integers(1, 400), st.integers(1, 100))
@settings(deadline=None)
def test_windows_are_the_fewest_that_cover_and_none_leaves_the_image(length: int, size: int) -> None:
    size = min(size, length)
    starts = window_offsets(length, size)
    assert len(starts) == -(-length // size)
    assert starts[0] == 0 and starts[-1] == length - size
    assert all(0 < after - before <= size for before, after in pairwise(starts))
    # as the published evaluation places them
    assert starts == torch.linspace(0, length - size, len(starts), dtype=torch.float64).round().long().tolist()


def per_pixel(images: Tensor) -> Tensor:
    return torch.stack([images.sum(dim=1), -images.mean(dim=1)], dim=1)


@pytest.mark.parametrize("shape", [(64, 64), (80, 64), (50, 130), (40, 40), (33, 97)])
def test_a_model_without_context_is_unchanged_by_windows(shape: tuple[int, int]) -> None:
    images = torch.randn(3, 4, *shape)
    torch.testing.assert_close(torch.stack(sliding_logits(per_pixel, images, 48)), per_pixel(images))


def test_overlaps_are_averaged_and_sizes_kept() -> None:
    sizes = []

    def mean_of_window(images: Tensor) -> Tensor:
        sizes.append(tuple(images.shape[-2:]))
        return images.mean(dim=(-2, -1), keepdim=True).expand_as(images)

    image = torch.arange(6.0).expand(1, 1, 1, 6)
    result = sliding_logits(mean_of_window, image, 4)  # columns 0-3 and 2-5
    torch.testing.assert_close(result[0][0, 0], torch.tensor([1.5, 1.5, 2.5, 2.5, 3.5, 3.5]))
    assert set(sizes) == {(1, 4)}


def test_what_is_smaller_than_a_window_is_filled_up_to_whole_patches_with_pixels_that_were_not_measured() -> None:
    seen = []

    def noting(images: Tensor) -> Tensor:
        seen.append(images)
        return images.nan_to_num(9.0)

    image = torch.rand(2, 1, 5, 13)
    torch.testing.assert_close(torch.stack(sliding_logits(noting, image, 8, patch_size=(4, 4))), image)
    assert seen[0].shape == (4, 1, 8, 8)  # two windows of two images
    assert bool(seen[0][:, :, 5:].isnan().all()) and bool(seen[0][:, :, :5].isfinite().all())


@pytest.mark.parametrize("size", [8, None])
def test_windows_of_images_of_several_sizes_make_a_batch_and_give_what_each_image_gives_alone(size: int | None) -> None:
    batches = []

    def blurred(images: Tensor) -> Tensor:
        batches.append(images.shape)
        return torch.cat([torch.nn.functional.avg_pool2d(images.nan_to_num(0.5), 3, 1, 1), images.nan_to_num()], 1)

    images = [torch.rand(2, *shape) for shape in ((19, 8), (3, 9), (8, 30), (17, 17), (20, 8), (17, 20))]
    alone = [sliding_logits(blurred, [image], size, (4, 4))[0] for image in images]
    count, batches[:] = sum(len(shape) and shape[0] for shape in batches), []
    together = sliding_logits(blurred, images, size, (4, 4))
    for image, found, expected in zip(images, together, alone, strict=True):
        assert found.shape == (4, *image.shape[1:])
        torch.testing.assert_close(found, expected)
    assert len(batches) == (5 if size else 4)  # 8 x 8 in four and 4 x 8; 20 x 8 twice, 20 x 20 twice
    assert sum(shape[0] for shape in batches) == count


class PerPixel(nn.Module):
    """Logits (B, 2, H, W) of the sign of the first channel, whatever the window; notes the sizes it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[tuple[int, ...]] = set()

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        self.sizes.add(tuple(pixel_values.shape[-2:]))
        first = pixel_values[:, 0]
        return SimpleNamespace(logits=torch.stack([first, -first], dim=1))


def batches(shapes: list[tuple[int, int]], seed: int) -> list[dict[str, Any]]:
    """One batch of two images per shape, three bands, a fifth of the pixels without label."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number, (height, width) in enumerate(shapes):
        pixels = torch.randn(2, 3, height, width, generator=generator)
        labels = torch.randint(2, (2, height, width), generator=generator)
        labels[torch.rand(labels.shape, generator=generator) < 0.2] = IGNORE
        made.append({"pixel_values": pixels, "labels": labels, "name": [f"{number} left", f"{number} right"]})
    return made


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_every_labelled_pixel_is_scored_once_whatever_the_sizes(shapes: list[tuple[int, int]], seed: int) -> None:
    loader = batches(shapes, seed)
    model = PerPixel()
    found = evaluate(model, loader, Accelerator(cpu=True), PROTOCOL)
    expected = np.zeros((2, 2), dtype=int)
    for batch in loader:
        counted = batch["labels"] != IGNORE
        np.add.at(expected, (batch["labels"][counted], (batch["pixel_values"][:, 0] < 0).long()[counted]), 1)
    assert found["confusion_matrix"] == expected.tolist()
    assert max(max(size) for size in model.sizes) <= 8
    assert "intervals" not in found


def test_scores_are_those_of_the_labels_size_where_images_were_shrunk() -> None:
    pixels = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]])[None, None]
    labels = torch.tensor([[1, 1, 0, 0]] * 8)
    labels[3, 1] = IGNORE
    batch = {"pixel_values": pixels, "labels": labels[None], "name": ["x"]}
    found = evaluate(PerPixel(), [batch], Accelerator(cpu=True), PROTOCOL, replicates=10)
    assert found["confusion_matrix"] == [[16, 0], [0, 15]]


def test_intervals_come_with_the_scores_when_asked_for() -> None:
    loader = batches([(9, 5), (8, 8), (20, 3)], seed=1)
    plain = evaluate(PerPixel(), loader, Accelerator(cpu=True), PROTOCOL)
    found = evaluate(PerPixel(), loader, Accelerator(cpu=True), PROTOCOL, replicates=200)
    intervals = found.pop("intervals")
    calibration = {name: found.pop(name) for name in ("temperature", "ece", "ece_calibrated")}
    outlines = found.pop("boundary_f1"), *(row.pop("boundary_f1") for row in found["per_class"].values())
    assert found == plain and outlines[0] == pytest.approx(sum(outlines[1:]) / 2)
    assert calibration["ece_calibrated"] < calibration["ece"] < 1  # a model that guesses, and is sure
    assert (intervals["images"], intervals["replicates"]) == (6, 200)
    for name in ("accuracy", "miou", "f1_macro"):
        low, high = intervals[name]
        assert low < found[name] < high
    assert intervals["iou"].keys() == {"a", "b"}


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_evaluation_that_is_asked_to_stop_gives_no_scores_and_leaves_the_model_in_its_mode(after: int) -> None:
    # the first image has no labels, which is no error of a split that was not looked at as a whole
    read, loader = [], batches([(8, 8)] * 3, seed=0)
    loader[0]["labels"][:] = IGNORE
    model = PerPixel().train()
    with pytest.raises(Interrupted):
        evaluate(
            model,
            (read.append(batch) or batch for batch in loader),
            Accelerator(cpu=True),
            PROTOCOL,
            asked_to_stop=lambda: len(read) > after or after == 3 == len(read),
        )
    assert len(read) == min(after + 1, 3) and model.training


def test_an_image_within_the_window_is_seen_whole() -> None:
    model = PerPixel()
    predict_logits(model, torch.zeros(1, 3, 7, 8), window=8)
    predict_logits(model, torch.zeros(1, 3, 30, 9), window=None)
    assert model.sizes == {(7, 8), (30, 9)}


def test_images_without_labels_are_named() -> None:
    batch = {"pixel_values": torch.zeros(1, 3, 4, 4), "name": ["scene 5"]}
    with pytest.raises(DataError, match="scene 5: has no label, so there is nothing to evaluate against"):
        evaluate(PerPixel(), [batch], Accelerator(cpu=True), PROTOCOL)


def test_images_on_which_the_model_overflows_are_named_and_no_others() -> None:
    loader = batches([(5, 5), (4, 4), (3, 3)], seed=2)
    loader[1]["pixel_values"][1, 0] = torch.inf
    loader[1]["labels"][:] = 1
    with pytest.raises(DataError, match=r"not finite on the images '1 left', '1 right': one of them holds"):
        evaluate(PerPixel(), loader, Accelerator(cpu=True), PROTOCOL)
