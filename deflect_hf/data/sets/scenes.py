"""Scenes of any size with polygons, points or rasters of classes as a data set: windows are read straight from them.

Nothing is cut to disk. Training draws a window around a labelled pixel of each cell of a grid, anew in every epoch;
validation and test go through the grid, where each labelled pixel counts once.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from deflect_hf.config.data import DatasetArguments
from deflect_hf.config.readers import DatasetSpec
from deflect_hf.config.reading import ReadingArguments
from deflect_hf.data.dataset import ImageDataset, Labels, compare_with_training, make_datasets
from deflect_hf.data.folder_reader import at_root, layout_of, nodata_of, settle_reader
from deflect_hf.data.label_table import table_rows
from deflect_hf.data.places import Region, blocks_of, cells_of, report_splits, settled
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.data.scene_reader import RasterLabels, SceneLabels, SceneReader, ShapeLabels
from deflect_hf.data.splits import SPLIT_OF, SPLITS, Row, limited, refuse_idle_shares
from deflect_hf.data.survey import survey, typical
from deflect_hf.errors import ConfigError, DataError, listing, nearest
from deflect_hf.raster.georeference import ground_m, refuse_misplaced
from deflect_hf.raster.header import RasterInfo, refuse_no_mask
from deflect_hf.raster.read import raster_info
from deflect_hf.raster.vector import (
    SUFFIXES,
    Features,
    class_values_of,
    is_vector,
    on_grid,
    read_features,
    without_class,
)

logger = logging.getLogger(__name__)

DATASET = DatasetSpec(
    name="scenes",
    title="scenes of the author",
    task="segmentation",
    keys=frozenset(
        [
            *("root", "scenes", "labels", "attribute", "background", "all_touched", "window", "windows_per_epoch"),
            *("block_km", "buffer_km", "split_column", "val_fraction", "test_fraction", "num_folds", "fold"),
            *(*ReadingArguments.model_fields, "label_alignment"),
            *("classes", "class_values", "class_colors", "ignore_values", "ignore_index"),
        ]
    ),
)

read_once = cache(read_features)  # one file often labels many scenes


@dataclass(frozen=True)
class Entry:
    """One scene of the list."""

    image: str
    labels: str
    layer: str | None = None
    split: str | None = None
    name: str = ""
    dates: tuple[str, ...] = ()


ENTRY_KEYS = tuple(field.name for field in dataclasses.fields(Entry))


def load(args: DatasetArguments, trained: MultispectralImageProcessor | None = None) -> dict[str, ImageDataset]:
    """Build the splits of scenes; bands, unit and size of a ``trained`` model's processor stand."""
    where = str(args.root or args.name)
    entries = read_entries(args)
    layout = dataclasses.replace(layout_of(args), nodata=nodata_of(args, trained))
    written = not isinstance(args.scenes, str)  # what a table names is not fetched
    products = [
        dataclasses.replace(layout, path=entry.image, dates=entry.dates or layout.dates, written=written)
        for entry in entries
    ]
    single = [product.path for product in products if layout.composite and not product.dates]
    if single:
        raise ConfigError(f"a composite is of several dates, but there is one of {listing(single)}: give its `dates`.")
    infos = [raster_info(product) for product in products]
    read_once.cache_clear()
    meaning = Labels.of(args, "segmentation", args.classes or _classes_found(entries, args))
    classes, values = meaning.classes, meaning.values
    if len(values) != len(classes):
        raise ConfigError(f"class_values has {len(values)} values for the classes {listing(classes)}: one value each.")
    labels = [scene_labels(entry, info, args, meaning) for entry, info in zip(entries, infos, strict=True)]
    _report_bare(entries, labels, args)
    info = typical(infos)
    gsd_m = args.gsd_m if args.gsd_m is not None else ground_m(info)
    reader, processor = settle_reader(args.replace(gsd_m=gsd_m), info, trained, height=args.window)
    survey(where, infos, info, reader, args)
    regions, cells = place(entries, infos, labels, args, meaning)
    report_splits(regions, infos, classes, where)
    rows = {split: [cell for cell in cells if cell["split"] == split] for split in SPLITS}
    rows = {split: members for split, members in rows.items() if members}
    drawn: list[Row] = []
    if "train" in rows:
        drawn = limited(rows["train"], args)
        rows["train"] = _as_many(drawn, args.windows_per_epoch)
    scenes = SceneReader(
        reader, tuple(infos), tuple(labels), tuple(products), args.window, tuple(regions), classes, values, tuple(drawn)
    )
    gsd = processor.effective_gsd_m(args.window)
    datasets = make_datasets(rows, scenes, processor, meaning, gsd, args.seed, where)
    compare_with_training(datasets, trained, where)
    return datasets


