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
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
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
from deflect_hf.data.release import find_release, folder_files, split_rows
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
_BAND_FILE = re.compile(r"(?P<scene>.+)_L2R_rhorc_(?P<nm>\d+)_(?P<crop>[^_]+)\.tif")
_MASK_FILE = re.compile(r"(?P<scene>.+)_L2R_cl_(?P<crop>[^_]+)\.tif")


@dataclass(frozen=True)
class MadosReader:
    """Reads one crop: its bands brought to the 10 m grid of its mask.

    Attributes:
        bands: Codes of the bands to read, in ascending wavelength.
        resampling: ``"nearest"`` repeats each pixel 2 or 6 times, ``"bilinear"`` interpolates between valid ones.
    """

    bands: tuple[str, ...]
    resampling: str

    def read(self, row: Mapping[str, Any]) -> Stored:
        """Read the crop of a row.

        Raises:
            DataError: A file is damaged or has not the size of its resolution folder.
        """
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
    """Build the splits of MADOS as its split files list them.

    Raises:
        DataError: The folder is not there or not complete; the message names the files.
        BandError: A wanted band is not among the 11.
    """
    root = find_release(DATASET, args)
    files = {split: getattr(args, f"{split}_split") or f"splits/{split}_X.txt" for split in SPLITS}
    scenes: dict[str, Scene] = {}

    def row_of(crop: str) -> tuple[Row, list[str]]:
        scene, _, number = crop.rpartition("_")
        if not scene:
            return {"name": crop}, [f"{crop!r} is no crop, such as 'Scene_0_1'"]
        if scene not in scenes:
            scenes[scene] = Scene.scan(root, scene)
        return scenes[scene].row(crop, number)

    rows = split_rows(DATASET, root, files, row_of)
    return build_splits(DATASET, rows, args, processor, lambda bands: MadosReader(bands, args.resampling))


@dataclass(frozen=True)
class Scene:
    """The files of one scene.

    Attributes:
        bands: (pixel size in metres, crop) -> wavelength in nm -> file name.
        masks: Crop -> file name of its labels.
        sizes: (pixel size in metres, file name) -> size in bytes.
    """

    folder: Path
    bands: Mapping[tuple[int, str], Mapping[int, str]]
    masks: Mapping[str, str]
    sizes: Mapping[tuple[int, str], int]

    @classmethod
    def scan(cls, root: Path, name: str) -> Scene:
        """List the three folders of a scene, once for all of its crops."""
        folder = root / name
        bands: dict[tuple[int, str], dict[int, str]] = defaultdict(dict)
        masks: dict[str, str] = {}
        sizes: dict[tuple[int, str], int] = {}
        for gsd_m in BANDS_BY_GSD:
            for file, size in folder_files(folder / str(gsd_m)).items():
                sizes[gsd_m, file] = size
                if match := _BAND_FILE.fullmatch(file):
                    bands[gsd_m, match["crop"]][int(match["nm"])] = file
                elif gsd_m == 10 and (match := _MASK_FILE.fullmatch(file)):
                    masks[match["crop"]] = file
        return cls(folder, dict(bands), masks, sizes)

    def row(self, name: str, crop: str) -> tuple[Row, list[str]]:
        """The row of a crop, bands in ascending wavelength, and what is wrong with its files."""
        if not self.sizes:
            return {"name": name}, [f"{self.folder.name}/ is missing or has no files"]
        found = {gsd_m: self.bands.get((gsd_m, crop), {}) for gsd_m in BANDS_BY_GSD}
        mask = self.masks.get(crop)
        if mask is None and not any(found.values()):
            return {"name": name}, [f"{self.folder.name} has no crop {crop}"]
        mask_file = mask or f"{self.folder.name}_L2R_cl_{crop}.tif"
        problems = [] if mask is not None else [f"{self.folder.name}/10/{mask_file} is missing"]
        for gsd_m, files in found.items():
            problems += self._missing(gsd_m, crop, files)
        used = [(10, mask_file), *((gsd_m, file) for gsd_m, files in found.items() for file in files.values())]
        problems += [f"{self.folder.name}/{gsd_m}/{file} is empty" for gsd_m, file in used
                     if self.sizes.get((gsd_m, file)) == 0]  # fmt: skip
        by_nm = {nm: self.folder / str(gsd_m) / file for gsd_m, files in found.items() for nm, file in files.items()}
        row = {
            "name": name,
            "bands": [str(by_nm[nm]) for nm in sorted(by_nm)],
            "mask": str(self.folder / "10" / mask_file),
        }
        return row, problems

    def _missing(self, gsd_m: int, crop: str, files: Mapping[int, str]) -> list[str]:
        """Bands that one resolution lacks, by file name where other crops of the scene tell it, or has too many."""
        lacking = BANDS_BY_GSD[gsd_m] - len(files)
        where = f"{self.folder.name}/{gsd_m}"
        elsewhere = {nm for (gsd, _), others in self.bands.items() if gsd == gsd_m for nm in others} - set(files)
        if lacking > 0 and len(elsewhere) == lacking:
            return [f"{where}/{self.folder.name}_L2R_rhorc_{nm}_{crop}.tif is missing" for nm in sorted(elsewhere)]
        if lacking:
            known = f" ({', '.join(f'{nm} nm' for nm in sorted(files))})" if files else ""
            return [f"{where} holds {len(files)} band(s) of crop {crop}{known} instead of {BANDS_BY_GSD[gsd_m]}"]
        return []
