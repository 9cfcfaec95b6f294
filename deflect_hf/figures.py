"""Pictures of results: prediction panels and confusion matrices, as PNG.

matplotlib is imported when something is drawn, on a canvas of its own: no display is needed and no global backend
changes. Class colours keep apart under the common colour-vision deficiencies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deflect_hf.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]

# Source: M. Okabe and K. Ito, "Color Universal Design" (2008), reordered so that the first two differ most.
OKABE_ITO = ("#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
IGNORED = "#BFBFBF"
# False-colour composites, best first; the first whose bands are all there is drawn.
FALSE_COLOURS = (("N", "R", "G"), ("N2", "R", "G"), ("S1", "N", "R"), ("S1", "N2", "R"))
STRETCH = (2.0, 98.0)  # percentiles of the finite values that become black and white
CELL_INCHES = 3.0
MAX_ANNOTATED_CLASSES = 20


def class_colours(count: int) -> Array:
    """(count, 3) RGB in [0, 1]: Okabe-Ito for up to 8 classes, evenly spaced viridis-like steps beyond."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    if count <= len(OKABE_ITO):
        return np.array([to_rgb(colour) for colour in OKABE_ITO[:count]])
    return np.asarray(colormaps["turbo"](np.linspace(0.03, 0.97, count)))[:, :3]


def composite(pixel_values: Array, bands: Sequence[str], shown: Sequence[str]) -> Array:
    """(C, H, W) reflectance -> (H, W, 3) in [0, 1], stretched per image; invalid pixels are grey.

    Raises:
        DataError: a band is not there.
    """
    missing = [band for band in shown if band not in bands]
    if missing:
        raise DataError(f"cannot draw {'/'.join(shown)}: no band {missing} among {list(bands)}")
    picked = np.asarray(pixel_values, dtype=np.float64)[[list(bands).index(band) for band in shown]]
    finite = np.isfinite(picked)
    if not finite.any():
        return np.full((*picked.shape[1:], 3), 0.75)
    # one stretch for all three bands keeps their ratios, hence the hue
    low, high = np.percentile(picked[finite], STRETCH)
    scaled = np.clip((picked - low) / max(high - low, 1e-6), 0, 1)
    return np.where(finite.all(axis=0), scaled, 0.75).transpose(1, 2, 0)


def false_colour_bands(bands: Sequence[str]) -> tuple[str, ...] | None:
    """The false-colour composite these bands allow, or None."""
    return next((shown for shown in FALSE_COLOURS if set(shown) <= set(bands)), None)


def paint(labels: Array, count: int) -> Array:
    """(H, W) class numbers -> (H, W, 3) colours; numbers outside ``range(count)`` (ignored pixels) are grey."""
    from matplotlib.colors import to_rgb

    table = np.vstack([class_colours(count), to_rgb(IGNORED)])
    inside = (labels >= 0) & (labels < count)
    return table[np.where(inside, labels, count)]


def prediction_panel(
    path: Path,
    pixel_values: Array,
    bands: Sequence[str],
    classes: Sequence[str],
    prediction: Array,
    label: Array | None,
    title: str,
) -> Path:
    """Write RGB, false colour, label and prediction of one image side by side, with the classes' legend.

    ``prediction`` and ``label`` are (H, W) class numbers for segmentation, 0-d class numbers for classification.
    """
    composites = [shown for shown in (("R", "G", "B"), false_colour_bands(bands)) if shown and set(shown) <= set(bands)]
    if not composites:
        composites = [(bands[0], bands[0], bands[0])]
    maps = [("label", label), ("prediction", prediction)] if prediction.ndim == 2 else []
    drawn = [(name, values) for name, values in maps if values is not None]
    figure, axes = _grid(len(composites) + len(drawn))
    for axis, shown in zip(axes, composites, strict=False):
        names = "/".join(shown) if len(set(shown)) > 1 else shown[0]
        axis.imshow(composite(pixel_values, bands, shown), interpolation="nearest")
        kind = "true" if shown == ("R", "G", "B") else "false"
        axis.set_title(f"{kind} colour, bands {names}", fontsize=9)
    for axis, (name, values) in zip(axes[len(composites) :], drawn, strict=True):
        axis.imshow(paint(values, len(classes)), interpolation="nearest")
        axis.set_title(name, fontsize=9)
    heading = title
    if prediction.ndim == 0:
        told = "" if label is None else f"label: {classes[int(label)]}, "
        heading = f"{title}\n{told}prediction: {classes[int(prediction)]}"
    else:
        _legend(figure, classes, drawn)
    figure.suptitle(heading, fontsize=9)
    return _write(figure, path)


def confusion_figure(path: Path, matrix: Array, classes: Sequence[str], title: str) -> Path:
    """Write a confusion matrix: rows are labels, columns predictions, shades are shares of the row."""
    from matplotlib.figure import Figure

    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(3.5, 0.45 * len(classes) + 2)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axis = figure.add_subplot()
    image = axis.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    axis.set_xticks(range(len(classes)), list(classes), rotation=45, ha="right", fontsize=8)
    axis.set_yticks(range(len(classes)), list(classes), fontsize=8)
    axis.set_xlabel("prediction")
    axis.set_ylabel("label")
    axis.set_title(title, fontsize=9)
    if len(classes) <= MAX_ANNOTATED_CLASSES:
        for (row, column), share in np.ndenumerate(shares):
            colour = "black" if share > 0.6 else "white"
            axis.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=axis, shrink=0.8, label="share of the label")
    return _write(figure, path)


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(CELL_INCHES * count, CELL_INCHES + 0.9), layout="constrained")
    axes = [figure.add_subplot(1, count, k + 1) for k in range(count)]
    for axis in axes:
        axis.set_axis_off()
    return figure, axes


def _legend(figure: Figure, classes: Sequence[str], drawn: Sequence[tuple[str, Array]]) -> None:
    """Name the classes that the panel shows, and the ignored pixels if there are any."""
    from matplotlib.patches import Patch

    colours = class_colours(len(classes))
    seen = np.unique(np.concatenate([values.ravel() for _, values in drawn]))
    inside = [int(k) for k in seen if 0 <= k < len(classes)]
    patches = [Patch(facecolor=tuple(colours[k]), edgecolor="black", label=classes[k]) for k in inside]
    if len(inside) < len(seen):
        patches.append(Patch(facecolor=IGNORED, edgecolor="black", label="no label"))
    figure.legend(handles=patches, loc="outside lower center", ncols=min(6, max(1, len(patches))), fontsize=8)


def _write(figure: Figure, path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).print_png(path)
    return path
