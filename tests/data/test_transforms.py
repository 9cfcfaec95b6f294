"""Transforms move image, validity and target together, and depend on seed, epoch and index only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from deflect_hf.data import (
    AugmentationArguments,
    DatasetArguments,
    build_transform,
    collate_examples,
    load_dataset_splits,
)
from deflect_hf.data.dataset import example_generator
from deflect_hf.errors import ConfigError, DataError

EVERYTHING = AugmentationArguments(random_crop=[6, 6], horizontal_flip=0.5, vertical_flip=0.5, rot90=True)


def coordinates(height: int = 9, width: int = 11) -> dict[str, Any]:
    """An example whose channels and mask hold each pixel's number, with NaN where the number is a multiple of 7."""
    numbers = torch.arange(height * width).reshape(height, width)
    pixels = numbers.float().expand(3, -1, -1).clone()
    pixels[1][numbers % 7 == 0] = torch.nan
    return {"pixel_values": pixels, "labels": numbers, "name": "numbers"}


@given(st.integers(0, 2**31))
def test_image_validity_and_mask_move_together(seed: int) -> None:
    transform = build_transform(EVERYTHING, "train")
    assert transform is not None
    example = transform(coordinates(), torch.Generator().manual_seed(seed))
    pixels, labels = example["pixel_values"], example["labels"]
    assert pixels.shape == (3, 6, 6)
    assert torch.equal(pixels[0].long(), labels)
    assert torch.equal(torch.isnan(pixels[1]), labels % 7 == 0)
    assert labels.unique().numel() == 36


def test_every_symmetry_and_position_occurs() -> None:
    transform = build_transform(EVERYTHING, "train")
    assert transform is not None
    views = {
        tuple(transform(coordinates(), example_generator(0, 0, index))["labels"].flatten().tolist())
        for index in range(3000)
    }
    assert len(views) == 4 * 6 * 8  # window positions x symmetries of the square


def test_rectangles_keep_their_shape() -> None:
    transform = build_transform(AugmentationArguments(rot90=True), "train")
    assert transform is not None
    corners = {int(transform(coordinates(), example_generator(0, 0, i))["labels"][0, 0]) for i in range(50)}
    assert corners == {0, 98}


def test_flips_follow_their_probability() -> None:
    transform = build_transform(AugmentationArguments(horizontal_flip=0.2), "train")
    assert transform is not None
    flipped = sum(int(transform(coordinates(), example_generator(1, 0, i))["labels"][0, 0] == 10) for i in range(2000))
    assert 320 < flipped < 480


@given(st.integers(0, 8), st.integers(0, 10), st.integers(0, 2**31))
def test_a_focused_crop_holds_a_labelled_pixel(row: int, column: int, seed: int) -> None:
    transform = build_transform(AugmentationArguments(random_crop=[3, 3], focus_crop=True), "train")
    assert transform is not None
    example = coordinates()
    labels = torch.full((9, 11), -100)
    labels[row, column] = 1
    cropped = transform({**example, "labels": labels}, torch.Generator().manual_seed(seed))
    assert (cropped["labels"] == 1).sum() == 1
    assert float(cropped["pixel_values"][0][cropped["labels"] == 1]) == row * 11 + column


def test_a_focused_crop_accepts_an_image_without_labels() -> None:
    transform = build_transform(AugmentationArguments(random_crop=[3, 3], focus_crop=True), "train")
    assert transform is not None
    example = {**coordinates(), "labels": torch.full((9, 11), -100)}
    assert transform(example, example_generator(0, 0, 0))["pixel_values"].shape == (3, 3, 3)


def test_validation_images_are_only_cut_in_the_middle() -> None:
    assert build_transform(EVERYTHING, "val") is None
    transform = build_transform(AugmentationArguments(center_crop=[3, 5]), "test")
    assert transform is not None
    labels = transform(coordinates(), example_generator(0, 0, 0))["labels"]
    assert torch.equal(labels, coordinates()["labels"][3:6, 3:8])


def test_an_image_smaller_than_the_crop_is_named() -> None:
    for options, split in (({"random_crop": [10, 4]}, "train"), ({"center_crop": [4, 12]}, "val")):
        transform = build_transform(AugmentationArguments(**options), split)
        assert transform is not None
        with pytest.raises(DataError, match=r"numbers is 9 x 11 pixels, smaller than the crop of \d+ x \d+"):
            transform(coordinates(), example_generator(0, 0, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"random_crop": [4]}, r"random_crop=\[4\]"),
        ({"center_crop": [4, 0]}, r"center_crop=\[4, 0\]"),
        ({"horizontal_flip": 1.5}, "between 0 and 1"),
        ({"focus_crop": True}, "needs random_crop"),
    ],
)
def test_impossible_augmentations_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AugmentationArguments(**options)


def test_mixed_sizes_make_no_batch() -> None:
    small = {**coordinates(4, 4), "name": "small"}
    with pytest.raises(DataError, match=r"9 x 11: 'numbers'; 4 x 4: 'small'\): resize or crop them"):
        collate_examples([coordinates(), small])


def test_a_batch_keeps_names_and_the_unlabelled_stay_so() -> None:
    batch = collate_examples([coordinates(), coordinates()])
    assert batch["pixel_values"].shape == (2, 3, 9, 11)
    assert batch["labels"].shape == (2, 9, 11)
    assert batch["name"] == ["numbers", "numbers"]
    bare = {"pixel_values": torch.zeros(1, 2, 2), "name": "bare"}
    assert set(collate_examples([bare])) == {"pixel_values", "name"}


def epochs(workers: int, order: list[int]) -> list[dict[str, torch.Tensor]]:
    """Two epochs through one loader: name -> augmented image."""
    augmentation = AugmentationArguments(random_crop=[8, 8], horizontal_flip=0.5, rot90=True)
    split = load_dataset_splits(DatasetArguments(num_samples=20, image_size=[16, 16], seed=5))["train"]
    split = split.with_transform(build_transform(augmentation, "train"))
    loader = DataLoader(
        split, 3, sampler=order, num_workers=workers, collate_fn=collate_examples, persistent_workers=workers > 0
    )
    seen = []
    for epoch in range(2):
        split.set_epoch(epoch)
        seen.append(
            {name: image for batch in loader for name, image in zip(batch["name"], batch["pixel_values"], strict=True)}
        )
    return seen


def test_augmentation_depends_on_seed_epoch_and_index_only() -> None:
    alone = epochs(workers=0, order=[0, 1, 2, 3, 4])
    helped = epochs(workers=2, order=[3, 1, 4, 0, 2])  # persistent workers, another order and other batches
    for epoch in range(2):
        assert alone[epoch].keys() == helped[epoch].keys()
        assert all(torch.equal(alone[epoch][name], helped[epoch][name]) for name in alone[epoch])
    assert any(not torch.equal(alone[0][name], alone[1][name]) for name in alone[0])
