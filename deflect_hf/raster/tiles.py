"""Scenes that GDAL cannot read in pieces: it decodes whole blocks, however large whoever wrote the file made them."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from deflect_hf.errors import DataError, brief
from deflect_hf.raster.header import PathLike
from deflect_hf.raster.products import Product
from deflect_hf.raster.read import CACHE_BYTES, OpenRaster, open_raster, product_of, raster_info

logger = logging.getLogger(__name__)

ROWS = 256  # pixel rows of a window, about
# In a process of its own, as what GDAL takes for the blocks would stay with this one.
COPY = """
import json, sys, rasterio, rasterio.shutil
source, target, drivers, options = json.loads(sys.argv[1])
with rasterio.Env(**options), rasterio.io.DatasetReader(source, driver=drivers) as opened:
    rasterio.shutil.copy(opened, target, driver="GTiff", TILED="YES", COMPRESS="DEFLATE", ZLEVEL=1, BIGTIFF="IF_SAFER")
"""


@contextmanager
def in_pieces(path: PathLike, beside: Path) -> Iterator[OpenRaster]:
    """An image, open for many reads by window; through a copy in tiles where its blocks are too large.

    Args:
        beside: the copy lies in the folder of this file meanwhile.
    """
    product = product_of(path)
    with open_raster(product) as file:
        decoded = decoded_bytes(product, file)
        if decoded <= CACHE_BYTES:
            yield file
            return
    beside.parent.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory(prefix=f".{beside.name}.", dir=beside.parent) as folder,
        open_raster(tiled_copy(product, Path(folder), decoded)) as copy,
    ):
        yield OpenRaster(str(path), copy.source)


def decoded_bytes(product: Product, file: OpenRaster) -> int:
    """What GDAL decodes for a window, also of the files behind a virtual raster."""
    source, layers = file.source, product.layers
    dtype = raster_info(file).dtype  # of a file without bands this says so
    rows, columns = source.block_shapes[0]
    rows = min(source.height, max(rows, ROWS) if columns >= source.width else rows)
    sizes = [rows * columns * source.count * np.dtype(dtype).itemsize]
    behind = {Product(name) for name in source.files[1:] if source.driver == "VRT"}
    if layers is not None:
        behind = {Product(layer.file, written=layer.remote) for layer in layers}
    for part in behind:
        with contextlib.suppress(DataError), open_raster(part) as opened:  # a sidecar is no raster
            sizes.append(decoded_bytes(part, opened))
    return max(sizes)


def tiled_copy(product: Product, folder: Path, decoded: int) -> PathLike:
    """A copy in tiles in this folder, or the file itself where GeoTIFFs cannot hold all that it says."""
    logger.info(
        "%s is stored in blocks of which GDAL decodes %d MiB for a window: it is read through a copy in tiles, which "
        "lies in %s until the map is there", product, decoded / 2**20, folder.parent
    )  # fmt: skip
    target, name, access = folder / "tiles.tif", product.open_name(), product.access
    drivers = (["VRT"] if name.startswith("<") else []) + list(access.drivers)
    job = [name, str(target), drivers, dict(access.options)]
    done = subprocess.run([sys.executable, "-c", COPY, json.dumps(job)], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = brief(ValueError((done.stderr.strip().splitlines() or ["the process was killed"])[-1]))
        raise DataError(
            f"{product} cannot be copied to {folder.parent} ({reason}), through which it is to be read: make room on "
            "the disk, or store it in tiles yourself: gdal_translate -co TILED=YES -co BIGTIFF=IF_SAFER IN.tif OUT.tif"
        )
    with open_raster(product) as one, open_raster(target) as other:
        if _meaning(one.source) == _meaning(other.source):
            return target
    logger.warning("%s says more of its bands than a copy holds, and is read as it is: memory grows with it", product)
    return product


def _meaning(source: Any) -> list[Any]:
    """All that tells what stored values are."""
    tags = [source.nodatavals, source.scales, source.offsets, source.descriptions, source.units, source.mask_flag_enums]
    return [source.dtypes, source.colorinterp, *map(str, tags)]
