"""Pictures of results: a prediction beside its image, the scores of a split, of whichever task, and how runs went."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from deflect_hf.config.tasks import TITLES, Output
from deflect_hf.errors import DataError
from deflect_hf.figures.colors import (
    OKABE_ITO,
    Array,
    Colors,
    class_legend,
    composite,
    composites_of,
    new_figure,
    paint,
    plain,
    save,
)
from deflect_hf.files import LOG

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURES: dict[Output, str] = {"class": "confusion_matrix.png", "labels": "scores.png", "value": "scatter.png"}
BARS = (("ap", "average precision", "#0072B2"), ("f1", "F1", "#E69F00"))
CELL_INCHES = 3.0
BAR_INCHES = 0.9  # beside them, where they have values
LETTERS_PER_INCH = 13  # of the title
MAX_ANNOTATED_CLASSES = 20
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


def prediction_panel(
    path: Path,
    pixel_values: Array,
    bands: Sequence[str],
    classes: Sequence[str],
    prediction: Array,
    label: Array | None,
    title: str,
    unit: str = "",
    colors: Colors = (),
) -> Path:
    """Write RGB, false color, label and prediction of one image side by side, with the classes' legend.

    ``prediction`` and ``label`` are (H, W) class numbers, or values as floats with NaN where unknown; of a whole image
    a 0-d class number or value in ``unit``, or (K,) 0 and 1.
    """
    pictures = {name: composite(pixel_values, bands, shown) for name, shown in composites_of(bands).items()}
    maps = {"label": label, "prediction": prediction} if prediction.ndim == 2 else {}
    drawn = {name: values for name, values in maps.items() if values is not None}
    numbers = prediction.dtype.kind == "f"
    pictures |= {name: values if numbers else paint(values, classes, colors) for name, values in drawn.items()}
    known = [values[np.isfinite(values)] for values in drawn.values()]
    low, high = np.percentile(np.concatenate(known), (1, 99)) if numbers and sum(map(len, known)) else (0.0, 1.0)
    if not drawn:
        true = "" if label is None else f"\nlabel: {in_words(label, classes, unit)}"
        title = f"{title}{true}\nprediction: {in_words(prediction, classes, unit)}"
    letters = int(LETTERS_PER_INCH * CELL_INCHES * len(pictures))
    lines = [part for line in title.splitlines() for part in wrap(line, letters)]
    height, width = pixel_values.shape[-2:]
    wide = CELL_INCHES * len(pictures) + (BAR_INCHES if drawn and numbers else 0)
    figure = new_figure(wide, CELL_INCHES * min(height / width, 2) + 0.6 + 0.15 * len(lines))
    axes = figure.subplots(1, len(pictures), squeeze=False)[0]
    for axis, (name, picture) in zip(axes, pictures.items(), strict=True):
        axis.set_axis_off()
        shown = axis.imshow(picture, interpolation="nearest", vmin=low, vmax=high)  # which colors are not asked for
        axis.set_title(name, fontsize=9)
    if drawn and numbers:
        figure.colorbar(shown, ax=axes, shrink=0.7, label=f"{classes[0]} {unit}".strip())
    elif drawn:
        class_legend(figure, classes, drawn.values(), colors)
    figure.suptitle("\n".join(lines), fontsize=9)
    return save(figure, path)


def in_words(value: Array, classes: Sequence[str], unit: str) -> str:
    """A class, several classes, or a value of a whole image."""
    if value.ndim == 1:
        return ", ".join(name for name, has in zip(classes, value, strict=True) if has == 1) or "none"
    return f"{classes[0]} {value:.4g} {unit}".strip() if value.dtype.kind == "f" else classes[int(value)]


def confusion_figure(path: Path, matrix: Array, classes: Sequence[str], title: str) -> Path:
    """Write a confusion matrix: rows are labels, columns predictions, shades are shares of the row."""
    counts = np.asarray(matrix)
    rows = counts.sum(axis=1)
    shares = counts / np.maximum(rows[:, None], 1)
    side = max(3.5, 0.45 * len(classes) + 2)
    figure = new_figure(side + 0.8, side)
    axis = figure.add_subplot()
    image = axis.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    axis.set_xticks(range(len(classes)), list(classes), rotation=45, ha="right", fontsize=8, rotation_mode="anchor")
    axis.set_yticks(range(len(classes)), list(classes), fontsize=8)
    axis.set(xlabel="prediction", ylabel="label")
    axis.set_title(title, fontsize=9)
    if len(classes) <= MAX_ANNOTATED_CLASSES:
        for (row, column), share in np.ndenumerate(shares):
            written = f"{share:.2f}" if rows[row] else "-"  # a class without any label has no shares
            color = "black" if share > 0.6 else "white"
            axis.text(column, row, written, ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(image, ax=axis, shrink=0.8, label="share of the label")
    return save(figure, path)


def scores_figure(path: Path, scores: Mapping[str, Any], classes: Sequence[str], title: str) -> Path:
    """Write the picture that belongs to the scores of a split, whichever task they are of."""
    if "confusion_matrix" in scores:
        return confusion_figure(path, np.asarray(scores["confusion_matrix"]), classes, title)
    if "pairs" in scores:
        return scatter_figure(path, scores, classes[0], title)
    return bars_figure(path, scores["per_class"], title)


def bars_figure(path: Path, rows: Mapping[str, Mapping[str, Any]], title: str) -> Path:
    """Write average precision and F1 of each class as bars; classes without a label have none."""
    figure = new_figure(7, 1.6 + 0.4 * len(rows))
    axis = plain(figure.add_subplot())
    places, height = np.arange(len(rows)), 0.8 / len(BARS)
    for number, (key, label, color) in enumerate(BARS):
        values = [row[key] or 0.0 for row in rows.values()]
        axis.barh(places + (number - 0.5) * height, values, height, label=label, color=color)
    axis.set_yticks(places, [f"{name} ({row['support']})" for name, row in rows.items()], fontsize=8)
    axis.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5))
    axis.set_xlabel("score (in brackets: images of the class)", fontsize=9)
    axis.set_title(title, fontsize=9)
    figure.legend(loc="outside lower center", ncols=len(BARS), fontsize=8, frameon=False)
    return save(figure, path)


def scatter_figure(path: Path, scores: Mapping[str, Any], name: str, title: str) -> Path:
    """Write how often each prediction meets each label, with the line where both are equal."""
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator

    edges, counts = np.asarray(scores["pairs"]["edges"]), np.asarray(scores["pairs"]["counts"])
    unit = f" ({scores['unit']})" if scores["unit"] else ""
    figure = new_figure(5.2, 4.6)
    axis = plain(figure.add_subplot())
    shown = axis.pcolormesh(
        edges, edges, np.ma.masked_equal(counts.T, 0), norm=LogNorm(1, max(2, counts.max())), cmap="viridis"
    )
    filled = np.flatnonzero(counts.any(axis=0) | counts.any(axis=1))  # of labels or predictions
    span = edges[[filled[0], filled[-1] + 1]]
    axis.plot(span, span, color="black", linewidth=0.8, linestyle="--")
    axis.set(xlabel=f"label: {name}{unit}", ylabel=f"prediction{unit}", aspect="equal", xlim=span, ylim=span)
    axis.set_title(title, fontsize=9)
    bar = figure.colorbar(shown, ax=axis, shrink=0.8, label="labels", ticks=LogLocator(subs=(1, 3)), format="{x:,.0f}")
    bar.minorticks_off()
    return save(figure, path)


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
