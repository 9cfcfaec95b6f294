"""How runs went: loss, learning rate and validation scores over the optimizer steps, from their ``log.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deflect_hf.errors import DataError
from deflect_hf.figures.canvas import new_figure, plain, save
from deflect_hf.figures.colours import OKABE_ITO, Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOG = "log.jsonl"
PANELS = (
    ("training loss", "loss"),
    ("validation loss", "val.loss"),
    ("learning rate", "lr"),
    ("validation accuracy", "val.accuracy"),
    ("validation mIoU", "val.miou"),
    ("validation macro F1", "val.f1_macro"),
)
COLOURS = tuple(colour for colour in OKABE_ITO if colour != "#F0E442")  # yellow lines vanish on white
STYLES = ("-", "--", ":", "-.")
SMOOTHED_FROM = 40  # lines of the log
WINDOW_SHARE = 20


@dataclass(frozen=True)
class Curves:
    """One run: its name, (N, 2) steps and values by key, and the step of its best checkpoint."""

    name: str
    values: dict[str, Array]
    best_step: int | None


def read_curves(run: Path) -> Curves:
    """What a run's folder tells of its course.

    Raises:
        DataError: it has no log, an empty or a broken one.
    """
    path = run / LOG
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found: dict[str, list[tuple[int, float]]] = {}
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
    values = {key: np.array(pairs, dtype=float) for key, pairs in found.items()}
    return Curves(run.resolve().name, values, _best_step(run, lines))


def _best_step(run: Path, lines: Sequence[dict[str, Any]]) -> int | None:
    """None where the run's results do not say."""
    try:
        epoch = json.loads((run / "best" / "results.json").read_text(encoding="utf-8"))["best_epoch"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return next((int(line["step"]) for line in lines if "val" in line and line.get("epoch") == epoch), None)


def curves_figure(path: Path, runs: Sequence[Path]) -> Path:
    """Write the learning curves of one or several runs, one above the other; a star marks the best checkpoint.

    Raises:
        DataError: a folder holds no log.
    """
    curves = _distinct([read_curves(run) for run in runs], runs)
    # margins by hand: finding them takes longer than everything else
    legend_inches = 0.25 + 0.2 * -(-len(curves) // 3)
    height = 5.6 + legend_inches
    figure = new_figure(11, height, layout="none")
    axes = figure.subplots(2, 3, sharex=True)
    for axis, (title, key) in zip(axes.flat, PANELS, strict=True):
        for number, one in enumerate(curves):
            colour, style = COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]
            if key in one.values:
                _draw(axis, one, key, colour, style)
        plain(axis).set_title(title, fontsize=10)
        axis.margins(y=0.1)
        if key == "lr":
            axis.set_ylim(bottom=0)
            axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
            axis.yaxis.get_offset_text().set_fontsize(8)
    for axis in axes[1]:
        axis.set_xlabel("optimizer steps", fontsize=9)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=min(3, len(curves)), fontsize=8, frameon=False)
    figure.subplots_adjust(0.06, (legend_inches + 0.5) / height, 0.985, 1 - 0.35 / height, wspace=0.24, hspace=0.2)
    return save(figure, path)


def _draw(axis: Axes, one: Curves, key: str, colour: str, style: str) -> None:
    steps, values = one.values[key].T
    marker: dict[str, Any] = {"marker": "o", "markersize": 3} if key.startswith("val.") else {}
    if key == "loss" and len(values) >= SMOOTHED_FROM:
        axis.plot(steps, values, color=colour, linewidth=0.6, alpha=0.35)
        values = _running_mean(values, max(3, len(values) // WINDOW_SHARE))
    axis.plot(steps, values, color=colour, linestyle=style, linewidth=1.5, label=one.name, **marker)
    if key.startswith("val.") and one.best_step is not None:
        best = steps == one.best_step
        axis.plot(steps[best], values[best], marker="*", markersize=11, color=colour, markeredgecolor="black", zorder=5)


def _running_mean(values: Array, window: int) -> Array:
    """Mean over ``window`` values around each, fewer at the ends."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def _distinct(curves: Sequence[Curves], runs: Sequence[Path]) -> list[Curves]:
    """The same with longer names where folders of different runs are called the same."""
    names = [one.name for one in curves]
    return [
        Curves(str(run) if names.count(one.name) > 1 else one.name, one.values, one.best_step)
        for one, run in zip(curves, runs, strict=True)
    ]
