"""What all pictures share: a canvas without display, plain axes, a legend of classes, whole files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deflect_hf.figures.colors import IGNORED, Array, class_colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110


def new_figure(width_inches: float, height_inches: float, **options: Any) -> Figure:
    """An empty figure whose parts make room for each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inches, height_inches), dpi=DPI, **{"layout": "constrained", **options})
    FigureCanvasAgg(figure)
    return figure


def plain(axis: Axes) -> Axes:
    """Axes with a light grid and without the box around them."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8)
    return axis


def class_legend(figure: Figure, classes: Sequence[str], maps: Iterable[Array]) -> None:
    """Name the classes that maps of class numbers show, and the ignored pixels if there are any, below the figure."""
    from matplotlib.patches import Patch

    colors = class_colors(len(classes))
    seen = np.unique(np.concatenate([values.ravel() for values in maps]))
    inside = [int(k) for k in seen if 0 <= k < len(classes)]
    patches = [Patch(facecolor=tuple(colors[k]), edgecolor="black", label=classes[k]) for k in inside]
    if len(inside) < len(seen):
        patches.append(Patch(facecolor=IGNORED, edgecolor="black", label="no label"))
    # narrow figures and long names: as many columns as fit
    letters = max([len(str(patch.get_label())) for patch in patches], default=1)
    columns = max(1, int(figure.get_figwidth() / (0.6 + 0.075 * letters)))
    figure.legend(
        handles=patches, loc="outside lower center", ncols=min(columns, len(patches) or 1), fontsize=8, frameon=False
    )


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG under a temporary name first, so that ``path`` is never half a picture; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=DPI, metadata={"Software": "deflect_hf"})
    os.replace(partial, path)
    return path
