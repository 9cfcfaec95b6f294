"""What each method costs: step time, inference time and memory, as ratios from one run.

Rows are measured in turns, round after round, so that a change of the machine's load falls on all of them alike; the
median of the rounds is printed. Saved activations are what autograd keeps for the backward pass (on a GPU also the peak
that the allocator reports), for one batch. Of the spectral input (indices and pixel sets), the time is given as a share
of an inference, and the most memory that it holds at once as a multiple of the images'.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import logging
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from deflect_hf.benchmark.rows import Row
from deflect_hf.errors import ConfigError
from deflect_hf.methods import encoder_parameters
from deflect_hf.models import EncoderForImageClassification
from deflect_hf.training.checkpoints import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

BANDS = ("A", "B", "G", "R", "RE1", "RE2", "RE3", "N", "N2", "WV", "S1", "S2")
# width, blocks, heads of ViT models
SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
ROUNDS = 5


@dataclasses.dataclass
class Cost:
    """Measurements of one row; seconds and bytes of one batch."""

    row: str
    encoder_trainable: int
    encoder_total: int
    step_seconds: list[float] = dataclasses.field(default_factory=list)
    inference_seconds: list[float] = dataclasses.field(default_factory=list)
    input_seconds: list[float] = dataclasses.field(default_factory=list)
    saved_bytes: int = 0
    input_bytes: int | None = None
    peak_bytes: int | None = None


def main(argv: Sequence[str]) -> None:
    """Measure the rows and print a Markdown table; the numbers go to `cost.json`."""
    own = parse(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pixels = torch.rand(own.batch_size, len(BANDS), own.image_size, own.image_size, device=device) * 0.4
    labels = torch.zeros(own.batch_size, dtype=torch.long, device=device)
    costs = []
    models = []
    for text in own.rows:
        row = Row.parse(text)
        model = build(row, own).to(device)
        trainable, total = encoder_parameters(model)
        cost = Cost(text, trainable, total)
        cost.saved_bytes = saved_for_backward(model, pixels, labels)
        cost.input_bytes = spectral_peak(model, pixels)
        costs.append(cost)
        models.append(model)
    for number in range(ROUNDS):
        for cost, model in zip(costs, models, strict=True):
            measure(cost, model, pixels, labels, warm_up=number == 0)
    own.output.mkdir(parents=True, exist_ok=True)
    write_json(own.output / "cost.json", [dataclasses.asdict(cost) for cost in costs])
    table = as_markdown(costs, own, device)
    (own.output / "cost.md").write_text(table, encoding="utf-8")
    print(table)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags.

    Raises:
        ConfigError: a row is unknown.
    """
    parser = argparse.ArgumentParser(
        prog="python -m deflect_hf.benchmark cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--rows",
        nargs="+",
        default=["lora", "deflect:indices=null", "deflect:indices=default", "deflect:indices=all"],
        help="methods; ratios are to the first one",
    )
    parser.add_argument("--size", choices=list(SIZES), default="base", help="size of the vision transformer")
    parser.add_argument("--image_size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--patch_size", type=int, default=16, help="side of the patches in pixels")
    parser.add_argument("--batch_size", type=int, default=4, help="images per step")
    own = parser.parse_args(argv)
    if own.image_size % own.patch_size:
        raise ConfigError(f"--image_size {own.image_size} must be a multiple of --patch_size {own.patch_size}.")
    return own


def make_vit(size: str, image_size: tuple[int, int], patch_size: int) -> PreTrainedModel:
    """A vision transformer of one of the SIZES with random weights, for RGB images of (height, width) pixels."""
    from transformers import ViTConfig, ViTModel

    width, depth, heads = SIZES[size]
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        image_size=image_size,
        patch_size=patch_size,
    )
    return ViTModel(config, add_pooling_layer=False)


def build(row: Row, own: argparse.Namespace) -> nn.Module:
    """A task model of the asked size with random weights, adapted by the row's method."""
    torch.manual_seed(0)
    encoder = make_vit(own.size, (own.image_size, own.image_size), own.patch_size)
    model = EncoderForImageClassification.from_encoder(encoder, num_labels=10)
    return row.adapt(model, BANDS)


