"""What the training loop costs beside a bare PyTorch loop: time of an optimizer step, reductions and waits.

A random vision transformer with DEFLECT learns from embedded images that lie in memory. Both loops run the same model,
batches and kind of optimizer, epoch by epoch in turns; processor time is taken, with one thread, so that other work on
the machine hardly counts. Reductions are calls of `Accelerator.reduce`, waits are values that are read back from the
device in between.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
from accelerate import Accelerator
from tqdm import tqdm

from deflect_hf.artifacts.processes import make_accelerator
from deflect_hf.benchmark.flags import flag_parser, markdown, report
from deflect_hf.benchmark.meters import processor_seconds
from deflect_hf.config.data import DatasetArguments
from deflect_hf.config.run import EncoderArguments, RunArguments, SegmentorArguments
from deflect_hf.data import ImageDataset
from deflect_hf.data.order import Rank, training_loader
from deflect_hf.training.build import build
from deflect_hf.training.loop import TrainingLoop
from deflect_hf.training.optimization import build_optimizer
from tests.benchmarks import refuse_less

SIDE = 64


class InMemory(torch.utils.data.Dataset):
    """The examples of a split, read once; all else is the split's."""

    def __init__(self, split: Any) -> None:
        self.split = split
        self.examples = [split[index] for index in range(len(split))]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.split, name)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        return self.examples[index]


def main(argv: Sequence[str]) -> None:
    """Measure and print a Markdown table; the numbers go to `step.json`.

    Raises:
        ConfigError: a number that makes no sense.
    """
    parser = flag_parser("step", __doc__)
    step_flags(parser, images=160, rounds=7)
    own = parser.parse_args(argv)
    refuse_less(own, {"images": 2 * own.batch_size, "batch_size": 1, "width": 16, "blocks": 1, "rounds": 1})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        loop = make_loop(own, Path(folder))
        steps = len(loop.splits["train"]) // own.batch_size
        bare_epoch(loop)  # warm up
        our_epoch(loop)
        rounds = [
            (processor_seconds(lambda: our_epoch(loop)) / steps, processor_seconds(lambda: bare_epoch(loop)) / steps)
            for _ in range(own.rounds)
        ]
        with counted() as calls:
            our_epoch(loop)
        with counted() as plain:
            bare_epoch(loop)
    ours, bare = (1000 * statistics.median(times) for times in zip(*rounds, strict=True))
    numbers = {
        "rounds": rounds,
        "ratio": statistics.median(one / other for one, other in rounds),
        "reductions": calls["reduce"] / steps,
        "waits": (calls["item"] - plain["item"]) / steps,  # the optimizer reads its own counters, which lie on the CPU
        "log_interval": loop.config.log_interval,
    }
    table = markdown(
        "loop | processor time of a step, ms | reductions | waits",
        [
            ("training loop", f"{ours:.2f}", f"{numbers['reductions']:.2f}", f"{numbers['waits']:.2f}"),
            ("bare", f"{bare:.2f}", "0", "0"),
        ],
        f"Ratio, median of {own.rounds} rounds of {steps} steps: {numbers['ratio']:.3f}. A line of the log every "
        f"{loop.config.log_interval} steps.",
    )
    report(own.output, "step", numbers, table)


def step_flags(parser: argparse.ArgumentParser, images: int, rounds: int) -> None:
    """Flags of the model and the loop."""
    parser.add_argument("--images", type=int, default=images, help="of the training split, for each process")
    parser.add_argument("--batch_size", type=int, default=8, help="images per batch")
    parser.add_argument("--width", type=int, default=192, help="of the vision transformer")
    parser.add_argument("--blocks", type=int, default=6, help="of the vision transformer")
    parser.add_argument("--rounds", type=int, default=rounds, help="epochs of each loop")


def make_loop(own: argparse.Namespace, folder: Path) -> TrainingLoop:
    """The loop of a run, before its first step."""
    encoder = {
        "model_type": "vit",
        "image_size": SIDE,
        "patch_size": 8,
        "hidden_size": own.width,
        "num_hidden_layers": own.blocks,
        "num_attention_heads": own.width // 16,
        "intermediate_size": 4 * own.width,
    }
    config = RunArguments(
        encoder=EncoderArguments(random=encoder),
        dataset=DatasetArguments(name="synthetic", num_samples=own.images, image_size=[SIDE, SIDE], test_fraction=0.0),
        segmentor=SegmentorArguments(pooling="mean"),
        batch_size=own.batch_size,
        num_workers=0,
        epochs=1000,
    )
    accelerator = make_accelerator(config)
    experiment = build(config, folder, accelerator)
    experiment.model.to(accelerator.device)
    experiment.splits["train"] = cast(ImageDataset, InMemory(experiment.splits["train"]))
    return TrainingLoop(experiment, accelerator, folder)


def our_epoch(loop: TrainingLoop) -> None:
    """An epoch of the training loop, without validation and checkpoint."""
    with tqdm(disable=True) as bar:
        loop._train_epoch(bar, time.monotonic())
    loop.progress.batch = 0


def bare_epoch(loop: TrainingLoop) -> None:
    """The same as short as PyTorch allows."""
    optimizer = build_optimizer(loop.plain, loop.config.segmentor.optimizer)
    device = loop.accelerator.device
    loop.plain.train()
    for batch in training_loader(loop.splits["train"], loop.config.batch_size, 0, 0, 0, Rank()):
        loss = loop.plain(pixel_values=batch["pixel_values"].to(device), labels=batch["labels"].to(device)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """How often values are reduced over the processes, and read back from the device."""
    calls = {"reduce": 0, "item": 0}

    def counting(owner: type, name: str) -> Any:
        plain = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return plain(*arguments, **options)

        return mock.patch.object(owner, name, call)

    with counting(Accelerator, "reduce"), counting(torch.Tensor, "item"):
        yield calls
