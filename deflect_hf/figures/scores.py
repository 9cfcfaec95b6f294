"""The picture of a split's scores: a confusion matrix, scores per class, or predictions over labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deflect_hf.config.tasks import Output
from deflect_hf.figures.canvas import new_figure, plain, save
from deflect_hf.figures.results import confusion_figure

FIGURES: dict[Output, str] = {"class": "confusion_matrix.png", "labels": "scores.png", "value": "scatter.png"}
BARS = (("ap", "average precision", "#0072B2"), ("f1", "F1", "#E69F00"))


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

    edges, counts = np.asarray(scores["pairs"]["edges"]), np.asarray(scores["pairs"]["counts"])
    unit = f" ({scores['unit']})" if scores["unit"] else ""
    figure = new_figure(5.2, 4.6)
    axis = plain(figure.add_subplot())
    shown = axis.pcolormesh(
        edges, edges, np.ma.masked_equal(counts.T, 0), norm=LogNorm(1, max(2, counts.max())), cmap="viridis"
    )
    axis.plot(edges[[0, -1]], edges[[0, -1]], color="black", linewidth=0.8, linestyle="--")
    axis.set(xlabel=f"label: {name}{unit}", ylabel=f"prediction{unit}", aspect="equal")
    axis.set_title(title, fontsize=9)
    figure.colorbar(shown, ax=axis, shrink=0.8, label="labels")
    return save(figure, path)
