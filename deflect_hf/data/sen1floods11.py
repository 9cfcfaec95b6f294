"""Sen1Floods11, hand-labelled: open water in Sentinel-2 images of eleven flood events.

Layout of the release (v1.1): ``data/flood_events/HandLabeled/{S2Hand,LabelHand}/{event}_{id}_{S2Hand,LabelHand}.tif``,
13 bands of Sentinel-2 L1C x 10000 and labels 0, 1 and -1 for not valid;
``splits/flood_handlabeled/flood_{train,valid,test,bolivia}_data.csv`` with lines ``S1 file,label file``. The radar
images (S1Hand) are not read. Bolivia is an event of its own, kept apart to test on: give its file as ``test_split``.

Source: Bonafilia et al. 2020; https://github.com/cloudtostreet/Sen1Floods11.
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data.dataset import ImageDataset
from deflect_hf.data.pairs import PairReader
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.data.public import PublicDataset, Row, build_splits, split_rows
from deflect_hf.data.release import Release, folder_files
from deflect_hf.errors import ConfigError
from deflect_hf.spectral.sensors import get_sensor

SEN1FLOODS11 = PublicDataset(
    name="sen1floods11",
    title="Sen1Floods11",
    task="segmentation",
    sensor=get_sensor("sentinel2_l1c_harmonized"),  # all of 2016 to 2019, before processing baseline 04.00
    gsd_m=10.0,
    classes=("Not water", "Water"),
    class_values=(0, 1),
    ignore_values=(-1,),
    counts=MappingProxyType({"train": 252, "val": 89, "test": 90}),
    source="https://github.com/cloudtostreet/Sen1Floods11",
    licence="not stated",
    citation="Bonafilia et al., CVPR Workshops, 2020",
)
IMAGES = "data/flood_events/HandLabeled/S2Hand"
MASKS = "data/flood_events/HandLabeled/LabelHand"
SPLIT_FILES = MappingProxyType(
    {
        "train": "splits/flood_handlabeled/flood_train_data.csv",
        "val": "splits/flood_handlabeled/flood_valid_data.csv",
        "test": "splits/flood_handlabeled/flood_test_data.csv",
    }
)
RELEASE = Release(SEN1FLOODS11, folder="v1.1", marks=("splits/flood_handlabeled", IMAGES))
BUCKET = "gs://sen1floods11/v1.1"


def load_sen1floods11(
    args: DatasetArguments, processor: MultispectralImageProcessor | None = None
) -> dict[str, ImageDataset]:
    """Build the splits of the hand-labelled images as their split files list them.

    Raises:
        ConfigError: ``download`` is asked for; the message says how to fetch the data.
        DataError: The folder is not there or not complete; the message names the files.
        BandError: A wanted band is not among the 13.
    """
    if args.download:
        root = Path(str(args.root)) / RELEASE.folder
        commands = (f"gsutil -m rsync -r {BUCKET}/{part} {root / part}" for part in (IMAGES, MASKS, "splits"))
        raise ConfigError(
            f"`download`: Sen1Floods11 lies in a bucket of single files, without an archive. Remove `download` and "
            f"fetch it with: mkdir -p {root}/{{{IMAGES},{MASKS},splits}}; {'; '.join(commands)}"
        )
    root = RELEASE.find(args)
    sizes = {folder: folder_files(root / folder) for folder in (IMAGES, MASKS)}

    def row_of(line: str) -> tuple[Row, list[str]]:
        radar, _, label = (cell.strip() for cell in line.partition(","))
        name = radar.removesuffix(".tif").removesuffix("_S1Hand").removesuffix("_S2Hand")
        used = {IMAGES: f"{name}_S2Hand.tif", MASKS: label or f"{name}_LabelHand.tif"}
        problems = [
            f"{folder}/{file} is {'missing' if file not in sizes[folder] else 'empty'}"
            for folder, file in used.items()
            if not sizes[folder].get(file)
        ]
        return {
            "name": name,
            "image": str(root / IMAGES / used[IMAGES]),
            "mask": str(root / MASKS / used[MASKS]),
        }, problems

    files = {split: getattr(args, f"{split}_split") or file for split, file in SPLIT_FILES.items()}
    rows = split_rows(SEN1FLOODS11, root, files, row_of)
    return build_splits(SEN1FLOODS11, rows, lambda bands: PairReader(SEN1FLOODS11, bands), args, processor)
