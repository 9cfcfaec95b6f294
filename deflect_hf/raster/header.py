"""What the header of a raster file says, and what that makes of its bands."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deflect_hf.errors import BandError, DataError, listing
from deflect_hf.raster.quality import is_quality_layer
from deflect_hf.spectral.bands import SPECTRUM, Sensor, fold, is_band_number, is_reflectance, split_date
from deflect_hf.spectral.selection import band_or_none, resolve_bands
from deflect_hf.spectral.sensors import SENSORS

logger = logging.getLogger(__name__)
PathLike = str | os.PathLike[str]
Array = np.ndarray[Any, Any]
Box = tuple[int, int, int, int]  # row, column, height, width
Color = tuple[int, int, int]  # red, green, blue, 0 to 255
SKIPPED = "_"  # in `source_bands`: a layer that is no band of the model
REFLECTANCE = "reflectance"  # the unit of bands that hold it, 1.0 = 100 %
LAYER_SUFFIXES = (".tif", ".tiff", ".jp2", ".vrt", ".png", ".jpg", ".jpeg")
BAND = "{band}"  # in the names of the files of a scene, where a band has a file of its own
LONGEST_UM = 100.0  # numbers above it are nanometres
FAR_OFF = 1.15  # how far off its range the wavelength of a band is that is called wrongly
_COLORS = {"red": "R", "green": "G", "blue": "B"}
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # the geotransform of files that have none

# Presets that name the bands of both HLS products, whose numbers contradict each other: B05 of S30 is a red edge, B11
# of L30 is thermal.
_TWO_NUMBERINGS = ("hls", "hls_burn_scars")
_OF_S30, _OF_L30 = {"b8", "b8a", "b12"}, {"b5", "b6", "b7"}


@dataclass(frozen=True)
class RasterInfo:
    """What the header of a raster file says, without its pixels.

    Attributes:
        dtype: One that holds the values of all bands.
        descriptions: One band description per band, ``""`` where the file has none.
        scales: GDAL scale tag per band (1.0 where there is none); physical = stored * scale + offset.
        nodata: GDAL nodata tag per band, None where there is none.
        crs: Coordinate reference system as WKT, None when the file has no georeference.
        transform: Affine geotransform, six numbers in rasterio order.
        gsd_m: Pixel height on the ground in metres; None without a projected CRS.
        alpha: Position of a band that only says where the others are valid, None without one.
        lossy: How the values are stored where they come back changed (``"JPEG"``), else ``""``.
        colors: Color of each value of a band with a palette.
        units: Unit of each band, ``""`` where the file has none.
        composite: Bands without a date are the medians of those with one.
        wavelengths_nm: Of each band, None where the file does not say it.
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
    alpha: int | None = None
    lossy: str = ""
    colors: tuple[tuple[int, ...], ...] = ()
    units: tuple[str, ...] = ()
    composite: bool = False
    wavelengths_nm: tuple[float | None, ...] = ()

    @property
    def georeferenced(self) -> bool:
        """Whether the file says where it lies."""
        return self.transform != IDENTITY

    @property
    def calibrated(self) -> bool:
        """Whether the file says that it holds reflectance as it is stored: no tag makes it of the numbers first."""
        said = zip(self.units, self.scales, self.offsets, strict=False)
        tags = {(scale, offset) for unit, scale, offset in said if unit == REFLECTANCE}
        return tags == {(1.0, 0.0)}

    def parts(self, position: int) -> list[int]:
        """The bands, counted from 0, whose median a band is: itself alone, unless it is a composite."""
        own = self.descriptions[position]
        if not self.composite or split_date(own)[1]:
            return [position]
        return [k for k, text in enumerate(self.descriptions) if text != own and split_date(text)[0] == own]

    def position(self, layer: str, source_bands: Sequence[str] | None = None) -> int:
        """Where the quality layer of that description is, or of that name in ``source_bands``, counted from 0."""
        name, date = split_date(layer)
        own = [k for k, text in enumerate(self.descriptions) if split_date(text)[1] == date]
        found = [k for k in own if split_date(self.descriptions[k])[0].casefold() == name.casefold()]
        listed = zip(own, source_bands or (), strict=False)
        found = found or [k for k, one in listed if one.casefold() == name.casefold()]
        if len(found) != 1:
            where = f"{self.path}, {date} of its `dates` (counted from 1, @0 is the image)" if date else self.path
            described = listing(self.descriptions[k] for k in own if self.descriptions[k])
            raise BandError(
                f"{where}: {len(found)} bands are described as {name!r}, the quality layer; the descriptions are "
                f"{described}: correct `qa_band`, or name the layer so in `source_bands`, the names of all bands in "
                "file order."
            )
        return found[0]


