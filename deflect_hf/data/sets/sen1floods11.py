"""Sen1Floods11, hand-labelled: open water in Sentinel-2 images of eleven flood events.

Layout of the release (v1.1): ``data/flood_events/HandLabeled/{S2Hand,LabelHand}/{event}_{id}_{S2Hand,LabelHand}.tif``,
13 bands of Sentinel-2 L1C x 10000 and labels 0, 1 and -1 for not valid;
``splits/flood_handlabeled/flood_{train,valid,test,bolivia}_data.csv`` with lines ``S1 file,label file``. The radar
images (S1Hand) are not read. Bolivia is an event of its own, kept apart to test on: give its file as ``test_split``.

Source: Bonafilia et al. 2020; https://github.com/cloudtostreet/Sen1Floods11.
"""

from __future__ import annotations

from pathlib import Path

from deflect_hf.config.data import DatasetArguments
from deflect_hf.config.readers import SPLIT_FILES
from deflect_hf.data.dataset import ImageDataset
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.data.public import PublicDataset, Row, build_splits
from deflect_hf.data.release import find_release, folder_files, problems_of, split_rows
from deflect_hf.errors import ConfigError
from deflect_hf.spectral.sensors import get_sensor

IMAGES = "data/flood_events/HandLabeled/S2Hand"
MASKS = "data/flood_events/HandLabeled/LabelHand"
SPLITS = "splits/flood_handlabeled"
BUCKET = "gs://sen1floods11/v1.1"
DATASET = PublicDataset(
    name="sen1floods11",
    title="Sen1Floods11",
    task="segmentation",
    keys=frozenset(SPLIT_FILES),
    sensor=get_sensor("sentinel2_l1c_harmonized"),  # all of 2016 to 2019, before processing baseline 04.00
    gsd_m=10.0,
    classes=("Not water", "Water"),
    class_values=(0, 1),
    ignore_values=(-1,),
    counts={"train": 252, "val": 89, "test": 90},
    source="https://github.com/cloudtostreet/Sen1Floods11",
    license="not stated",
    citation="Bonafilia et al., CVPR Workshops, 2020",
    folder="v1.1",
    marks=(SPLITS, IMAGES),
)


def load(args: DatasetArguments, processor: MultispectralImageProcessor | None = None) -> dict[str, ImageDataset]:
    """Build the splits of the hand-labelled images as their split files list them."""
    if args.download:
        root = Path(str(args.root)) / DATASET.folder
        commands = (f"gsutil -m rsync -r {BUCKET}/{part} {root / part}" for part in (IMAGES, MASKS, "splits"))
        raise ConfigError(
            f"`download`: Sen1Floods11 lies in a bucket of single files, without an archive. Remove `download` and "
            f"fetch it with: mkdir -p {root}/{{{IMAGES},{MASKS},splits}}; {'; '.join(commands)}"
        )
    root = find_release(DATASET, args)
    images, masks = folder_files(root / IMAGES), folder_files(root / MASKS)

    def row_of(line: str) -> tuple[Row, list[str]]:
        radar, _, label = (cell.strip() for cell in line.partition(","))
        name = radar.removesuffix(".tif").removesuffix("_S1Hand").removesuffix("_S2Hand")
        image, mask = f"{name}_S2Hand.tif", label or f"{name}_LabelHand.tif"
        problems = problems_of([image], images, IMAGES) + problems_of([mask], masks, MASKS)
        return {"name": name, "image": str(root / IMAGES / image), "mask": str(root / MASKS / mask)}, problems

    published = {"train": "train", "val": "valid", "test": "test"}
    files = {
        split: getattr(args, f"{split}_split") or f"{SPLITS}/flood_{name}_data.csv" for split, name in published.items()
    }
    return build_splits(DATASET, split_rows(DATASET, root, files, row_of), args, processor)
