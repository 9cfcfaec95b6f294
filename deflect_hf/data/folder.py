"""A folder of images as a data set.

Segmentation, regression per pixel: ``images/ID.tif`` with ``masks/ID.png`` (or .tif). Classification: one sub-folder of
images per class. Several classes per image, regression, or a class from a table:
``images/ID.tif`` and ``labels.csv``.
Images are GeoTIFFs, JPEG 2000, virtual rasters, or products of several files (see :mod:`deflect_hf.raster.products`);
where there are none of these, PNG or JPEG; where there are none either, or ``files`` is given, folders of band files.
Other layouts are said by the patterns ``images`` and ``masks`` (see :mod:`deflect_hf.data.folder_files`).
Splits come from ``train.txt``, ``val.txt`` and ``test.txt``, from a column of a table (``split_column``), from
sub-folders train/, val/ and test/ that repeat the layout, or are drawn at random (seeded, each class on its own).
"""

from __future__ import annotations

import dataclasses
import logging
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from deflect_hf.config.data import DatasetArguments
from deflect_hf.config.tasks import TASKS
from deflect_hf.data.dataset import ImageDataset, Labels, compare_with_training, make_datasets
from deflect_hf.data.folder_files import (
    by_file_name,
    class_folders,
    holding,
    images_of,
    masks_of,
    report_no_classes,
    split_folders,
)
from deflect_hf.data.folder_reader import LOOSE, layout_of, settle_reader
from deflect_hf.data.label_table import (
    TABLE,
    cells_of,
    class_labels,
    class_names,
    number_of,
    read_table,
    report_idle_rows,
    report_idle_splits,
    report_no_names,
    splits_of,
)
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.data.splits import (
    SPLITS,
    Row,
    called,
    check_disjoint,
    hold_out,
    limited,
    read_split_file,
    refuse_idle_shares,
    report_unread_lists,
    split_indices,
)
from deflect_hf.data.survey import refuse_other_masks, report_quality, report_repeated, survey, typical
from deflect_hf.errors import ConfigError, DataError, listing, nearest
from deflect_hf.raster.georeference import places_of
from deflect_hf.raster.header import RasterInfo
from deflect_hf.raster.products import Product
from deflect_hf.raster.read import raster_info

logger = logging.getLogger(__name__)


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
    bases = split_folders(root, args)
    task = args.task or ("segmentation" if _has_images(next(iter(bases.values())), args) else "classification")
    labels = _labels(args, task, bases)
    rows = {split: _rows(base, labels, args, split) for split, base in bases.items()}
    splits = _splits(rows, root, args)
    _report_idle_rows(rows, bases, task, args)
    if labels.task == "classification" and len(labels.classes) < 2:
        raise DataError(f"{root} has one class, {labels.classes[0]!r}: there is nothing to tell it apart from.")
    everything = [row for members in splits.values() for row in members]
    infos = read_headers(everything, layout_of(args))
    info = typical(infos)
    reader, processor = settle_reader(args, info, trained)
    reader = dataclasses.replace(reader, numbers=task == "pixel_regression")
    survey(str(root), infos, info, reader, args)
    if TASKS[task].dense:
        refuse_other_masks(everything, infos, labels, reader.resample, reader.colors is not None)
    report_repeated(str(root), splits)
    report_quality(str(root), everything, reader)
    gsd_m = processor.effective_gsd_m(info.height)
    datasets = make_datasets(splits, reader, processor, labels, gsd_m, args.seed, str(root))
    compare_with_training(datasets, trained, str(root))
    return datasets


def read_headers(rows: Sequence[Row], layout: Product) -> list[RasterInfo]:
    """The headers of the images of all rows."""
    products = [dataclasses.replace(layout, path=row["image"]) for row in rows]
    said = dataclasses.replace(layout, composite=False, classes=(), nodata=None) != LOOSE
    idle = said and all(product.layers is None for product in products)
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
        return Labels.of(args, task, classes)
    if task == "pixel_regression":
        return Labels.of(args, task, [args.target or "value"])
    if task != "classification" or _has_images(next(iter(bases.values())), args):
        return _table_labels(args, task, bases)
    of_files = args.files is not None
    folders = sorted({_class_of(folder) for base in bases.values() for folder in class_folders(base, of_files)})
    if not folders:
        raise DataError(
            f"{args.root} holds neither images/ and masks/ nor class folders with GeoTIFFs"
            f"{holding(next(iter(bases.values())), deep=True)}: put the images into one sub-folder per class, or into "
            f"images/ with masks of the same name in masks/, or say where they are by `images` and `masks`."
        )
    for base in bases.values():
        report_no_classes(base, of_files)
    for key in ("class_values", "ignore_values"):
        if getattr(args, key):
            raise ConfigError(f"{args.root} has class folders and no masks: `{key}` does nothing, remove it.")
    unknown = [name for name in folders if classes is not None and name not in classes]
    if classes is not None and unknown:
        raise DataError(
            f"{args.root} has class folder(s) {listing(unknown)} that `classes` does not name: known are "
            f"{listing(classes)}.{nearest(unknown[0], classes)} Rename the folder or extend `classes`; or, "
            'if these are no classes, say where images and masks are, `images: "images/*.tif"` and `masks`.'
        )
    return Labels.of(args, task, classes or folders)


