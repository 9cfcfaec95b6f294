"""Rasters in and out: the only room that imports rasterio, and only once a raster is read or written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deflect_hf.lazy import lazy_names

if TYPE_CHECKING:
    from deflect_hf.raster.read import read_mask, read_raster
    from deflect_hf.raster.write import write_raster

__all__ = ["read_mask", "read_raster", "write_raster"]

__getattr__, __dir__ = lazy_names(__name__, {"read_mask": "read", "read_raster": "read", "write_raster": "write"})