def refuse_no_mask(info: RasterInfo, painted: bool = False) -> None:
    """Refuse what cannot be a mask, of class values or ``painted`` in colors, by its header."""
    bands = info.count - (info.alpha is not None)
    if painted and (info.dtype != "uint8" or not (bands == 3 or (bands == 1 and info.colors))):
        raise DataError(
            f"{info.path} has {bands} band(s) of {info.dtype}, but `class_colors` are of three of 8 bits, red, green "
            "and blue, or of a palette: for a mask of class values, give `class_values` instead."
        )
    if bands != 1 and not painted:
        raise DataError(
            f"{info.path} has {bands} bands, but a mask has one: store class values, not colors (a palette PNG or a "
            "single-band GeoTIFF), or say by `class_colors` which color is which class."
        )
    if info.lossy:
        raise DataError(
            f"{info.path} is stored as {info.lossy}, which changes class values at the borders of areas: make the "
            "mask again as PNG or GeoTIFF without loss (converting this file does not bring the values back)."
        )


def overview_size(info: RasterInfo, side: int) -> tuple[int, int]:
    """Height and width of the raster shrunk so that neither exceeds ``side``; its own if they do not."""
    factor = min(1.0, side / max(info.height, info.width))
    return max(1, round(info.height * factor)), max(1, round(info.width * factor))


def file_bands(
    info: RasterInfo, source_bands: Sequence[str] | None, sensor: Sensor | None = None, quality: str | None = None
) -> list[str]:
    """Name the bands of a file: by its own descriptions, else by ``source_bands``, else by the sensor's order.

    A band that is called ``_`` or as the ``quality`` layer, or whose description is not a band name, becomes ``"band 3
    quality"``: it is left alone rather than guessed. Descriptions that only count the bands (``Band 1``, ``Band 2``,
    ...) are none: they are no numbers of a sensor. Of several dates (``N``, ``N@1``) each is named as a file of its
    own.
    """
    dates: dict[str, list[int]] = defaultdict(list)
    for position, text in enumerate(info.descriptions):
        dates[split_date(text)[1]].append(position)
    if len(dates) > 1 and not any(split_date(name)[1] for name in source_bands or ()):
        found: dict[int, str] = {}
        first: tuple[Sequence[str], list[str]] = ((), [])
        for date, positions in dates.items():
            plain = tuple(split_date(info.descriptions[position])[0] for position in positions)
            part = dataclasses.replace(info, count=len(positions), descriptions=plain, alpha=None)
            names = file_bands(part, source_bands, sensor, quality)
            first = first if first[1] else (plain, names)
            if reordered(plain, names, *first):
                raise BandError(
                    f"{info.path}: the bands of {date} of its `dates` are described as {listing(plain)}, those of the "
                    f"image as {listing(first[0])}, but both are called {listing(names)} in file order: store them in "
                    "one order, or call them by their codes in the files."
                )
            found |= zip(positions, [name + date for name in names], strict=True)
        return [found[position] for position in range(info.count)]
    unnamed = [f"band {number} {text}".strip() for number, text in enumerate(info.descriptions, start=1)]
    own = _described(info.descriptions, sensor)
    if source_bands is not None and only_counts(info.descriptions, own):
        own = (None,) * info.count
    given: list[str | None] | None = None
    if source_bands is not None:
        try:
            named = iter(resolve_bands([name for name in source_bands if not is_no_band(name, quality)], sensor))
        except BandError as error:
            raise BandError(
                f"source_bands: {error} A layer to be left out is called {SKIPPED!r}; one that is no band of the "
                "catalogue, but the model shall get, is described in a `sensor`: {bands: [R, G, B, {code: DEM}]}."
            ) from error
        given = [None if is_no_band(name, quality) else next(named) for name in source_bands]
    elif not any(own) and sensor is not None:
        given = [*sensor.codes]
        if len(given) == info.count:
            _refuse_another_order(info, sensor)
    if given is None and not any(own):
        texts = [text for text in info.descriptions if text]
        hint = f" ({listing(texts)} say nothing without a sensor)" if texts else ""
        raise BandError(
            f"{info.path} does not name its {info.count} band(s){hint}: give `source_bands`, the band codes in file "
            f"order, or a `sensor` whose bands are stored in its standard order."
        )
    if given is None:
        return [code or name for code, name in zip(own, unnamed, strict=True)]
    if info.alpha is not None and len(given) == info.count - 1:
        given.insert(info.alpha, None)
    if len(given) != info.count:
        turned = " Bands come first, in arrays, too: values.transpose(2, 0, 1)." if len(given) == info.width else ""
        raise BandError(
            f"{info.path} has {info.count} band(s), but {len(given)} were announced "
            f"({listing(name or SKIPPED for name in given)}): correct `source_bands` (or `sensor`) to the bands of "
            f"this file, in file order, with {SKIPPED!r} for a layer to be left out.{turned}"
        )
    for position, (code, stated, text) in enumerate(zip(own, given, info.descriptions, strict=True), start=1):
        code = code or (_color(text) if stated in _COLORS.values() else None)
        if code is not None and stated is not None and code != stated:
            said = "`source_bands`" if source_bands is not None or sensor is None else f"sensor {sensor.name!r}"
            raise BandError(
                f"{info.path}: band {position} is described as {text!r} (= {code}) in the file, but {said} calls it "
                f"{stated!r}: remove `source_bands` to trust the file where it has codes, or correct what is wrong."
            )
        if stated is not None and is_reflectance(stated) and is_quality_layer(info.descriptions[position - 1]):
            raise BandError(
                f"{info.path}: band {position} is called {info.descriptions[position - 1]!r}, a quality layer, in the "
                f"file or by its file's name, but {stated!r} in `source_bands` (where none is given, those of the "
                "training images): give the `source_bands` or the `sensor` of this scene."
            )
    return [stated or name for stated, name in zip(given, unnamed, strict=True)]


