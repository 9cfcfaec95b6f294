"""How much memory a map of a scene takes, and for how long: peak of a fresh process per scene, as a ratio to the first.

Scenes of 7 bands are generated as tiled GeoTIFFs, and predicted by a vision transformer with random weights, tiny where
--width and --depth are not given, as `deflect-predict` does it in one thread. Memory includes Python and the libraries,
which is most of it; processor time is that of the command after its imports, over what the model's forward took of it.
"""

from __future__ import annotations

import argparse
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
import torch

from deflect_hf.artifacts.saved_model import save_model
from deflect_hf.benchmark.flags import flag_parser, refuse_less, report
from deflect_hf.errors import ConfigError, DeflectError
from deflect_hf.raster.header import RasterInfo
from deflect_hf.raster.write import create_raster
from tests.benchmarks import markdown

logger = logging.getLogger(__name__)

BANDS = ("A", "B", "G", "R", "N", "S1", "S2")
CLASSES = ("land", "water")
PATCH = 16
BLOCK = 256
GSD_M = 30.0

CHILD = "from tests.benchmarks.scenes import child; child()"


def main(argv: Sequence[str]) -> None:
    """Predict the scenes and print a Markdown table; the numbers go to `scenes.json`.

    Raises:
        ConfigError: a scene without pixels, or a window that the transformer cannot take.
    """
    parser = flag_parser("scenes", __doc__)
    parser.add_argument("--sides", nargs="+", type=int, default=[2000, 16000], help="sides of the scenes in pixels")
    parser.add_argument("--window", type=int, default=128, help="side of the windows in pixels")
    parser.add_argument("--width", type=int, default=24, help="of the transformer, a multiple of 2; 768: of a ViT-B")
    parser.add_argument("--depth", type=int, default=2, help="blocks of the transformer; 12: of a ViT-B")
    parser.add_argument("--map", choices=["classes", "probabilities"], default="classes", help="what is written")
    parser.add_argument("--cog", action="store_true", help="write Cloud Optimized GeoTIFFs")
    parser.add_argument("--scratch", type=Path, help="where scenes and maps lie meanwhile, up to 4 bytes per value")
    own = parser.parse_args(argv)
    refuse_less(own, {"sides": 1, "width": 2, "depth": 1})
    if own.window < PATCH or own.window % PATCH:
        raise ConfigError(f"--window {own.window}: give a multiple of {PATCH}.")
    measured = []
    with tempfile.TemporaryDirectory(dir=own.scratch) as name:
        adapter = random_adapter(Path(name) / "adapter", own)
        for side in own.sides:
            scene = write_scene(Path(name) / f"{side}.tif", side)
            measured.append({"side": side, **measure(scene, adapter, own)})
            logger.info("%s", measured[-1])
            scene.unlink()
    rows = [
        (
            f"{one['side']} x {one['side']} x {len(BANDS)}",
            f"{one['peak_bytes'] / 2**20:.0f} MiB",
            f"{one['peak_bytes'] / measured[0]['peak_bytes']:.2f}",
            f"{one['seconds']:.0f}",
            f"{one['processor_seconds'] / one['forward_seconds']:.2f}",
        )
        for one in measured
    ]
    note = f"Map of {own.map}, windows of {own.window} px, a transformer of width {own.width}, depth {own.depth}."
    columns = "scene | peak memory | ratio | seconds | processor time over the model's"
    report(own.output, "scenes", measured, markdown(columns, rows, note))


