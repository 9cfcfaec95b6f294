"""GEO-Bench 1.0: its classification sets, as they are published; each is a file of ``sets/``.

``m-x/ID.hdf5`` holds one array per band, called ``02 - Blue`` or, with a date, ``02 - Blue_2015-01-01``;
``PARTITION_partition.json`` the ids of each split, ``label_map.json`` the ids of each class. The files also hold
pickles, which can run any code: nothing here opens them.

Two sets name their channels wrongly, because the converter gave the 13 names of Sentinel-2 to channels of another
order, and a converter may have put that right since: the values tell which it is.

Sources: ServiceNow/geo-bench (geobench/dataset.py, label_map.py, geobench_download.py, make_benchmark), its issues 28
and 29; the published counts, from geobench's task descriptions.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data.dataset import ImageDataset, Stored
from deflect_hf.data.download import fetch_from_hub
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.data.public import PublicDataset, Row, build_splits
from deflect_hf.data.release import find_release, folder_files, problems_of, refuse_incomplete
from deflect_hf.data.splits import SPLITS
from deflect_hf.errors import ConfigError, DataError, data_errors, listing, nearest
from deflect_hf.spectral.bands import Sensor
from deflect_hf.spectral.sensors import SENSORS

logger = logging.getLogger(__name__)

Names = Mapping[str, str]  # band code -> what its array is called in the files
Image = Mapping[str, np.ndarray]  # band code that the channel is called by -> (H, W) stored values

REPO_ID = "recursix/geo-bench-1.0"
SENTINEL2: Names = MappingProxyType(
    {
        "A": "01 - Coastal aerosol",
        "B": "02 - Blue",
        "G": "03 - Green",
        "R": "04 - Red",
        "RE1": "05 - Vegetation Red Edge",
        "RE2": "06 - Vegetation Red Edge",
        "RE3": "07 - Vegetation Red Edge",
        "N": "08 - NIR",
        "N2": "08A - Vegetation Red Edge",
        "WV": "09 - Water vapour",
        "CIRRUS": "10 - SWIR - Cirrus",
        "S1": "11 - SWIR",
        "S2": "12 - SWIR",
    }
)
_SAMPLE = 16  # files whose values are looked at to tell the band order
_DATE = re.compile(r"_\d{4}[-_]\d{2}[-_]\d{2}.*$")


@dataclass(frozen=True)
class Misnamed:
    """A set whose files name the channels wrongly."""

    sensor: Sensor  # the bands as the files name them; their arrays are called as in SENTINEL2
    # from some images, by the codes that the channels are called by, to the band order that their values bear out
    # (``"true"``, ``"nominal"``, None: they do not tell), and why
    evidence: Callable[[Sequence[Image]], tuple[str | None, str]]


@dataclass(frozen=True, kw_only=True)
class GeoBenchDataset(PublicDataset):
    """One set: the side of its images in pixels, and what the arrays of its bands are called."""

    side: int
    names: Names
    misnamed: Misnamed | None = None


def geobench_dataset(
    name: str, sensor: str, classes: str, counts: tuple[int, int, int], **facts: Any
) -> GeoBenchDataset:
    """A set with what all of them have in common; ``classes`` in label order, between semicolons."""
    return GeoBenchDataset(
        name=name,
        title=name,
        task="classification",
        keys=frozenset({"partition"} | ({"band_order"} if "misnamed" in facts else set())),
        sensor=SENSORS[sensor],
        classes=tuple(classes.split("; ")),
        counts=dict(zip(SPLITS, counts, strict=True)),
        source=f"https://huggingface.co/datasets/{REPO_ID}",
        license="CC BY-SA 4.0 as tagged there, and the terms of the data set that it was taken from",
        citation="Lacoste et al. 2023, GEO-Bench (arXiv 2306.03831)",
        folder=name,
        marks=("default_partition.json", "label_map.json"),
        fetch=partial(fetch_from_hub, REPO_ID, f"classification_v1.0/{name}.zip"),
        **facts,
    )


def names_in_sequence(sensor: str) -> Names:
    """Bands of a sensor that were given the first names of Sentinel-2, one after the other."""
    return dict(zip(SENSORS[sensor].codes, SENTINEL2.values(), strict=False))


def mean_of(images: Sequence[Image], code: str) -> float:
    """Mean stored value of a channel."""
    return float(np.mean([image[code].mean() for image in images]))


def load_geobench(
    dataset: GeoBenchDataset, args: DatasetArguments, processor: MultispectralImageProcessor | None = None
) -> dict[str, ImageDataset]:
    """Load one of the sets; ``args.root`` is its folder or the one that GEO-Bench lies in."""
    if importlib.util.find_spec("h5py") is None:
        raise ConfigError(f"{dataset.title} is stored in HDF5 files: install h5py (pip install deflect_hf[geobench]).")
    folder = find_release(dataset, args)
    rows = _rows(dataset, folder, args.partition)
    sample = [row for split in rows.values() for row in split]
    sensor, names = _settle_bands(dataset, str(args.band_order), folder, sample[:: -(-len(sample) // _SAMPLE) or 1])
    chosen = dataclasses.replace(dataset, sensor=sensor)
    if args.partition != "default":  # its training images are fewer on purpose
        chosen = dataclasses.replace(chosen, counts={**dataset.counts, "train": len(rows.get("train", ()))})
    return build_splits(
        chosen, rows, args, processor, lambda bands: Hdf5Reader({band: names[band] for band in bands}, dataset.side)
    )


@dataclass(frozen=True)
class Hdf5Reader:
    """Reads bands of one file by what their arrays are called (without dates), each of ``side`` rows and columns."""

    names: Names
    side: int

    def read(self, row: Mapping[str, Any]) -> Stored:
        """Read the bands of a row, ``(C, H, W)`` in the dtype of the file."""
        with _opened(row["image"]) as file:
            called = _called(file)
            arrays = [self._array(file, called.get(name, []), name) for name in self.names.values()]
        return Stored(np.stack(arrays), tuple(self.names), row["label"], row["image"])

    def _array(self, file: Any, keys: list[str], name: str) -> np.ndarray:
        if not keys:
            raise DataError(f"{file.filename} has no band {name!r}, only {listing(_called(file))}")
        if len(keys) > 1:
            raise DataError(f"{file.filename} has band {name!r} of several dates ({listing(keys)}), one is published")
        shape, wanted = getattr(file[keys[0]], "shape", None), (self.side, self.side)
        if shape != wanted:
            raise DataError(f"{file.filename} has {keys[0]!r} in the shape {shape}, but {wanted} is published")
        return np.asarray(file[keys[0]][:])


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """Open a file for reading; whatever HDF5 complains about becomes a DataError naming the file."""
    import h5py

    if not Path(path).is_file():
        raise DataError(f"{path} is missing")
    damaged = data_errors(f"{path} is cut off or no HDF5 file", "copy it again", OSError, RuntimeError, KeyError)
    with damaged, h5py.File(path, "r", locking=False) as file:  # never written to, and many network disks know no locks
        yield file


def _called(file: Any) -> dict[str, list[str]]:
    """The arrays of a file by their names without the dates that may follow these."""
    keys: dict[str, list[str]] = {}
    for key in file:
        keys.setdefault(_DATE.sub("", key), []).append(key)
    return keys


def _rows(dataset: PublicDataset, folder: Path, partition: str) -> dict[str, list[Row]]:
    """One row per image of each split; everything that is missing or twofold is complained about together."""
    path = folder / f"{partition}_partition.json"
    if not path.is_file():
        known = sorted(other.name.removesuffix("_partition.json") for other in folder.glob("*_partition.json"))
        raise DataError(f"{folder} has no partition {partition!r}: it has {listing(known)}.{nearest(partition, known)}")
    ids = {"val" if split == "valid" else split: names for split, names in _lists(path).items()}
    counts = Counter(name for names in ids.values() for name in names)
    problems = [f"{path.name} has a split {split!r}" for split in ids if split not in SPLITS]
    problems += [f"{path.name} lists {name!r} {count} times" for name, count in counts.items() if count > 1]
    label_of: dict[str, int] = {}
    known_labels = {str(index): index for index in range(len(dataset.classes))}
    for label, names in _lists(folder / "label_map.json").items():
        if label not in known_labels:
            problems.append(f"label_map.json has a class {label!r}, but the classes are 0 to {len(known_labels) - 1}")
            continue
        problems += [f"label_map.json lists {name!r} twice" for name in names if name in label_of]
        label_of.update(dict.fromkeys(names, known_labels[label]))
    problems += problems_of([f"{name}.hdf5" for name in counts], folder_files(folder), folder.name)
    problems += [f"{name!r} has no label in label_map.json" for name in counts if name not in label_of]
    refuse_incomplete(dataset, folder, problems)
    return {
        split: [{"name": name, "image": str(folder / f"{name}.hdf5"), "label": label_of[name]} for name in names]
        for split, names in ids.items()
    }


def _lists(path: Path) -> dict[str, list[str]]:
    """A JSON file of lists of ids."""
    with data_errors(f"{path} is missing or damaged", "copy it again.", OSError, ValueError):
        return TypeAdapter(dict[str, list[str]]).validate_json(path.read_bytes())


def _settle_bands(dataset: GeoBenchDataset, order: str, folder: Path, sample: Sequence[Row]) -> tuple[Sensor, Names]:
    """The bands of the chosen order, and what their arrays are called, from a look at some files."""
    misnamed = dataset.misnamed
    reader = Hdf5Reader(dataset.names if misnamed is None else SENTINEL2, dataset.side)
    images, problems = [], []
    for row in sample:
        try:
            stored = reader.read(row)
            images.append(dict(zip(stored.bands, stored.values, strict=True)))
        except DataError as error:
            problems.append(str(error))
    refuse_incomplete(dataset, folder, problems)
    if misnamed is None or not images:
        return dataset.sensor, dataset.names
    found_order, why = misnamed.evidence(images)
    if found_order is None:
        logger.warning("%s: the values do not tell the band order: %s", dataset.title, why)
    elif order == "true" and found_order == "nominal":
        raise DataError(
            f"{dataset.title}: {why}. The names in these files are right as they are: set `band_order: nominal`."
        )
    elif order == "nominal" and found_order == "true":  # as published results did, so it stays possible
        logger.warning(
            "%s: band_order: nominal takes bands by names that are wrong, and so are spectral indices of them: %s",
            *(dataset.title, why),
        )
    return (dataset.sensor, dataset.names) if order == "true" else (misnamed.sensor, SENTINEL2)