def read_entries(args: DatasetArguments) -> list[Entry]:
    """The scenes of the list, or of the table that it names."""
    root = Path(args.root) if args.root is not None else Path()
    listed = _table(root / args.scenes) if isinstance(args.scenes, str) else list(args.scenes or ())
    entries = []
    for number, given in enumerate(listed):
        strange = [key for key in given if key not in ENTRY_KEYS]
        if strange:
            raise ConfigError(
                f"scenes[{number}]: unknown key {strange[0]!r}.{nearest(strange[0], ENTRY_KEYS)} Valid keys: "
                f"{listing(ENTRY_KEYS)}"
            )
        texts = {key: str(value) for key, value in given.items() if value not in (None, "") and key != "dates"}
        dates = given.get("dates") or ()
        dates = dates.split(";") if isinstance(dates, str) else dates
        labels = texts.get("labels", args.labels)
        if "image" not in texts or labels is None:
            raise ConfigError(
                f"scenes[{number}] has no {'labels' if 'image' in texts else 'image'}: give each scene "
                "{image: FILE, labels: FILE}, or `labels` for all of them."
            )
        if "split" in texts and texts["split"].casefold() not in SPLIT_OF:
            raise ConfigError(f"scenes[{number}]: split {texts['split']!r} is none of {listing(SPLIT_OF)}.")
        image = at_root(root, texts["image"])
        texts |= {"split": SPLIT_OF[texts["split"].casefold()]} if "split" in texts else {}
        texts |= {"image": image, "labels": at_root(root, labels), "name": texts.get("name", Path(image).stem)}
        entries.append(Entry(**texts, dates=tuple(at_root(root, str(date).strip()) for date in dates)))
    names = [entry.name for entry in entries]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ConfigError(f"two scenes are called {repeated[0]!r}: give each a `name` of its own.")
    bare = [entry.name for entry in entries if entry.split is None]
    if bare and len(bare) < len(entries):
        raise ConfigError(f"some scenes say their split, but {listing(bare[:3])} do not: give it to all, or to none.")
    for key in ("block_km", "num_folds", "split_column") if not bare else ():
        if getattr(args, key) is not None:
            raise ConfigError(f"each scene says its split: remove `{key}`, or the splits of the scenes.")
    return entries


def _table(path: Path) -> list[Row]:
    """Rows of a CSV file, or attributes of a vector file."""
    if is_vector(path):
        columns = read_features(path).columns
        known = {key: columns[key] for key in ENTRY_KEYS if key in columns}
        return [dict(zip(known, row, strict=True)) for row in zip(*known.values(), strict=True)]
    header, *rows = table_rows(path, "`scenes` is a list, or a CSV or vector file with a row for each scene.")
    if not rows:
        raise DataError(f"{path} lists no scenes: give a header ({', '.join(ENTRY_KEYS)}) and a line for each scene.")
    return [dict(zip(header, row, strict=True)) for row in rows]


def _attribute(entry: Entry, args: DatasetArguments) -> str:
    if args.attribute is None:
        raise ConfigError(f"{entry.labels}: give `attribute`, the name of the attribute that holds the class.")
    return args.attribute


