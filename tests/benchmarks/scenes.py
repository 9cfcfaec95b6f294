"""How much memory a map of a scene takes, and for how long: peak of a fresh process per scene, as a ratio to the first.

Scenes of 7 bands are generated as tiled GeoTIFFs, and predicted by a vision transformer with random weights, tiny where
--width and --depth are not given, as `deflect-predict` does it in one thread. Memory includes Python and the libraries,
which is most of it; processor time is that of the command after its imports, over what the model's forward took of it.

--terratorch maps each scene also with TerraTorch's tiled inference, where that is installed (it needs torchvision: an
environment of its own): the same model, windows, overlap and batches, the whole scene and its logits in memory.

--train measures a training on each scene instead, as `deflect-train` does it without workers: polygons all over it are
the labels, the statistics pass goes through all windows, a few steps are made, validation and test go through theirs.
"""

import argparse
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.windows import Window

from deflect_hf.artifacts.saved_model import save_model
from deflect_hf.benchmark.flags import flag_parser, markdown, report
from deflect_hf.errors import ConfigError, DeflectError
from deflect_hf.files import write_json
from deflect_hf.inference.scenes import Axis
from deflect_hf.raster.header import RasterInfo
from deflect_hf.raster.read import raster_info
from deflect_hf.raster.write import geotiff_profile
from tests.benchmarks import refuse_less

logger = logging.getLogger(__name__)

BANDS = ("A", "B", "G", "R", "N", "S1", "S2")
CLASSES = ("land", "water")
OVERLAP = 0.125
BLOCK = 256
GSD_M = 30.0

CHILD = "from tests.benchmarks.scenes import child; child()"
TERRATORCH = "from tests.benchmarks.scenes import terratorch; terratorch()"
TRAINED = "from tests.benchmarks.scenes import trained; trained()"
POLYGON, APART = 60, 200  # pixels: side of a square of labels, and from one to the next
STEPS = 4


def main(argv: Sequence[str]) -> None:
    """Predict the scenes and print a Markdown table; the numbers go to `scenes.json`.

    Raises:
        ConfigError: a scene without pixels, or a window that the transformer cannot take.
    """
    parser = flag_parser("scenes", __doc__)
    parser.add_argument("--sides", nargs="+", type=int, default=[2000, 16000], help="sides of the scenes in pixels")
    parser.add_argument("--window", type=int, default=128, help="side of the windows in pixels")
    parser.add_argument("--patch_size", type=int, default=16, help="of the transformer, in pixels")
    parser.add_argument("--width", type=int, default=24, help="of the transformer, a multiple of 2; 768: of a ViT-B")
    parser.add_argument("--depth", type=int, default=2, help="blocks of the transformer; 12: of a ViT-B")
    parser.add_argument("--train", action="store_true", help="measure a training on each scene, not its map")
    parser.add_argument("--terratorch", action="store_true", help="map it with TerraTorch's tiled inference, too")
    parser.add_argument("--map", choices=["classes", "probabilities"], default="classes", help="what is written")
    parser.add_argument("--cog", action="store_true", help="write Cloud Optimized GeoTIFFs")
    parser.add_argument("--scratch", type=Path, help="where scenes and maps lie meanwhile, up to 4 bytes per value")
    own = parser.parse_args(argv)
    refuse_less(own, {"sides": 1, "width": 2, "depth": 1, "patch_size": 1})
    if own.window < own.patch_size or own.window % own.patch_size:
        raise ConfigError(f"--window {own.window}: give a multiple of {own.patch_size}.")
    measured = []
    with tempfile.TemporaryDirectory(dir=own.scratch) as name:
        adapter = None if own.train else random_adapter(Path(name) / "adapter", own)
        for side in own.sides:
            scene = write_scene(Path(name) / f"{side}.tif", side)
            found = measure_training(scene, own) if adapter is None else measure(scene, adapter, own)
            measured.append({"side": side, **found})
            if adapter is not None and own.terratorch:
                measured[-1]["terratorch"] = measure_terratorch(scene, adapter, own)
            logger.info("%s", measured[-1])
            scene.unlink()
    (report_training if own.train else report_maps)(measured, own)