def random_adapter(folder: Path, own: argparse.Namespace) -> Path:
    """A run's folder as training leaves it, of a segmentation model with random weights that was never trained."""
    from deflect_hf.config.data import AugmentationArguments
    from deflect_hf.config.run import EncoderArguments, RunArguments
    from deflect_hf.data.processor import MultispectralImageProcessor
    from deflect_hf.methods import adapt
    from deflect_hf.models import EncoderForSemanticSegmentation
    from deflect_hf.models.encoders import random_encoder

    described = {"model_type": "vit", "image_size": own.window, "patch_size": PATCH, "hidden_size": own.width,
                 "num_hidden_layers": own.depth, "num_attention_heads": max(2, own.width // 64),
                 "intermediate_size": (2 if own.width < 64 else 4) * own.width}  # fmt: skip
    random_encoder(EncoderArguments(random=described)).save_pretrained(folder / "encoder")
    config = RunArguments(
        encoder=EncoderArguments(name_or_path=str(folder / "encoder")),
        augmentation=AugmentationArguments(random_crop=[own.window, own.window]),
        method={"indices": None, "aux_dim": 8},
    )
    torch.manual_seed(0)
    model = EncoderForSemanticSegmentation.from_encoder(folder / "encoder", id2label=dict(enumerate(CLASSES)))
    adapted = adapt(model, "deflect", bands=BANDS, base_mean=[0.1] * 3, base_std=[0.1] * 3, **config.method)
    processor = MultispectralImageProcessor(BANDS, source_bands=BANDS, scale=1e-4, gsd_m=GSD_M)
    save_model(folder / "best", adapted, config, processor)
    return folder


def write_scene(path: Path, side: int) -> Path:
    """A tiled GeoTIFF (7, side, side) int16 with a pattern that compresses well, in UTM."""
    info = RasterInfo(str(path), len(BANDS), side, side, "int16", BANDS, (1.0,) * 7, (0.0,) * 7, (None,) * 7,
                      "EPSG:32633", (GSD_M, 0.0, 5e5, 0.0, -GSD_M, 5e6), GSD_M)  # fmt: skip
    rows, columns = np.arange(BLOCK)[:, None], np.arange(side)[None]
    band = np.stack([500 + 300 * number + (rows // 8 * 16 + columns // 8 * 4) % 1000 for number in range(len(BANDS))])
    with create_raster(path, len(BANDS), "int16", like=info, descriptions=BANDS) as write:
        for row in range(0, side, BLOCK):
            write(band[:, : min(BLOCK, side - row)].astype(np.int16), row)
    return path


def measure(scene: Path, adapter: Path, own: argparse.Namespace) -> dict[str, Any]:
    """Wall time, peak memory and processor time, whole and of the forward, of the process that predicts a scene.

    Raises:
        DeflectError: it failed; with what it said.
    """
    target = scene.with_name("map.tif")
    words = [str(scene), str(target), "--adapter", str(adapter), "--window", str(own.window), "--overlap", "0.125"]
    words += ["--output", own.map, *(["--cog"] if own.cog else [])]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # else the time of the forward is spread over threads
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", CHILD, *words], capture_output=True, text=True, check=False, env=alone)
    seconds = time.perf_counter() - started
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]  # as one that the system killed
        raise DeflectError(f"{scene.name} could not be predicted, status {done.returncode}: {said[-1]}")
    target.unlink()
    peak, processor, forward = done.stdout.split()[-3:]
    return {"seconds": seconds, "peak_bytes": int(peak), "processor_seconds": float(processor),
            "forward_seconds": float(forward)}  # fmt: skip


def child() -> None:
    """Predict the scene that the command line names; print peak memory and processor time, whole and of the forward."""
    from deflect_hf.inference.cli import main as predict
    from deflect_hf.inference.mapping import predict_raster  # noqa: F401  (imported before the clock starts)
    from deflect_hf.inference.predictor import Predictor

    forward, spent = Predictor.forward, []

    def timed(*given: Any) -> torch.Tensor:
        started = time.thread_time()
        logits = forward(*given)
        spent.append(time.thread_time() - started)
        return logits

    Predictor.forward = timed  # type: ignore[method-assign]
    imported = time.process_time()
    predict()
    print(peak_bytes(), time.process_time() - imported, sum(spent))


def peak_bytes() -> int:
    """Most memory that this process has held so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # counts from the start of the program, unlike ru_maxrss, which begins with its parent's
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
