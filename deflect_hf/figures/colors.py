"""From numbers to colors: composites of bands, classes, unlabelled and unmeasured pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deflect_hf.errors import DataError

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
STRETCH = (2.0, 98.0)  # percentiles of the finite values that become black and white


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
    finite = np.isfinite(picked)
    if not finite.any():
        return np.full((*picked.shape[1:], 3), 0.75)
    # one stretch for all three bands keeps their ratios, hence the hue
    low, high = np.percentile(picked[finite], STRETCH)
    scaled = np.clip((picked - low) / max(high - low, 1e-6), 0, 1)
    return np.where(finite.all(axis=0), scaled, 0.75).transpose(1, 2, 0)


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
