"""A folder of images as a data set.

Segmentation, regression per pixel: ``images/ID.tif`` with ``masks/ID.png`` (or .tif). Classification: one sub-folder of
images per class. Several classes per image, regression: ``images/ID.tif`` and ``labels.csv``.
Images are GeoTIFFs, JPEG 2000, virtual rasters, or products of several files (see :mod:`deflect_hf.raster.products`);
where there are none of these, PNG or JPEG; where there are none either, or ``files`` is given, folders of band files.
Splits come from ``train.txt``, ``val.txt`` and ``test.txt``, from sub-folders train/, val/ and test/ that repeat the
layout, or are drawn at random (seeded, each class on its own).
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from deflect_hf.config.data import DatasetArguments
from deflect_hf.config.tasks import TASKS
from deflect_hf.data.dataset import ImageDataset, Labels, make_datasets
from deflect_hf.data.folder_reader import LOOSE, layout_of, settle_reader
from deflect_hf.data.label_table import TABLE, cells_of, class_labels, class_names, number_of, read_table
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.data.splits import (
    SPLITS,
    check_disjoint,
    hold_out,
    keep_share,
    read_split_file,
    refuse_idle_shares,
    split_indices,
)
from deflect_hf.data.survey import survey, typical
from deflect_hf.errors import ConfigError, DataError, listing, nearest
from deflect_hf.raster.georeference import places_of
from deflect_hf.raster.header import RasterInfo
from deflect_hf.raster.products import Product
from deflect_hf.raster.read import raster_info

logger = logging.getLogger(__name__)

RASTER_SUFFIXES = (".tif", ".tiff", ".gtif", ".jp2", ".vrt")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")  # beside rasters, they are previews
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".gtif", ".vrt")
PRODUCT_SUFFIXES = (".safe", ".zip", ".tar")
SAMPLED_IMAGES = 32  # of each split, compared with the images of a trained model
Row = dict[str, Any]


def load_folder(args: DatasetArguments, trained: MultispectralImageProcessor | None = None) -> dict[str, ImageDataset]:
    """Build the splits of a folder data set; bands, unit and size of a ``trained`` model's processor stand.

    Raises:
        ConfigError: Masks without ``classes``, or a key that does nothing for this folder.
        DataError: The folder is missing or empty, an image has no mask, or a split file does not fit.
        BandError: The bands cannot be named, or a wanted one is missing.
        UnitError: The sensor's unit is not that of the trained model, or the values are shifted or scaled against it.
    """
    root = Path(str(args.root))
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: set `root` to the folder that holds images/ and masks/ or classes.")
    bases = {split: root / split for split in SPLITS if (root / split).is_dir()} or {"": root}
    task = args.task or ("segmentation" if (next(iter(bases.values())) / "images").is_dir() else "classification")
    labels = _labels(args, task, bases)
    rows = {split: _rows(base, labels, args) for split, base in bases.items()}
    splits = _splits(rows, root, args)
    if labels.task == "classification" and len(labels.classes) < 2:
        raise DataError(f"{root} has one class folder, {labels.classes[0]!r}: there is nothing to tell it apart from.")
    everything = [row for members in splits.values() for row in members]
    infos = read_headers(everything, layout_of(args))
    info = typical(infos)
    reader, processor = settle_reader(args, info, trained)
    reader = dataclasses.replace(reader, numbers=task == "pixel_regression")
    survey(args, everything, infos, info, reader, labels)
    gsd_m = processor.effective_gsd_m(info.height)
    datasets = make_datasets(splits, reader, processor, labels, gsd_m, args.seed, str(root))
    compare_with_training(datasets, trained, str(root))
    return datasets


def compare_with_training(
    datasets: dict[str, ImageDataset], trained: MultispectralImageProcessor | None, where: str
) -> None:
    """Refuse splits whose values are shifted or scaled against those that a model was trained on."""
    for split, images in datasets.items():
        if trained is not None and images.processor.unit_check:
            chosen = range(0, len(images), max(1, len(images) // SAMPLED_IMAGES))
            pixels = [images.processor.convert(*_stored(images, index)).flatten(1) for index in chosen]
            trained.contract.check_values(torch.cat(pixels, dim=1), f"{where}, {split} split")


def _stored(images: ImageDataset, index: int) -> tuple[Any, ...]:
    stored = images.reader.read(images.table[index])
    return stored.values, stored.bands, stored.valid, stored.where


def read_headers(rows: Sequence[Row], layout: Product) -> list[RasterInfo]:
    """The headers of the images of all rows."""
    products = [dataclasses.replace(layout, path=row["image"]) for row in rows]
    idle = layout != LOOSE and all(product.layers is None for product in products)
    if idle:
        raise ConfigError(
            "`files`, `grid` and `band_resampling` are for scenes of several files, and all images are single files: "
            "remove them."
        )
    return [raster_info(product) for product in products]


def _labels(args: DatasetArguments, task: str, bases: Mapping[str, Path]) -> Labels:
    classes = args.classes
    if task == "segmentation":
        if not classes:
            raise ConfigError(f"{args.root}: masks need `classes`, the class names in order of their stored values.")
        values = tuple(args.class_values if args.class_values is not None else range(len(classes)))
        return Labels(task, tuple(classes), values, tuple(args.ignore_values), args.ignore_index)
    if task == "pixel_regression":
        return Labels(task, (args.target or "value",), ignore_values=tuple(args.ignore_values), unit=args.target_unit)
    if task != "classification":
        return _table_labels(args, task, bases)
    of_files = args.files is not None
    folders = sorted({folder.name for base in bases.values() for folder in _class_folders(base, of_files)})
    if not folders:
        raise DataError(
            f"{args.root} holds neither images/ and masks/ nor class folders with GeoTIFFs"
            f"{_holding(next(iter(bases.values())))}: put the images into one sub-folder per class, or into images/ "
            f"with masks of the same name in masks/."
        )
    for key in ("class_values", "ignore_values"):
        if getattr(args, key):
            raise ConfigError(f"{args.root} has class folders and no masks: `{key}` does nothing, remove it.")
    unknown = [name for name in folders if classes is not None and name not in classes]
    if classes is not None and unknown:
        raise DataError(
            f"{args.root} has class folder(s) {listing(unknown)} that `classes` does not name: known are "
            f"{listing(classes)}.{nearest(unknown[0], classes)} Rename the folder or extend `classes`."
        )
    return Labels(task, tuple(classes or folders), ignore_index=args.ignore_index)


def _table_labels(args: DatasetArguments, task: str, bases: Mapping[str, Path]) -> Labels:
    path = _table_path(args, next(iter(bases.values())))
    table, columns = read_table(path)
    if task == "multi_label":
        classes = args.classes or class_names(table, columns)
        if len(classes) < 2:
            raise DataError(f"{path} has the classes {listing(classes)}: at least two are needed.")
        return Labels(task, tuple(classes))
    if (args.target is None and len(columns) > 1) or (args.target is not None and args.target not in columns):
        raise ConfigError(f"{path} has the columns {listing(columns)}: name the one to predict by `target`.")
    return Labels(task, (args.target or columns[0],), unit=args.target_unit)


def _table_path(args: DatasetArguments, base: Path) -> Path:
    """The table of labels beside the images of a split, or one for all splits in the root."""
    name = args.label_table or TABLE
    return base / name if (base / name).is_file() else Path(str(args.root)) / name


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files with one of the suffixes, sorted; none where the folder is missing. Hidden files are skipped."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith("."))


def _images(folders: Sequence[Path], of_files: bool = False) -> dict[Path, list[Path]]:
    """The images of each folder that has some: pictures only where none of them holds a raster, folders last."""
    kinds: list[Callable[[Path], list[Path]]] = [_rasters, partial(_files, suffixes=PICTURE_SUFFIXES), _scenes]
    for kind in [_folders] if of_files else kinds:
        found = {folder: files for folder in folders if (files := kind(folder))}
        if found:
            return found
    return {}


def _rasters(folder: Path) -> list[Path]:
    products = [path for path in folder.glob("*") if path.suffix.lower() in PRODUCT_SUFFIXES]
    return sorted([*_files(folder, RASTER_SUFFIXES), *products])


def _scenes(folder: Path) -> list[Path]:
    """Folders of band files; none in a folder that is a data set itself."""
    found = _folders(folder)
    return [] if {"images", "masks"} & {path.name for path in found} else found


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_dir() and path.name[0] not in "._")


def _holding(folder: Path) -> str:
    """What a folder without images or masks holds instead, for the end of a sentence."""
    endings = Counter(path.suffix for path in folder.iterdir() if path.is_file()) if folder.is_dir() else Counter()
    found = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in endings.most_common(3))
    return f"; it holds {found}" if found else ""


def _class_folders(base: Path, of_files: bool = False) -> dict[Path, list[Path]]:
    return _images(_folders(base), of_files)


def _rows(base: Path, labels: Labels, args: DatasetArguments) -> list[Row]:
    """One row per image below ``base``: name, image, and mask, label (of classification) or target."""
    of_files = args.files is not None
    if labels.task == "classification":
        return [
            {"name": f"{folder.name}/{name}", "image": str(path), "label": labels.classes.index(folder.name)}
            for folder, files in _class_folders(base, of_files).items()
            for name, path in _by_name(files, "images of the same name").items()
        ]
    images = _listed_images(base, of_files)
    if not TASKS[labels.task].dense:
        path = _table_path(args, base)
        cells = cells_of(read_table(path)[0], list(images), path)
        return [
            {"name": name, "image": str(image), "target": _target(row, labels, f"{path}, {name}")}
            for (name, image), row in zip(images.items(), cells, strict=True)
        ]
    masked = base / "masks"
    masks = _by_name(_files(masked, MASK_SUFFIXES), "masks of the same image")
    bare = [path for name, path in images.items() if name not in masks]
    if bare:
        found = "" if masks else f" ({masked} holds no file of {listing(MASK_SUFFIXES)}{_holding(masked)})"
        raise DataError(
            f"{bare[0]} has no mask ({len(bare)} of {len(images)} images have none){found}: "
            f"add {masked / bare[0].stem}.png, or take the image away."
        )
    return [{"name": name, "image": str(path), "mask": str(masks[name])} for name, path in images.items()]


def _target(cells: dict[str, str], labels: Labels, where: str) -> float | list[float]:
    if labels.task == "multi_label":
        return class_labels(cells, labels.classes, where)
    return number_of(cells[labels.classes[0]], where)


def _listed_images(base: Path, of_files: bool) -> dict[str, Path]:
    """The images of ``base/images`` by name."""
    folder = base / "images"
    images = _by_name(_images([folder], of_files).get(folder, []), "images of the same name")
    if not images:
        raise DataError(
            f"{folder} holds no GeoTIFF, nor another image ({listing((*RASTER_SUFFIXES, *PICTURE_SUFFIXES))})"
            f"{_holding(folder)}: put the images there."
        )
    return images


def _by_name(paths: Sequence[Path], what: str) -> dict[str, Path]:
    """Files by their name without suffix."""
    found: dict[str, Path] = {}
    for path in paths:
        name = path.name if path.is_dir() and path.suffix.lower() not in PRODUCT_SUFFIXES else path.stem
        if name in found:
            raise DataError(f"{found[name]} and {path} are {what}: keep one of them.")
        found[name] = path
    return found


def _splits(rows: Mapping[str, list[Row]], root: Path, args: DatasetArguments) -> dict[str, list[Row]]:
    """Sort rows into train, val and test, by sub-folder, split file or chance; then keep ``limited_label`` of train."""
    for key in ("num_folds", *(f"{split}_split" for split in SPLITS)):
        if "" not in rows and getattr(args, key) is not None:
            raise ConfigError(f"{root} is split into {listing(rows)} already: remove `{key}`, or merge the folders.")
    files = _split_files(root, args)
    of_training: list[int] | None = None  # the places of its images
    if "" not in rows:
        splits = {split: list(members) for split, members in rows.items()}
    elif files and args.num_folds is None:
        by_name = {row["name"]: row for row in rows[""]}
        ids = {split: read_split_file(path, list(by_name)) for split, path in files.items()}
        check_disjoint(ids, files)
        splits = {split: [by_name[name] for name in names] for split, names in ids.items()}
    else:
        everything = rows[""]
        places = None if args.place_km is None else places_of(read_headers(everything, layout_of(args)), args.place_km)
        indices = split_indices([row.get("label") for row in everything], args, places)
        splits = {split: [everything[i] for i in members] for split, members in indices.items()}
        of_training = None if places is None else [places[i] for i in indices["train"]]
        if args.num_folds is not None:
            for path in files.values():
                logger.warning("%s is not used: num_folds=%d draws its own splits", path, args.num_folds)
        else:
            logger.info("%s: no split files, images are drawn at random with seed %d", root, args.seed)
        if places is not None:
            logger.info("%s: %d images lie in %d places", root, len(places), len(set(places)))
    if "" not in rows or (files and args.num_folds is None):
        if args.place_km is not None:
            raise ConfigError(f"place_km draws splits, but {root} has its own: remove it, or those files.")
        refuse_idle_shares(args, ["val_fraction", "test_fraction"] if "val" in splits else ["test_fraction"])
    if "val" not in splits and splits.get("train") and args.val_fraction > 0:
        kept, held = hold_out([row.get("label") for row in splits["train"]], args.val_fraction, args.seed)
        splits = {"train": [splits["train"][i] for i in kept], "val": [splits["train"][i] for i in held], **{
            split: members for split, members in splits.items() if split != "train"}}  # fmt: skip
    if "train" in splits:
        keep = keep_share([row.get("label") for row in splits["train"]], args.limited_label, args.seed, of_training)
        splits["train"] = [splits["train"][i] for i in keep]
    return {split: splits[split] for split in SPLITS if splits.get(split)}


def _split_files(root: Path, args: DatasetArguments) -> dict[str, Path]:
    """The split files that are there; one that the config names must be there."""
    files = {}
    for split in SPLITS:
        key = f"{split}_split"
        given = getattr(args, key)
        path = root / (given or f"{split}.txt")
        if given is not None and args.num_folds is not None:
            raise ConfigError(f"num_folds={args.num_folds} draws its own splits: remove `{key}`, or `num_folds`.")
        if given is not None and not path.is_file():
            raise DataError(f"{path} is not there: `{key}` is the name of a file below `root`, {root}.")
        if path.is_symlink() and not path.exists():
            raise DataError(f"{path} is a link to {path.readlink()}, which is not there: mount or restore it.")
        if path.is_file():
            files[split] = path
    return files
