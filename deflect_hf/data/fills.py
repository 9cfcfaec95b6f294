"""Stored values by which files that do not say so often mean that nothing was measured."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

FILLS = (-9999.0, -99999.0, -32768.0)
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
