"""What each method costs: time, memory and file size, as ratios from one run.

Rows are measured in turns, round after round, so that a change of the machine's load falls on all of them alike; the
fastest round is printed, as whatever else a machine does only adds to a time. On one CPU thread, times are those of the
processor, else of the wall clock. The peak memory of a training step is what the model, the optimizer and the batch
hold and the most that the step allocates beside it; saved activations are what autograd keeps of it for the backward
pass. The row `through` is `frozen` with a backward pass through all its blocks, as every method with few parameters in
them needs it: the least that such a step takes. Of the spectral input (indices and pixel sets), the time is given as a
share of an inference, and the most memory that it holds at once as a multiple of the images'. A JSON per row is written
in `rows/`, all of them in `cost.json`.
"""

from __future__ import annotations

import dataclasses
import gc
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn
from transformers import PreTrainedModel, ViTConfig, ViTModel

from deflect_hf.benchmark import meters
from deflect_hf.benchmark.flags import markdown, refuse_cut_patches, report
from deflect_hf.benchmark.runs import Row, file_name
from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.data import AugmentationArguments, Batch, Count, Side
from deflect_hf.config.schema import Arguments, UserPath, option
from deflect_hf.errors import ConfigError
from deflect_hf.files import refuse_used, write_json
from deflect_hf.methods import encoder_parameters, task_model
from deflect_hf.models import EncoderForImageClassification
from deflect_hf.models.checkpointing import enable_checkpointing
from deflect_hf.training.prefix import with_stored_prefix
from deflect_hf.tuners.deflect.architectures import find_encoder

BANDS = ("A", "B", "G", "R", "RE1", "RE2", "RE3", "N", "N2", "WV", "S1", "S2")
# width, blocks, heads of ViT models
SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
COLUMNS = (
    "method | encoder parameters | step time | inference time | peak memory | saved activations | file | "
    "spectral input / inference | its peak memory / images"
)
THROUGH = "through"
# Graphs that torch.compile may keep of one function: two of each row, for training and for inference. Past its own
# limit it would run the other rows uncompiled.
GRAPHS = 64