def reordered(
    texts: Sequence[str], names: Sequence[str], usual_texts: Sequence[str], usual_names: Sequence[str]
) -> bool:
    """Whether a file has the descriptions of a usual one in another order, and bands are named by where they are."""
    words, usual = _words(texts), _words(usual_texts)
    if words == usual or len({*words}) < len(words) or {*words} != {*usual}:
        return False
    known = dict(zip(usual, usual_names, strict=True))
    return any(
        known[word] != name and not is_unnamed(name) and not is_unnamed(known[word])
        for word, name in zip(words, names, strict=True)
    )


def _words(texts: Sequence[str]) -> list[str]:
    """Descriptions without what all of them begin and end with, such as a tile or a date."""
    for _ in ("begin", "end"):
        common = sum(1 for _ in itertools.takewhile(lambda letters: len({*letters}) == 1, zip(*texts, strict=False)))
        texts = [text[common:][::-1] for text in texts]
    return [*texts]


def _color(text: str) -> str | None:
    """The band of the one color that a description names among other words, if it does."""
    named = {_COLORS[word] for word in re.split(r"[\W_\d]+", text.lower()) if word in _COLORS}
    return named.pop() if len(named) == 1 else None


def only_counts(descriptions: Sequence[str], codes: Sequence[str | None]) -> bool:
    """Whether names such as B1, B2, B3, B4 may count the bands, and not be numbers of a sensor, as ``codes`` say.

    Of that sensor they would be an odd choice: nothing but the first bands, and neither near infrared nor, of three,
    red. Of a file of four bands they mostly are B, G, R, N or R, G, B, N.
    """
    counted = len(codes) > 2 and all(fold(text) == f"b{k}" for k, text in enumerate(descriptions, 1))
    return counted and not {"N", "N2"} & {*codes} and (len(codes) > 3 or "R" not in codes)


