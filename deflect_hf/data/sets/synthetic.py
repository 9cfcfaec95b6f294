"""An embedded data set that needs no download: classes that differ in non-visible bands only.

Scenes are mosaics of regions. The visible bands of a region are a random mixture of measured land covers; its
near-infrared and short-wave bands come from the land cover of its *class*, drawn independently. So the distribution of
everything visible is the same for all classes (they are metamers): whoever sees RGB alone can only guess, while the
edges of the regions, and the light and texture on them, are in every band.

Source: 120 Landsat 8 reflectance samples of urban, vegetation and water surfaces bundled with spyndex ("spectral").
The red edge bands in between are our interpolation; the combinations of visible and non-visible do not exist outdoors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import spyndex
import torch
import torch.nn.functional as F

from deflect_hf.config.data import DatasetArguments
from deflect_hf.config.readers import DatasetSpec
from deflect_hf.config.tasks import TASKS
from deflect_hf.data.dataset import ImageDataset, Labels, Stored, make_datasets
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.data.splits import limited, split_indices
from deflect_hf.errors import BandError, ConfigError, listing
from deflect_hf.spectral.selection import resolve_bands

DATASET = DatasetSpec(
    name="synthetic",
    title="synthetic scenes",
    task="classification",  # unless `task` says segmentation
    keys=frozenset(
        ["task", "num_samples", "noise", "ignore_index", "val_fraction", "test_fraction", "num_folds", "fold"]
    ),
)
MEASURED = ("A", "B", "G", "R", "N", "S1", "S2")  # the columns SR_B1 .. SR_B7 of the bundled samples
VISIBLE = 4  # the first four of them
# class -> share of each measured land cover in its non-visible bands
CLASSES: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "water": {"Water": 1.0},
        "vegetation": {"Vegetation": 1.0},
        "bare": {"Urban": 1.0},
        "wetland": {"Vegetation": 0.5, "Water": 0.5},
    }
)
# band -> how it is made of the measured ones
MIXED: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        **{code: {code: 1.0} for code in MEASURED},
        "RE1": {"R": 0.8, "N": 0.2},
        "RE2": {"R": 0.1, "N": 0.9},
        "RE3": {"R": 0.02, "N": 0.98},
        "N2": {"N": 1.0},
        "WV": {"N": 0.9, "S1": 0.1},
    }
)
SCALE = 1e-4
GSD_M = 30.0
SIZE = (64, 64)
REGIONS = 6
MAIN_SHARE = 0.65  # the class of a scene covers at least this share of it
FIELD_CELLS = 5  # coarseness of the region fields: cells across the image


@dataclass(frozen=True)
class SyntheticReader:
    """Makes the scene of a row, always the same one for the same seed and index, whatever the bands."""

    bands: tuple[str, ...]
    task: str
    size: tuple[int, int]
    seed: int
    noise: float  # standard deviation of the sensor noise, in reflectance
    library: Mapping[str, np.ndarray]  # land cover -> (n, 7) measured reflectances in the order of MEASURED

    def read(self, row: Mapping[str, Any]) -> Stored:
        """Make the scene: int16 digital numbers (C, H, W), and its class or its (H, W) mask."""
        rng = np.random.default_rng([self.seed, row["index"]])
        regions = smooth_fields(rng, REGIONS, self.size, FIELD_CELLS).argmax(axis=0)
        if self.task == "classification":
            classes = self._around_main_class(rng, regions, row["label"])
        else:
            classes = rng.integers(len(CLASSES), size=REGIONS)
        spectra = np.stack([self._region_spectrum(rng, kind) for kind in classes])
        light = 1.0 + 0.12 * smooth_fields(rng, 1, self.size, 3)[0] + 0.06 * smooth_fields(rng, 1, self.size, 16)[0]
        measured = spectra[regions].transpose(2, 0, 1) * np.clip(light, 0.4, 1.6)
        mixing = np.array([[parts.get(code, 0.0) for code in MEASURED] for parts in MIXED.values()])
        scene = np.einsum("bm,mhw->bhw", mixing, measured)
        scene += self.noise * rng.standard_normal(scene.shape)
        positions = [list(MIXED).index(code) for code in self.bands]
        values = np.round(scene[positions] / SCALE).astype(np.int16)
        target = row["label"] if self.task == "classification" else classes[regions].astype(np.uint8)
        return Stored(values, self.bands, target, where=f"synthetic {row['name']}")

    def _around_main_class(self, rng: np.random.Generator, regions: np.ndarray, label: int) -> np.ndarray:
        """Give regions, in random order, the scene's class until it covers MAIN_SHARE, and others to the rest."""
        areas = np.bincount(regions.ravel(), minlength=REGIONS) / regions.size
        order = rng.permutation(REGIONS)
        covered = np.cumsum(areas[order]) - areas[order]  # before each region
        others = (label + rng.integers(1, len(CLASSES), size=REGIONS)) % len(CLASSES)
        classes = np.empty(REGIONS, dtype=np.int64)
        classes[order] = np.where(covered < MAIN_SHARE, label, others)
        return classes

    def _region_spectrum(self, rng: np.random.Generator, kind: int) -> np.ndarray:
        """(7,) reflectance: visible bands from a random mixture, the others from the land cover of the class."""
        sample = {cover: spectra[rng.integers(len(spectra))] for cover, spectra in self.library.items()}
        visible = rng.dirichlet(np.ones(len(sample))) @ np.stack(list(sample.values()))
        shares = list(CLASSES.values())[kind]
        hidden = np.sum([share * sample_of(rng, self.library[cover]) for cover, share in shares.items()], axis=0)
        return np.concatenate([visible[:VISIBLE], hidden[VISIBLE:]])


