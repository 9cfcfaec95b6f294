"""Folders of GeoTIFFs: which image belongs to which split."""

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deflect_hf.data import load_dataset_splits
from deflect_hf.errors import ConfigError, DataError
from tests.data.test_folder import scenes, segments


def test_split_files_are_followed_and_counted(segmentation_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (segmentation_folder / "train.txt").write_text("a3\na1.tif\n\n")
    (segmentation_folder / "val.txt").write_text("a2\n")
    (segmentation_folder / "test.txt").write_text("a5\na4\na9\n")
    with caplog.at_level(logging.INFO, logger="deflect_hf"):
        splits = load_dataset_splits(segments(segmentation_folder))
    assert {name: split.names for name, split in splits.items()} == {
        "train": ["a3", "a1"],
        "val": ["a2"],
        "test": ["a5", "a4", "a9"],
    }
    said = [message.partition("split, ")[2] for message in caplog.messages]
    assert said == ["2 images", "1 image", "3 images"]


def test_without_a_val_file_some_of_train_is_held_out(segmentation_folder: Path) -> None:
    (segmentation_folder / "train.txt").write_text("\n".join(f"a{i}" for i in range(8)))
    splits = load_dataset_splits(segments(segmentation_folder, val_fraction=0.25))
    assert (len(splits["train"]), len(splits["val"])) == (6, 2)
    assert sorted(splits["train"].names + splits["val"].names) == [f"a{i}" for i in range(8)]
    assert "test" not in splits


def test_random_splits_are_disjoint_complete_and_repeatable(segmentation_folder: Path) -> None:
    first, again, other = (
        {name: split.names for name, split in load_dataset_splits(segments(segmentation_folder, seed=seed)).items()}
        for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other
    assert sorted(name for names in first.values() for name in names) == [f"a{i}" for i in range(10)]
    assert [len(names) for names in first.values()] == [6, 2, 2]


def test_subfolders_named_after_splits_are_splits(
    class_folder: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    root = class_folder(forest=3, river=3)
    for split in ("train", "test"):
        for name in ("forest", "river"):
            for path in list((root / name).glob("*_[01].tif" if split == "train" else "*_2.tif")):
                (root / split / name).mkdir(parents=True, exist_ok=True)
                path.rename(root / split / name / path.name)
    (root / "dev" / "forest").mkdir(parents=True)
    splits = load_dataset_splits(scenes(root, val_fraction=0.0))
    assert "classes/dev is not read: if it is the validation split, call it val\n" in caplog.text
    assert splits["train"].names == ["forest/forest_0", "forest/forest_1", "river/river_0", "river/river_1"]
    assert splits["test"].names == ["forest/forest_2", "river/river_2"]
    assert set(splits) == {"train", "test"}


def test_class_folders_give_labels_and_stratified_shares(class_folder: Callable[..., Path]) -> None:
    splits = load_dataset_splits(scenes(class_folder(river=20, forest=10), val_fraction=0.2, test_fraction=0.3))
    assert splits["train"].classes == ["forest", "river"]
    assert splits["train"].task == "classification"
    counts = {name: Counter(int(split[i]["labels"]) for i in range(len(split))) for name, split in splits.items()}
    assert counts == {"train": {0: 5, 1: 10}, "val": {0: 2, 1: 4}, "test": {0: 3, 1: 6}}
    example = splits["train"][0]
    assert example["labels"].dtype == torch.int64
    assert example["labels"].ndim == 0
    assert example["name"].startswith("forest/forest_")


def test_every_image_is_tested_once_over_the_folds(class_folder: Callable[..., Path]) -> None:
    root = class_folder(forest=7, river=8)
    tested: list[str] = []
    for fold in range(3):
        splits = load_dataset_splits(scenes(root, num_folds=3, fold=fold))
        names = {name: split.names for name, split in splits.items()}
        assert len({name for members in names.values() for name in members}) == 15
        assert Counter(name.split("/")[0] for name in names["test"]) in (
            {"forest": 3, "river": 2},
            {"forest": 2, "river": 3},
        )
        tested += names["test"]
    assert len(tested) == len(set(tested)) == 15
    with pytest.raises(DataError, match=r"Class 0 has 7 image\(s\), too few for num_folds=8"):
        load_dataset_splits(scenes(root, num_folds=8))


def test_folds_replace_split_files_aloud_and_refuse_split_folders(
    segmentation_folder: Path, class_folder: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    (segmentation_folder / "train.txt").write_text("a1\na2\n")
    splits = load_dataset_splits(segments(segmentation_folder, num_folds=5, fold=1))
    assert len(splits["test"]) == 2
    assert "train.txt is not used: num_folds=5 draws its own splits" in caplog.text
    root = class_folder(forest=2)
    (root / "train").mkdir()
    (root / "forest").rename(root / "train" / "forest")
    with pytest.raises(ConfigError, match=r"is split into 'train' already: remove `num_folds`"):
        load_dataset_splits(scenes(root, num_folds=2))


def test_a_split_file_that_is_named_must_be_there_and_be_used(
    segmentation_folder: Path, class_folder: Callable[..., Path]
) -> None:
    (segmentation_folder / "few.txt").write_text("a1\na2\n")
    splits = load_dataset_splits(segments(segmentation_folder, train_split="few.txt", val_fraction=0.0))
    assert splits["train"].names == ["a1", "a2"] and set(splits) == {"train"}
    with pytest.raises(ConfigError, match=r"test_fraction=0\.3 does nothing for .*segments"):
        load_dataset_splits(segments(segmentation_folder, train_split="few.txt", test_fraction=0.3))
    with pytest.raises(ConfigError, match=r"test_fraction=0\.3 does nothing"):
        load_dataset_splits(segments(segmentation_folder, num_folds=5, test_fraction=0.3))
    with pytest.raises(ConfigError, match=r"val_fraction=0\.3 does nothing"):
        load_dataset_splits(segments(segmentation_folder, val_split="few.txt", val_fraction=0.3))
    root = class_folder(forest=2)
    (root / "train").mkdir()
    (root / "forest").rename(root / "train" / "forest")
    with pytest.raises(ConfigError, match=r"is split into 'train' already: remove `val_split`"):
        load_dataset_splits(scenes(root, val_split="val.txt"))


def test_limited_labels_shrink_training_only_and_nest(class_folder: Callable[..., Path]) -> None:
    root = class_folder(forest=20, river=20)
    full, half, fifth = (load_dataset_splits(scenes(root, limited_label=share)) for share in (1.0, 0.5, 0.2))
    assert full["test"].names == half["test"].names == fifth["test"].names
    assert set(fifth["train"].names) < set(half["train"].names) < set(full["train"].names)
    assert Counter(name.split("/")[0] for name in half["train"].names) == {"forest": 7, "river": 7}


def test_a_split_file_whose_disk_is_not_mounted_is_told(segmentation_folder: Path) -> None:
    (segmentation_folder / "train.txt").write_text("a1\na2\na3\n")
    (segmentation_folder / "test.txt").symlink_to("/nonexistent/test.txt")
    with pytest.raises(DataError, match=r"test\.txt is a link to /nonexistent/test\.txt, which is not there: mount"):
        load_dataset_splits(segments(segmentation_folder))


@pytest.mark.parametrize("words", [("train", "valid", "test"), ("Training", "VALIDATION", "Testing")])
@pytest.mark.parametrize("folders", [True, False])
def test_splits_go_by_all_their_names(folders: bool, words: tuple[str, ...], segmentation_folder: Path) -> None:
    members = {"train": range(6), "val": range(6, 8), "test": range(8, 10)}
    for word, numbers in zip(words, members.values(), strict=True):
        for kind in ("images", "masks") if folders else ():
            (segmentation_folder / word / kind).mkdir(parents=True)
            for path in [segmentation_folder / kind / f"a{number}.tif" for number in numbers]:
                path.rename(segmentation_folder / word / kind / path.name)
        if not folders:
            (segmentation_folder / f"{word}.txt").write_text("".join(f"a{number}\n" for number in numbers))
    splits = load_dataset_splits(segments(segmentation_folder))
    assert {split: images.names for split, images in splits.items()} == {
        split: [f"a{number}" for number in numbers] for split, numbers in members.items()
    }
    if folders:
        (segmentation_folder / "val").mkdir()
        with pytest.raises(DataError, match="for the val split: keep one of them"):
            load_dataset_splits(segments(segmentation_folder))


@pytest.mark.parametrize("line", ["images/ä1.tif", "./images/ä1.tif", "images\\ä1.tif", "a\N{COMBINING DIAERESIS}1"])
def test_a_line_is_the_path_of_an_image_however_it_is_written(line: str, segmentation_folder: Path) -> None:
    for kind, name in (("images", "a\N{COMBINING DIAERESIS}1.tif"), ("masks", "ä1.tif")):  # of macOS, of others
        (segmentation_folder / kind / "a1.tif").rename(segmentation_folder / kind / name)
    (segmentation_folder / "train.txt").write_text(f"a0\n{line}\n")
    assert load_dataset_splits(segments(segmentation_folder, val_fraction=0))["train"].names == ["a0", "ä1"]


@pytest.mark.parametrize(("line", "found"), [("a1.png", True), ("a1.GTIF", True), ("a1.5", False), ("a1.v2", False)])
def test_a_line_may_end_as_another_file_and_is_no_other_image(
    line: str, found: bool, segmentation_folder: Path
) -> None:
    (segmentation_folder / "train.txt").write_text(f"a0\n{line}\n")
    if found:
        assert load_dataset_splits(segments(segmentation_folder, val_fraction=0))["train"].names == ["a0", "a1"]
        return
    with pytest.raises(DataError, match=rf"1 id\(s\) without an image, first '{line}'"):
        load_dataset_splits(segments(segmentation_folder))


@pytest.mark.parametrize("link", [True, False])
def test_an_image_of_two_splits_under_two_names_is_told(
    link: bool, segmentation_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, other = (segmentation_folder / "images" / name for name in ("a0.tif", "a9.tif"))
    other.unlink()
    other.symlink_to(first) if link else other.write_bytes(first.read_bytes())
    for split, names in (("train", "a0\na1\n"), ("val", "a2\n"), ("test", "a8\na9\n")):
        (segmentation_folder / f"{split}.txt").write_text(names)
    load_dataset_splits(segments(segmentation_folder))
    assert "1 image(s) of the test split are those of the train split, byte for byte: a9.tif (= a0.tif)" in caplog.text


def test_class_folders_are_named_as_macos_writes_letters_or_as_others_do(class_folder: Callable[..., Path]) -> None:
    root = class_folder(**{"fore\N{COMBINING CIRCUMFLEX ACCENT}t": 4, "river": 4})
    for classes in (["river", "forêt"], ["river", "fore\N{COMBINING CIRCUMFLEX ACCENT}t"]):
        splits = load_dataset_splits(scenes(root, classes=classes))
        assert splits["train"].classes == ["river", "forêt"]
        assert {row["label"] for row in splits["train"].table if "river" not in row["name"]} == {1}
    assert load_dataset_splits(scenes(root))["train"].classes == ["forêt", "river"]


@pytest.mark.parametrize("name", ["lake/2020/a.tif", "lake/a.png"])
def test_a_folder_that_is_no_class_beside_classes_is_told(
    name: str, class_folder: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    root = class_folder(forest=3, river=3)
    (root / "empty").mkdir()
    (root / name).parent.mkdir(parents=True)
    (root / name).write_bytes((root / "river" / "river_0.tif").read_bytes())
    assert load_dataset_splits(scenes(root))["train"].classes == ["forest", "river"]
    assert f"lake is no class: it has no images of the kind that the classes have; it holds 1 {name[-4:]}" in (
        caplog.text
    )
    assert "empty" not in caplog.text