def saved_for_backward(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> int:
    """Bytes of activations that the backward pass of one batch keeps; each storage once, parameters not counted."""
    kept: dict[int, int] = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # The loss keeps the graph, and with it every storage, alive until all are counted.
        loss = model(pixels, labels=labels).loss
    del loss
    return sum(kept.values())


def spectral_inputs(model: nn.Module) -> list[nn.Module]:
    """The module that makes the pixel-set features, in a list; empty for a method that has none."""
    return [module for name, module in model.named_modules() if name.endswith("deflect_input.default")]


@torch.no_grad()
def spectral_peak(model: nn.Module, pixels: torch.Tensor) -> int | None:
    """Most bytes that the pixel-set features of one batch take at once, result included, the images not; None without.

    What the allocator hands out and takes back, in order: all intermediate results, also those inside an operator, but
    neither the caches of libraries nor what the allocator itself keeps in reserve.
    """
    features = spectral_inputs(model)
    if not features:
        return None
    model.eval()
    if pixels.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        features[0](pixels)
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        features[0](pixels)
    assert profile.profiler is not None
    events: Any = profile.profiler.kineto_results
    changes = sorted((event.start_ns(), event.nbytes()) for event in events.events() if event.name() == "[memory]")
    return max(itertools.accumulate((change for _, change in changes), initial=0))


def measure(cost: Cost, model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, warm_up: bool) -> None:
    """One round: a training step, a forward without gradients, and the radiometric input alone."""
    gc.collect()
    if pixels.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        model.train()
        model(pixels, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def infer() -> None:
        model.eval()
        model(pixels)

    features = spectral_inputs(model)

    @torch.no_grad()
    def read() -> None:
        for module in features:
            module(pixels)

    calls = [(step, cost.step_seconds), (infer, cost.inference_seconds)]
    if features:
        calls.append((read, cost.input_seconds))
    for call, seconds in calls:
        if warm_up:
            call()
        seconds.append(timed(call, pixels.is_cuda))
    if pixels.is_cuda:
        cost.peak_bytes = torch.cuda.max_memory_allocated()


def timed(call: Any, cuda: bool) -> float:
    """Seconds of one call."""
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def as_markdown(costs: Sequence[Cost], own: argparse.Namespace, device: torch.device) -> str:
    """One line per row; times and memory as ratios to the first row, whose own values stand below."""
    first = costs[0]
    step, inference = statistics.median(first.step_seconds), statistics.median(first.inference_seconds)
    lines = [
        "| method | encoder parameters | step time | inference time | spectral input / inference "
        "| its peak memory / images | saved activations |",
        "|" + "---|" * 7,
    ]
    images = 4 * own.batch_size * len(BANDS) * own.image_size**2  # bytes
    for cost in costs:
        own_inference = statistics.median(cost.inference_seconds)
        share = f"{100 * statistics.median(cost.input_seconds) / own_inference:.1f} %" if cost.input_seconds else "none"
        memory = "none" if cost.input_bytes is None else f"{cost.input_bytes / images:.2f}"
        lines.append(
            f"| {cost.row} | {cost.encoder_trainable:,} ({100 * cost.encoder_trainable / cost.encoder_total:.2f} %) "
            f"| {statistics.median(cost.step_seconds) / step:.2f} | {own_inference / inference:.2f} "
            f"| {share} | {memory} | {cost.saved_bytes / max(first.saved_bytes, 1):.2f} |"
        )
    lines.append(
        f"\nViT-{own.size}, patch {own.patch_size}, {own.image_size} px, {len(BANDS)} bands, batch {own.batch_size}, "
        f"float32, {device.type}, {torch.get_num_threads()} thread(s), median of {ROUNDS} rounds. Ratios to "
        f"{first.row}: step {step * 1e3:.0f} ms, inference {inference * 1e3:.0f} ms, saved activations "
        f"{first.saved_bytes / 1e6:.1f} MB."
    )
    return "\n".join(lines) + "\n"
