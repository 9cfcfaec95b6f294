"""Pictures of results: a prediction beside its image, and the scores of a split, of whichever task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np

from deflect_hf.config.tasks import Output
from deflect_hf.figures.colors import (
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

FIGURES: dict[Output, str] = {"class": "confusion_matrix.png", "labels": "scores.png", "value": "scatter.png"}
BARS = (("ap", "average precision", "#0072B2"), ("f1", "F1", "#E69F00"))
CELL_INCHES = 3.0
BAR_INCHES = 0.9  # beside them, where they have values
LETTERS_PER_INCH = 13  # of the title
MAX_ANNOTATED_CLASSES = 20


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
