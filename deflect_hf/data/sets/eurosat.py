"""EuroSAT with all 13 bands, as ``EuroSATallBands.zip`` unpacks, with the splits of the benchmark papers.

``ds/images/remote_sensing/otherDatasets/sentinel_2/tif/Forest/Forest_1.tif``, and beside ``ds/`` the lists
``eurosat-train.txt``, ``eurosat-val.txt`` and ``eurosat-test.txt``, whose lines end in ``.jpg``. Band B8A is the last.
The class folders may also lie directly in the root.

Sources: torchgeo (torchgeo/datasets/eurosat.py: checksums, band order); Neumann et al. 2019 (arXiv 1911.06721: splits);
phelber/EuroSAT issue 7 (the order of the bands).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from functools import partial

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data.dataset import ImageDataset
from deflect_hf.data.download import fetch_from_hub
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.data.public import PublicDataset, RasterReader, Row, build_splits
from deflect_hf.data.release import find_release, folder_files, problems_of, split_rows
from deflect_hf.errors import DataError
from deflect_hf.spectral.sensors import get_sensor

logger = logging.getLogger(__name__)

REPO_ID = "torchgeo/eurosat"
REVISION = "1ce6f1bfb56db63fd91b6ecc466ea67f2509774c"
ARCHIVE_MD5 = "5ac12b3b2557aa56e1826e981e8e200e"
IMAGES = "ds/images/remote_sensing/otherDatasets/sentinel_2/tif"
SPLITS = {  # file, md5
    "train": ("eurosat-train.txt", "908f142e73d6acdf3f482c5e80d851b1"),
    "val": ("eurosat-val.txt", "95de90f2aa998f70a3b2416bfe0687b4"),
    "test": ("eurosat-test.txt", "7ae5ab94471417b6e315763121e67c5f"),
}
CLASSES = (
    *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"),
    *("Pasture", "PermanentCrop", "Residential", "River", "SeaLake"),
)
_SAMPLE = 16  # files whose values are looked at to tell the band order
_DARKER = 3.0  # the cirrus band of EuroSAT is 150 times as dark as SWIR

DATASET = PublicDataset(
    name="eurosat",
    title="EuroSAT",
    task="classification",
    sensor=get_sensor("eurosat"),
    gsd_m=10.0,
    classes=CLASSES,
    counts={"train": 16200, "val": 5400, "test": 5400},
    source=f"https://huggingface.co/datasets/{REPO_ID}",
    license="MIT; contains modified Copernicus Sentinel data",
    citation="Helber et al. 2019, EuroSAT (IEEE JSTARS 12)",
    folder="eurosat",
    marks=(IMAGES, CLASSES[0]),
    fetch=partial(fetch_from_hub, REPO_ID, "EuroSATallBands.zip", md5=ARCHIVE_MD5, revision=REVISION),
)


def load(args: DatasetArguments, processor: MultispectralImageProcessor | None = None) -> dict[str, ImageDataset]:
    """Load EuroSAT."""
    root = find_release(DATASET, args)
    for file, md5 in SPLITS.values():
        if args.download and not (root / file).is_file():
            fetch_from_hub(REPO_ID, file, root, md5=md5, revision=REVISION)
        elif (root / file).is_file() and hashlib.md5((root / file).read_bytes()).hexdigest() != md5:
            logger.warning("%s is not the published list: results do not compare with published ones", root / file)
    base = root / IMAGES if (root / IMAGES).is_dir() else root
    sizes = {name: folder_files(base / name) for name in CLASSES}

    def row_of(line: str) -> tuple[Row, list[str]]:
        name = line.rsplit(".", 1)[0]
        label = name.rsplit("_", 1)[0]
        if label not in CLASSES:
            return {"name": name}, [f"{line!r} is of no known class"]
        row = {"name": name, "image": str(base / label / f"{name}.tif"), "label": CLASSES.index(label)}
        return row, problems_of([f"{name}.tif"], sizes[label], label)

    rows = split_rows(DATASET, root, {split: file for split, (file, _) in SPLITS.items()}, row_of)
    _check_order([row for members in rows.values() for row in members])
    return build_splits(DATASET, rows, args, processor)


def _check_order(rows: Sequence[Row]) -> None:
    """Refuse images in another order than the published one, B8A last, from a look at the values of some."""
    reader = RasterReader(DATASET, ("CIRRUS", "S1"))
    sample = [reader.read(row).values for row in rows[:: -(-len(rows) // _SAMPLE)]]
    cirrus, swir = (sum(float(image[band].mean()) for image in sample) / len(sample) for band in (0, 1))
    if swir * _DARKER < cirrus:
        raise DataError(
            f"EuroSAT: the tenth channel has a mean of {cirrus:.0f}, the eleventh of {swir:.0f}: cirrus, the dark one, "
            f"is in the eleventh place, so B8A is in the ninth and not the last as published. Read these files with "
            f"`name: folder` and `source_bands`."
        )
