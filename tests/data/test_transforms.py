"""Transforms move image, validity and target together, and depend on seed, epoch and index only."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from deflect_hf.config.data import AugmentationArguments, DatasetArguments
from deflect_hf.data import build_transform, collate_examples, load_dataset_splits
from deflect_hf.data.order import example_generator
from deflect_hf.errors import DataError

EVERYTHING = AugmentationArguments(random_crop=[6, 6], horizontal_flip=0.5, vertical_flip=0.5, rot90=True)


def coordinates(height: int = 9, width: int = 11, bands: int = 3) -> dict[str, Any]:
    """An example whose channels and mask hold each pixel's number, with NaN where the number is a multiple of 7."""
    numbers = torch.arange(height * width).reshape(height, width)
    pixels = numbers.float().expand(bands, -1, -1).clone()
    pixels[1][numbers % 7 == 0] = torch.nan
    return {"pixel_values": pixels, "labels": numbers, "name": "numbers"}


@given(st.integers(0, 2**31), st.integers(2, 14), st.booleans())
@settings(deadline=None)
def test_image_validity_and_mask_move_together(seed: int, bands: int, focus: bool) -> None:
    transform = build_transform(EVERYTHING.replace(focus_crop=focus), "train")
    original = coordinates(bands=bands)
    before = {name: original[name].clone() for name in ("pixel_values", "labels")}
    example = transform(original, torch.Generator().manual_seed(seed))
    pixels, labels = example["pixel_values"], example["labels"]
    assert pixels.shape == (bands, 6, 6)
    for band in range(bands):
        hidden = labels % 7 == 0 if band == 1 else torch.zeros_like(labels, dtype=torch.bool)
        assert torch.equal(torch.isnan(pixels[band]), hidden)
        assert torch.equal(pixels[band][~hidden].long(), labels[~hidden])
    assert labels.unique().numel() == 36
    assert torch.equal(original["labels"], before["labels"])
    assert torch.equal(original["pixel_values"].nan_to_num(-1), before["pixel_values"].nan_to_num(-1))


@pytest.mark.parametrize(("options", "split"), [({"random_crop": [9, 4]}, "train"), ({"center_crop": [5, 11]}, "val")])
def test_a_crop_may_take_a_whole_side(options: dict, split: str) -> None:
    transform = build_transform(AugmentationArguments(**options), split)
    example = transform(coordinates(), example_generator(0, 0, 0))
    (size,) = options.values()
    assert list(example["pixel_values"].shape[-2:]) == list(example["labels"].shape) == size


@given(st.integers(1, 12), st.integers(1, 12), st.booleans(), st.integers(0, 2**31))
@settings(deadline=None)
def test_smaller_images_are_kept_whole_along_that_axis(height: int, width: int, focus: bool, seed: int) -> None:
    arguments = AugmentationArguments(random_crop=[6, 7], keep_smaller=True, focus_crop=focus)
    transform = build_transform(arguments, "train")
    example = transform(coordinates(height, width), torch.Generator().manual_seed(seed))
    labels = example["labels"]
    assert labels.shape == (min(height, 6), min(width, 7)) == example["pixel_values"].shape[-2:]
    top, left = divmod(int(labels[0, 0]), width)
    assert torch.equal(labels, coordinates(height, width)["labels"][top : top + 6, left : left + 7])


def test_images_with_one_class_move_without_a_mask() -> None:
    transform = build_transform(EVERYTHING, "train")
    example = {**coordinates(), "labels": torch.tensor(2)}
    changed = transform(example, example_generator(0, 0, 3))
    assert changed["pixel_values"].shape == (3, 6, 6) and changed["labels"] == 2


def test_every_symmetry_and_position_occurs() -> None:
    transform = build_transform(EVERYTHING, "train")
    views = {
        tuple(transform(coordinates(), example_generator(0, 0, index))["labels"].flatten().tolist())
        for index in range(2000)
    }
    assert len(views) == 4 * 6 * 8  # window positions x symmetries of the square


def test_rectangles_keep_their_shape() -> None:
    transform = build_transform(AugmentationArguments(rot90=True), "train")
    corners = {int(transform(coordinates(), example_generator(0, 0, i))["labels"][0, 0]) for i in range(50)}
    assert corners == {0, 98}


def test_flips_follow_their_probability() -> None:
    transform = build_transform(AugmentationArguments(horizontal_flip=0.2), "train")
    flipped = sum(int(transform(coordinates(), example_generator(1, 0, i))["labels"][0, 0] == 10) for i in range(2000))
    assert 320 < flipped < 480


@given(st.integers(0, 8), st.integers(0, 10), st.integers(0, 2**31))
def test_a_focused_crop_holds_a_labelled_pixel(row: int, column: int, seed: int) -> None:
    transform = build_transform(AugmentationArguments(random_crop=[3, 3], focus_crop=True), "train")
    example = coordinates()
    labels = torch.full((9, 11), -100)
    labels[row, column] = 1
    cropped = transform({**example, "labels": labels}, torch.Generator().manual_seed(seed))
    assert (cropped["labels"] == 1).sum() == 1
    bare = transform({**example, "labels": labels.clamp(max=-1)}, torch.Generator().manual_seed(seed))
    assert bare["pixel_values"].shape == (3, 3, 3)
    assert float(cropped["pixel_values"][0][cropped["labels"] == 1]) == row * 11 + column


def test_validation_images_are_only_cut_in_the_middle() -> None:
    assert build_transform(EVERYTHING, "val") is None
    transform = build_transform(AugmentationArguments(center_crop=[3, 5]), "test")
    labels = transform(coordinates(), example_generator(0, 0, 0))["labels"]
    assert torch.equal(labels, coordinates()["labels"][3:6, 3:8])


@pytest.mark.parametrize(("key", "split"), [("random_crop", "train"), ("center_crop", "val")])
def test_an_image_smaller_than_a_crop_is_filled_up_with_what_was_not_measured(key: str, split: str) -> None:
    transform = build_transform(AugmentationArguments(**{key: [10, 12]}), split)
    whole, filled = coordinates(), transform(coordinates(), example_generator(0, 0, 0))
    assert filled["pixel_values"].shape[-2:] == filled["labels"].shape == (10, 12)
    torch.testing.assert_close(filled["pixel_values"][..., :9, :11], whole["pixel_values"], equal_nan=True)
    assert filled["pixel_values"][:, 9:].isnan().all() and (filled["labels"][:, 11:] == -100).all()


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


def test_radiometry_changes_bands_by_gain_offset_and_noise() -> None:
    example = {"pixel_values": torch.full((3, 40, 40), 0.2), "labels": torch.tensor(1), "name": "x"}
    example["pixel_values"][:, 0] = torch.nan

    def changed(**options: float) -> torch.Tensor:
        transform = build_transform(AugmentationArguments(**options), "train")
        assert build_transform(AugmentationArguments(**options), "val") is None
        one, again = (transform(example, torch.Generator().manual_seed(4))["pixel_values"] for _ in range(2))
        assert torch.equal(one.nan_to_num(), again.nan_to_num()) and bool(one[:, 0].isnan().all())
        return one[:, 1:]

    for options, most in (({"band_gain": 0.1}, 0.02), ({"band_offset": 0.01}, 0.01)):
        found = changed(**options)
        levels = found[:, 0, 0]
        assert bool((found == levels[:, None, None]).all()) and len(levels.unique()) == 3  # each band on its own
        assert 0 < float((levels - 0.2).abs().max()) <= most + 1e-6
    assert float(changed(band_noise=0.01).std()) == pytest.approx(0.01, rel=0.1)
