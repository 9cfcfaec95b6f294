"""Small copies of GEO-Bench's classification sets, written as its own converters write them, pickles included."""

import datetime
import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

SENTINEL2 = (
    "01 - Coastal aerosol",
    "02 - Blue",
    "03 - Green",
    "04 - Red",
    "05 - Vegetation Red Edge",
    "06 - Vegetation Red Edge",
    "07 - Vegetation Red Edge",
    "08 - NIR",
    "08A - Vegetation Red Edge",
    "09 - Water vapour",
    "10 - SWIR - Cirrus",
    "11 - SWIR",
    "12 - SWIR",
)
SENTINEL1 = (
    "01 - VH.Real",
    "02 - VH.Imaginary",
    "03 - VV.Real",
    "04 - VV.Imaginary",
    "05 - VH.LEE Filtered",
    "06 - VV.LEE Filtered",
    "07 - VH.LEE Filtered.Real",
    "08 - VV.LEE Filtered.Imaginary",
)
LANDSAT8 = ("04 - Red", "03 - Green", "02 - Blue", "05 - NIR", "06 - SWIR1", "07 - SWIR2")  # in writing order
ALL_13 = ("A", "B", "G", "R", "RE1", "RE2", "RE3", "N", "N2", "WV", "CIRRUS", "S1", "S2")
SIDE = {"m-so2sat": 32, "m-brick-kiln": 64, "m-forestnet": 332, "m-eurosat": 64}
CLASSES = {"m-so2sat": 17, "m-brick-kiln": 2, "m-forestnet": 12, "m-eurosat": 10}
# mean digital number of each band, about those of EuroSAT
LEVEL = dict(zip(ALL_13, (1354, 1118, 1043, 948, 1199, 2000, 2369, 2297, 2594, 732, 12, 1819, 1119), strict=True))


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.sprung,)


def digital_numbers(bands: Sequence[str], label: int, seed: int, side: int) -> dict[str, np.ndarray]:
    """Sentinel-2 bands as int16 that no two bands, images or classes share; classes differ beyond 700 nm."""
    rng = np.random.default_rng(seed)
    gain = {band: 1.0 + (0.08 * label if band in ("RE2", "RE3", "N", "N2", "S1", "S2") else 0.0) for band in bands}
    return {band: (LEVEL[band] * gain[band] * rng.uniform(0.6, 1.4, (side, side))).astype(np.int16) for band in bands}


def kiln_stack(label: int, seed: int) -> dict[str, np.ndarray]:
    """The ten bands and the true-colour image that the source of m-brick-kiln has, in its order."""
    bands = digital_numbers(
        ("A", "B", "G", "R", "RE1", "RE3", "N2", "N", "S1", "S2"), label, seed, SIDE["m-brick-kiln"]
    )
    return bands | {f"TCI_{band}": np.clip(0.102 * bands[band], 0, 255).astype(np.int16) for band in ("R", "G", "B")}


def stored_arrays(name: str, label: int, seed: int, order: str) -> dict[str, np.ndarray]:
    """What one file holds: name in the file -> (H, W).

    ``order``: "published", or "genuine": 13 bands under their own names.
    """
    side, rng = SIDE[name], np.random.default_rng(seed)
    if name == "m-so2sat":
        radar = {key: rng.normal(0.0, 0.3, (side, side)).astype(np.float32) for key in SENTINEL1}
        optical = digital_numbers(ALL_13, label, seed, side)
        used = [code for code in ALL_13 if code not in ("A", "WV", "CIRRUS")]
        return radar | {SENTINEL2[ALL_13.index(code)]: (optical[code] / 1e4).astype(np.float32) for code in used}
    if name == "m-forestnet":
        date = datetime.date(2013 + seed % 4, 1, 1)
        return {
            f"{key}_{date}": rng.integers(
                20 + 10 * place + 5 * label, 110 + 10 * place + 5 * label, (side, side)
            ).astype(np.uint8)
            for place, key in enumerate(LANDSAT8)
        }
    if order == "genuine":
        return dict(zip(SENTINEL2, digital_numbers(ALL_13, label, seed, side).values(), strict=True))
    if name == "m-eurosat":
        stack = digital_numbers((*ALL_13[:8], *ALL_13[9:], "N2"), label, seed, side)  # B8A last
        return dict(zip(SENTINEL2, stack.values(), strict=True))
    return dict(zip(SENTINEL2, kiln_stack(label, seed).values(), strict=True))


def write_geobench(
    folder: Path,
    name: str,
    *,
    counts: tuple[int, int, int] = (4, 2, 2),
    order: str = "published",
    sprung: Path | None = None,
) -> Path:
    """Write a set into ``folder`` and return it; labels go round, image k of the whole set has seed k.

    Args:
        counts: Images to train, validate and test with.
        sprung: A file that unpickling anything of the set would create.
    """
    folder.mkdir(parents=True)
    trap = pickle.dumps(Trap(sprung or folder / "sprung"))
    ids = [f"id_{index:04d}" for index in range(sum(counts))]
    labels = {str(label): ids[label :: CLASSES[name]] for label in range(min(CLASSES[name], len(ids)))}
    for seed, id_ in enumerate(ids):
        with h5py.File(folder / f"{id_}.hdf5", "w") as file:
            for key, array in stored_arrays(name, seed % CLASSES[name], seed, order).items():
                file.create_dataset(name=key, data=array)
            file.attrs["pickle"] = str(trap)
    train, valid = ids[: counts[0]], ids[counts[0] : counts[0] + counts[1]]
    partition = {"train": train, "valid": valid, "test": ids[counts[0] + counts[1] :]}
    halved = {**partition, "train": train[: max(1, len(train) // 2)]}
    for title, content in (
        ("default_partition", partition),
        ("0.50x_train_partition", halved),
        ("1.00x_train_partition", partition),
        ("label_map", labels),
        ("band_stats", {}),
    ):
        (folder / f"{title}.json").write_text(json.dumps(content, indent=2))
    (folder / "task_specs.pkl").write_bytes(trap)
    return folder
