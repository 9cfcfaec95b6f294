"""Several tasks on one encoder against one whole model per task: memory, loading time, and time for all tasks.

The encoder has random weights; each task has a DEFLECT adapter of its own and a segmentation head. Both ways are
measured in turns, round after round, so that a change of the machine's load falls on both alike; medians and their
ratio are printed. Memory is that of parameters and buffers, each storage counted once.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn

from deflect_hf.artifacts.saved_model import save_model
from deflect_hf.benchmark.cost import BANDS, SIZES, make_vit
from deflect_hf.benchmark.flags import flag_parser, markdown, report
from deflect_hf.benchmark.meters import bytes_of
from deflect_hf.config.data import DatasetArguments
from deflect_hf.config.run import EncoderArguments, RunArguments
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.errors import ConfigError
from deflect_hf.inference.multi import MultiAdapterPredictor
from deflect_hf.inference.predictor import Predictor
from deflect_hf.methods import adapt
from deflect_hf.models import EncoderForSemanticSegmentation, load_encoder
from deflect_hf.tuners.deflect import DeflectConfig
from tests.benchmarks import in_turns, refuse_less
from tests.tuners.tiny import randomise

PATCH = 16


def main(argv: Sequence[str]) -> None:
    """Measure, and print a Markdown table; the numbers go to `adapters.json`.

    Raises:
        ConfigError: a number does not fit.
    """
    parser = flag_parser("adapters", __doc__)
    parser.add_argument("--tasks", type=int, default=2, help="how many tasks")
    parser.add_argument("--size", choices=list(SIZES), default="base", help="size of the vision transformer")
    parser.add_argument("--image_size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each time")
    own = parser.parse_args(argv)
    refuse_less(own, {"tasks": 2, "rounds": 1, "image_size": 1})
    if own.image_size % PATCH:
        raise ConfigError(f"--image_size {own.image_size}: give a multiple of {PATCH}.")
    with tempfile.TemporaryDirectory() as folder:
        numbers = compare(make_runs(Path(folder), own), own)
    report(own.output, "adapters", numbers, as_markdown(numbers, own))


def make_runs(folder: Path, own: argparse.Namespace) -> dict[str, Path]:
    """Result folders of the tasks, which take all bands and every other band in turn, over one random encoder."""
    torch.manual_seed(0)
    encoder = folder / "encoder"
    make_vit(own.size, (own.image_size, own.image_size), PATCH).save_pretrained(encoder)
    run = RunArguments(encoder=EncoderArguments(name_or_path=str(encoder)), dataset=DatasetArguments(name="synthetic"))
    runs = {}
    for number in range(own.tasks):
        bands = BANDS if number % 2 == 0 else ("R", "G", "B", "N", "S1", "S2")
        model = EncoderForSemanticSegmentation.from_encoder(load_encoder(encoder), id2label={0: "other", 1: "found"})
        adapted = adapt(model, "deflect", bands=bands, base_mean=[0.1] * 3, base_std=[0.1] * 3)
        runs[f"task {number + 1}"] = folder / f"run {number + 1}"
        save_model(runs[f"task {number + 1}"], adapted, run, MultispectralImageProcessor(bands, source_bands=BANDS))
    return runs


def compare(runs: Mapping[str, Path], own: argparse.Namespace) -> dict[str, Any]:
    """Seconds and bytes of both ways."""
    image = torch.rand(1, len(BANDS), own.image_size, own.image_size) * 0.4

    def load_separate() -> dict[str, Predictor]:
        return {name: Predictor.from_folder(folder) for name, folder in runs.items()}

    def load_shared() -> MultiAdapterPredictor:
        return MultiAdapterPredictor.from_folders(runs)

    separate, shared = load_separate(), load_shared()
    expected = {name: predictor(image) for name, predictor in separate.items()}
    found = shared.predict_all(image)
    if not all(torch.equal(found[name], probabilities) for name, probabilities in expected.items()):
        raise AssertionError("both ways must give the same probabilities")
    models = [predictor.model for predictor in separate.values()]
    return {
        "bytes": [held_bytes(models), held_bytes([shared.encoder, *(shared[name].model for name in runs)])],
        "load_seconds": in_turns(own.rounds, {"separate": load_separate, "shared": load_shared}),
        "predict_seconds": in_turns(
            own.rounds,
            {
                "separate": lambda: [predictor(image) for predictor in separate.values()],
                "shared": lambda: shared.predict_all(image),
            },
        ),
        "mixed_seconds": in_turns(own.rounds, mixed_batches(own)),
        "device": str(shared.device),
        "threads": torch.get_num_threads(),
    }


def mixed_batches(own: argparse.Namespace) -> dict[str, Callable[[], Tensor]]:
    """Images in turns of all tasks, by PEFT's means: switching adapters image by image, and as one mixed batch."""
    config = DeflectConfig(bands=list(BANDS), base_mean=[0.1] * 3, base_std=[0.1] * 3)
    names = [f"task {number + 1}" for number in range(own.tasks)]
    model = get_peft_model(make_vit(own.size, (own.image_size, own.image_size), PATCH), config, names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    randomise(model.eval(), seed=1)
    images = torch.rand(2 * own.tasks, len(BANDS), own.image_size, own.image_size) * 0.4

    @torch.inference_mode()
    def switching() -> Tensor:
        tokens = []
        for image, name in zip(images, names * 2, strict=True):
            model.set_adapter(name)
            tokens.append(model(image[None]).last_hidden_state)
        return torch.cat(tokens)

    @torch.inference_mode()
    def together() -> Tensor:
        return model(images, adapter_names=names * 2).last_hidden_state

    torch.testing.assert_close(together(), switching(), rtol=1e-4, atol=1e-4)
    return {"switching": switching, "together": together}


def held_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of parameters and buffers; each storage once."""
    return bytes_of(tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))


def as_markdown(numbers: Mapping[str, Any], own: argparse.Namespace) -> str:
    """One line per quantity, with the ratio of one encoder to separate models."""
    load, predict, mixed = (
        [statistics.median(way) for way in numbers[name].values()]
        for name in ("load_seconds", "predict_seconds", "mixed_seconds")
    )
    rows = [
        (name, *(f"{factor * value:.{digits}f} {unit}" for value in pair), f"{pair[1] / pair[0]:.2f}")
        for name, pair, factor, digits, unit in (
            ("parameters in memory", numbers["bytes"], 1e-6, 1, "MB"),
            ("loading", load, 1, 2, "s"),
            ("all tasks on one image", predict, 1e3, 0, "ms"),
            (f"{2 * own.tasks} images, each of its task", mixed, 1e3, 0, "ms"),
        )
    ]
    note = (
        f"ViT-{own.size}, patch {PATCH}, {own.image_size} px, {len(BANDS)} and 6 bands in turn, float32, "
        f"{numbers['device']}, {numbers['threads']} thread(s), median of {own.rounds} rounds. Images, each of its "
        "task: adapters switched image by image, and one batch with PEFT's adapter_names."
    )
    return markdown(f"{own.tasks} tasks | a model each | one encoder | ratio", rows, note)
