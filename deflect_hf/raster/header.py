"""What the header of a raster file says, and what that makes of its bands."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from deflect_hf.errors import BandError, listing
from deflect_hf.spectral.selection import Sensor, resolve_bands

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class RasterInfo:
    """What the header of a raster file says, without its pixels.

    Attributes:
        descriptions: One band description per band, ``""`` where the file has none.
        scales: GDAL scale tag per band (1.0 where there is none); physical = stored * scale + offset.
        nodata: GDAL nodata tag per band, None where there is none.
        crs: Coordinate reference system as WKT, None when the file has no georeference.
        transform: Affine geotransform, six numbers in rasterio order.
        gsd_m: Pixel height on the ground in metres; None without a projected CRS.
    """

    path: str
    count: int
    height: int
    width: int
    dtype: str
    descriptions: tuple[str, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    nodata: tuple[float | None, ...]
    crs: str | None
    transform: tuple[float, ...]
    gsd_m: float | None


@dataclass(frozen=True)
class Quality:
    """A layer of classes in the file itself, such as Sentinel-2's SCL, some of which are no measurement of the ground.

    Attributes:
        band: Its band description in the file, whatever the case.
        invalid: Stored values at which no band of the file is valid.
    """

    band: str
    invalid: tuple[int, ...]

    def position(self, info: RasterInfo) -> int:
        """Where the layer is in a file, counted from 0.

        Raises:
            BandError: No band, or more than one, is described by that name.
        """
        found = [k for k, text in enumerate(info.descriptions) if text.casefold() == self.band.casefold()]
        if len(found) != 1:
            raise BandError(
                f"{info.path}: {len(found)} bands are described as {self.band!r}, the quality layer; the descriptions "
                f"are {listing(text for text in info.descriptions if text)}: correct `qa_band`."
            )
        return found[0]


def file_bands(info: RasterInfo, source_bands: Sequence[str] | None, sensor: Sensor | None = None) -> list[str]:
    """Name the bands of a file: by its own descriptions, else by ``source_bands``, else by the sensor's order.

    A band whose description is not a band name becomes ``"band 3 quality"``: it is left alone rather than guessed.
    Descriptions that only count the bands (``Band 1``, ``Band 2``, ...) are none: they are no numbers of a sensor.

    Raises:
        BandError: The number of bands does not fit the given list, the list contradicts the file's own
            descriptions, or nothing names the bands.
    """
    counted = _only_counts(info)
    own = [None if counted else _resolved(text, sensor) for text in info.descriptions]
    named = any(own)
    given = resolve_bands(source_bands, sensor) if source_bands is not None else None
    if given is None and not named and sensor is not None:
        given = list(sensor.codes)
    if given is None and not named:
        texts = [text for text in info.descriptions if text]
        hint = f" ({listing(texts)} say nothing without a sensor)" if texts else ""
        raise BandError(
            f"{info.path} does not name its {info.count} band(s){hint}: give `source_bands`, the band codes in file "
            f"order, or a `sensor` whose bands are stored in its standard order."
        )
    if given is not None and len(given) != info.count:
        raise BandError(
            f"{info.path} has {info.count} band(s), but {len(given)} were announced ({listing(given)}): "
            f"correct `source_bands` (or `sensor`) to the bands of this file, in file order."
        )
    if given is None:
        return [code or f"band {i + 1} {info.descriptions[i]}".strip() for i, code in enumerate(own)]
    for position, (code, stated) in enumerate(zip(own, given, strict=True), start=1):
        if code is not None and code != stated:
            raise BandError(
                f"{info.path}: band {position} is described as {info.descriptions[position - 1]!r} (= {code}) in the "
                f"file, but `source_bands` calls it {stated!r}: remove `source_bands` to trust the file, or correct it."
            )
    return given


def _only_counts(info: RasterInfo) -> bool:
    return all(
        re.fullmatch(rf"band[\s_-]*0*{number}", text.strip(), re.IGNORECASE)
        for number, text in enumerate(info.descriptions, start=1)
    )


@functools.lru_cache(maxsize=1024)  # the same few words in every file of a folder
def _resolved(text: str, sensor: Sensor | None) -> str | None:
    """The band code of a description, or None when it names no known band."""
    if not text:
        return None
    try:
        return resolve_bands([text], sensor)[0]
    except BandError:
        return None