class CostArguments(Arguments):
    """Options of ``python -m deflect_hf.benchmark cost``."""

    output: UserPath = Field(description="folder of the results (needed)")
    rows: list[str] | None = option(
        None, "methods, or `through`; null: all methods, DEFLECT also on the last third of the blocks"
    )
    reference: str | None = option(None, "the row that ratios are to; null: the first one")
    size: Literal["tiny", "small", "base", "large"] = option("base", "size of the vision transformer")
    image_size: Side = option(224, "side of the images in pixels")
    patch_size: Side = option(16, "side of the patches in pixels")
    batch_size: Batch = option(4, "images per step")
    bands: list[str] = option(list(BANDS), "codes of the bands: the 12 of Sentinel-2 L2A")
    device: str = option("cuda" if torch.cuda.is_available() else "cpu", "cpu, cuda, cuda:1, ...")
    bf16: bool = option(False, "measure under autocast to bfloat16")
    rounds: Count = option(9, "measurements of each time")
    compile: bool = option(False, "measure each row also with its blocks compiled by torch.compile")
    cache_prefix: bool = option(
        False, "measure rows with layers_to_transform also with what enters the first of them kept on disk"
    )
    checkpointing: bool = option(False, "measure each row also with gradient_checkpointing selective")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.reference is not None and self.reference not in self.measured:
            raise ConfigError(f"--reference {self.reference} is none of the rows {', '.join(self.measured)}")
        refuse_cut_patches(self.image_size, self.patch_size)
        return self

    @property
    def measured(self) -> list[str]:
        """The rows: all methods of the package unless some are named, DEFLECT also on the last third of the blocks."""
        depth = SIZES[self.size][1]
        late = ",".join(str(block) for block in range(depth - depth // 3, depth))
        return self.rows or [
            *("frozen", "deflect", f"deflect:layers_to_transform=[{late}]", "lora:rank=8,target=qv"),
            *("lora:rank=16,target=all-linear,patch_embed=rgb+random", "slr", "norm", "bitfit", "full"),
        ]


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
    file_bytes: int = 0
    input_bytes: int | None = None
    peak_bytes: int | None = None
    start_seconds: float | None = None  # of the first step, which compiles


class Subject:
    """A model under measurement, its optimizer and its row's measurements."""

    def __init__(self, text: str, model: nn.Module, pixels: torch.Tensor) -> None:
        self.cost = Cost(text, *encoder_parameters(model))
        self.model = model
        self.pixels = pixels
        self.labels = torch.zeros(len(pixels), dtype=torch.long, device=pixels.device)
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step(self) -> None:
        """One training step."""
        self.model.train()
        self.model(self.pixels, labels=self.labels).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def infer(self) -> None:
        """One forward pass without autograd state."""
        self.model.eval()
        self.model(self.pixels)

    @torch.no_grad()
    def read(self) -> None:
        """The pixel-set features alone."""
        for module in meters.spectral_inputs(self.model):
            module(self.pixels)

    def measure_memory(self) -> None:
        """All that is not time, and the steps that warm up."""
        cost, model = self.cost, self.model
        cost.saved_bytes = meters.saved_for_backward(model, self.pixels, self.labels)
        cost.input_bytes = meters.spectral_peak(model, self.pixels)
        cost.file_bytes = meters.file_bytes(model)
        self.step()
        gc.collect()
        peak = meters.allocated(self.step, self.pixels.is_cuda)
        states = [t for state in self.optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
        held = meters.bytes_of([*model.parameters(), *model.buffers(), *states, self.pixels])
        cost.peak_bytes = held + peak

    def measure_times(self) -> None:
        """One round."""

        def seconds(call: Any) -> float:
            wall = wall_clock(self.pixels.device)
            return meters.timed(call, self.pixels.is_cuda) if wall else meters.processor_seconds(call)

        self.cost.step_seconds.append(seconds(self.step))
        self.cost.inference_seconds.append(seconds(self.infer))
        if meters.spectral_inputs(self.model):
            self.cost.input_seconds.append(seconds(self.read))


def wall_clock(device: torch.device) -> bool:
    """Whether the time of the wall clock is taken, not the processor's."""
    return device.type != "cpu" or torch.get_num_threads() > 1


def main(argv: Sequence[str]) -> None:
    """Parse and measure."""
    measure(parse_arguments(CostArguments, __doc__ or "", argv))


def measure(own: CostArguments) -> None:
    """Measure the rows and print a Markdown table; the numbers go to `cost.json`."""
    from torch._dynamo import config as compiler

    output = Path(own.output)
    refuse_used(output, ("rows",))
    device = torch.device(own.device)
    pixels = torch.rand(own.batch_size, len(own.bands), own.image_size, own.image_size, device=device) * 0.4
    with tempfile.TemporaryDirectory() as folder, compiler.patch(recompile_limit=GRAPHS):
        subjects = [subject for text in own.measured for subject in subjects_of(text, own, pixels, Path(folder))]
        for subject in subjects:
            subject.infer()
        for _ in range(own.rounds):
            gc.collect()
            for subject in subjects:
                subject.measure_times()
    costs = [subject.cost for subject in subjects]
    (output / "rows").mkdir(parents=True, exist_ok=True)
    for cost in costs:
        write_json(output / "rows" / f"{file_name(cost.row)}.json", dataclasses.asdict(cost))
    report(output, "cost", [dataclasses.asdict(cost) for cost in costs], as_markdown(costs, own, device))


def subjects_of(text: str, own: CostArguments, pixels: torch.Tensor, folder: Path) -> list[Subject]:
    """A row, measured but for its times; then, where asked for, with its frozen prefix kept on disk, and compiled."""
    model = build(text, own)
    subjects = [Subject(text, model, pixels)]
    if own.checkpointing and text.partition(":")[0] != "frozen":
        less = build(text, own)
        enable_checkpointing(task_model(less), selective=True)
        subjects.append(Subject(f"{text}, selective checkpointing", less, pixels))
    if own.cache_prefix and "layers_to_transform" in text:
        stored = with_stored_prefix(model, AugmentationArguments(), folder / file_name(text))
        subjects.append(Subject(f"{text}, prefix kept on disk", stored, pixels))
    for subject in subjects:
        subject.measure_memory()
    if own.compile:
        other = build(text, own)
        for block in find_encoder(other).blocks:  # one graph serves them all
            other.get_submodule(block).compile(dynamic=False)
        compiled = Subject(f"{text}, compiled", other, pixels)
        compiled.cost = dataclasses.replace(subjects[0].cost, row=compiled.cost.row, peak_bytes=None)
        for name in ("step_seconds", "inference_seconds", "input_seconds"):
            setattr(compiled.cost, name, [])
        compiled.cost.start_seconds = meters.timed(compiled.step, pixels.is_cuda)
        subjects.append(compiled)
    return subjects


def make_vit(size: str, image_size: tuple[int, int], patch_size: int) -> PreTrainedModel:
    """A vision transformer of one of the SIZES with random weights, for RGB images of (height, width) pixels."""
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


def build(text: str, own: CostArguments) -> nn.Module:
    """A task model of the asked size with random weights, adapted by the row's method."""
    row = Row.parse("frozen" if text == THROUGH else text)
    torch.manual_seed(0)
    encoder = make_vit(own.size, (own.image_size, own.image_size), own.patch_size)
    model = EncoderForImageClassification.from_encoder(encoder, num_labels=10)
    adapted = row.adapt(model, own.bands).to(own.device)
    if text == THROUGH:
        embeddings = adapted.get_submodule(find_encoder(adapted).embeddings)
        embeddings.register_forward_hook(lambda module, given, tokens: tokens.requires_grad_(torch.is_grad_enabled()))
    if own.bf16:
        adapted.forward = torch.autocast(torch.device(own.device).type, torch.bfloat16)(adapted.forward)
    return adapted


def as_markdown(costs: Sequence[Cost], own: CostArguments, device: torch.device) -> str:
    """One line per row; times and memory as ratios to the reference, whose own values stand below."""
    reference = next(cost for cost in costs if cost.row == (own.reference or own.measured[0]))
    images = 4 * own.batch_size * len(own.bands) * own.image_size**2  # bytes
    threads = torch.get_num_threads()
    clock = "wall time" if wall_clock(device) else "processor time"
    note = (
        f"ViT-{own.size}, patch {own.patch_size}, {own.image_size} px, {len(own.bands)} bands, "
        f"batch {own.batch_size}, {'bfloat16 (autocast)' if own.bf16 else 'float32'}, {device.type}, "
        f"{threads} thread(s), {clock}, fastest of {len(reference.step_seconds)} rounds. "
        f"Ratios to {reference.row}: step {min(reference.step_seconds) * 1e3:.0f} ms, inference "
        f"{min(reference.inference_seconds) * 1e3:.0f} ms, peak memory of a step "
        f"{(reference.peak_bytes or 0) / 1e6:.0f} MB, saved activations "
        f"{reference.saved_bytes / 1e6:.1f} MB."
    )
    starts = [f"{cost.row} {cost.start_seconds:.0f} s" for cost in costs if cost.start_seconds is not None]
    if starts:
        note += f" First step, which compiles (wall time): {', '.join(starts)}."
    return markdown(COLUMNS, (_cells(cost, reference, images) for cost in costs), note)


def _cells(cost: Cost, reference: Cost, images: int) -> list[str]:
    def ratio(values: Sequence[float], to: Sequence[float]) -> str:
        return f"{min(values) / min(to):.2f}"

    def of(value: int | None, to: int | None) -> str:
        return f"{value / max(to, 1):.2f}" if value is not None and to is not None else "not measured"

    inference = min(cost.inference_seconds)
    share = f"{100 * min(cost.input_seconds) / inference:.1f} %" if cost.input_seconds else "none"
    return [
        cost.row,
        f"{cost.encoder_trainable:,} ({100 * cost.encoder_trainable / cost.encoder_total:.2f} %)",
        ratio(cost.step_seconds, reference.step_seconds),
        ratio(cost.inference_seconds, reference.inference_seconds),
        of(cost.peak_bytes, reference.peak_bytes),
        of(cost.saved_bytes, reference.saved_bytes),
        f"{cost.file_bytes / 1e6:.2f} MB",
        share,
        "none" if cost.input_bytes is None else f"{cost.input_bytes / images:.2f}",
    ]
