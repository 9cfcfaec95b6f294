"""What a user says about a data set, in a YAML file or on the command line."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeFloat, PositiveFloat, model_validator

from deflect_hf.config.readers import SPLIT_FILES, dataset_names, dataset_spec, refuse_unused
from deflect_hf.config.reading import ReadingArguments
from deflect_hf.config.schema import Arguments, UserPath, option
from deflect_hf.config.tasks import TaskName
from deflect_hf.errors import ConfigError, listing

UNLABELLED = "_"  # in `class_colors`: what has no label


def _rgb(color: Any) -> list[int]:
    from PIL.ImageColor import getrgb

    try:
        found = list(getrgb(color))[:3] if isinstance(color, str) else color
    except ValueError:
        found = []
    if len(found) != 3 or not all(type(part) is int and 0 <= part <= 255 for part in found):
        raise ConfigError(f"a color is [red, green, blue], 0 to 255 each, '#0000ff' or a name, not {color!r}")
    return found


def _rgbs(given: str | list[Any]) -> list[list[int]]:
    several = isinstance(given, list) and any(isinstance(part, str | list) for part in given)
    return [_rgb(color) for color in (given if several else [given])]


Colors = Annotated[str | list[Any], AfterValidator(_rgbs)]


def classes_of_colors(colors: Mapping[str, Any], classes: Sequence[str] | None) -> list[str]:
    """The classes of ``class_colors``, in the order of ``classes`` where they are given."""
    named = [name for name in colors if name != UNLABELLED]
    classes = list(classes or named)
    if set(named) != set(classes) or len(named) < 2:
        raise ConfigError(
            f"class_colors has the classes {listing(named)}, but `classes` {listing(classes)}: give a color to each, "
            "and at least two."
        )
    every = [color for found in colors.values() for color in found]
    repeated = [color for color in every if every.count(color) > 1]
    if repeated:
        raise ConfigError(f"class_colors: {repeated[0]} is given twice, but each class has colors of its own.")
    return classes


def color_table(colors: Mapping[str, Any], classes: Sequence[str]) -> dict[tuple[int, int, int], int]:
    """The class of each color, -1 for no label."""
    numbers = {name: number for number, name in enumerate(classes)} | {UNLABELLED: -1}
    return {(red, green, blue): numbers[name] for name, found in colors.items() for red, green, blue in found}


ENCODER_SIZE = "encoder"
MAX_SIDE = 16_384  # pixels of an image that is resized or cropped to
SPLIT = "{split}"  # in `images` and `masks`: a word that says train, val or test


def _height_and_width(size: list[int]) -> list[int]:
    if len(size) != 2 or not all(1 <= side <= MAX_SIDE for side in size):
        raise ConfigError(f"[height, width] in pixels, up to {MAX_SIDE} each")
    return size


def _relative(pattern: str) -> str:
    if not set(pattern) & {"*", "?"} or pattern.startswith("/") or pattern.count(SPLIT) > 1:
        raise ConfigError("a pattern relative to root with a * where the names of the images are, '**/*_merged.tif'")
    return pattern


Pattern = Annotated[str, AfterValidator(_relative)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
# far above what anybody uses: a slip of the keyboard must not fill the memory
Batch = Annotated[int, Field(ge=1, le=2**16)]
Count = Annotated[int, Field(ge=1, le=10**6)]
Size = Annotated[list[int], AfterValidator(_height_and_width)]
# macOS writes letters with accents in the names of folders as two
Name = Annotated[str, AfterValidator(partial(unicodedata.normalize, "NFC"))]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Chance = Annotated[float, Field(ge=0.0, le=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
# what YAML makes of an unquoted true
Word = BeforeValidator(lambda value: str(value).lower() if isinstance(value, bool) else value)


def _in_numbers(key: str, size: list[int] | str | None) -> list[int] | None:
    if isinstance(size, str):
        raise ConfigError(f"{key}={size}: the encoder is not known here, give [height, width] in pixels.")
    return size


class PlaceArguments(Arguments):
    """Which data set, and where its files lie."""

    name: str = option("synthetic", f"Which data set: {listing(dataset_names())}.")
    root: UserPath | None = option(None, "Folder of the data; needed by every reader but 'synthetic'.")
    images: Pattern | None = option(
        None,
        "'folder': where the images are below root, '**/*_merged.tif'. The * stand for their names, **/ for folders of "
        "any depth, {split} for train(ing), val(id, idation) or test(ing). null: 'images/*'.",
    )
    masks: Pattern | None = option(
        None, "'folder': where the masks are; its * stand for the same as those of images. null: 'masks/*'."
    )
    scenes: list[dict[str, Any]] | UserPath | None = option(
        None,
        "'scenes': a list of {image, labels, layer, split, name, dates}, all but image optional, or a CSV or vector "
        "file with such columns. Paths are relative to root; in the list, not in a file, an image may be an address.",
    )
    labels: UserPath | None = option(
        None, "'scenes': polygons, points or a raster of classes, for scenes that name no labels of their own."
    )
    attribute: Name | None = option(
        None, "'scenes': attribute of the polygons or points that holds the class: names of classes, or class_values."
    )
    background: Name | None = option(
        None, "'scenes': class of the ground outside of all polygons. null: it has no label."
    )
    all_touched: bool = option(
        False, "'scenes': polygons label every pixel that they touch, not only those with their middle inside."
    )
    window: Side = option(224, "'scenes': side in pixels of the windows that are read from the scenes.")
    windows_per_epoch: Count | None = option(
        None,
        "'scenes': training windows of an epoch, drawn from wherever there are labels. null: one for each window of a "
        "grid that has a label.",
    )
    block_km: PositiveFloat | None = option(
        None, "'scenes': side in km of the blocks that are drawn into splits or folds. null: each scene is one."
    )
    buffer_km: NonNegativeFloat = option(0.0, "'scenes': distance in km between blocks, in which no label counts.")
    split_column: Name | None = option(
        None,
        "Says train, val or test: 'scenes': an attribute of the polygons or points; 'folder': a column of label_table, "
        "where an empty cell leaves an image out.",
    )
    download: bool = option(False, "Public data sets: fetch what is missing from where it is published into root.")
    task: TaskName | None = option(
        None,
        "null: 'folder' looks for images/ and masks/ (segmentation), else one sub-folder per class; 'synthetic' makes "
        "classification scenes. multi_label and regression read a table beside images/, pixel_regression masks of "
        "numbers.",
    )


class DatasetArguments(ReadingArguments, PlaceArguments):
    """A data set: where it lies, what its numbers mean, how it is split; keys that do nothing for it are refused."""

    bands: list[str] | None = option(
        None, "Bands the model gets, by name and in this order. null: all the data has.", min_length=1
    )
    band_order: Annotated[Literal["true", "nominal"], Word] = option(
        "true", "'m-brick-kiln', 'm-eurosat': 'true' names the stored bands as they are, 'nominal' as the files do."
    )
    label_alignment: Literal["strict", "resample"] = option(
        "strict",
        "A mask on another grid than its image: 'strict' refuses it, 'resample' takes the label at the middle of each "
        "pixel of the image.",
    )
    image_size: Size | Literal["encoder"] | None = option(
        None,
        "[height, width] in pixels: what images are resized to, and what 'synthetic' makes (64 x 64). 'encoder': the "
        "size that the encoder was pretrained on.",
    )
    resampling: Literal["nearest", "bilinear"] = option(
        "nearest", "'mados': how its 20 and 60 m bands come to 10 m; 'nearest' as published."
    )
    classes: list[Name] | None = option(
        None,
        "Class names in label order; needed for masks. null: the class folders, in alphabetical order.",
        min_length=2,
    )
    class_colors: dict[Name, Colors] | None = option(
        None,
        "Masks that paint the classes: the color of each, or several, [0, 0, 255], '#0000ff' or 'blue'; under '_' "
        "those without a label.",
    )
    label_table: str | None = option(
        None,
        "multi_label, regression, a class for each image, split_column: CSV or Parquet below root, first column the "
        "image's name. null: labels.csv.",
    )
    target: Name | None = option(
        None,
        "Column of label_table with the class or the value of an image; name of the value of a regression. null: the "
        "only column, 'value'.",
    )
    target_unit: str | None = option(None, "Regression: unit of the value, which scores and maps carry.")
    class_values: list[int] | None = option(
        None, "Stored mask value of each class. null: 0, 1, 2, ... in the order of classes."
    )
    ignore_values: list[int] = option([], "Stored mask values that mean 'not labelled'; they become ignore_index.")
    ignore_index: int = option(-100, "Label of pixels that count neither in loss nor in metrics; negative.", lt=0)
    partition: str = option(
        "default",
        "GEO-Bench: which PARTITION_partition.json splits the images; '0.01x_train' ... '1.00x_train' keep that share "
        "of the training images.",
    )
    train_split: str | None = option(
        None, "File below root listing training ids, one a line. null: train.txt, or the published one."
    )
    val_split: str | None = option(None, "File below root listing validation ids. null: val.txt, or the published one.")
    test_split: str | None = option(None, "File below root listing test ids. null: test.txt, or the published one.")
    val_fraction: Share = option(0.15, "Share held out for validation where no split file says otherwise.")
    test_fraction: Share = option(0.15, "Share held out for test where neither a split file nor a fold says otherwise.")
    num_folds: int | None = option(
        None, "Cross-validation: number of (stratified) folds; one of them is the test set.", ge=2, le=1000
    )
    fold: int = option(0, "Cross-validation: which fold is the test set, from 0.", ge=0)
    place_km: PositiveFloat | None = option(
        None,
        "Images whose middles are closer than this, in km, also by way of others, are one place, and a place is in one "
        "split or fold alone. null: each image is drawn on its own.",
    )
    limited_label: Annotated[float, Field(gt=0.0, le=1.0)] = option(
        1.0, "Share of the training images to keep, per class, with place_km whole places; 1.0 keeps all."
    )
    seed: Seed = option(0, "Seed of random splits and folds, and of the synthetic scenes.")
    num_samples: int = option(640, "'synthetic': number of scenes over all splits.", ge=1, le=10_000_000)
    noise: NonNegativeFloat = option(0.004, "'synthetic': sensor noise, standard deviation in reflectance.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse_unused(self)
        if self.name == "scenes":
            self._check_scenes()
        elif self.root is None and "root" in dataset_spec(self.name).keys:
            kind = "images/ and masks/ or the classes" if self.name == "folder" else "the files as they are published"
            raise ConfigError(f"Data set {self.name!r} needs `root`, the folder with {kind}.")
        if self.val_fraction + self.test_fraction >= 1.0:
            raise ConfigError("val_fraction + test_fraction leave nothing to train on: keep their sum below 1.")
        if self.num_folds is not None and self.fold >= self.num_folds:
            raise ConfigError(f"fold={self.fold}: with num_folds={self.num_folds}, it is at most {self.num_folds - 1}.")
        self.refuse_half_a_quality()
        if self.name == "folder":
            self._check_folder()
        if self.class_colors is not None:
            for key in ("class_values", "ignore_values"):
                if getattr(self, key):
                    raise ConfigError(f"class_colors says what masks hold: remove `{key}`; '_' has no label.")
            self.classes = classes_of_colors(self.class_colors, self.classes)
        for key in ("classes", "class_values"):
            named = getattr(self, key) or []
            repeated = [value for value in named if named.count(value) > 1]
            if repeated:
                raise ConfigError(f"{key}: {repeated[0]!r} is given twice, but each class has its own.")
        if self.class_values is not None and len(self.class_values) != len(self.classes or self.class_values):
            raise ConfigError("class_values and classes must be of the same length: one stored value per class.")
        overlap = sorted(set(self.ignore_values) & set(self.class_values or range(len(self.classes or ()))))
        if overlap:
            raise ConfigError(
                f"Mask value(s) {overlap} of ignore_values are those of classes, too (class_values; null: 0, 1, ...): "
                "keep one of them."
            )
        return self

    def _check_folder(self) -> None:
        for key in ("num_folds", "place_km", *SPLIT_FILES) if self.split_column is not None else ():
            if getattr(self, key) is not None:
                raise ConfigError(f"split_column says which image is in which split: remove `{key}`.")
        if SPLIT in (self.masks or "") and SPLIT not in (self.images or ""):
            raise ConfigError(f"masks={self.masks!r}: {SPLIT} is in `images`, too, or in neither.")

    @property
    def color_table(self) -> dict[tuple[int, int, int], int] | None:
        """The class of each color of a mask, -1 for no label; None where masks hold class values."""
        return None if self.class_colors is None else color_table(self.class_colors, self.classes or ())

    @property
    def colors(self) -> tuple[tuple[int, int, int], ...]:
        """Red, green and blue of each class, the first where masks have several; empty where none is given."""
        table = self.color_table or {}
        first = {number: color for color, number in reversed(table.items())}
        return tuple(first[number] for number in range(len(self.classes or ())) if first)

    def _check_scenes(self) -> None:
        if not self.scenes:
            raise ConfigError("Data set 'scenes' needs `scenes`: a list of {image: FILE, labels: FILE}, or a table.")
        if self.buffer_km and (self.block_km is None or self.buffer_km >= self.block_km):
            raise ConfigError(f"buffer_km={self.buffer_km:g} lies between blocks: give a larger block_km.")
        if self.split_column is not None:
            for key in ("block_km", "num_folds", "background"):
                if getattr(self, key) is not None:
                    raise ConfigError(f"split_column says which polygon is in which split: remove `{key}`.")
        if self.background is not None and self.classes and self.background not in self.classes:
            raise ConfigError(
                f"background={self.background!r} is none of `classes`, {listing(self.classes)}: list all classes "
                "there, with it among them."
            )

    @property
    def size(self) -> list[int] | None:
        """``image_size`` in numbers."""
        return _in_numbers("image_size", self.image_size)


class AugmentationArguments(Arguments):
    """Transforms of training images; validation and test images only get ``center_crop``."""

    random_crop: Size | Literal["encoder"] | None = option(
        None,
        "[height, width] in pixels: cut a random window out of each training image. 'encoder': of the size that the "
        "encoder was pretrained on, with keep_smaller.",
    )
    keep_smaller: bool = option(
        False, "random_crop takes an image whole along an axis where it is smaller, instead of filling it up."
    )
    focus_crop: bool = option(False, "Prefer random crops with at least one labelled pixel (sparse labels).")
    center_crop: Size | None = option(
        None, "[height, width] in pixels: cut the middle out of validation and test images."
    )
    horizontal_flip: Chance = option(0.0, "Probability of mirroring left to right.")
    vertical_flip: Chance = option(0.0, "Probability of mirroring top to bottom.")
    rot90: bool = option(False, "Turn by 0, 90, 180 or 270 degrees, each as likely.")
    band_gain: Share = option(
        0.0, "Multiply each band of an image by a factor of its own, drawn from 1 - band_gain to 1 + band_gain."
    )
    band_offset: NonNegativeFloat = option(
        0.0, "Add to each band of an image a number of its own, drawn from -band_offset to band_offset, in reflectance."
    )
    band_noise: NonNegativeFloat = option(0.0, "Add noise of this standard deviation, in reflectance, to each pixel.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("focus_crop", "keep_smaller"):
            if getattr(self, key) and self.random_crop is None:
                raise ConfigError(f"{key} needs random_crop, the size of the window.")
        return self

    @property
    def crop(self) -> list[int] | None:
        """``random_crop`` in numbers."""
        return _in_numbers("random_crop", self.random_crop)
