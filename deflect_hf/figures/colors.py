"""What all pictures share: colors of bands and classes, a canvas without display, plain axes, a legend, whole files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deflect_hf.errors import DataError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]
Colors = Sequence[tuple[int, ...]]

# Source: M. Okabe and K. Ito, "Color Universal Design" (2008), reordered so that the first two differ most.
OKABE_ITO = ("#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
# Each next one is, of 20000 random colors of medium lightness, the farthest in Oklab from all before it and from
# IGNORED, in the worst of normal vision, deuteranopia, protanopia and tritanopia as Machado et al. (2009) model them.
FURTHER = (
    *("#760316", "#243779", "#78555F", "#AAF8FB", "#A06BFC", "#640BE7", "#AD3505"),
    *("#6212AE", "#24DCFD", "#F1BE69", "#5D254F", "#D2F2B9", "#8FB58B", "#C02C9E"),
)
IGNORED = "#BFBFBF"
# What map readers expect, of the colors above: the first words of a class name that begin so. Of a name with several
# ("forested wetland") the first row whose color is free counts.
EXPECTED = {
    "#56B4E9": ("wetland", "marsh", "swamp", "mangrove", "bog", "peat"),
    "#0072B2": ("water", "sea", "ocean", "river", "lake", "flood"),
    "#009E73": ("forest", "tree", "wood", "broadlea", "conifer"),
    "#760316": ("burn", "fire"),
    "#D55E00": ("urban", "built", "build", "settle", "imperv", "city"),
    "#F0E442": ("crop", "field", "arable", "agricult", "cultivat"),
    "#D2F2B9": ("grass", "herb", "pasture", "meadow", "vegetat"),
    "#8FB58B": ("shrub", "bush", "scrub"),
    "#F1BE69": ("bare", "barren", "sand", "soil", "rock", "desert", "beach"),
    "#AAF8FB": ("snow", "ice", "glacier"),
    "#000000": ("shadow",),
}
NEGATIONS = {"no", "non", "not", "without", "other"}
TRUE_COLOR = ("R", "G", "B")
# False-color composites, best first; the first whose bands are all there is drawn.
FALSE_COLORS = (("N", "R", "G"), ("N2", "R", "G"), ("S1", "N", "R"), ("S1", "N2", "R"))
STRETCH = (2.0, 98.0)  # percentiles of the finite values of a band that become dark and bright
FLATTEST = 0.2  # share of the brightest that black and white are apart at least


def class_colors(classes: Sequence[str], given: Colors = ()) -> Array:
    """(K, 3) RGB in [0, 1], no two alike: water blue, forest green, ... by name, Okabe-Ito and FURTHER for the others.

    Of more than 22 classes the hues are evenly spaced, whatever their names.

    Args:
        given: Red, green and blue, 0 to 255, of each class, in place of all that.
    """
    if given:
        return np.array(given) / 255
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    table = OKABE_ITO + FURTHER
    if len(classes) > len(table):
        return np.asarray(colormaps["turbo"](np.linspace(0.03, 0.97, len(classes))))[:, :3]
    taken: dict[str, int] = {}
    for number, name in enumerate(classes):
        color = next((color for color in _expected(name) if color not in taken), None)
        if color is not None:
            taken[color] = number
    # the others: the first free ones, those that a reader would take for something else last
    free = sorted((color for color in table if color not in taken), key=lambda color: bool(taken) and color in EXPECTED)
    of_class = {number: color for color, number in taken.items()}
    left = iter(free)
    return np.array([to_rgb(of_class.get(number) or next(left)) for number in range(len(classes))]).reshape(-1, 3)


def _expected(name: str) -> list[str]:
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    if NEGATIONS & set(words):
        return []
    return [color for color, stems in EXPECTED.items() if any(word.startswith(stems) for word in words)]


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


def paint(labels: Array, classes: Sequence[str], given: Colors = ()) -> Array:
    """(H, W) class numbers -> (H, W, 3) colors; numbers that no class has (ignored pixels) are grey."""
    from matplotlib.colors import to_rgb

    table = np.vstack([class_colors(classes, given), to_rgb(IGNORED)])
    inside = (labels >= 0) & (labels < len(classes))
    return table[np.where(inside, labels, len(classes))]


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


def class_legend(figure: Figure, classes: Sequence[str], maps: Iterable[Array], given: Colors = ()) -> None:
    """Name the classes that maps of class numbers show, and the ignored pixels if there are any, below the figure."""
    from matplotlib.patches import Patch

    colors = class_colors(classes, given)
    seen = np.unique(np.concatenate([values.ravel() for values in maps]))
    inside = [int(k) for k in seen if 0 <= k < len(classes)]
    patches = [Patch(facecolor=tuple(colors[k]), edgecolor="black", label=classes[k]) for k in inside]
    if len(inside) < len(seen):
        patches.append(Patch(facecolor=IGNORED, edgecolor="black", label="no label"))
    legend_below(figure, patches, frameon=False)


def legend_below(figure: Figure, keys: Sequence[Artist], **options: Any) -> None:
    """A legend below the figure, in as many columns as fit."""
    letters = max([len(str(key.get_label())) for key in keys], default=1)
    columns = min(max(1, int(figure.get_figwidth() / (0.6 + 0.075 * letters))), len(keys) or 1)
    figure.legend(handles=keys, **{"loc": "outside lower center", "ncols": columns, "fontsize": 8, **options})


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG under a temporary name first, so that ``path`` is never half a picture; its folder is made."""
    from matplotlib.text import Text

    axes = [axis for one in figure.axes for axis in (one.xaxis, one.yaxis)]
    powers = {text for axis in axes if axis.get_scale() != "linear" for text in axis.findobj(Text)}
    for text in {*figure.findobj(Text)} - powers:
        text.set_parse_math(False)  # names of classes and files may hold dollars
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=DPI, metadata={"Software": "deflect_hf"})
    os.replace(partial, path)
    return path