def _class_of(folder: Path) -> str:
    return unicodedata.normalize("NFC", folder.name)


def _table_labels(args: DatasetArguments, task: str, bases: Mapping[str, Path]) -> Labels:
    path = _table_path(args, next(iter(bases.values())))
    table, columns = read_table(path)
    if task == "multi_label":
        classes = args.classes or class_names(table, [column for column in columns if column != args.split_column])
        if len(classes) < 2:
            raise DataError(f"{path} has the classes {listing(classes)}: at least two are needed.")
        return Labels.of(args, task, classes)
    column = _column(args, columns, str(path))
    if task == "regression":
        return Labels.of(args, task, [column])
    classes = args.classes or sorted({row[column] for row in table.values()} - {""})
    report_no_names(classes if args.classes is None else [], path)
    return Labels.of(args, task, classes)


def _table_path(args: DatasetArguments, base: Path) -> Path:
    """The table of labels beside the images of a split, or one for all splits in the root."""
    name = args.label_table or TABLE
    return base / name if (base / name).is_file() else Path(str(args.root)) / name


def _rows(base: Path, labels: Labels, args: DatasetArguments, split: str) -> list[Row]:
    """One row per image of a split: name, image, and mask, label (of classification) or target."""
    if labels.task == "classification" and not _has_images(base, args):
        return [
            {"name": f"{folder.name}/{name}", "image": str(path), "label": labels.classes.index(_class_of(folder))}
            for folder, files in class_folders(base, args.files is not None).items()
            for name, path in by_file_name(files, "images of the same name").items()
        ]
    images = images_of(base, args, split)
    if TASKS[labels.task].dense:
        masks = masks_of(base, args, split, images)
        return [{"name": name, "image": str(path), "mask": str(masks[name])} for name, path in images.items()]
    path = _table_path(args, base)
    cells = cells_of(read_table(path)[0], {name: file.absolute() for name, file in images.items()}, path)
    return [
        {"name": name, "image": str(image), **_target(row, labels, args, f"{path}, {name}")}
        for (name, image), row in zip(images.items(), cells, strict=True)
    ]


def _report_idle_rows(
    rows: Mapping[str, Sequence[Row]], bases: Mapping[str, Path], task: str, args: DatasetArguments
) -> None:
    """Log rows without an image of the tables that say labels or splits."""
    folders: dict[Path, list[dict[str, Path]]] = defaultdict(list)
    for split, base in bases.items():
        if args.split_column is not None or (_has_images(base, args) and not TASKS[task].dense):
            images = {row["name"]: Path(row["image"]).absolute() for row in rows[split]}
            folders[_table_path(args, base)].append(images)
    for path, images_of_each in folders.items():
        report_idle_rows(path, images_of_each)


def _has_images(base: Path, args: DatasetArguments) -> bool:
    """Whether images are not in one folder per class."""
    return args.images is not None or (base / "images").is_dir()


def _target(cells: dict[str, str], labels: Labels, args: DatasetArguments, where: str) -> Row:
    if labels.task == "multi_label":
        return {"target": class_labels(cells, labels.classes, where)}
    cell = cells[_column(args, list(cells), where)]
    if labels.task == "regression":
        return {"target": number_of(cell, where)}
    number = cell.removesuffix(".0")  # as pandas writes whole numbers beside empty cells
    cell = dict(zip(map(str, args.class_values or ()), labels.classes, strict=False)).get(number, cell)
    if cell not in labels.classes:
        fix = " `class_values: [0, 1, ...]` says which number is which class." if cell.isdecimal() else ""
        fix = fix or nearest(cell, labels.classes) if cell else " Take images without a class away, or give them one."
        raise DataError(f"{where}: {cell!r} is none of {listing(labels.classes)}.{fix}")
    return {"label": labels.classes.index(cell)}


