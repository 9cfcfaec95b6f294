"""What a user says about a data set, in a YAML file or on the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from deflect_hf.config.paths import UserPath
from deflect_hf.config.readers import dataset_names, dataset_spec, refuse_unused
from deflect_hf.errors import ConfigError, listing, nearest

TASKS = ("classification", "segmentation")
BAND_ORDERS = ("true", "nominal")
ENCODER_SIZE = "encoder"
MAX_SIDE = 16_384  # pixels of an image that is resized or cropped to
MAX_SCENES = 10_000_000
MAX_SEED = 2**32 - 1
RESAMPLINGS = ("nearest", "bilinear")


QualityPreset = Literal["sentinel2_scl", "landsat_qa_pixel", "hls_fmask"]
QualityClass = Literal["cloud", "cirrus", "shadow", "snow", "water"]


def refuse_half_a_quality(args: Any) -> None:
    """Refuse keys of a quality layer that do nothing without each other.

    Raises:
        ConfigError: The band is missing, or what it means.
    """
    if args.qa is None and (args.qa_band is None) != (not args.qa_values and not args.qa_bits):
        raise ConfigError(
            "qa_band and qa_values (or qa_bits) go together: the band, and its values (or bits) that are no "
            "measurement; or name the product alone, qa."
        )
    if args.qa_classes is not None and args.qa is None:
        raise ConfigError("qa_classes are those of a product: name it, qa.")
    if any(not 0 <= bit < 32 for bit in args.qa_bits):
        raise ConfigError(f"qa_bits={args.qa_bits}: bits are numbered from 0 to 31.")


def _help(text: str) -> dict[str, str]:
    return {"help": text}


def _check_size(key: str, size: list[int] | str | None) -> None:
    if size in (None, ENCODER_SIZE):
        return
    if isinstance(size, str) or len(size or ()) != 2 or not all(1 <= side <= MAX_SIDE for side in size or ()):
        raise ConfigError(f"{key}={size}: give [height, width] in pixels, up to {MAX_SIDE} each.")


def _in_numbers(key: str, size: list[int] | str | None) -> list[int] | None:
    if isinstance(size, str):
        raise ConfigError(f"{key}={size}: the encoder is not known here, give [height, width] in pixels.")
    return size


@dataclass
class DatasetArguments:
    """A data set: where it lies, what its numbers mean, how it is split.

    Raises:
        ConfigError: A value outside its choices or range, or a key that the chosen reader has no use for.
    """

    name: str = field(default="synthetic", metadata=_help(f"Which data set: {listing(dataset_names())}."))
    root: UserPath | None = field(
        default=None, metadata=_help("Folder of the data; needed by every reader but 'synthetic'.")
    )
    download: bool = field(
        default=False, metadata=_help("Public data sets: fetch what is missing from where it is published into root.")
    )
    task: str | None = field(
        default=None,
        metadata=_help(
            "'classification' or 'segmentation'. None: 'folder' looks for images/ and masks/ (segmentation), else one "
            "sub-folder per class; 'synthetic' makes classification scenes."
        ),
    )
    sensor: str | dict[str, Any] | None = field(
        default=None,
        metadata=_help("Sensor preset, or a mapping describing one: band names, order, scale, offset, nodata values."),
    )
    bands: list[str] | None = field(
        default=None, metadata=_help("Bands the model gets, by name and in this order. None: all the data has.")
    )
    source_bands: list[str] | None = field(
        default=None, metadata=_help("Names of the stored bands in file order, for files that do not name them.")
    )
    band_order: str | bool = field(
        default="true",
        metadata=_help(
            "'m-brick-kiln', 'm-eurosat': 'true' names the stored bands as they are, 'nominal' as the files do."
        ),
    )
    scale: float | None = field(
        default=None,
        metadata=_help("reflectance = stored * scale + offset. None: the files' own tags, else the sensor's."),
    )
    offset: float | None = field(default=None, metadata=_help("See scale; -0.1 for Sentinel-2 baseline >= 04.00."))
    nodata: list[float] | None = field(
        default=None,
        metadata=_help("Stored values that are no measurements, besides NaN and the files' tags. None: the sensor's."),
    )
    qa_band: str | None = field(
        default=None,
        metadata=_help("Description of a band that classifies the pixels, such as SCL; it is no band of the model."),
    )
    qa_values: list[int] = field(
        default_factory=list,
        metadata=_help("Values of qa_band at which nothing was measured, cloud for example; SCL: [0, 1, 3, 8, 9, 10]."),
    )
    qa_bits: list[int] = field(
        default_factory=list, metadata=_help("Bits of qa_band, from 0, any of which says that nothing was measured.")
    )
    qa: QualityPreset | None = field(
        default=None,
        metadata=_help("Product whose quality band the files have: 'sentinel2_scl', 'landsat_qa_pixel', 'hls_fmask'."),
    )
    qa_classes: list[QualityClass] | None = field(
        default=None,
        metadata=_help("Classes of qa that are no measurement: cloud, cirrus, shadow, snow, water. None: the first 3."),
    )
    label_alignment: Literal["strict", "resample"] = field(
        default="strict",
        metadata=_help(
            "A mask on another grid than its image: 'strict' refuses it, 'resample' takes the label at the middle of "
            "each pixel of the image."
        ),
    )
    unit_check: bool = field(
        default=True, metadata=_help("Refuse images whose values cannot be reflectance. Turn off only knowingly.")
    )
    image_size: list[int] | Literal["encoder"] | None = field(
        default=None,
        metadata=_help(
            "[height, width] in pixels: what images are resized to, and what 'synthetic' makes (64 x 64). 'encoder': "
            "the size that the encoder was pretrained on."
        ),
    )
    resampling: str = field(
        default="nearest",
        metadata=_help("'mados': how its 20 and 60 m bands come to 10 m, 'nearest' (published) or 'bilinear'."),
    )
    gsd_m: float | None = field(
        default=None, metadata=_help("Pixel size on the ground as stored, in metres. None: from the georeference.")
    )
    classes: list[str] | None = field(
        default=None,
        metadata=_help("Class names in label order; needed for masks. None: the class folders, in alphabetical order."),
    )
    class_values: list[int] | None = field(
        default=None, metadata=_help("Stored mask value of each class. None: 0, 1, 2, ... in the order of classes.")
    )
    ignore_values: list[int] = field(
        default_factory=list, metadata=_help("Stored mask values that mean 'not labelled'; they become ignore_index.")
    )
    ignore_index: int = field(
        default=-100, metadata=_help("Label of pixels that count neither in loss nor in metrics; negative.")
    )
    partition: str = field(
        default="default",
        metadata=_help(
            "GEO-Bench: which PARTITION_partition.json splits the images; '0.01x_train' ... '1.00x_train' keep that "
            "share of the training images."
        ),
    )
    train_split: str | None = field(
        default=None,
        metadata=_help("File below root listing training ids, one a line. None: train.txt, or the published one."),
    )
    val_split: str | None = field(
        default=None, metadata=_help("File below root listing validation ids. None: val.txt, or the published one.")
    )
    test_split: str | None = field(
        default=None, metadata=_help("File below root listing test ids. None: test.txt, or the published one.")
    )
    val_fraction: float = field(
        default=0.15, metadata=_help("Share held out for validation where no split file says otherwise.")
    )
    test_fraction: float = field(
        default=0.15, metadata=_help("Share held out for test where neither a split file nor a fold says otherwise.")
    )
    num_folds: int | None = field(
        default=None, metadata=_help("Cross-validation: number of (stratified) folds; one of them is the test set.")
    )
    fold: int = field(default=0, metadata=_help("Cross-validation: which fold is the test set, from 0."))
    limited_label: float = field(
        default=1.0, metadata=_help("Share of the training images to keep, per class; 1.0 keeps all.")
    )
    seed: int = field(default=0, metadata=_help("Seed of random splits and folds, and of the synthetic scenes."))
    num_samples: int = field(default=640, metadata=_help("'synthetic': number of scenes over all splits."))
    noise: float = field(default=0.004, metadata=_help("'synthetic': sensor noise, standard deviation in reflectance."))

    def __post_init__(self) -> None:
        if isinstance(self.band_order, bool):  # what YAML makes of an unquoted true
            self.band_order = str(self.band_order).lower()
        refuse_unused(self)
        for key, choices in (("task", TASKS), ("band_order", BAND_ORDERS), ("resampling", RESAMPLINGS)):
            value = getattr(self, key)
            if value is not None and value not in choices:
                raise ConfigError(
                    f"Unknown {key} {value!r}: choose one of {listing(choices)}.{nearest(value, choices)}"
                )
        if self.root is None and "root" in dataset_spec(self.name).keys:
            kind = "images/ and masks/ or the classes" if self.name == "folder" else "the files as they are published"
            raise ConfigError(f"Data set {self.name!r} needs `root`, the folder with {kind}.")
        for key in ("val_fraction", "test_fraction"):
            if not 0.0 <= getattr(self, key) < 1.0:
                raise ConfigError(f"{key}={getattr(self, key)}: give a share of at least 0 and below 1.")
        if self.val_fraction + self.test_fraction >= 1.0:
            raise ConfigError("val_fraction + test_fraction leave nothing to train on: keep their sum below 1.")
        if not 0.0 < self.limited_label <= 1.0:
            raise ConfigError(f"limited_label={self.limited_label}: give a share above 0 and at most 1.")
        if self.num_folds is not None and not (self.num_folds >= 2 and 0 <= self.fold < self.num_folds):
            raise ConfigError(
                f"fold={self.fold}, num_folds={self.num_folds}: at least 2 folds are needed, and 0 <= fold < num_folds."
            )
        self._check_classes()
        for key in ("bands", "source_bands"):
            if getattr(self, key) is not None and not getattr(self, key):
                raise ConfigError(f"{key} is empty: name the bands, or leave it out.")
        refuse_half_a_quality(self)
        for key in ("scale", "offset", "gsd_m"):
            if not math.isfinite(getattr(self, key) or 0.0):
                raise ConfigError(f"{key}={getattr(self, key)}: it must be finite.")
        if self.gsd_m is not None and self.gsd_m <= 0:
            raise ConfigError(f"gsd_m={self.gsd_m}: a pixel has a size above 0 metres.")
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed={self.seed}: it must be at least 0 and at most {MAX_SEED}.")
        if not 1 <= self.num_samples <= MAX_SCENES or not 0 <= self.noise < math.inf:
            raise ConfigError(f"num_samples must be from 1 to {MAX_SCENES}, and noise at least 0.")
        _check_size("image_size", self.image_size)

    def _check_classes(self) -> None:
        if self.classes is not None and len(self.classes) < 2:
            raise ConfigError(f"classes={self.classes}: there must be two at least, or there is nothing to tell apart.")
        for key in ("classes", "class_values"):
            named = getattr(self, key) or []
            repeated = [value for value in named if named.count(value) > 1]
            if repeated:
                raise ConfigError(f"{key}: {repeated[0]!r} is given twice, but each class has its own.")
        if self.class_values is not None and len(self.class_values) != len(self.classes or self.class_values):
            raise ConfigError("class_values and classes must be of the same length: one stored value per class.")
        overlap = sorted(set(self.ignore_values) & set(self.class_values or ()))
        if overlap:
            raise ConfigError(f"Mask value(s) {overlap} are in both class_values and ignore_values: keep one of them.")
        if self.ignore_index >= 0:
            raise ConfigError(f"ignore_index={self.ignore_index}: it must be negative, unlike any class id.")

    @property
    def size(self) -> list[int] | None:
        """``image_size`` in numbers.

        Raises:
            ConfigError: it is 'encoder', which only a run with an encoder can tell.
        """
        return _in_numbers("image_size", self.image_size)


@dataclass
class AugmentationArguments:
    """Transforms of training images; validation and test images only get ``center_crop``.

    Raises:
        ConfigError: A size that is not [height, width], or a probability outside 0 to 1.
    """

    random_crop: list[int] | Literal["encoder"] | None = field(
        default=None,
        metadata=_help(
            "[height, width] in pixels: cut a random window out of each training image. 'encoder': of the size that "
            "the encoder was pretrained on, with keep_smaller."
        ),
    )
    keep_smaller: bool = field(
        default=False,
        metadata=_help("random_crop takes an image whole along an axis where it is smaller, instead of filling it up."),
    )
    focus_crop: bool = field(
        default=False, metadata=_help("Prefer random crops with at least one labelled pixel (sparse labels).")
    )
    center_crop: list[int] | None = field(
        default=None, metadata=_help("[height, width] in pixels: cut the middle out of validation and test images.")
    )
    horizontal_flip: float = field(default=0.0, metadata=_help("Probability of mirroring left to right."))
    vertical_flip: float = field(default=0.0, metadata=_help("Probability of mirroring top to bottom."))
    rot90: bool = field(default=False, metadata=_help("Turn by 0, 90, 180 or 270 degrees, each as likely."))

    def __post_init__(self) -> None:
        for key in ("random_crop", "center_crop"):
            _check_size(key, getattr(self, key))
        for key in ("horizontal_flip", "vertical_flip"):
            if not 0.0 <= getattr(self, key) <= 1.0:
                raise ConfigError(f"{key}={getattr(self, key)}: a probability lies between 0 and 1.")
        for key in ("focus_crop", "keep_smaller"):
            if getattr(self, key) and self.random_crop is None:
                raise ConfigError(f"{key} needs random_crop, the size of the window.")

    @property
    def crop(self) -> list[int] | None:
        """``random_crop`` in numbers.

        Raises:
            ConfigError: it is 'encoder', which only a run with an encoder can tell.
        """
        return _in_numbers("random_crop", self.random_crop)
