"""Stored values by which files that do not say so often mean that nothing was measured."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

FILLS = (-9999.0, -99999.0, -32768.0)
LIFT = 1000  # what Sentinel-2 products add to digital numbers from processing baseline 04.00 on
OF_IMAGES = (*FILLS, 32767.0, 65535.0)
BLANK = 0.01  # share of the pixels that are 0 in all bands; single ones occur in shadow


class Fills:
    """How many of the pixels that are taken for measurements hold such a value in any band, or 0 in all of them.

    Args:
        scale: with ``offset`` what made reflectance of the stored values, as those of an image processor.
    """

    def __init__(self, scale: float | Sequence[float], offset: float | Sequence[float]) -> None:
        self._scale, self._offset = (
            torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1) for value in (scale, offset)
        )
        self.counts = torch.zeros(len(OF_IMAGES) + 2, dtype=torch.int64)  # the last two: of 0, and of all pixels

    def update(self, pixel_values: Tensor) -> None:
        """(..., C, H, W) reflectance, NaN where nothing was measured: count them, too."""
        found = [(pixel_values == fill * self._scale + self._offset).any(dim=-3).sum() for fill in OF_IMAGES]
        blank = (pixel_values == self._offset).all(dim=-3)
        self.counts += torch.stack([*found, blank.sum(), torch.tensor(blank.numel())])

    def report(self, where: str) -> None:
        """Log what was found."""
        *counts, blank, pixels = self.counts.tolist()
        found = {fill: count for fill, count in zip(OF_IMAGES, counts, strict=True) if count}
        for fill, count in (found | ({0.0: blank} if blank > BLANK * pixels else {})).items():
            logger.warning(
                "%s: %d of %d pixels hold %g%s, by which files often mean that nothing was measured, but here it "
                "counts as a measurement: if it is none, say so (`nodata: [%g]`, or the files' tag, gdal_edit.py "
                "-a_nodata)",
                where, count, pixels, fill, "" if fill else " in all bands", fill,
            )  # fmt: skip


def lifted(names: Sequence[str], pixel_values: Tensor) -> list[str]:
    """Of (B, C, H, W) digital numbers / 10000, the images that look as if `LIFT` had been added to each number."""
    lowest = pixel_values.flatten(1).nan_to_num(torch.inf).amin(dim=1)
    return [name for name, low in zip(names, lowest.tolist(), strict=True) if LIFT * 1e-4 - 1e-6 <= low < math.inf]


def report_lifted(found: Sequence[str], images: int) -> None:
    """Log the images among those of the training split that look so."""
    if found:
        logger.warning(
            "in %d of %d training images, such as %s, no band is anywhere below %d: Sentinel-2 products of processing "
            "baseline 04.00 (2022 on) are the digital numbers + %d. If these are, and it is no snow, sand or cloud, "
            "%s",
            *(len(found), images, found[0], LIFT, LIFT),
            "give `offset: -0.1`" if len(found) == images else "take it off them, as one `offset` is for all",
        )
