"""GeoTIFF files out: atomically, with the georeference of another file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from deflect_hf.errors import DataError, data_errors
from deflect_hf.raster.header import IDENTITY, PathLike, RasterInfo

BLOCK = 256  # side of the tiles


def geotiff_profile(count: int, dtype: str, like: RasterInfo, nodata: float | None) -> dict[str, Any]:
    """What rasterio is told to write: a compressed GeoTIFF on the grid of ``like``, in tiles unless it is small."""
    profile: dict[str, Any] = {"driver": "GTiff", "count": count, "dtype": dtype, "height": like.height,
                               "width": like.width, "nodata": nodata, "crs": like.crs, "compress": "deflate",
                               "BIGTIFF": "IF_SAFER"}  # fmt: skip
    if max(like.height, like.width) >= BLOCK:
        profile |= {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK}
    if like.crs is not None or like.georeferenced:
        profile["transform"] = rasterio.Affine(*like.transform)
    return profile


def write_raster(
    path: PathLike,
    values: np.ndarray,
    *,
    like: RasterInfo | None = None,
    nodata: float | None = None,
    descriptions: Sequence[str] = (),
) -> None:
    """Write (C, H, W) values as a GeoTIFF at once, atomically; ``like`` lends its CRS and transform.

    Raises:
        DataError: ``like`` has another size, there are too many descriptions, or the folder cannot be written to.
    """
    count, height, width = values.shape
    if like is None:
        ones = (1.0,) * count
        like = RasterInfo(str(path), count, height, width, str(values.dtype), ("",) * count, ones, (0.0,) * count,
                          (nodata,) * count, None, IDENTITY, None)  # fmt: skip
    if (height, width) != (like.height, like.width):
        raise DataError(
            f"{path}: values of {height} x {width} pixels cannot take the georeference of {like.path} "
            f"({like.height} x {like.width})."
        )
    if len(descriptions) > count:
        raise DataError(f"{path}: {len(descriptions)} descriptions for {count} band(s): give one for each band.")
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tif")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with rasterio.open(temporary, "w", **geotiff_profile(count, str(values.dtype), like, nodata)) as sink:
                for index, text in enumerate(descriptions, start=1):
                    sink.set_band_description(index, text)
                sink.write(values)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """For a block that writes ``path``: a DataError names it and what to do where GDAL or the disk refuses."""
    # GDAL's own errors, which rasterio lets through when it copies, are no RasterioErrors
    kinds = (OSError, RasterioError, CPLE_BaseError)
    with (
        data_errors(f"{path} cannot be written", "make room on the disk, or choose another folder.", *kinds),
        warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
    ):
        yield
