"""Areas of classes, corrected for the errors of a map, with confidence intervals.

Source: Olofsson, Foody, Herold, Stehman, Woodcock and Wulder, Good practices for estimating area and assessing accuracy
of land change, Remote Sensing of Environment 148 (2014), equations 9 to 11: the stratified estimator, its strata being
the classes of the map.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

NORMAL_95 = 1.96


def estimate_areas(confusion: Array, mapped: Array) -> tuple[Array, Array] | None:
    """(K, K) counts, rows the reference and columns the map, (K,) mapped areas -> (K,) areas and half 95 % intervals.

    With W_i the mapped share of class i, and n_ij of the n_i reference pixels mapped as i of class j:

        area_j = A sum_i W_i n_ij / n_i                                                           (9)
        S(area_j) = A sqrt(sum_i W_i^2 (n_ij / n_i) (1 - n_ij / n_i) / (n_i - 1))                  (10, 11)

    None where fewer than two reference pixels are mapped as a class that the map has: nothing is known of its errors.
    The pixels are taken as drawn independently; those of a few polygons are not, and the true intervals wider.
    """
    by_map = np.asarray(confusion, dtype=float).T
    sizes, total = by_map.sum(axis=1), float(mapped.sum())
    there = mapped > 0
    if not total or (sizes[there] < 2).any():
        return None
    weight = (mapped / total)[there, None]
    share = by_map[there] / sizes[there, None]
    variance = (weight**2 * share * (1 - share) / (sizes[there, None] - 1)).sum(axis=0)
    return total * (weight * share).sum(axis=0), NORMAL_95 * total * np.sqrt(variance)
