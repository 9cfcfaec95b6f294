"""Data sets of other tasks out of those of one class per image or pixel.

    python examples/make_tasks.py pairs EUROSAT FOLDER      two chips side by side, the classes of both: multi_label
    python examples/make_tasks.py ndvi BURN FOLDER          the vegetation index of each pixel: pixel_regression
    python examples/make_tasks.py share BURN FOLDER         tiles, and how much of each has burnt: regression

EUROSAT has one sub-folder of images per class; BURN has images/ with the bands B G R N S2, masks/, and train.txt,
val.txt and test.txt. A chip is in the pairs of one split alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import rasterio

from deflect_hf.raster.write import write_raster

SPLITS = ("train", "val", "test")
PAIRS = 3  # of each chip
TILE = 64
NODATA = -9999.0


def read(path: Path) -> np.ndarray:
    """(C, H, W) stored values."""
    with rasterio.open(path) as source:
        return source.read()


def pairs(source: Path, target: Path) -> None:
    """Chips of each class: 10 to train, 3 to validate, 3 to test; every chip beside three of other classes."""
    random = np.random.default_rng(0)
    classes = sorted(folder.name for folder in source.iterdir() if folder.is_dir())
    chips = {name: sorted((source / name).glob("*.tif")) for name in classes}
    lines = ["name,labels"]
    for split, part in zip(SPLITS, (slice(0, 10), slice(10, 13), slice(13, 16)), strict=True):
        names = []
        for left in classes:
            for chip in chips[left][part]:
                for right in random.choice([name for name in classes if name != left], PAIRS, replace=False):
                    other = chips[right][part][random.integers(len(chips[right][part]))]
                    names.append(f"{chip.stem}-{other.stem}")
                    write_raster(target / "images" / f"{names[-1]}.tif", np.concatenate([read(chip), read(other)], -1))
                    lines.append(f"{names[-1]},{left};{right}")
        (target / f"{split}.txt").write_text("\n".join(names))
    (target / "labels.csv").write_text("\n".join(lines))


def ndvi(source: Path, target: Path) -> None:
    """The images as they are, and float masks; nodata where a band has none."""
    for path in sorted((source / "images").glob("*.tif")):
        values = read(path)
        red, infrared = values[2].astype(float), values[3].astype(float)
        measured = (values > 0).all(axis=0)
        index = np.divide(infrared - red, infrared + red, out=np.full(red.shape, NODATA), where=measured)
        write_raster(target / "masks" / path.name, index[None].astype(np.float32), nodata=NODATA)
        write_raster(target / "images" / path.name, values, descriptions=["B", "G", "R", "N", "S2"])
    for split in SPLITS:
        (target / f"{split}.txt").write_text((source / f"{split}.txt").read_text())


def share(source: Path, target: Path) -> None:
    """Tiles of 64 x 64 pixels without overlap, and the percentage of each that lies in a fire's perimeter."""
    lines = ["name,burnt"]
    for split in SPLITS:
        names = []
        for scene in (source / f"{split}.txt").read_text().split():
            values, mask = read(source / "images" / f"{scene}.tif"), read(source / "masks" / f"{scene}.png")[0]
            for row in range(0, mask.shape[0] - TILE + 1, TILE):
                for column in range(0, mask.shape[1] - TILE + 1, TILE):
                    window = slice(row, row + TILE), slice(column, column + TILE)
                    names.append(f"{scene}-{row}-{column}")
                    tile = target / "images" / f"{names[-1]}.tif"
                    write_raster(tile, values[:, *window], descriptions=["B", "G", "R", "N", "S2"])
                    lines.append(f"{names[-1]},{100 * (mask[window] == 1).mean():.2f}")
        (target / f"{split}.txt").write_text("\n".join(names))
    (target / "labels.csv").write_text("\n".join(lines))


if __name__ == "__main__":
    kind, source, target = sys.argv[1:]
    {"pairs": pairs, "ndvi": ndvi, "share": share}[kind](Path(source), Path(target))
