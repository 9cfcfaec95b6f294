"""A confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deflect_hf.figures.canvas import new_figure, save
from deflect_hf.figures.colours import Array

MAX_ANNOTATED_CLASSES = 20


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
    axis.set_xlabel("prediction")
    axis.set_ylabel("label")
    axis.set_title(title, fontsize=9)
    if len(classes) <= MAX_ANNOTATED_CLASSES:
        for (row, column), share in np.ndenumerate(shares):
            colour = "black" if share > 0.6 else "white"
            told = f"{share:.2f}" if rows[row] else "-"  # a class without any label has no shares
            axis.text(column, row, told, ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=axis, shrink=0.8, label="share of the label")
    return save(figure, path)
