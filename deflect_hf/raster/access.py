"""How GDAL may open a raster: on this machine alone, or at the address that the user wrote."""

from __future__ import annotations

import re
import urllib.request
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urljoin, urlsplit

import rasterio
from rasterio.errors import NotGeoreferencedWarning

from deflect_hf.errors import DataError, data_errors
from deflect_hf.raster.header import PathLike
from deflect_hf.raster.local import DRIVERS, OFFLINE

SCHEMES = {"http": "/vsicurl/http://", "https": "/vsicurl/https://", "s3": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/"}
_ADDRESS = re.compile(r"^(?:https?|s3|gs|az)://(?=[^/])|^/vsi(?:zip|tar|gzip|curl|s3|gs|az)[/?]")
_SERVER = re.compile(r"/vsi(?:curl|s3|gs|az)[/?]")
_ITEM = re.compile(r"\.(?:geo)?json$|/items/[^/]+$", re.IGNORECASE)
# These name no other files, as a VRT does; nor is what lies beside them looked for.
PLAIN = ("GTiff", "JP2OpenJPEG", "JP2KAK", "JP2ECW")
ONLINE = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_VRT_ENABLE_PYTHON": "NO",
}
TIMEOUT = 20  # seconds, for an item and for what a server says of a file
LARGEST_ITEM = 16_000_000  # bytes


@dataclass(frozen=True)
class Access:
    """What GDAL may do to open a raster, and to read it later."""

    options: Mapping[str, str]
    drivers: tuple[str, ...]

    @contextmanager
    def opened(self, name: str) -> Iterator[Any]:
        """Open a file, or a virtual raster as XML that this package made."""
        drivers = ["VRT"] if name.startswith("<") else list(self.drivers)
        with rasterio.Env(**self.options):
            with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning):  # chips often have none
                source = rasterio.io.DatasetReader(name, driver=drivers)
            with source:
                yield source


LOCAL = Access(OFFLINE, DRIVERS)
SERVERS = Access(ONLINE, PLAIN)  # for the layers of an item, whose addresses were looked at


def is_address(path: PathLike) -> bool:
    """Whether a path is one of a server or into an archive, which is read where the user writes it."""
    return _ADDRESS.match(str(path)) is not None


def is_item(address: str) -> bool:
    """Whether an address is that of a STAC item."""
    return address.startswith("http") and _ITEM.search(urlsplit(address).path) is not None


def gdal_name(address: str) -> str:
    """What GDAL calls an address."""
    scheme, _, rest = address.partition("://")
    return address if address.startswith("/vsi") else SCHEMES[scheme] + rest


def access_to(addresses: Sequence[str]) -> Access:
    """How to open what the user wrote: of a file on a server nothing but this file, of an archive no server."""
    names = [gdal_name(address) for address in addresses]
    if not any(map(_SERVER.search, names)):
        return Access(OFFLINE, PLAIN)
    if len(names) > 1 or is_item(addresses[0]) or not _SERVER.match(names[0]):
        return SERVERS
    return Access({**ONLINE, "CPL_VSIL_CURL_ALLOWED_FILENAME": names[0]}, PLAIN)


def fetch_item(address: str) -> tuple[str, bytes]:
    """The text of a STAC item, and the address that it came from in the end."""
    fix = "check the address; it must be that of a STAC item."
    with (
        data_errors(f"{address} cannot be fetched", fix, OSError, ValueError),
        urllib.request.urlopen(address, timeout=TIMEOUT) as answer,  # http and https alone get here
    ):
        text, final = answer.read(LARGEST_ITEM + 1), answer.geturl()
    if len(text) > LARGEST_ITEM:
        raise DataError(f"{address} is larger than {LARGEST_ITEM / 1e6:g} MB, and no STAC item: check the address.")
    return final, text


def beside_item(base: str, key: str, href: str) -> str:
    """What GDAL calls an asset of a STAC item that was fetched: a file of the same server, or none."""
    address = urljoin(base, href)
    here, there = urlsplit(base), urlsplit(address)
    if (here.scheme, here.netloc) != (there.scheme, there.netloc):
        raise DataError(
            f"{base}: asset {key!r} is at {address}: of what an item names, only files of its own server are read; "
            f"give the item as it lies on {there.netloc or there.scheme}, or download item and files into one folder."
        )
    return gdal_name(address)


def stamp_of(address: str) -> list[Any]:
    """What tells a file at an address from one that is there later, as far as it is cheap to learn."""
    name = gdal_name(address)
    if name.startswith("/vsicurl/http"):
        request = urllib.request.Request(name.removeprefix("/vsicurl/"), method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                return [answer.headers[key] for key in ("ETag", "Last-Modified", "Content-Length")]
        except (URLError, OSError, ValueError):  # a server need not answer this
            return []
    archives = [path for path in Path(re.sub(r"^/vsi\w+/", "", name)).parents if path.is_file()]
    return [(stat.st_size, stat.st_mtime_ns) for path in archives[:1] for stat in [path.stat()]]