def _classes_found(entries: Sequence[Entry], args: DatasetArguments) -> list[str]:
    """The names that the attribute of the polygons has, in alphabetical order, after that of all other ground."""
    found: set[str] = set()
    for entry in entries:
        column = None
        if is_vector(entry.labels):
            column = read_once(entry.labels, entry.layer).column(_attribute(entry, args), "attribute")
        if column is None or column.dtype.kind in "iufb":
            kind = (
                "holds numbers"
                if column is not None
                else f"is read as a raster (vector files end in {listing(SUFFIXES)})"
            )
            raise ConfigError(f"{entry.labels} {kind}: give `classes`, their names, and `class_values`.")
        found |= {str(name) for name in column if name is not None}
    background = [] if args.background is None else [args.background]
    if background and args.background not in found and (near := nearest(background[0], found)):
        raise ConfigError(f"background={background[0]!r} is no class of the labels.{near} Else list all by `classes`.")
    names = [*background, *sorted(found - {*background})]
    if len(names) < 2:
        raise DataError(
            f"the labels are of one class, {listing(found)}: there is nothing to tell it apart from (`background` "
            "makes a class of the ground outside of them)."
        )
    return names


def scene_labels(entry: Entry, info: RasterInfo, args: DatasetArguments, meaning: Labels) -> SceneLabels:
    """The labels of a scene."""
    if not is_vector(entry.labels):
        label = raster_info(entry.labels)
        refuse_no_mask(label, args.class_colors is not None)
        if args.class_colors is None and label.nodata[0] in meaning.values:
            raise DataError(
                f"{entry.labels} tags {label.nodata[0]:g} as nodata, which is the value of class "
                f"{meaning.classes[meaning.values.index(int(label.nodata[0]))]!r}: remove the tag (gdal_edit.py "
                "-unsetnodata), or take the class out of `classes` and `class_values` if those pixels have no label."
            )
        if args.label_alignment == "strict" or not (label.georeferenced and info.georeferenced):
            refuse_misplaced(label, info)
        return RasterLabels(entry.labels, label.georeferenced and info.georeferenced, args.color_table)
    if args.class_colors is not None:
        raise ConfigError(f"class_colors are of rasters, but {entry.labels} holds polygons or points: remove it.")
    attribute = _attribute(entry, args)
    found = read_once(entry.labels, entry.layer)
    features, values = class_values_of(found, attribute, meaning.classes, meaning.values, meaning.ignore_values)
    bare = found.chosen(without_class(found, attribute, meaning.ignore_values))
    if len(bare.geometries):
        logger.warning(
            "%s: %d of %d features have no class in %r: their ground has no label",
            *(entry.labels, len(bare.geometries), len(found.geometries), attribute),
        )
    everything = on_grid(features, values, info)
    pairs = everything.overlaps()
    if pairs:
        logger.warning(
            "%s: %d pair(s) of polygons of two classes overlap on %s: pixels of both have no label",
            entry.labels, len(pairs), entry.image,
        )  # fmt: skip
    shapes = {"": everything}
    if args.split_column is not None:
        shapes = _by_split(features, values, info, args.split_column)
    background = None if args.background is None else meaning.values[meaning.classes.index(args.background)]
    unknown = None
    if background is not None and len(bare.geometries):
        unknown = on_grid(bare, np.zeros(len(bare.geometries), np.int64), info)
    return ShapeLabels(entry.labels, shapes, args.all_touched, background, unknown)


def _report_bare(entries: Sequence[Entry], labels: Sequence[SceneLabels], args: DatasetArguments) -> None:
    """Refuse scenes on which no polygon lies, or log them where they are background beside others."""
    shapes = [one.shapes.values() if isinstance(one, ShapeLabels) else None for one in labels]
    bare = [entry for entry, parts in zip(entries, shapes, strict=True)
            if parts is not None and not any(len(part.geometries) for part in parts)]  # fmt: skip
    if bare and (args.background is None or len(bare) == len(entries)):
        count = len(read_once(bare[0].labels, bare[0].layer).geometries)
        raise DataError(
            f"{bare[0].labels}: none of its {count} features lies on {bare[0].image}: give the labels of this scene, "
            "or correct the reference system of the file."
        )
    if bare:
        logger.warning(
            "no polygon lies on %d of %d scenes, such as %s: all of it is %r",
            len(bare), len(entries), bare[0].image, args.background,
        )  # fmt: skip


