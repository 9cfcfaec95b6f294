"""GEO-Bench 1.0: the classification sets m-so2sat, m-brick-kiln, m-forestnet and m-eurosat, as they are published.

``m-x/ID.hdf5`` holds one array per band, called ``02 - Blue`` or, with a date, ``02 - Blue_2015-01-01``;
``PARTITION_partition.json`` the ids of each split, ``label_map.json`` the ids of each class. The files also hold
pickles, which can run any code: nothing here opens them.

Source: ServiceNow/geo-bench (geobench/dataset.py, label_map.py, geobench_download.py).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data.band_order import check_order
from deflect_hf.data.dataset import ImageDataset, Stored
from deflect_hf.data.download import fetch_from_hub
from deflect_hf.data.geobench_releases import REPO_ID, SENTINEL2, SETS, GeoBenchSet, Names
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.data.public import PublicDataset, Row, build_splits, refuse_incomplete
from deflect_hf.data.release import Release, folder_files
from deflect_hf.errors import DataError, listing, nearest

logger = logging.getLogger(__name__)

_SPLITS = {"train": "train", "valid": "val", "test": "test"}
_SAMPLE = 16  # files whose values are looked at to tell the band order
_DATE = re.compile(r"_\d{4}[-_]\d{2}[-_]\d{2}.*$")


@dataclass(frozen=True)
class GeoBenchReader:
    """Reads bands of one file by what their arrays are called.

    Attributes:
        names: What the array of each band is called, without its date; bands in the order wanted.
        side: Rows and columns that every array must have.
    """

    names: Names
    side: int

    def read(self, row: Mapping[str, Any]) -> Stored:
        """Read the bands of a row, ``(C, H, W)`` in the dtype of the file.

        Raises:
            DataError: The file is missing, cut off or no HDF5 file, lacks a band, or has one in another shape.
        """
        with _opened(row["image"]) as file:
            called = _called(file)
            arrays = [_read(file, called, name, self.side) for name in self.names.values()]
        return Stored(np.stack(arrays), tuple(self.names), row["label"], row["image"])


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """Open a file for reading; whatever HDF5 complains about becomes a DataError naming the file."""
    if not Path(path).is_file():
        raise DataError(f"{path} is missing")
    try:
        with h5py.File(path, "r", locking=False) as file:  # never written to, and many network disks know no locks
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        raise DataError(f"{path} is cut off or no HDF5 file ({error})") from error


def _called(file: Any) -> dict[str, list[str]]:
    """The arrays of a file by their names without the dates that may follow these."""
    keys: dict[str, list[str]] = {}
    for key in file:
        keys.setdefault(_DATE.sub("", key), []).append(key)
    return keys


def _read(file: Any, called: Mapping[str, list[str]], name: str, side: int) -> np.ndarray:
    keys = called.get(name, [])
    if not keys:
        raise DataError(f"{file.filename} has no band {name!r}, only {listing(called)}")
    if len(keys) > 1:
        raise DataError(f"{file.filename} has band {name!r} of several dates ({listing(keys)}), one is published")
    array = file[keys[0]]
    shape = getattr(array, "shape", None)
    if shape != (side, side):
        raise DataError(f"{file.filename} has {keys[0]!r} in the shape {shape}, but {(side, side)} is published")
    return np.asarray(array[:])


def load_geobench(
    args: DatasetArguments, processor: MultispectralImageProcessor | None = None
) -> dict[str, ImageDataset]:
    """Load one of the sets, by ``args.name``; ``args.root`` is its folder or the one that GEO-Bench lies in.

    Raises:
        DataError: Files or ids are missing or inconsistent, file by file; or the values contradict ``band_order``.
        BandError: A wanted band is not in the set.
        UnitError: A trained model expects another unit.
    """
    chosen = SETS[args.name]
    release = Release(chosen.public, args.name, (f"{args.partition}_partition.json", "label_map.json"))
    folder = release.find(args, lambda root: fetch_from_hub(REPO_ID, f"classification_v1.0/{args.name}.zip", root))
    rows = _rows(chosen.public, folder, args.partition)
    sample = [row for split in rows.values() for row in split]
    public, names = _settle_bands(chosen, str(args.band_order), folder, sample[:: -(-len(sample) // _SAMPLE) or 1])
    if args.partition != "default":  # its training images are fewer on purpose
        public = dataclasses.replace(public, counts={**public.counts, "train": len(rows.get("train", ()))})
    return build_splits(
        public,
        rows,
        lambda bands: GeoBenchReader({band: names[band] for band in bands}, chosen.side),
        args,
        processor,
    )


def _rows(public: PublicDataset, folder: Path, partition: str) -> dict[str, list[Row]]:
    """One row per image of each split; everything that is missing or twofold is complained about together."""
    path = folder / f"{partition}_partition.json"
    if not path.is_file():
        known = sorted(other.name.removesuffix("_partition.json") for other in folder.glob("*_partition.json"))
        raise DataError(f"{folder} has no partition {partition!r}: it has {listing(known)}.{nearest(partition, known)}")
    ids = {_SPLITS.get(split, split): names for split, names in _lists(path).items()}
    label_of, problems = _labels(public, folder)
    sizes = folder_files(folder)
    problems += [f"{path.name} has a split {split!r}" for split in ids if split not in _SPLITS.values()]
    counts = Counter(name for names in ids.values() for name in names)
    problems += [f"{path.name} lists {name!r} {count} times" for name, count in counts.items() if count > 1]
    for name in counts:
        if sizes.get(f"{name}.hdf5", 0) == 0:
            problems.append(f"{name}.hdf5 is {'empty' if f'{name}.hdf5' in sizes else 'missing'}")
        if name not in label_of:
            problems.append(f"{name!r} has no label in label_map.json")
    refuse_incomplete(public, folder, problems)
    return {
        split: [{"name": name, "image": str(folder / f"{name}.hdf5"), "label": label_of[name]} for name in names]
        for split, names in ids.items()
    }


def _labels(public: PublicDataset, folder: Path) -> tuple[dict[str, int], list[str]]:
    """Class id of each image, and what is wrong with them."""
    label_of: dict[str, int] = {}
    problems = []
    known = {str(index): index for index in range(len(public.classes))}
    for label, names in _lists(folder / "label_map.json").items():
        if label not in known:
            problems.append(f"label_map.json has a class {label!r}, but the classes are 0 to {len(known) - 1}")
            continue
        problems += [f"label_map.json lists {name!r} twice" for name in names if name in label_of]
        label_of.update(dict.fromkeys(names, known[label]))
    return label_of, problems


def _lists(path: Path) -> dict[str, list[str]]:
    """A JSON file of lists of ids."""
    if not path.is_file():
        raise DataError(f"{path} is missing: copy it again, or download the data again.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}): copy it again.") from error
    if not isinstance(content, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in content.values()
    ):
        raise DataError(f"{path} does not hold lists of ids: copy it again, it is not the published file.")
    return content


def _settle_bands(chosen: GeoBenchSet, order: str, folder: Path, sample: Sequence[Row]) -> tuple[PublicDataset, Names]:
    """The set with the bands of the chosen order, and what their arrays are called, from a look at some files."""
    public, doubt = chosen.public, chosen.doubt
    names = chosen.names if doubt is None else SENTINEL2
    if (
        doubt is not None
        and sample
        and _has(sample[0]["image"], doubt.corrected)
        and not _has(sample[0]["image"], names)
    ):
        logger.info("%s: these files name their bands rightly, band_order makes no difference", public.title)
        names, doubt = doubt.corrected, None
    reader = GeoBenchReader(names, chosen.side)
    images, problems = [], []
    for row in sample:
        try:
            stored = reader.read(row)
            images.append(dict(zip(stored.bands, stored.values, strict=True)))
        except DataError as error:
            problems.append(str(error))
    refuse_incomplete(public, folder, problems)
    if doubt is None or not images:
        return public, names
    check_order(public.title, order, doubt.evidence(images))
    if order == "true":
        return public, chosen.names
    return dataclasses.replace(public, sensor=doubt.sensor), SENTINEL2


def _has(path: str, names: Names) -> bool:
    """Whether the file has an array of each of these names."""
    with _opened(path) as file:
        return _called(file).keys() >= set(names.values())
