"""An exported model against the model it was made of: seconds of one batch, as ratios from one run.

A vision transformer with random weights, DEFLECT and a segmentation head. Eager and both files are measured in turns,
round after round, so that a change of the machine's load falls on all alike; the fastest round is printed.
"""

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from deflect_hf.benchmark.cost import BANDS, SIZES, make_vit
from deflect_hf.benchmark.flags import flag_parser, markdown, refuse_cut_patches, report
from deflect_hf.benchmark.runs import Row
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.inference.export import export, samples
from deflect_hf.inference.exported import open_onnx, open_pt2
from deflect_hf.inference.predictor import Predictor
from deflect_hf.models import EncoderForSemanticSegmentation
from tests.benchmarks import in_turns, refuse_less


def main(argv: Sequence[str]) -> None:
    """Measure, and print a Markdown table; the numbers go to `export.json`."""
    parser = flag_parser("export", __doc__)
    parser.add_argument("--size", choices=list(SIZES), default="small", help="size of the vision transformer")
    parser.add_argument("--image_size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--batch_size", type=int, default=4, help="images per call")
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each")
    own = parser.parse_args(argv)
    refuse_less(own, {"image_size": 1, "batch_size": 1, "rounds": 1})
    refuse_cut_patches(own.image_size, 16)
    torch.manual_seed(0)
    encoder = make_vit(own.size, (own.image_size, own.image_size), 16)
    model = EncoderForSemanticSegmentation.from_encoder(encoder, id2label={0: "background", 1: "found"})
    processor = MultispectralImageProcessor(BANDS, source_bands=BANDS)
    predictor = Predictor(Row.parse("deflect").adapt(model, BANDS), processor, device="cpu")
    images = samples(own.batch_size, len(BANDS), own.image_size, own.image_size)
    with tempfile.TemporaryDirectory() as folder:
        files = {"torch.export": Path(folder) / "model.pt2", "ONNX": Path(folder) / "model.onnx"}
        differences = {name: export(predictor, file, window=own.image_size) for name, file in files.items()}
        ways = {
            "eager": predictor.probabilities,
            "torch.export": open_pt2(files["torch.export"]),
            "ONNX": open_onnx(files["ONNX"]),
        }
        with torch.no_grad():
            seconds = in_turns(own.rounds, {name: partial(way, images) for name, way in ways.items()})
    numbers = {"seconds": seconds, "differences": differences, "threads": torch.get_num_threads()}
    size = f"ViT-{own.size}, {own.image_size} px, {len(BANDS)} bands, batch {own.batch_size}"
    report(own.output, "export", numbers, as_markdown(numbers, size))


def as_markdown(numbers: Mapping[str, Any], size: str) -> str:
    """One line per way, with its time over that of the model itself."""
    fastest = {name: min(seconds) for name, seconds in numbers["seconds"].items()}
    rows = [
        (name, f"{seconds:.3f}", f"{seconds / fastest['eager']:.2f}", f"{numbers['differences'].get(name, 0.0):.1e}")
        for name, seconds in fastest.items()
    ]
    note = f"{size}, float32, {numbers['threads']} CPU thread(s)."
    return markdown("way | seconds | over eager | largest difference", rows, note)
