"""Scenes that GDAL cannot read in pieces: it decodes whole blocks, however large whoever wrote the file made them."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from deflect_hf.errors import DataError, brief
from deflect_hf.raster.access import LOCAL, Access
from deflect_hf.raster.arrays import SUFFIX
from deflect_hf.raster.header import PathLike
from deflect_hf.raster.products import Product
from deflect_hf.raster.read import CACHE_BYTES, OpenRaster, open_raster, raster_info

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
    with open_raster(path) as file:
        decoded = decoded_bytes(file)
        if decoded <= CACHE_BYTES:
            yield file
            return
        name, access = file.source.name, file.access
    beside.parent.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory(prefix=f".{beside.name}.", dir=beside.parent) as folder,
        open_raster(tiled_copy(path, name, access, Path(folder), decoded)) as copy,
    ):
        yield OpenRaster(str(path), copy.source)


def decoded_bytes(file: OpenRaster) -> int:
    """What GDAL decodes for a window, also of the files behind a virtual raster."""
    source = file.source
    rows, columns = source.block_shapes[0]
    rows = min(source.height, max(rows, ROWS) if columns >= source.width else rows)
    sizes = [rows * columns * source.count * np.dtype(raster_info(file).dtype).itemsize]
    names = sources_of(source.name) if source.name.startswith("<") else source.files[1:]
    arrays = all(name.lower().endswith(SUFFIX) for name in names)  # of single rows
    for name in names if source.driver == "VRT" and not arrays else []:
        part = Product(name, written=file.access is not LOCAL)
        with contextlib.suppress(DataError), open_raster(part) as behind:  # a sidecar is no raster
            sizes.append(decoded_bytes(behind))
    return max(sizes)


def sources_of(xml: str) -> list[str]:
    """The files that a virtual raster refers to, also by way of others."""
    found: list[str] = []
    for element in ElementTree.fromstring(xml).iter():
        text = element.text or ""
        if element.tag in ("SourceFilename", "SourceDataset"):
            found += sources_of(text) if text.lstrip().startswith("<") else [text]
    return list(dict.fromkeys(found))


def tiled_copy(path: PathLike, name: str, access: Access, folder: Path, decoded: int) -> PathLike:
    """A copy in tiles in this folder, or the file itself where GeoTIFFs cannot hold all that it says.

    Args:
        name: what GDAL opens for it.
        access: how.
    """
    logger.info(
        "%s is stored in blocks of which GDAL decodes %d MiB for a window: it is read through a copy in tiles, which "
        "lies in %s until the map is there", path, decoded / 2**20, folder.parent
    )  # fmt: skip
    target = folder / "tiles.tif"
    drivers = (["VRT"] if name.startswith("<") else []) + list(access.drivers)
    job = [name, str(target), drivers, dict(access.options)]
    done = subprocess.run([sys.executable, "-c", COPY, json.dumps(job)], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = brief(ValueError((done.stderr.strip().splitlines() or ["the process was killed"])[-1]))
        raise DataError(
            f"{path} cannot be copied to {folder.parent} ({reason}), through which it is to be read: make room on the "
            "disk, or store it in tiles yourself: gdal_translate -co TILED=YES -co BIGTIFF=IF_SAFER IN.tif OUT.tif"
        )
    with open_raster(path) as one, open_raster(target) as other:
        if _meaning(one.source) == _meaning(other.source):
            return target
    logger.warning("%s says more of its bands than a copy can hold, and is read as it is: memory grows with it", path)
    return path


def _meaning(source: Any) -> list[Any]:
    """All that tells what stored values are."""
    tags = [source.nodatavals, source.scales, source.offsets, source.descriptions, source.units, source.mask_flag_enums]
    return [source.dtypes, source.colorinterp, *map(str, tags)]
