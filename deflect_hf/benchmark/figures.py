"""Plots of the benchmarks: what a method reaches over what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deflect_hf.figures.canvas import new_figure, plain, save
from deflect_hf.figures.curves import COLORS

MARKERS = "osD^vPX*<>"


def metric_over_parameters(path: Path, summary: Sequence[dict[str, Any]], title: str) -> Path:
    """Score over trained encoder parameters, logarithmic; a method without any stands at the left edge."""
    counts = [one["encoder_trainable"] for one in summary]
    trained = [count for count in counts if count]
    label = "trained parameters of the encoder"
    return _scatter(path, summary, counts, label, title, linear_below=min(trained) / 4 if trained else None)


def metric_over_time(
    path: Path, summary: Sequence[dict[str, Any]], title: str, ratios: Mapping[str, float] | None = None
) -> Path:
    """Score over step time as a ratio to the first row: ``ratios`` where they were measured apart, else in training."""
    first = summary[0]
    how = "measured apart, in turns" if ratios is not None else "median in training, with loading and other load"
    found = ratios or {one["row"]: one["seconds_per_step"] / first["seconds_per_step"] for one in summary}
    label = f"step time, ratio to {first['row']} ({how})"
    return _scatter(path, summary, [found[one["row"]] for one in summary], label, title)


def _scatter(
    path: Path,
    summary: Sequence[dict[str, Any]],
    costs: Sequence[float],
    label: str,
    title: str,
    linear_below: float | None = None,
) -> Path:
    """A point per row, named in the legend: color by method, marker by row, filled with a trained patch embedding."""
    figure = new_figure(9, 5)
    axes = plain(figure.subplots())
    methods = list(dict.fromkeys(one["method"] for one in summary))
    for number, (one, cost) in enumerate(zip(summary, costs, strict=True)):
        color = COLORS[methods.index(one["method"]) % len(COLORS)]
        axes.errorbar(
            cost,
            one["mean"],
            yerr=one["half_interval"],
            color=color,
            marker=MARKERS[number % len(MARKERS)],
            markersize=8,
            markerfacecolor=color if one["trains_patch_embedding"] else "white",
            linestyle="none",
            capsize=3,
            label=short(one["row"]),
        )
    if linear_below is not None:
        axes.set_xscale("symlog", linthresh=linear_below, linscale=0.3)
    axes.set_xlabel(label)
    axes.set_ylabel(f"test {title}, 95 % interval" if any(one["half_interval"] for one in summary) else f"test {title}")
    axes.margins(x=0.12, y=0.08)
    if linear_below is not None:  # the margin of a count of 0 is no place for ticks
        axes.set_xticks([tick for tick in axes.get_xticks() if tick >= 0])
        axes.set_xticks([], minor=True)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False, title="filled: trained patch embedding")
    return save(figure, path)


def short(row: str) -> str:
    """A row's name for a label: `lora:rank=4,target=qv,patch_embed=repeat` -> `lora rank=4 target=qv repeat`."""
    return row.removeprefix("peft:").replace("patch_embed=", "").replace(":", " ").replace(",", " ")