def sample_of(rng: np.random.Generator, spectra: np.ndarray) -> np.ndarray:
    """A spectrum between two measured ones of the same land cover."""
    first, second = spectra[rng.integers(len(spectra), size=2)]
    share = rng.random()
    return share * first + (1.0 - share) * second


def smooth_fields(rng: np.random.Generator, count: int, size: tuple[int, int], cells: int) -> np.ndarray:
    """(count, H, W) smooth random fields of about unit variance, with ``cells`` cells across the image."""
    coarse = torch.from_numpy(rng.standard_normal((1, count, cells + 1, cells + 1)))
    return F.interpolate(coarse, size=size, mode="bicubic", align_corners=True)[0].numpy()


def spectral_library() -> dict[str, np.ndarray]:
    """Land cover -> (n, 7) measured reflectances, bands in the order of MEASURED."""
    samples = spyndex.datasets.open("spectral")
    columns = [f"SR_B{number}" for number in range(1, len(MEASURED) + 1)]
    return {cover: group[columns].to_numpy() for cover, group in samples.groupby("class")}


def _processor(args: DatasetArguments, trained: MultispectralImageProcessor | None) -> MultispectralImageProcessor:
    """Digital numbers of the scenes -> reflectance, for the bands of the config or of a trained model."""
    bands = resolve_bands(args.bands if args.bands is not None else MEASURED) if trained is None else trained.bands
    unknown = [band for band in (bands if trained is None else trained.needed_bands) if band not in MIXED]
    if unknown:
        raise BandError(f"Data set 'synthetic' has no band {listing(unknown)}: choose among {listing(MIXED)}.")
    made = [band for band in bands if band in MIXED]
    return MultispectralImageProcessor.for_images(
        "synthetic", made, trained, scale=SCALE, unit_check=args.unit_check, gsd_m=GSD_M
    )


def load(args: DatasetArguments, processor: MultispectralImageProcessor | None = None) -> dict[str, ImageDataset]:
    """Build the splits of the synthetic set, classes balanced; bands and size of a trained ``processor`` stand."""
    task = args.task or "classification"
    if TASKS[task].output != "class":
        raise ConfigError(f"'synthetic' makes scenes of classes: task is classification or segmentation, not {task}.")
    processor = _processor(args, processor)
    made = tuple(band for band in processor.bands if band in MIXED)
    size = SIZE if args.size is None else (args.size[0], args.size[1])
    reader = SyntheticReader(made, task, size, args.seed, args.noise, spectral_library())
    rows: list[dict[str, Any]] = [{"name": f"scene-{i:05d}", "index": i} for i in range(args.num_samples)]
    if task == "classification":
        rows = [{**row, "label": row["index"] % len(CLASSES)} for row in rows]
    splits = split_indices([row.get("label") for row in rows], args)
    labels = Labels(task, tuple(CLASSES), tuple(range(len(CLASSES))), ignore_index=args.ignore_index)
    chosen = {split: [rows[i] for i in members] for split, members in splits.items()}
    chosen["train"] = limited(chosen["train"], args)
    gsd_m = processor.effective_gsd_m(size[0])
    return make_datasets(chosen, reader, processor, labels, gsd_m, args.seed, "synthetic")