def report_maps(measured: Sequence[dict[str, Any]], own: argparse.Namespace) -> None:
    """The table of the maps."""
    columns = "scene | peak memory | ratio | seconds | processor time over the model's | windows predicted over windows"
    rows = [
        (
            f"{one['side']} x {one['side']} x {len(BANDS)}",
            f"{one['peak_bytes'] / 2**20:.0f} MiB",
            f"{one['peak_bytes'] / measured[0]['peak_bytes']:.2f}",
            f"{one['seconds']:.0f}",
            f"{one['processor_seconds'] / one['forward_seconds']:.2f}",
            f"{one['predicted'] / one['windows']:.2f}",
        )
        for one in measured
    ]
    if own.terratorch:
        columns += " | TerraTorch: peak memory over ours | processor time over ours | over the model's"
        rows = [(*row, *beside(one)) for row, one in zip(rows, measured, strict=True)]
    note = f"Map of {own.map}, windows of {own.window} px, a transformer of width {own.width}, depth {own.depth}."
    report(own.output, "scenes", measured, markdown(columns, rows, note))


def beside(one: dict[str, Any]) -> tuple[str, ...]:
    """TerraTorch's memory and processor time over ours, and over the forward passes in it."""
    other = one["terratorch"]
    spent = [
        other["processor_seconds"] / one["processor_seconds"],
        other["processor_seconds"] / other["forward_seconds"],
    ]
    return tuple(f"{ratio:.2f}" for ratio in (other["peak_bytes"] / one["peak_bytes"], *spent))


def report_training(measured: Sequence[dict[str, Any]], own: argparse.Namespace) -> None:
    """The table of the trainings."""
    rows = [
        (
            f"{one['side']} x {one['side']} x {len(BANDS)}",
            str(sum(one["windows"].values())),
            f"{one['peak_bytes'] / 2**20:.0f} MiB",
            f"{one['peak_bytes'] / measured[0]['peak_bytes']:.2f}",
            f"{one['processor_seconds']:.0f}",
        )
        for one in measured
    ]
    note = f"{STEPS} steps, windows of {own.window} px, a transformer of width {own.width}, depth {own.depth}."
    columns = "scene | windows | peak memory | ratio | processor seconds"
    report(own.output, "scenes", measured, markdown(columns, rows, note))


