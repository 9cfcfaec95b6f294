"""Sliding windows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deflect_hf.training.evaluation import sliding_logits, window_offsets


def test_windows_cover_evenly() -> None:
    assert window_offsets(64, 64) == [0]
    assert window_offsets(65, 64) == [0, 1]
    assert window_offsets(128, 64) == [0, 64]
    assert window_offsets(150, 64) == [0, 43, 86]


def per_pixel(images: Tensor) -> Tensor:
    return torch.stack([images.sum(dim=1), -images.mean(dim=1)], dim=1)


@pytest.mark.parametrize("shape", [(64, 64), (80, 64), (50, 130), (40, 40), (33, 97)])
def test_a_model_without_context_is_unchanged_by_windows(shape: tuple[int, int]) -> None:
    images = torch.randn(3, 4, *shape)
    torch.testing.assert_close(sliding_logits(per_pixel, images, 48), per_pixel(images))


def test_overlaps_are_averaged_and_sizes_kept() -> None:
    sizes = []

    def mean_of_window(images: Tensor) -> Tensor:
        sizes.append(tuple(images.shape[-2:]))
        return images.mean(dim=(-2, -1), keepdim=True).expand_as(images)

    image = torch.arange(6.0).expand(1, 1, 1, 6)
    result = sliding_logits(mean_of_window, image, 4)  # columns 0-3 and 2-5
    torch.testing.assert_close(result[0, 0, 0], torch.tensor([1.5, 1.5, 2.5, 2.5, 3.5, 3.5]))
    assert set(sizes) == {(1, 4)}
