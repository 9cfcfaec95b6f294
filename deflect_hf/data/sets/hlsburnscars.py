"""HLS Burn Scars: burnt areas in Harmonized Landsat Sentinel-2 images of the United States.

Layout of the release: ``training/`` and ``validation/`` with pairs ``{id}_merged.tif`` (six bands, float reflectance)
and ``{id}.mask.tif`` (0 not burnt, 1 burnt, -1 missing). There is no third split: as in PANGAEA, ``validation/`` is the
test set, and 10 % of ``training/`` are held out for validation, whatever the seed of the run is.

Source: https://huggingface.co/datasets/ibm-nasa-geospatial/hls_burn_scars; the split of
github.com/VMarsocci/pangaea-bench (pangaea/datasets/hlsburnscars.py).
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data.dataset import ImageDataset
from deflect_hf.data.download import fetch_from_hub
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.data.public import PublicDataset, Row, build_splits
from deflect_hf.data.release import find_release, folder_files, problems_of, refuse_incomplete
from deflect_hf.spectral.sensors import get_sensor

REPOSITORY = "ibm-nasa-geospatial/hls_burn_scars"
DATASET = PublicDataset(
    name="hlsburnscars",
    title="HLS Burn Scars",
    task="segmentation",
    sensor=get_sensor("hls_burn_scars"),
    gsd_m=30.0,
    classes=("Not burned", "Burn scar"),
    class_values=(0, 1),
    ignore_values=(-1,),
    counts={"train": 486, "val": 54, "test": 264},
    source=f"https://huggingface.co/datasets/{REPOSITORY}",
    license="CC BY 4.0",
    citation="Phillips et al., HLS Foundation Burnscars Dataset, 2023, doi:10.57967/hf/0956",
    folder="hls_burn_scars",
    marks=("training", "validation"),
    fetch=partial(fetch_from_hub, REPOSITORY, "hls_burn_scars.tar.gz"),
)
VAL_FRACTION = 0.1
VAL_SEED = 23
_IMAGE = "_merged.tif"
_MASK = ".mask.tif"


def load(args: DatasetArguments, processor: MultispectralImageProcessor | None = None) -> dict[str, ImageDataset]:
    """Build the splits of HLS Burn Scars: those of PANGAEA."""
    root = find_release(DATASET, args)
    problems: list[str] = []
    training, test = (_rows(root / part, problems) for part in ("training", "validation"))
    refuse_incomplete(DATASET, root, problems)
    held = held_out(len(training))
    rows = {
        "train": [row for index, row in enumerate(training) if index not in held],
        "val": [training[index] for index in sorted(held)],
        "test": test,
    }
    return build_splits(DATASET, rows, args, processor)


def held_out(count: int) -> set[int]:
    """Which of ``count`` sorted training images are for validation.

    What sklearn's ``train_test_split(test_size=0.1, random_state=23)`` holds out: the first tenth, rounded up, of the
    permutation that numpy's frozen Mersenne Twister gives.
    """
    permutation = np.random.RandomState(VAL_SEED).permutation(count)
    return set(permutation[: math.ceil(count * VAL_FRACTION)].tolist())


def _rows(folder: Path, problems: list[str]) -> list[Row]:
    """The pairs of a folder in order of their names; what has no other half, or is empty, goes to ``problems``."""
    sizes = folder_files(folder)
    if not sizes:
        problems.append(f"{folder.name}/ is missing or has no files")
    ids = sorted({name.removesuffix(end) for end in (_IMAGE, _MASK) for name in sizes if name.endswith(end)})
    problems += problems_of([id_ + end for id_ in ids for end in (_IMAGE, _MASK)], sizes, folder.name)
    return [{"name": id_, "image": f"{folder / id_}{_IMAGE}", "mask": f"{folder / id_}{_MASK}"} for id_ in ids]
