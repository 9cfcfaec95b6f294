"""Rasters are files on this machine: nothing that a file names is fetched from elsewhere."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from deflect_hf.errors import DataError, brief, data_errors
from deflect_hf.raster.header import PathLike

# Formats that hold pixels, and virtual ones whose sources are looked at here. GDAL has many more that are addresses.
DRIVERS = ("GTiff", "VRT", "PNG", "JPEG", "JP2OpenJPEG", "JP2KAK", "JP2ECW", "ENVI", "HFA", "EHdr", "BMP", "GIF",
           "WEBP", "AAIGrid", "netCDF")  # fmt: skip
# What is left after that, an overview's address in an .aux.xml for example, finds no way out.
OFFLINE: Mapping[str, str] = MappingProxyType(
    {
        "CPL_VSIL_CURL_ALLOWED_FILENAME": "none",
        "GDAL_HTTP_PROXY": "127.0.0.1:9",
        "GDAL_HTTP_CONNECTTIMEOUT": "1",
        "GDAL_HTTP_MAX_RETRY": "0",
        "GDAL_VRT_ENABLE_PYTHON": "NO",
    }
)
_ADDRESS = re.compile(r"^([a-z][\w+.-]+):/{1,2}(?=[^/])", re.IGNORECASE)
# of what a virtual raster names: URLs, file systems of GDAL that are servers, connections and descriptions of services
_REMOTE = re.compile(
    r"^[a-z][\w+.-]+://|/vsi(?!zip|tar|gzip|7z|rar|mem|subfile|sparse)|^(?!NETCDF|HDF|GTIFF_DIR)[a-z]\w+:|^[<{]",
    re.IGNORECASE,
)


# first bytes of files that hold rasters, and are not opened as one; and how a layer of theirs is called
CONTAINERS = {
    b"GRIB": ("GRIB", "{}"),
    b"\x89HDF": ("HDF5", "'HDF5:\"{}\"://LAYER'"),
    b"\x0e\x03\x13\x01": ("HDF4", "LAYER"),
    b"SQLite format 3": ("a GeoPackage, MBTiles or another SQLite file", "{}"),
}


def what_opens(path: PathLike) -> str:
    """What to give in place of a file that is no raster of ``DRIVERS``."""
    if any("\ud800" <= letter <= "\udfff" for letter in str(path)):  # as Python has bytes that are no UTF-8
        return "its name is not in UTF-8; rename it."
    if not Path(path).is_file():
        return "it must be a GeoTIFF (COG) or JPEG 2000 file, or a STAC item; check the address."
    with Path(path).open("rb") as file:
        head = file.read(16)
    for magic, (kind, layer) in CONTAINERS.items():
        if head.startswith(magic):
            return (
                f"it is {kind}, which is not read: gdalinfo {path} lists what is in it; convert that, gdal_translate "
                f"{layer.format(path)} SCENE.tif (polygons are for `labels`)."
            )
    if head.startswith(b"\x1f\x8b"):
        return "it is compressed by gzip: unpack it, and give the file or folder in it."
    return "it must be a GeoTIFF or PNG file; copy it again."


def refuse_remote(path: PathLike) -> None:
    """Refuse what is no file on this machine, and virtual rasters of what is none."""
    text = str(path)
    address = _ADDRESS.match(text)
    if text.lower().startswith("file:/"):
        raise DataError(f"{text}: give the path alone, /{text[5:].lstrip('/')}.")
    if address is not None or text.startswith("/vsi"):
        shown = text if address is None else f"{address[1]}://{text[address.end() :]}"
        packed = address is None or address[1].lower() in ("zip", "tar", "gzip", "file")
        fix = "unpack the archive and give the file in it" if packed else "download it and give the file"
        raise DataError(f"{shown}: only files on disk are read; {fix}.")
    if not Path(path).is_file():
        raise DataError(f"{path} is not there: check the path, and the data folder it should lie in.")
    _refuse_remote_sources(Path(path), set())


def _refuse_remote_sources(path: Path, seen: set[Path]) -> None:
    seen.add(path)
    with path.open("rb") as file:
        head = file.read(512).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head.startswith((b"<", b"{")):
        return
    if b"<VRTDataset" not in head:
        if len(seen) > 1:  # else GDAL says that it is no raster
            raise DataError(f"{path} describes a raster that is elsewhere: only files on disk are read; download it.")
        return
    kinds = (ElementTree.ParseError, ValueError, LookupError)
    with data_errors(f"{path} is no valid virtual raster", "make it again.", *kinds):
        root = ElementTree.fromstring(path.read_bytes())
    for element in root.iter():
        text = (element.text or "").strip()
        if not text or not re.search(r"(filename|dataset|file|url)$", element.tag, re.IGNORECASE):
            continue
        if _REMOTE.search(text):
            raise DataError(
                f"{path} names the source {brief(ValueError(text))}, which is no file on this machine: only files on "
                "disk are read; download it and name the file."
            )
        relative = {key.lower(): value for key, value in element.attrib.items()}.get("relativetovrt") == "1"
        source = path.parent / text if relative else Path(text)
        if source not in seen and os.path.isfile(source):  # False also for a name that no file can have
            _refuse_remote_sources(source, seen)
