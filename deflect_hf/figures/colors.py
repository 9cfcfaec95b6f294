"""What all pictures share: colors of bands and classes, a canvas without display, plain axes, a legend, whole files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
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
# Each next one is, of 20000 random colors of medium lightness, the farthest in Oklab from all before it and from
# IGNORED, in the worst of normal vision, deuteranopia, protanopia and tritanopia as Machado et al. (2009) model them.
FURTHER = (
    *("#760316", "#243779", "#78555F", "#AAF8FB", "#A06BFC", "#640BE7", "#AD3505"),
    *("#6212AE", "#24DCFD", "#F1BE69", "#5D254F", "#D2F2B9", "#8FB58B", "#C02C9E"),
)
IGNORED = "#BFBFBF"
TRUE_COLOR = ("R", "G", "B")
# False-color composites, best first; the first whose bands are all there is drawn.
FALSE_COLORS = (("N", "R", "G"), ("N2", "R", "G"), ("S1", "N", "R"), ("S1", "N2", "R"))
STRETCH = (2.0, 98.0)  # percentiles of the finite values of a band that become dark and bright
FLATTEST = 0.2  # share of the brightest that black and white are apart at least


def class_colors(count: int) -> Array:
    """(count, 3) RGB in [0, 1]: Okabe-Ito, FURTHER ones for up to 22 classes, evenly spaced hues for more."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    table = OKABE_ITO + FURTHER
    if count <= len(table):
        return np.array([to_rgb(color) for color in table[:count]])
    return np.asarray(colormaps["turbo"](np.linspace(0.03, 0.97, count)))[:, :3]


def composite(pixel_values: Array, bands: Sequence[str], shown: Sequence[str]) -> Array:
    """(C, H, W) reflectance -> (H, W, 3) in [0, 1], stretched per image; invalid pixels are grey."""
    missing = [band for band in shown if band not in bands]
    if missing:
        raise DataError(f"cannot draw {'/'.join(shown)}: no band {missing} among {list(bands)}")
    picked = np.asarray(pixel_values, dtype=np.float64)[[list(bands).index(band) for band in shown]]
    seen = np.isfinite(picked).all(axis=0)
    if not seen.any():
        return np.full((*picked.shape[1:], 3), 0.75)
    # each band from its own dark end, which takes off the blue of the air; of the spans halfway between one for all
    # bands, which keeps hues, and each its own; a plain surface is not stretched to noise
    low, high = np.percentile(picked[:, seen], STRETCH, axis=1)[..., None, None]
    span = np.sqrt((high - low) * (high - low).max())
    scaled = np.clip((picked - low) / np.maximum(span, max(FLATTEST * high.max(), 1e-6)), 0, 1)
    return np.where(seen, scaled, 0.75).transpose(1, 2, 0)


def composites_of(bands: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What is drawn of images with these bands: title -> three bands; the first band in grey if they allow nothing."""
    found: dict[str, tuple[str, ...]] = {
        f"{kind} color {'/'.join(shown)}": shown
        for kind, choices in (("true", (TRUE_COLOR,)), ("false", FALSE_COLORS))
        for shown in [choice for choice in choices if set(choice) <= set(bands)][:1]
    }
    return found or {f"band {bands[0]}": (bands[0],) * 3}


def paint(labels: Array, count: int) -> Array:
    """(H, W) class numbers -> (H, W, 3) colors; numbers outside ``range(count)`` (ignored pixels) are grey."""
    from matplotlib.colors import to_rgb

    table = np.vstack([class_colors(count), to_rgb(IGNORED)])
    inside = (labels >= 0) & (labels < count)
    return table[np.where(inside, labels, count)]


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
