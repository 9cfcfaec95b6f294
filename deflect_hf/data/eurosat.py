"""EuroSAT with all 13 bands, as ``EuroSATallBands.zip`` unpacks, with the splits of the benchmark papers.

``ds/images/remote_sensing/otherDatasets/sentinel_2/tif/Forest/Forest_1.tif``, and beside ``ds/`` the lists
``eurosat-train.txt``, ``eurosat-val.txt`` and ``eurosat-test.txt``, whose lines end in ``.jpg``. Band B8A is the last.
The class folders may also lie directly in the root.

Sources: torchgeo (torchgeo/datasets/eurosat.py: checksums, band order); Neumann et al. 2019 (arXiv 1911.06721: splits).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data.band_order import check_eurosat
from deflect_hf.data.dataset import ImageDataset
from deflect_hf.data.download import fetch_from_hub
from deflect_hf.data.folder_reader import FolderReader
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.data.public import PublicDataset, Row, build_splits, split_rows
from deflect_hf.data.release import Release, folder_files
from deflect_hf.spectral.sensors import SENSORS

logger = logging.getLogger(__name__)

REPO_ID = "torchgeo/eurosat"
REVISION = "1ce6f1bfb56db63fd91b6ecc466ea67f2509774c"
ARCHIVE_MD5 = "5ac12b3b2557aa56e1826e981e8e200e"
IMAGES = "ds/images/remote_sensing/otherDatasets/sentinel_2/tif"
SPLITS: Mapping[str, tuple[str, str]] = MappingProxyType(  # file, md5
    {
        "train": ("eurosat-train.txt", "908f142e73d6acdf3f482c5e80d851b1"),
        "val": ("eurosat-val.txt", "95de90f2aa998f70a3b2416bfe0687b4"),
        "test": ("eurosat-test.txt", "7ae5ab94471417b6e315763121e67c5f"),
    }
)
_SAMPLE = 16  # files whose values are looked at to tell the band order

EUROSAT = PublicDataset(
    name="eurosat",
    title="EuroSAT",
    task="classification",
    sensor=SENSORS["eurosat"],
    gsd_m=10.0,
    classes=(
        "AnnualCrop",
        "Forest",
        "HerbaceousVegetation",
        "Highway",
        "Industrial",
        "Pasture",
        "PermanentCrop",
        "Residential",
        "River",
        "SeaLake",
    ),
    counts=MappingProxyType({"train": 16200, "val": 5400, "test": 5400}),
    source=f"https://huggingface.co/datasets/{REPO_ID}",
    licence="MIT; contains modified Copernicus Sentinel data",
    citation="Helber et al. 2019, EuroSAT (IEEE JSTARS 12)",
)
RELEASE = Release(EUROSAT, "eurosat", (IMAGES, EUROSAT.classes[0]))


def load_eurosat(
    args: DatasetArguments, processor: MultispectralImageProcessor | None = None
) -> dict[str, ImageDataset]:
    """Load EuroSAT.

    Raises:
        DataError: Files are missing, file by file, or damaged; or their bands are in another order.
        BandError: A wanted band is not in the set.
        UnitError: A trained model expects another unit.
    """
    root = RELEASE.find(
        args, lambda folder: fetch_from_hub(REPO_ID, "EuroSATallBands.zip", folder, md5=ARCHIVE_MD5, revision=REVISION)
    )
    for file, md5 in SPLITS.values():
        if args.download and not (root / file).is_file():
            fetch_from_hub(REPO_ID, file, root, md5=md5, revision=REVISION)
        elif (root / file).is_file() and hashlib.md5((root / file).read_bytes()).hexdigest() != md5:
            logger.warning("%s is not the published list: results do not compare with published ones", root / file)
    base = root / IMAGES if (root / IMAGES).is_dir() else root
    files = {name: folder_files(base / name) for name in EUROSAT.classes}
    rows = split_rows(
        EUROSAT, root, {split: file for split, (file, _) in SPLITS.items()}, lambda line: _row(line, base, files)
    )
    everything = [row for members in rows.values() for row in members]
    whole = _reader(tuple(EUROSAT.sensor.codes))
    sample = [whole.read(row) for row in everything[:: -(-len(everything) // _SAMPLE)]]
    check_eurosat(EUROSAT.title, [dict(zip(stored.bands, stored.values, strict=True)) for stored in sample])
    return build_splits(EUROSAT, rows, _reader, args, processor)


def _reader(bands: tuple[str, ...]) -> FolderReader:
    """The files name no bands: the sensor's order is theirs."""
    return FolderReader(bands, bands, None, EUROSAT.sensor)


def _row(line: str, base: Path, files: Mapping[str, Mapping[str, int]]) -> tuple[Row, list[str]]:
    """The row of a line such as ``Forest_1.jpg``, and what is wrong with its file."""
    name = line.rsplit(".", 1)[0]
    label = name.rsplit("_", 1)[0]
    if label not in EUROSAT.classes:
        return {"name": name}, [f"{line!r} is of no known class"]
    size = files[label].get(f"{name}.tif", -1)
    row = {"name": name, "image": str(base / label / f"{name}.tif"), "label": EUROSAT.classes.index(label)}
    return row, [] if size > 0 else [f"{label}/{name}.tif is {'empty' if size == 0 else 'missing'}"]
