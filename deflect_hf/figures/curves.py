"""How runs went: loss, learning rate and validation scores over the optimizer steps, from their ``log.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deflect_hf.config.tasks import TITLES
from deflect_hf.errors import DataError
from deflect_hf.figures.colors import OKABE_ITO, Array, new_figure, plain, save
from deflect_hf.files import LOG

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = (
    ("training loss", "loss"),
    ("validation loss", "val.loss"),
    ("learning rate", "lr"),
    *((f"validation {title}", f"val.{name}") for name, title in TITLES.items()),
)
MOST = 6  # panels: those of the scores that the runs have
COLORS = tuple(color for color in OKABE_ITO if color != "#F0E442")  # yellow lines vanish on white
STYLES = ("-", "--", ":", "-.")
SMOOTHED_FROM = 40  # lines of the log
WINDOW_SHARE = 20


def read_curves(run: Path) -> tuple[dict[str, Array], int | None]:
    """(N, 2) steps and values by key of a run's log, and the step of its best checkpoint where its results say it."""
    path = run / LOG
    found: dict[str, list[tuple[int, float]]] = {}
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            numbers = {**line, **{f"val.{name}": value for name, value in line.get("val", {}).items()}}
            for _, key in PANELS:
                if key in numbers:
                    found.setdefault(key, []).append((int(line["step"]), float(numbers[key])))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}. Give folders of runs, such as work-dir/RUN.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is no log of a run: {error!r}.") from error
    if not found:
        raise DataError(f"{path}: the run has not logged anything yet.")
    try:
        results = json.loads((run / "best" / "results.json").read_text(encoding="utf-8"))
        key = "step" if "best_step" in results else "epoch"  # versions that evaluated by epochs alone
        wanted = results[f"best_{key}"]
    except (OSError, ValueError, KeyError, TypeError):
        key, wanted = "step", None
    best = next((int(line["step"]) for line in lines if "val" in line and line.get(key) == wanted), None)
    return {key: np.array(pairs, dtype=float) for key, pairs in found.items()}, best


def curves_figure(path: Path, runs: Sequence[Path]) -> Path:
    """Write the learning curves of one or several runs, one above the other; a star marks the best checkpoint."""
    curves = [read_curves(run) for run in runs]
    names = [run.resolve().name for run in runs]
    names = [str(run) if names.count(name) > 1 else name for run, name in zip(runs, names, strict=True)]
    # margins by hand: finding them takes longer than everything else
    legend_inches = 0.25 + 0.2 * -(-len(curves) // 3)
    height = 5.6 + legend_inches
    figure = new_figure(11, height, layout="none")
    axes = figure.subplots(2, 3, sharex=True)
    has = [
        panel for panel in PANELS if not panel[1].startswith("val.") or any(panel[1] in found for found, _ in curves)
    ]
    shown = (has + [panel for panel in PANELS if panel not in has])[:MOST]
    for axis, (title, key) in zip(axes.flat, shown, strict=True):
        for number, (name, (values, best)) in enumerate(zip(names, curves, strict=True)):
            if key in values:
                style = STYLES[number // len(COLORS) % len(STYLES)]
                _draw(axis, key, values[key], best, color=COLORS[number % len(COLORS)], linestyle=style, label=name)
        plain(axis).set_title(title, fontsize=10)
        axis.margins(y=0.1)
        if key == "lr":
            axis.set_ylim(bottom=0)
            axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
            axis.yaxis.get_offset_text().set_fontsize(8)
    for axis in axes[1]:
        axis.set_xlabel("optimizer steps", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=min(3, len(curves)), fontsize=8, frameon=False)
    figure.subplots_adjust(0.06, (legend_inches + 0.5) / height, 0.985, 1 - 0.35 / height, wspace=0.24, hspace=0.2)
    return save(figure, path)


def rates_figure(path: Path, rates: Array, losses: Array, smoothed: Array, chosen: float) -> Path:
    """Write the (N,) losses of a learning rate test, their running mean, and the rate that was chosen."""
    figure = new_figure(6, 4)
    axis = plain(figure.subplots())
    axis.plot(rates, losses, color=COLORS[0], linewidth=0.6, alpha=0.35)
    axis.plot(rates, smoothed, color=COLORS[0], linewidth=1.5, label="training loss, running mean")
    axis.axvline(chosen, color=COLORS[1], linestyle="--", label=f"chosen: {chosen:g}")
    axis.set(xscale="log", xlabel="learning rate", ylabel="training loss")
    axis.legend(fontsize=8, frameon=False)
    return save(figure, path)


def _draw(axis: Axes, key: str, points: Array, best_step: int | None, color: str, **line: Any) -> None:
    steps, values = points.T
    marker: dict[str, Any] = {"marker": "o", "markersize": 3} if key.startswith("val.") else {}
    if key == "loss" and len(values) >= SMOOTHED_FROM:
        axis.plot(steps, values, color=color, linewidth=0.6, alpha=0.35)
        values = running_mean(values, max(3, len(values) // WINDOW_SHARE))
    axis.plot(steps, values, color=color, linewidth=1.5, **line, **marker)
    if key.startswith("val.") and best_step is not None:
        best = steps == best_step
        axis.plot(steps[best], values[best], marker="*", markersize=11, color=color, markeredgecolor="black", zorder=5)


def running_mean(values: Array, window: int) -> Array:
    """Mean over ``window`` values around each, fewer at the ends."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")