def stated_wavelengths(tags: Sequence[Mapping[str, str]]) -> tuple[float | None, ...]:
    """The wavelength of each band in nm by the tags of GDAL (``CENTRAL_WAVELENGTH_UM``) or ENVI, None without."""
    found: list[float | None] = []
    for one in tags:
        text = one.get("CENTRAL_WAVELENGTH_UM") or one.get("wavelength") or ""
        number = float(text) if re.fullmatch(r"\d+\.?\d*", text) else 0.0
        found.append((number if number > LONGEST_UM else number * 1000) or None)
    return tuple(found)


def off_wavelength(codes: Sequence[str], wavelengths_nm: Sequence[float | None]) -> list[str]:
    """What the names of bands say that their wavelengths contradict."""
    ranges = {code: (low, high) for code, _, low, high, _ in SPECTRUM if code in codes}
    problems = []
    for code, stated in zip(codes, wavelengths_nm, strict=True):
        if code not in ranges or stated is None or ranges[code][0] <= stated <= ranges[code][1]:
            continue
        others = [other for other, (low, high) in ranges.items() if low <= stated <= high]
        if others or not ranges[code][0] / FAR_OFF <= stated <= ranges[code][1] * FAR_OFF:
            problems.append(f"{code!r} is at {stated:g} nm" + "".join(f", as {one!r} should be" for one in others[:1]))
    return problems


def is_no_band(name: str, quality: str | None) -> bool:
    """Whether ``source_bands`` calls a layer so that is no band of the model: one to be left out, or the quality."""
    return name == SKIPPED or (quality is not None and name.casefold() == quality.casefold())


def _refuse_another_order(info: RasterInfo, sensor: Sensor) -> None:
    """Refuse descriptions with a band number in them (``T32TQM_B8A``) that are not in the standard order."""
    numbers = [[word for word in re.split(r"[\W_]+", text) if is_band_number(word)] for text in info.descriptions]
    found = [band_or_none(words[0], sensor) if len(words) == 1 else None for words in numbers]
    codes = [code for code in found if code is not None]
    if len({*codes}) == len(numbers) and codes != sensor.codes:
        raise BandError(
            f"{info.path} describes its bands as {listing(info.descriptions)}, which is not the standard order of "
            f"sensor {sensor.name!r}: give `source_bands`, in file order ({listing(codes)}?)."
        )


def names_bands(info: RasterInfo, sensor: Sensor | None = None) -> bool:
    """Whether a description of a file is the name of a band."""
    return any(_described(info.descriptions, sensor))


def report_numbers(info: RasterInfo, source_bands: Sequence[str], sensor: Sensor | None) -> None:
    """Warn of ``source_bands`` for band numbers that are other bands on each sensor that has them."""
    if all(fold(text) == f"b{k}" for k, text in enumerate(info.descriptions, 1)):
        return  # they only count
    odd = []
    for text, name in zip(info.descriptions, source_bands, strict=False):
        meant = {band_or_none(text, one) for one in SENSORS.values()} - {None} if is_band_number(text) else set()
        if meant and name != SKIPPED and band_or_none(name, sensor) not in meant:
            odd.append(f"{text} {name!r}")
    if odd:
        logger.warning(
            "%s: `source_bands` (where none is given, those of the training images) go by place and call %s, as no "
            "known sensor does: if these numbers are those of a sensor, give it as `sensor`",
            *(info.path, ", ".join(odd)),
        )


def is_unnamed(band: str) -> bool:
    """Whether :func:`file_bands` found no name for a band."""
    return " " in band


@functools.lru_cache(maxsize=1024)  # the same few words in every file of a folder
def _described(descriptions: tuple[str, ...], sensor: Sensor | None) -> tuple[str | None, ...]:
    """The band codes of descriptions, None for one that names no known band."""
    if all(re.fullmatch(rf"band[\s_-]*0*{k}", text.strip(), re.IGNORECASE) for k, text in enumerate(descriptions, 1)):
        return (None,) * len(descriptions)
    foreign: set[str] = set()
    if sensor is not None and sensor.name in _TWO_NUMBERINGS:
        numbers = {fold(text) for text in descriptions}
        if numbers & _OF_S30:
            foreign = _OF_L30
        elif "b11" in numbers and numbers & _OF_L30:  # with B10, the other thermal band, it is of L30
            foreign = {"b11"} if "b10" in numbers else {"b11", *_OF_L30}
    return tuple(band_or_none(text, sensor) if text and fold(text) not in foreign else None for text in descriptions)