def _column(args: DatasetArguments, columns: Sequence[str], where: str) -> str:
    """The column of a table with the class or the value of each image."""
    known = [column for column in columns if column != args.split_column]
    if (args.target is None and len(known) != 1) or (args.target is not None and args.target not in known):
        near = "" if args.target is None else f", not {args.target!r}.{nearest(args.target, known)}"
        raise ConfigError(f"{where} has the columns {listing(known)}: name the one to predict by `target`{near or '.'}")
    return args.target or known[0]


def _splits(rows: Mapping[str, list[Row]], root: Path, args: DatasetArguments) -> dict[str, list[Row]]:
    """Sort rows into train, val and test, by sub-folder, split file or chance; then keep ``limited_label`` of train."""
    for key in ("num_folds", "split_column", *(f"{split}_split" for split in SPLITS)):
        if "" not in rows and getattr(args, key) is not None:
            raise ConfigError(f"{root} is split into {listing(rows)} already: remove `{key}`, or merge the folders.")
    own = _listed(rows[""], root, args) if "" in rows else dict(rows)
    splits = own or _drawn(rows[""], root, args)
    if own:
        if args.place_km is not None:
            raise ConfigError(f"place_km draws splits, but {root} has its own: remove it, or those files.")
        refuse_idle_shares(args, ["val_fraction", "test_fraction"] if "val" in splits else ["test_fraction"])
    train = splits.get("train", [])
    if "val" not in splits and train and args.val_fraction > 0:
        kept, held = hold_out([row.get("label") for row in train], args.val_fraction, args.seed)
        train, splits["val"] = ([train[i] for i in part] for part in (kept, held))
    splits["train"] = limited(train, args)
    return {split: splits[split] for split in SPLITS if splits.get(split)}


def _drawn(rows: list[Row], root: Path, args: DatasetArguments) -> dict[str, list[Row]]:
    """Splits or folds drawn at random, by ``place_km`` of whole places."""
    places = None if args.place_km is None else places_of(read_headers(rows, layout_of(args)), args.place_km)
    if places is not None:
        rows = [{**row, "place": place} for row, place in zip(rows, places, strict=True)]
    indices = split_indices([row.get("label") for row in rows], args, places)
    if args.num_folds is None:
        logger.info("%s: no split files, images are drawn at random with seed %d", root, args.seed)
        report_unread_lists(root)
        report_idle_splits(_table_path(args, root), args.target)
    if places is not None:
        logger.info("%s: %d images lie in %d places", root, len(places), len(set(places)))
    return {split: [rows[i] for i in members] for split, members in indices.items()}


def _listed(rows: Sequence[Row], root: Path, args: DatasetArguments) -> dict[str, list[Row]]:
    """The rows of each split as a column of the table lists them, or else split files; nothing where neither does."""
    files = _split_files(root, args)
    idle = args.num_folds is not None or args.split_column is not None
    for path in files.values() if idle else ():
        why = "split_column" if args.num_folds is None else f"num_folds={args.num_folds} draws its own splits"
        logger.warning("%s is not used: %s", path, why)
    by_name = {row["name"]: row for row in rows}
    images = {row["name"]: Path(row["image"]).absolute() for row in rows}
    if args.split_column is not None:
        path = _table_path(args, root)
        ids = splits_of(cells_of(read_table(path)[0], images, path), list(images), args.split_column, path)
    elif rows and not idle:
        ids = {split: read_split_file(path, images) for split, path in files.items()}
        check_disjoint(ids, files)
    else:
        return {}
    return {split: [by_name[name] for name in names] for split, names in ids.items()}


def _split_files(root: Path, args: DatasetArguments) -> dict[str, Path]:
    """The split files that are there; one that the config names must be there."""
    files = {}
    for split in SPLITS:
        key = f"{split}_split"
        given = getattr(args, key)
        path = called(root, split, lambda file: not file.is_dir(), ".txt") if given is None else root / given
        if path is None:
            continue
        if given is not None and args.num_folds is not None:
            raise ConfigError(f"num_folds={args.num_folds} draws its own splits: remove `{key}`, or `num_folds`.")
        if given is not None and not path.is_file():
            raise DataError(f"{path} is not there: `{key}` is the name of a file below `root`, {root}.")
        if path.is_symlink() and not path.exists():
            raise DataError(f"{path} is a link to {path.readlink()}, which is not there: mount or restore it.")
        if path.is_file():
            files[split] = path
    return files