def described(own: argparse.Namespace) -> dict[str, Any]:
    """The configuration of the vision transformer."""
    return {"model_type": "vit", "image_size": own.window, "patch_size": own.patch_size, "hidden_size": own.width,
            "num_hidden_layers": own.depth, "num_attention_heads": max(2, own.width // 64),
            "intermediate_size": (2 if own.width < 64 else 4) * own.width}  # fmt: skip


def random_adapter(folder: Path, own: argparse.Namespace) -> Path:
    """A run's folder as training leaves it, of a segmentation model with random weights that was never trained."""
    from deflect_hf.config.data import AugmentationArguments
    from deflect_hf.config.run import EncoderArguments, RunArguments
    from deflect_hf.data.processor import MultispectralImageProcessor
    from deflect_hf.methods import adapt
    from deflect_hf.models import EncoderForSemanticSegmentation
    from deflect_hf.models.encoders import random_encoder

    random_encoder(EncoderArguments(random=described(own))).save_pretrained(folder / "encoder")
    config = RunArguments(
        encoder=EncoderArguments(name_or_path=str(folder / "encoder")),
        augmentation=AugmentationArguments(random_crop=[own.window, own.window]),
        method={"indices": None, "aux_dim": 4 * described(own)["num_attention_heads"]},
    )
    torch.manual_seed(0)
    model = EncoderForSemanticSegmentation.from_encoder(folder / "encoder", id2label=dict(enumerate(CLASSES)))
    adapted = adapt(model, "deflect", bands=BANDS, base_mean=[0.1] * 3, base_std=[0.1] * 3, **config.method)
    processor = MultispectralImageProcessor(BANDS, source_bands=BANDS, scale=1e-4, gsd_m=GSD_M)
    save_model(folder / "best", adapted, config, processor)
    return folder


def header(path: Path, side: int, bands: Sequence[str]) -> RasterInfo:
    """Of a scene (bands, side, side) int16 in UTM."""
    count = len(bands)
    return RasterInfo(str(path), count, side, side, "int16", tuple(bands), (1.0,) * count, (0.0,) * count,
                      (None,) * count, "EPSG:32633", (GSD_M, 0.0, 5e5, 0.0, -GSD_M, 5e6), GSD_M)  # fmt: skip


def write_scene(path: Path, side: int) -> Path:
    """A tiled GeoTIFF (7, side, side) int16 with a pattern that compresses well, in UTM."""
    info = header(path, side, BANDS)
    rows, columns = np.arange(BLOCK)[:, None], np.arange(side)[None]
    band = np.stack([500 + 300 * number + (rows // 8 * 16 + columns // 8 * 4) % 1000 for number in range(len(BANDS))])
    with rasterio.open(path, "w", **geotiff_profile(len(BANDS), "int16", info, None)) as sink:
        sink.descriptions = BANDS
        for row in range(0, side, BLOCK):
            height = min(BLOCK, side - row)
            sink.write(band[:, :height].astype(np.int16), window=Window(0, row, side, height))
    return path


def measure(scene: Path, adapter: Path, own: argparse.Namespace) -> dict[str, Any]:
    """Wall time, peak memory, processor time, of the forward too, and windows of the process that predicts a scene.

    Raises:
        DeflectError: it failed; with what it said.
    """
    target = scene.with_name("map.tif")
    words = [str(scene), str(target), "--adapter", str(adapter), "--window", str(own.window), "--overlap", str(OVERLAP)]
    words += ["--output", own.map, *(["--cog"] if own.cog else [])]
    started = time.perf_counter()
    peak, processor, forward, predicted = run_alone(CHILD, words, f"{scene.name} could not be predicted").split()[-4:]
    seconds = time.perf_counter() - started
    target.unlink()
    side = raster_info(scene).width
    return {"seconds": seconds, "peak_bytes": int(peak), "processor_seconds": float(processor),
            "forward_seconds": float(forward), "predicted": int(predicted),
            "windows": len(Axis.cover(side, min(own.window, side), OVERLAP, own.patch_size)) ** 2}  # fmt: skip


def measure_terratorch(scene: Path, adapter: Path, own: argparse.Namespace) -> dict[str, Any]:
    """Peak memory, processor time, of the forward too, and windows of TerraTorch's tiled inference of the same model.

    Raises:
        DeflectError: it failed; with what it said.
    """
    target = scene.with_name("tiled.tif")
    words = [str(scene), str(target), str(adapter), str(own.window), str(round(own.window * (1 - OVERLAP)))]
    peak, processor, forward, predicted = run_alone(TERRATORCH, words, "TerraTorch's tiled inference failed").split()[
        -4:
    ]
    target.unlink()
    return {"peak_bytes": int(peak), "processor_seconds": float(processor),
            "forward_seconds": float(forward), "predicted": int(predicted)}  # fmt: skip


def measure_training(scene: Path, own: argparse.Namespace) -> dict[str, Any]:
    """Peak memory and processor time of the process that trains on a scene, and how many windows each split has.

    Raises:
        DeflectError: it failed; with what it said.
    """
    with tempfile.TemporaryDirectory(dir=scene.parent) as name:
        labels, run = write_polygons(Path(name) / "labels.geojson", raster_info(scene)), Path(name) / "run"
        config = {
            "encoder": {"random": described(own)},
            "dataset": {"name": "scenes", "scenes": [{"image": str(scene), "labels": str(labels)}], "attribute": "kind",
                        "window": own.window, "block_km": 4 * own.window * GSD_M / 1000, "scale": 1e-4, "offset": 0.0},
            "method": {"indices": None, "aux_dim": 4 * described(own)["num_attention_heads"]},
        }  # fmt: skip
        write_json(Path(name) / "run.yaml", config)  # JSON is YAML
        words = [str(Path(name) / "run.yaml"), "--work_dir", str(run), "--num_workers", "0"]
        words += ["--max_steps", str(STEPS), "--eval_steps", str(STEPS)]
        peak, processor = run_alone(TRAINED, words, f"a training on {scene.name} failed").split()[-2:]
        windows = json.loads((run / "results.json").read_text(encoding="utf-8"))["images"]
    return {"peak_bytes": int(peak), "processor_seconds": float(processor), "windows": windows}


def write_polygons(path: Path, info: RasterInfo) -> Path:
    """Squares of two classes all over a scene, as GeoJSON in its reference system."""
    features = []
    for number, (row, column) in enumerate(
        itertools.product(range(20, info.height, APART), range(20, info.width, APART))
    ):
        x, y, side = info.transform[2] + GSD_M * column, info.transform[5] - GSD_M * row, GSD_M * POLYGON
        ring = [[x, y], [x + side, y], [x + side, y - side], [x, y - side], [x, y]]
        features.append({"type": "Feature", "properties": {"kind": CLASSES[(number // 3) % 2]},
                         "geometry": {"type": "Polygon", "coordinates": [ring]}})  # fmt: skip
    named = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    write_json(path, {"type": "FeatureCollection", "crs": named, "features": features})
    return path


def run_alone(code: str, words: Sequence[str], failure: str) -> str:
    """What a fresh Python process with one thread prints.

    Raises:
        DeflectError: it failed; with what it said.
    """
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # else the time of the forward is spread over threads
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, env=alone)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]  # as one that the system killed
        raise DeflectError(f"{failure}, status {done.returncode}: {said[-1]}")
    return done.stdout.strip()


def child() -> None:
    """Predict the scene that is named; print peak memory, processor time, that of the forward, how many windows."""
    from deflect_hf.inference.cli import main as predict
    from deflect_hf.inference.mapping import predict_raster  # noqa: F401  (imported before the clock starts)
    from deflect_hf.inference.predictor import Predictor

    forward, spent, windows = Predictor.forward, [], []

    def timed(predictor: Predictor, pixel_values: torch.Tensor, window: int | None) -> torch.Tensor:
        started = time.thread_time()
        logits = forward(predictor, pixel_values, window)
        spent.append(time.thread_time() - started)
        windows.append(len(pixel_values))
        return logits

    Predictor.forward = timed
    imported = time.process_time()
    predict()
    print(peak_bytes(), time.process_time() - imported, sum(spent), sum(windows))


def terratorch() -> None:
    """Map a scene (SCENE MAP ADAPTER WINDOW STRIDE) as one does with TerraTorch; print what :func:`child` prints."""
    from terratorch.tasks.tiled_inference import tiled_inference

    from deflect_hf import load_predictor

    scene, target, adapter, window, stride = sys.argv[1:]
    spent, windows = [], []
    imported = time.process_time()
    predictor = load_predictor(adapter)

    def forward(images: torch.Tensor, **_: Any) -> torch.Tensor:
        started = time.thread_time()
        with torch.no_grad():
            logits = predictor.forward(images, None)
        spent.append(time.thread_time() - started)
        windows.append(len(images))
        return logits

    with rasterio.open(scene) as source:
        stored, profile = source.read(), {**source.profile, "count": 1, "dtype": "uint8", "nodata": 255}
    reflectance = torch.from_numpy(stored.astype(np.float32) * np.float32(1e-4))[None]
    sizes = {"crop": int(window), "stride": int(stride), "delta": 0, "padding": False, "batch_size": 8}
    classes = tiled_inference(forward, reflectance, **sizes).argmax(dim=1)
    with rasterio.open(target, "w", **profile) as sink:
        sink.write(classes.numpy().astype(np.uint8))
    print(peak_bytes(), time.process_time() - imported, sum(spent), sum(windows))


def trained() -> None:
    """Train as the command line says; print peak memory and processor time."""
    from deflect_hf.cli import train

    train()
    print(peak_bytes(), time.process_time())


def peak_bytes() -> int:
    """Most memory that this process has held so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # counts from the start of the program, unlike ru_maxrss, which begins with its parent's
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
