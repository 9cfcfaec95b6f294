"""Whether the data loader keeps up: its images per second over those of a vision transformer's forward pass.

Without further flags three kinds of GeoTIFFs are generated: chips of 128 px with 7 bands and masks, read whole; scenes
of 512 px with 6 bands, of which crops of 224 px are read, flipped and turned; and a Cloud Optimized GeoTIFF of 1024 px
with 6 bands and polygons, from which windows of 224 px are drawn; the first two also as `--cache_images` keeps them.
Flags of train.py's groups dataset and augmentation measure the training split of that data set instead. Loader and
forward pass are measured in turns and apart from each other, with random RGB images of the size that the loader gives;
medians are printed. Without
workers (`--workers 0`), on the CPU, times are those of the processor.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.shutil
import torch

from deflect_hf.benchmark.cost import SIZES, make_vit
from deflect_hf.benchmark.flags import flag_parser, markdown, report
from deflect_hf.benchmark.meters import processor_seconds, timed
from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.data import AugmentationArguments, DatasetArguments
from deflect_hf.config.schema import Arguments
from deflect_hf.data import ImageDataset, build_transform, load_dataset_splits
from deflect_hf.data.order import Rank, training_loader
from deflect_hf.raster.write import write_raster
from tests.benchmarks import refuse_less
from tests.benchmarks.scenes import header, write_polygons

PATCH = 16
CHIP_BANDS = ("A", "B", "G", "R", "N", "S1", "S2")
SCENE_BANDS = ("B", "G", "R", "N2", "S1", "S2")
COLUMNS = "data | bands | pixels | workers | loader / forward | loader, images/s | forward, images/s"


class Data(Arguments):
    """What to load; flags and files as for train.py."""

    dataset: DatasetArguments = DatasetArguments()
    augmentation: AugmentationArguments = AugmentationArguments()


def main(argv: Sequence[str]) -> None:
    """Measure and print a Markdown table; the numbers go to `loader.json`.

    Raises:
        ConfigError: a number is too small.
    """
    parser = flag_parser("loader", __doc__, others="train.py's groups dataset and augmentation")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2], help="numbers of loader processes to try")
    parser.add_argument("--size", choices=list(SIZES), default="base", help="size of the vision transformer")
    parser.add_argument("--batch_size", type=int, default=8, help="images per batch")
    parser.add_argument("--images", type=int, default=96, help="images loaded per measurement")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each time")
    own, rest = parser.parse_known_args(argv)
    refuse_less(own, {"workers": 0, "batch_size": 1, "images": own.batch_size, "rounds": 1})
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        if rest:
            given = parse_arguments(Data, __doc__ or "", rest)
            sources = {str(given.dataset.root or given.dataset.name): given}
        else:
            sources = generated(Path(folder))
        for name, data in sources.items():
            images = load_dataset_splits(data.dataset)["train"].with_transform(
                build_transform(data.augmentation, "train"), drawn=True
            )
            measured += [{"data": name, **one} for one in measure(images, own)]
            if images.draw is None:
                kept = images.kept_in(Path(folder) / "kept" / name)
                for index in range(len(kept)):
                    kept[index]
                measured += [{"data": f"{name}, --cache_images", **one} for one in measure(kept, own)]
    rows = [
        (
            one["data"],
            str(one["bands"]),
            f"{one['height']} x {one['width']}",
            str(one["workers"]),
            f"{one['ratio']:.1f}",
            f"{statistics.median(one['loader']):.1f}",
            f"{statistics.median(one['forward']):.1f}",
        )
        for one in measured
    ]
    note = (
        f"Forward: ViT-{own.size}, patch {PATCH}, RGB of the same size, batch {own.batch_size}, float32, "
        f"{torch.get_num_threads()} thread(s). Median of {own.rounds} round(s)."
    )
    report(own.output, "loader", measured, markdown(COLUMNS, rows, note))


def generated(folder: Path) -> dict[str, Data]:
    """Write all kinds of GeoTIFFs below ``folder``."""
    for name, bands, side in (("chips", CHIP_BANDS, 128), ("scenes", SCENE_BANDS, 512)):
        for number in range(16):
            values = noisy(len(bands), side, number)
            write_raster(folder / name / "images" / f"{number:02d}.tif", values, descriptions=bands)
            write_raster(folder / name / "masks" / f"{number:02d}.tif", (values[:1] > 2000).astype(np.uint8))

    def dataset(name: str) -> DatasetArguments:
        options: dict[str, Any] = {"classes": ["dark", "bright"], "scale": 1e-4, "offset": 0.0}
        return DatasetArguments(name="folder", root=str(folder / name), **options, val_fraction=0.0, test_fraction=0.0)

    plain, cog = folder / "plain.tif", folder / "cog.tif"
    like = header(plain, 1024, SCENE_BANDS)
    write_raster(plain, noisy(len(SCENE_BANDS), 1024, 0), like=like, descriptions=SCENE_BANDS)
    rasterio.shutil.copy(plain, cog, driver="COG", COMPRESS="DEFLATE")
    entry = {"image": str(cog), "labels": str(write_polygons(folder / "labels.geojson", like)), "split": "train"}
    options: dict[str, Any] = {"scenes": [entry], "attribute": "kind", "window": 224, "scale": 1e-4, "offset": 0.0}
    turned = AugmentationArguments(random_crop=[224, 224], horizontal_flip=0.5, vertical_flip=0.5, rot90=True)
    return {
        "generated chips": Data(dataset=dataset("chips")),
        "generated scenes": Data(dataset=dataset("scenes"), augmentation=turned),
        "windows of a COG": Data(dataset=DatasetArguments(name="scenes", **options)),
    }


def noisy(bands: int, side: int, seed: int) -> np.ndarray:
    """(bands, side, side) int16: squares of one value each, and noise, so that it compresses as images do."""
    rng = np.random.default_rng([side, seed])
    land = np.kron(rng.integers(200, 4000, (bands, side // 16, side // 16)), np.ones((1, 16, 16)))
    return (land + rng.integers(0, 200, land.shape)).astype(np.int16)


def measure(images: ImageDataset, own: argparse.Namespace) -> list[dict[str, Any]]:
    """Images per second of the loader with each number of workers and of the forward pass, one number per round."""
    bands, height, width = images[0]["pixel_values"].shape
    sides = max(PATCH, height // PATCH * PATCH), max(PATCH, width // PATCH * PATCH)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = make_vit(own.size, sides, PATCH).eval().to(device)
    pixels = torch.rand(own.batch_size, 3, *sides, device=device)
    shape = {"bands": bands, "height": height, "width": width}
    measured: list[dict[str, Any]] = [
        {**shape, "workers": workers, "loader": [], "forward": []} for workers in own.workers
    ]

    @torch.no_grad()
    def forward() -> None:
        model(pixels)

    forward()
    for number in range(own.rounds):
        for one in measured:
            one["loader"].append(loader_speed(images, one["workers"], own, epoch=number))
            alone = one["workers"] == 0 and not pixels.is_cuda
            one["forward"].append(
                own.batch_size / (processor_seconds(forward) if alone else timed(forward, pixels.is_cuda))
            )
    for one in measured:
        one["ratio"] = statistics.median(a / b for a, b in zip(one["loader"], one["forward"], strict=True))
    return measured


def loader_speed(images: ImageDataset, workers: int, own: argparse.Namespace, epoch: int) -> float:
    """Images per second, once the worker processes run: the batches that they prepare meanwhile are not counted."""
    ahead = max(1, 2 * workers)
    wanted = own.images + ahead * own.batch_size
    repeated = images.select([k % len(images) for k in range(wanted)])
    loader = training_loader(repeated, own.batch_size, workers, seed=0, epoch=epoch, rank=Rank())
    clock = time.perf_counter if workers else time.process_time
    counted, started = 0, 0.0
    for number, batch in enumerate(loader):
        if number == ahead - 1:
            started = clock()
        elif number >= ahead:
            counted += len(batch["name"])
    return counted / (clock() - started)
