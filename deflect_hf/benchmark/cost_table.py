"""The table of the cost benchmark."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from deflect_hf.benchmark.cost import Cost

COLUMNS = (
    *("method", "encoder parameters", "step time", "inference time", "peak memory", "mean memory"),
    *("saved activations", "energy of a step", "file", "spectral input / inference", "its peak memory / images"),
)


def as_markdown(costs: Sequence[Cost], own: argparse.Namespace, device: torch.device, bands: int) -> str:
    """One line per row; times, memory and energy as ratios to the reference, whose own values stand below."""
    reference = next(cost for cost in costs if cost.row == own.reference)
    images = 4 * own.batch_size * bands * own.image_size**2  # bytes
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| {' | '.join(_cells(cost, reference, images))} |" for cost in costs]
    threads = torch.get_num_threads()
    clock = "processor time" if device.type == "cpu" and threads == 1 else "wall time"
    lines.append(
        f"\nViT-{own.size}, patch {own.patch_size}, {own.image_size} px, {bands} bands, batch {own.batch_size}, "
        f"float32, {device.type}, {threads} thread(s), {clock}, fastest of {len(reference.step_seconds)} rounds. "
        f"Ratios to {reference.row}: step {min(reference.step_seconds) * 1e3:.0f} ms, inference "
        f"{min(reference.inference_seconds) * 1e3:.0f} ms, peak memory of a step "
        f"{(reference.peak_bytes or 0) / 1e6:.0f} MB, mean {(reference.mean_bytes or 0) / 1e6:.0f} MB, saved "
        f"activations {reference.saved_bytes / 1e6:.1f} MB."
    )
    return "\n".join(lines) + "\n"


def _cells(cost: Cost, reference: Cost, images: int) -> list[str]:
    def ratio(values: Sequence[float], to: Sequence[float]) -> str:
        return f"{min(values) / min(to):.2f}" if values and to else "not readable"

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
        of(cost.mean_bytes, reference.mean_bytes),
        of(cost.saved_bytes, reference.saved_bytes),
        ratio(cost.step_joules, reference.step_joules),
        f"{cost.file_bytes / 1e6:.2f} MB",
        share,
        "none" if cost.input_bytes is None else f"{cost.input_bytes / images:.2f}",
    ]
