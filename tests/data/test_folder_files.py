"""Folders as others lay them out: patterns for images and masks, a table with splits and classes, painted masks."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data import load_dataset_splits
from deflect_hf.errors import ConfigError, DataError
from deflect_hf.raster.write import write_raster
from tests.data.conftest import BANDS, stored_image


def write(root: Path, images: list[str], masks: list[str] = []) -> None:  # noqa: B006
    for number, name in enumerate(images):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_raster(root / name, stored_image(number), descriptions=BANDS)
    for number, name in enumerate(masks):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_raster(root / name, np.full((1, 6, 8), number % 2, np.uint8))


def folder(root: Path, **changes: Any) -> DatasetArguments:
    given = {"scale": 1e-4, "classes": ["land", "water"], "val_fraction": 0.0, "test_fraction": 0.0, **changes}
    return DatasetArguments(name="folder", root=str(root), **given)


def names_of(args: DatasetArguments) -> dict[str, list[str]]:
    return {split: list(images.table["name"]) for split, images in load_dataset_splits(args).items()}


def test_masks_called_after_their_image_and_more_are_told_with_the_patterns(tmp_path: Path) -> None:
    write(tmp_path, ["images/a.tif", "images/b.tif"], ["masks/a_mask.tif", "masks/b_mask.tif"])
    with pytest.raises(DataError, match=r'are, `images: "images/\*\.tif"`, `masks: "masks/\*_mask\.tif"`\.'):
        names_of(folder(tmp_path))
    assert names_of(folder(tmp_path, images="images/*.tif", masks="masks/*_mask.tif")) == {"train": ["a", "b"]}


@pytest.mark.parametrize(
    ("images", "masks", "patterns", "expected"),
    [
        (  # side by side, with names that end differently
            ["x.1_merged.tif", "deep/er/y_merged.tif"],
            ["x.1.mask.tif", "deep/er/y.mask.tif"],
            ("**/*_merged.tif", "**/*.mask.tif"),
            {"train": ["deep/er/y", "x.1"]},
        ),
        (  # what the masks are is no image
            ["a.tif", "b.tif"],
            ["a.mask.tif", "b.mask.tif"],
            ("*.tif", "*.mask.tif"),
            {"train": ["a", "b"]},
        ),
        (  # a folder for each place, endings that differ
            ["north/img/a.tif", "south/img/a.tif"],
            ["north/gt/a.tif", "south/gt/a.tif"],
            ("*/img/*", "*/gt/*.tif"),
            {"train": ["north/a", "south/a"]},
        ),
        (  # splits in the middle
            ["img_dir/train/1.tif", "img_dir/train/2.tif", "img_dir/validation/1.tif"],
            ["ann_dir/train/1.tif", "ann_dir/train/2.tif", "ann_dir/validation/1.tif"],
            ("img_dir/{split}/*.tif", "ann_dir/{split}/*.tif"),
            {"train": ["1", "2"], "val": ["1"]},
        ),
        (["a.tif", "b.tif"], ["masks/a.tif", "masks/b.tif"], ("**/*.tif", None), {"train": ["a", "b"]}),
        (["[1]/a??.tif"], ["[1]/m.tif"], ("[1]/a*.tif", "*/m*.tif"), None),
        (["p/a1.tif", "p/b2.tif"], ["masks/a1.tif", "masks/b2.tif"], ("p/??.tif", None), {"train": ["a1", "b2"]}),
    ],
)
def test_patterns_find_images_and_the_masks_of_the_same_names(
    images: list[str], masks: list[str], patterns: tuple[str, str | None], expected: Any, tmp_path: Path
) -> None:
    write(tmp_path, images, masks)
    args = folder(tmp_path, images=patterns[0], masks=patterns[1])
    if expected is None:
        with pytest.raises(DataError, match=r"has no mask \(1 of 1 .* `images` the \* stand for '\?\?', in `masks`"):
            load_dataset_splits(args)
        return
    assert names_of(args) == expected
    for split in load_dataset_splits(args).values():  # each with its own mask
        for index, name in enumerate(split.table["image"]):
            number = images.index(str(Path(name).relative_to(tmp_path)))
            assert set(split[index]["labels"].unique().tolist()) == {number % 2}


def test_pictures_vrt_and_jp2_are_images_wherever_they_lie(tmp_path: Path) -> None:
    import rasterio.shutil

    write(tmp_path, ["plain.tif"])
    (tmp_path / "in").mkdir()
    for suffix, options in (("vrt", {}), ("jp2", {"QUALITY": 100, "REVERSIBLE": "YES"})):
        rasterio.shutil.copy(tmp_path / "plain.tif", tmp_path / "in" / f"{suffix}.{suffix}", **options)
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "in" / "png.png")
    (tmp_path / "labels.csv").write_text("name,class\njp2,a\nvrt,b\npng,a\n")
    options: dict[str, Any] = {"classes": None, "task": "classification", "images": "in/*", "source_bands": list("BGR")}
    with pytest.raises(Exception, match=r"has 4 band\(s\), but 3 were announced"):
        load_dataset_splits(folder(tmp_path, **options))
    (tmp_path / "in" / "png.png").unlink()
    found = load_dataset_splits(folder(tmp_path, **{**options, "source_bands": list(BANDS)}))["train"]
    values = {example["name"]: example["pixel_values"].numpy() for example in (found[0], found[1])}
    for name in ("jp2", "vrt"):
        np.testing.assert_allclose(values[name], stored_image(0) * 1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": "**/*.jp2"}, r"no file fits `images: '\*\*/\*\.jp2'`; it holds 4 \.tif, such as 'a/x_img\.tif'"),
        ({"images": "a/*_img.tif", "masks": "b/*.png"}, r"no file fits `masks: 'b/\*\.png'`; it holds 4 \.tif"),
        ({"images": "{split}/*.tif"}, r"no file fits `images: '\{split\}/\*\.tif'`"),
        ({"images": "*/*_img.tif"}, r"x_img\.tif and .*/b/x_img\.tif are|has no mask \(2 of 2 images have none\)"),
        ({"images": "a/x_img.tif"}, r"images.*a pattern relative to root with a \*"),
        ({"images": "/data/*.tif"}, r"images.*a pattern relative to root"),
        ({"masks": "{split}/*.tif"}, r"\{split\} is in `images`, too, or in neither"),
        ({"images": "a/*_img.tif", "masks": "a/*_msk.tif", "split_column": "part"}, r"labels\.csv is not there"),
        ({"split_column": "part", "place_km": 3.0}, r"split_column says which image is in which split: remove `place"),
    ],
)
def test_patterns_that_do_not_fit_are_refused_with_what_is_there(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write(tmp_path, ["a/x_img.tif", "b/x_img.tif"], ["a/x_msk.tif", "b/x_msk.tif"])
    with pytest.raises((ConfigError, DataError), match=message):
        load_dataset_splits(folder(tmp_path, **changes))


def test_a_column_of_a_table_says_the_split(tmp_path: Path) -> None:
    write(tmp_path, [f"s/{k}_img.tif" for k in range(5)], [f"s/{k}_msk.tif" for k in range(5)])
    table = tmp_path / "all.csv"
    options = {"images": "s/*_img.tif", "masks": "s/*_msk.tif", "label_table": "all.csv", "split_column": "part"}
    table.write_text("file,part\n0,train\n1_img.tif,Training\ns/2_img.tif,val\n3,\n4,test\nelsewhere,train\n")
    assert names_of(folder(tmp_path, **options)) == {"train": ["0", "1"], "val": ["2"], "test": ["4"]}
    for text, message in (
        ("file,part\n0,train\n0_img.tif,val\n", r"'0_img' and '0' are the same image, .*0_img\.tif: keep one row"),
        ("file,part\n0,train\n", r"has no row for 4 of 5 images, first '1', '2', '3'"),
        ("file,part\n0,a\n1,b\n2,a\n3,test\n4,\n", r"column 'part' holds 'a' in 2 row\(s\), 'b' in 1 row\(s\): write"),
        ("file,kind\n0,a\n1,b\n2,a\n3,test\n4,\n", r"has no column 'part', only 'kind': correct `split_column`"),
    ):
        table.write_text(text)
        with pytest.raises(DataError, match=message):
            load_dataset_splits(folder(tmp_path, **options))


def test_a_table_gives_each_image_a_class_and_a_split(tmp_path: Path) -> None:
    write(tmp_path, [f"images/{k}.tif" for k in range(4)])
    (tmp_path / "labels.csv").write_text("name,kind,part\n0,sea,train\n1,marsh,train\n2,sea,val\n3,marsh,test\n")
    options = {"task": "classification", "split_column": "part", "classes": None}
    splits = load_dataset_splits(folder(tmp_path, **options))
    assert names_of(folder(tmp_path, **options)) == {"train": ["0", "1"], "val": ["2"], "test": ["3"]}
    assert splits["train"].classes == ["marsh", "sea"] and int(splits["val"][0]["labels"]) == 1
    with pytest.raises(ConfigError, match=r"labels\.csv has the columns 'kind', 'part': name the one .* `target`"):
        load_dataset_splits(folder(tmp_path, **{**options, "split_column": None}))
    with pytest.raises(DataError, match=r"labels\.csv, 0: 'sea' is none of 'land', 'water'"):
        load_dataset_splits(folder(tmp_path, **{**options, "classes": ["land", "water"]}))


COLORS: dict[str, Any] = {"water": "blue", "land": [[0, 255, 0], "#00aa00"], "_": "black"}


def painted(path: Path, kind: str) -> np.ndarray:
    """A mask of 6 x 8 pixels in colors: blue, two greens and black; its labels."""
    colors = np.array([[0, 0, 255], [0, 255, 0], [0, 170, 0], [0, 0, 0]], np.uint8)
    numbers = np.arange(48).reshape(6, 8) % 4
    if kind == "palette":
        image = Image.fromarray(numbers.astype(np.uint8), mode="P")
        image.putpalette(colors.ravel().tolist())
    elif kind == "alpha":  # transparent is no label, whatever color
        alpha = np.where(np.arange(48).reshape(6, 8) < 4, 0, 255).astype(np.uint8)
        image = Image.fromarray(np.dstack([colors[numbers], alpha]))
    else:
        image = Image.fromarray(colors[numbers])
    image.save(path)
    labels = np.array([0, 1, 1, -100])[numbers]
    if kind == "alpha":
        labels[0, :4] = -100
    return labels


@pytest.mark.parametrize("kind", ["rgb", "palette", "alpha"])
def test_painted_masks_are_classes_by_their_colors(kind: str, tmp_path: Path) -> None:
    write(tmp_path, ["images/a.tif"])
    (tmp_path / "masks").mkdir()
    labels = painted(tmp_path / "masks" / "a.png", kind)
    found = load_dataset_splits(folder(tmp_path, classes=None, class_colors=COLORS))["train"]
    assert found.classes == ["water", "land"]
    np.testing.assert_array_equal(found[0]["labels"].numpy(), labels)
    turned = load_dataset_splits(folder(tmp_path, classes=["land", "water"], class_colors=COLORS))["train"]
    np.testing.assert_array_equal(turned[0]["labels"].numpy(), np.where(labels < 0, labels, 1 - labels))
    assert found.labels.colors[0] == turned.labels.colors[1] == (0, 0, 255)  # which pictures and maps paint them in


def test_colors_of_no_class_are_named_with_their_pixels(tmp_path: Path) -> None:
    write(tmp_path, ["images/a.tif"])
    (tmp_path / "masks").mkdir()
    mask = tmp_path / "masks" / "a.png"
    painted(mask, "rgb")
    options: dict[str, Any] = {"classes": None, "class_colors": {"water": "blue", "land": "lime"}}
    expected = (
        "a.png has colors of no class: [0, 0, 0] in 12 pixel(s), [0, 170, 0] in 12 pixel(s); known are [0, 0, 255],"
    )
    with pytest.raises(DataError, match=re.escape(expected) + r".* add them to `class_colors`, under '_' if"):
        load_dataset_splits(folder(tmp_path, **options))["train"][0]
    smooth = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(smooth).save(mask)
    with pytest.raises(DataError, match=r"and 43 more; known are .*so many come of smoothing"):
        load_dataset_splits(folder(tmp_path, **options))["train"][0]
    Image.fromarray(smooth[..., 0]).save(mask)
    with pytest.raises(DataError, match=r"a\.png has 1 band\(s\) of uint8, but `class_colors` are of three of 8 bits"):
        load_dataset_splits(folder(tmp_path, **options))
    Image.fromarray(smooth).save(mask)
    with pytest.raises(DataError, match=r"has 3 bands, but a mask has one: .*, or say by `class_colors` which color"):
        load_dataset_splits(folder(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_colors": {"water": "blau", "land": "red"}}, r"'#0000ff' or a name, not 'blau'"),
        ({"class_colors": {"water": [0, 0, 256], "land": "red"}}, r"0 to 255 each, .*, not \[0, 0, 256\]"),
        ({"class_colors": {"water": "blue", "land": "#00f"}}, r"\[0, 0, 255\] is given twice"),
        ({"class_colors": {"water": "blue", "_": "red"}}, r"class_colors has the classes 'water', but `classes`"),
        ({"class_colors": COLORS, "ignore_values": [0]}, r"says what masks hold: remove `ignore_values`"),
    ],
)
def test_color_tables_that_do_not_fit_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        folder(tmp_path, **changes)


def test_saved_arrays_are_images_and_masks(segmentation_folder: Path) -> None:
    said = {"name": "folder", "task": "segmentation", "classes": ["land", "water"], "class_values": [1, 2],
            "ignore_values": [0], "scale": 1e-4, "offset": 0.0}  # fmt: skip
    expected = load_dataset_splits(DatasetArguments(root=str(segmentation_folder), **said))["train"][0]
    for path in list(segmentation_folder.rglob("*.tif")):
        with rasterio.open(path) as source:
            np.save(path.with_suffix(".npy"), source.read())
        path.unlink()
    (segmentation_folder / "images" / "a0.png").touch()  # a preview
    arguments = DatasetArguments(root=str(segmentation_folder), source_bands=list(BANDS), **said)
    found = load_dataset_splits(arguments)["train"][0]
    assert torch.equal(found["pixel_values"], expected["pixel_values"]) and torch.equal(
        found["labels"], expected["labels"]
    )
