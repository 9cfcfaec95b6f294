"""Masks that paint each class in a color."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deflect_hf.errors import DataError
from deflect_hf.raster.header import SKIPPED, Array, Color, RasterInfo

NAMED = 5  # colors that a message names one by one


def classes_of(painted: Array, valid: Array, info: RasterInfo, colors: Mapping[Color, int]) -> tuple[Array, Array]:
    """(3, H, W) painted or (1, H, W) of a palette, and (B, H, W) valid -> (1, H, W) classes, (1, H, W) valid.

    Args:
        colors: The class of each color, below 0 for one that says that there is no label.
    """
    some = np.asarray(valid.any(axis=0))  # of a color, one channel may have the value that means nodata
    if len(painted) == 1:
        painted = np.array(info.colors)[:, :3].T[:, painted[0]]
    codes = _code(*painted.astype(np.int64))
    known, classes = np.array(sorted((_code(*color), number) for color, number in colors.items())).T
    at = np.searchsorted(known, codes).clip(max=len(known) - 1)
    wrong = codes[(known[at] != codes) & some]
    if wrong.size:
        found, counts = np.unique(wrong, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        red_green_blue = [[code >> 16, code >> 8 & 255, code & 255] for code in found[order[:NAMED]].tolist()]
        named = ", ".join(f"{color} in {counts[k]:,} pixel(s)" for color, k in zip(red_green_blue, order, strict=False))
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise DataError(
            f"{info.path} has colors of no class: {named}{more}; known are {', '.join(map(str, map(list, colors)))}: "
            f"add them to `class_colors`, under {SKIPPED!r} if they mean that there is no label"
            + (" (so many come of smoothing: make the mask without it)." if len(found) > 2 * NAMED else ".")
        )
    return classes[at][None].astype(np.int32), (some & (classes[at] >= 0))[None]


def _code(red: Any, green: Any, blue: Any) -> Any:
    return (red * 256 + green) * 256 + blue
