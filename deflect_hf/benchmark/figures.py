"""Plots of the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def metric_over_parameters(path: Path, summary: Sequence[dict[str, Any]], metric: str) -> Path:
    """Score over trainable encoder parameters, logarithmic; a method without any stands at the left edge."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xscale("symlog", linthresh=100)
    for one in summary:
        axes.errorbar(
            one["encoder_trainable"], one["mean"], yerr=one["half_interval"], fmt="o", capsize=3, label=one["row"]
        )
    axes.set_xlabel("trainable parameters of the encoder")
    axes.set_ylabel(f"test {metric.replace(':', ' of ')}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