def _by_split(features: Features, values: Any, info: RasterInfo, column: str) -> dict[str, Any]:
    written = [str(one) for one in features.column(column, "split_column")]
    strange = sorted({word for word in written if word.casefold() not in SPLIT_OF})
    if strange:
        raise DataError(
            f"{features.path}: {column!r} holds {listing(strange[:3])}: it must be one of {listing(SPLIT_OF)}."
        )
    said = np.array([SPLIT_OF[word.casefold()] for word in written])
    return {split: on_grid(features.chosen(said == split), values[said == split], info) for split in SPLITS
            if (said == split).any()}  # fmt: skip


def place(
    entries: Sequence[Entry],
    infos: Sequence[RasterInfo],
    labels: Sequence[SceneLabels],
    args: DatasetArguments,
    meaning: Labels,
) -> tuple[list[Region], list[Row]]:
    """The regions with labels, each in a split, and a row for each of their windows that has a label."""
    middles: dict[str | None, float] = {}
    regions: list[Region] = []
    found: list[list[Row]] = []
    for number, (entry, info) in enumerate(zip(entries, infos, strict=True)):
        boxes = [(0, 0, info.height, info.width)]
        if args.block_km is not None:
            middle = middles.setdefault(info.crs, info.transform[5] + info.transform[4] * info.height / 2)
            boxes = blocks_of(info, args.block_km, args.buffer_km, middle)
            _refuse_small_blocks(boxes, info, args)
        for box in boxes:
            for split in SPLITS if args.split_column is not None else ("",):
                rows, counts = _labelled(number, entry, info, labels[number], box, split, args.window, meaning)
                if rows:
                    regions.append(Region(number, box, split, tuple(counts.tolist())))
                    found.append(rows)
    if not found:
        raise DataError(f"no pixel of {listing(entry.image for entry in entries[:3])} has a label: correct `labels`.")
    given = {number: entry.split for number, entry in enumerate(entries) if entry.split is not None}
    if given or args.split_column is not None:
        refuse_idle_shares(args, ["val_fraction", "test_fraction"])
    if args.split_column is None:
        regions = settled(regions, args, given)
    return regions, [
        {**row, "split": region.split} for region, rows in zip(regions, found, strict=True) for row in rows
    ]


def _refuse_small_blocks(boxes: Sequence[Any], info: RasterInfo, args: DatasetArguments) -> None:
    largest = max((min(height, width) for _, _, height, width in boxes), default=0)
    if largest < min(args.window, info.height, info.width):
        raise ConfigError(
            f"block_km={args.block_km:g} less buffer_km={args.buffer_km:g} leaves blocks of {largest} pixels in "
            f"{info.path}, smaller than a window of {args.window}: give larger blocks, or a smaller `window`."
        )


def _labelled(
    number: int, entry: Entry, info: RasterInfo, labels: SceneLabels, box: Any, split: str, side: int, meaning: Labels
) -> tuple[list[Row], Any]:
    """The windows of a region with labels, and the labelled pixels of each class."""
    rows, counts = [], np.zeros(len(meaning.classes), dtype=np.int64)
    for window, core in cells_of(box, side):
        values, labelled = labels.read(info, core, split)
        encoded = meaning.encode(values, labelled, labels.path).numpy()
        own = encoded[encoded >= 0]
        if own.size:
            of_cell = np.bincount(own, minlength=len(counts))
            counts += of_cell
            rows.append({"name": f"{entry.name}/{core[0]}_{core[1]}", "scene": number, "box": list(window),
                         "core": list(core), "region": list(box),
                         "counts": of_cell.tolist()})  # fmt: skip
    return rows, counts


def _as_many(rows: list[Row], wanted: int | None) -> list[Row]:
    """So many rows, each of which stands for ``cells``, a slice of ``rows``: several of them in turns, or one again."""
    count = len(rows) if wanted is None else wanted
    found = []
    for number in range(count):
        first = number * len(rows) // count if count < len(rows) else number % len(rows)
        last = (number + 1) * len(rows) // count if count < len(rows) else first + 1
        again = f"+{number // len(rows)}" if number >= len(rows) else ""
        found.append({**rows[first], "name": rows[first]["name"] + again, "cells": [first, last]})
    return found
