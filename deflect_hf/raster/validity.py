"""Which stored values are measurements, and the composite of those of several dates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

HUGE = 1e30  # a nodata tag beyond it is the lowest or highest number of a type, rounded by whoever wrote it


def measured(band: np.ndarray, fills: set[float | None]) -> np.ndarray:
    """(H, W) stored values -> (H, W) bool: neither NaN nor any of the nodata values."""
    floating = np.issubdtype(band.dtype, np.floating)
    valid = np.isfinite(band) if floating else np.ones(band.shape, dtype=bool)
    for fill in fills:
        if fill is None or math.isnan(fill):
            continue
        if floating and abs(fill) > HUGE:
            valid &= band * math.copysign(1.0, fill) < HUGE
        else:
            valid &= band != float(fill)
    return valid


def unmasked(values: Any, valid: Any = None) -> Any:
    """``valid``, and where a masked array, as ``rasterio.read(masked=True)`` gives it, is a measurement as well."""
    if not isinstance(values, np.ma.MaskedArray):
        return valid
    own = ~np.ma.getmaskarray(values)
    return own if valid is None else own & np.asarray(valid, dtype=bool)


def medians(values: np.ndarray, valid: np.ndarray, groups: Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(C, H, W) stored values and validity -> (len(groups), H, W) medians of what is valid, NaN where nothing is."""
    known = np.where(valid, values.astype(np.result_type(values, np.float32)), np.nan)
    found = []
    for group in groups:
        ordered, count = np.sort(known[group], axis=0), valid[group].sum(axis=0)  # NaN is sorted to the end
        middles = [np.take_along_axis(ordered, place.clip(0)[None], 0)[0] for place in ((count - 1) // 2, count // 2)]
        found.append((middles[0] + middles[1]) / 2)
    return np.stack(found), np.stack([valid[group].any(axis=0) for group in groups])
