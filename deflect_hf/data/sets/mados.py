"""MADOS: marine debris and oil spills in Sentinel-2 images, sparsely labelled.

Layout of the release: ``Scene_{X}/{10,20,60}/Scene_{X}_L2R_rhorc_{nm}_{crop}.tif``, one band per file, float32
Rayleigh-corrected reflectance, NaN where nothing was measured; labels ``Scene_{X}/10/Scene_{X}_L2R_cl_{crop}.tif`` with
0 for not labelled and 1 to 15; ``splits/{train,val,test}_X.txt`` with one ``Scene_{X}_{crop}`` a line. The wavelengths
in the file names differ by satellite (S2A, S2B), so bands are taken in ascending order.

Source: Kikaki et al. 2024, https://doi.org/10.5281/zenodo.10664073; https://github.com/gkakogeorgiou/mados
(utils/dataset.py, utils/stack_patches.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deflect_hf.config.data import DatasetArguments
from deflect_hf.config.readers import SPLIT_FILES
from deflect_hf.data.dataset import ImageDataset, Stored
from deflect_hf.data.download import fetch_from_zenodo
from deflect_hf.data.processor import MultispectralImageProcessor, resize
from deflect_hf.data.public import PublicDataset, Row, build_splits
from deflect_hf.data.release import find_release, folder_files, problems_of, split_rows
from deflect_hf.data.splits import SPLITS
from deflect_hf.errors import BandError, DataError
from deflect_hf.raster.read import read_mask, read_raster
from deflect_hf.spectral.sensors import get_sensor

DOI = "10.5281/zenodo.10664073"
DATASET = PublicDataset(
    name="mados",
    title="MADOS",
    task="segmentation",
    keys=frozenset({"resampling", *SPLIT_FILES}),
    sensor=get_sensor("mados"),
    gsd_m=10.0,
    classes=(
        *("Marine Debris", "Dense Sargassum", "Sparse Floating Algae", "Natural Organic Material", "Ship"),
        *("Oil Spill", "Marine Water", "Sediment-Laden Water", "Foam", "Turbid Water"),
        *("Shallow Water", "Waves & Wakes", "Oil Platform", "Jellyfish", "Sea snot"),
    ),
    class_values=tuple(range(1, 16)),
    ignore_values=(0,),
    counts={"train": 1433, "val": 642, "test": 728},
    source=f"https://doi.org/{DOI}",
    license="CC BY 4.0",
    citation="Kikaki et al., ISPRS Journal of Photogrammetry and Remote Sensing, 2024",
    folder="MADOS",
    marks=("splits",),
    fetch=partial(fetch_from_zenodo, DOI, "MADOS.zip"),
)
BANDS_BY_GSD = {10: 4, 20: 6, 60: 1}  # pixel size in metres -> number of bands
_BAND_FILE = re.compile(r".+_L2R_rhorc_(?P<nm>\d+)_(?P<crop>[^_]+)\.tif")


@dataclass(frozen=True)
class MadosReader:
    """Reads one crop: its bands brought to the 10 m grid of its mask."""

    bands: tuple[str, ...]  # codes of the bands to read, in ascending wavelength
    resampling: str  # ``"nearest"`` repeats each pixel 2 or 6 times, ``"bilinear"`` interpolates between valid ones

    def read(self, row: Mapping[str, Any]) -> Stored:
        """Read the crop of a row."""
        mask = read_mask(row["mask"])
        size = mask.values.shape[-2:]
        codes = DATASET.sensor.codes
        planes = [self._plane(row["bands"][codes.index(code)], code, size) for code in self.bands]
        values = np.concatenate(planes)
        return Stored(values, self.bands, mask.values[0], row["name"], None, mask.valid[0], row["mask"])

    def _plane(self, path: str, code: str, size: tuple[int, ...]) -> np.ndarray:
        """(1, H, W) float32 reflectance of one band on the 10 m grid, NaN where it is no measurement."""
        factor = int(Path(path).parent.name) // 10
        try:
            raster = read_raster(path, source_bands=[code])
        except BandError as error:
            raise DataError(f"{path} is not the single band {code!r}: copy the file again.") from error
        height, width = raster.values.shape[-2:]
        if (height * factor, width * factor) != tuple(size):
            raise DataError(
                f"{path} is {height} x {width} pixels: in the folder of {10 * factor} m bands, {factor} times that "
                f"must be the {size[0]} x {size[1]} of its mask. Copy the file again."
            )
        values = np.where(raster.valid, raster.values, np.nan).astype(np.float32)
        if self.resampling == "bilinear":
            return resize(torch.from_numpy(values), (size[0], size[1])).numpy()
        return values.repeat(factor, axis=-2).repeat(factor, axis=-1)


def load(args: DatasetArguments, processor: MultispectralImageProcessor | None = None) -> dict[str, ImageDataset]:
    """Build the splits of MADOS as its split files list them."""
    root = find_release(DATASET, args)
    files = {split: getattr(args, f"{split}_split") or f"splits/{split}_X.txt" for split in SPLITS}

    @cache
    def sizes_in(folder: str) -> dict[str, int]:
        return folder_files(root / folder)

    rows = split_rows(DATASET, root, files, lambda crop: crop_row(crop, root, sizes_in))
    return build_splits(DATASET, rows, args, processor, lambda bands: MadosReader(bands, args.resampling))


def crop_row(name: str, root: Path, sizes_in: Callable[[str], Mapping[str, int]]) -> tuple[Row, list[str]]:
    """The row of a crop, bands in ascending wavelength, and what is wrong with its files.

    Args:
        sizes_in: From a folder below ``root`` to the size of each file in it.
    """
    scene, _, crop = name.rpartition("_")
    if not scene:
        return {"name": name}, [f"{name!r} is no crop, such as 'Scene_0_1'"]
    folders = {gsd_m: f"{scene}/{gsd_m}" for gsd_m in BANDS_BY_GSD}
    if not any(map(sizes_in, folders.values())):
        return {"name": name}, [f"{scene}/ is missing or has no files"]
    if not any(file.endswith(f"_{crop}.tif") for file in sizes_in(folders[10])):
        return {"name": name}, [f"{scene} has no crop {crop}"]
    mask = f"{scene}_L2R_cl_{crop}.tif"
    problems = problems_of([mask], sizes_in(folders[10]), folders[10])
    path_of: dict[int, str] = {}
    for gsd_m, folder in folders.items():
        published, sizes = BANDS_BY_GSD[gsd_m], sizes_in(folder)
        matches = filter(None, map(_BAND_FILE.fullmatch, sizes))
        found = dict(sorted((int(match["nm"]), match.string) for match in matches if match["crop"] == crop))
        problems += problems_of(found.values(), sizes, folder)
        if len(found) != published:
            known = f" ({', '.join(f'{nm} nm' for nm in found)})" if found else ""
            problems.append(f"{folder} holds {len(found)} band(s) of crop {crop}{known} instead of {published}")
        path_of |= {nm: str(root / folder / file) for nm, file in found.items()}
    bands = [path_of[nm] for nm in sorted(path_of)]
    return {"name": name, "bands": bands, "mask": str(root / folders[10] / mask)}, problems
