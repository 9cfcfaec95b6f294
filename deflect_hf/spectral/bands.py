"""What a band and a sensor are, and how the many names of a band lead to it.

Band codes are those of the spyndex catalogue (``A B G R RE1 RE2 RE3 N N2 WV S1 S2 T1 T2 G1 Y``); a band without a
spyndex code keeps a code of its own (``CIRRUS``, ``W1034`` for a hyperspectral band at 1034 nm). The presets of real
sensors are in :mod:`deflect_hf.spectral.sensors`.

Source: ``bands.json`` of spyndex 0.12.0 (codes, wavelength ranges).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from deflect_hf.errors import BandError, ConfigError, listing, nearest

Unit = Literal["reflectance", "8bit"]
UNITS: tuple[Unit, ...] = get_args(Unit)
SINGLE_NIR = {"N": "N2", "N2": "N"}


@dataclass(frozen=True)
class Band:
    """One band: its spyndex code, a name for people, where it lies, and the other names it goes by."""

    code: str
    name: str
    wavelength_nm: float | None = None
    gsd_m: float | None = None
    aliases: tuple[str, ...] = ()


# code: (name, lowest nm, highest nm, names used across sensors). Band numbers (B4) differ from sensor to sensor and
# therefore only exist inside a Sensor.
SPECTRUM: tuple[tuple[str, str, float, float, tuple[str, ...]], ...] = (
    ("A", "Coastal aerosol", 400, 455, ("coastal", "aerosol", "aerosols", "coastal_blue", "ultra_blue")),
    ("B", "Blue", 450, 530, ("blue",)),
    ("G", "Green", 510, 600, ("green",)),
    ("G1", "Green 1", 510, 550, ("green1", "green05", "green_i")),
    ("Y", "Yellow", 585, 625, ("yellow",)),
    ("R", "Red", 620, 690, ("red",)),
    ("RE1", "Red edge 1", 695, 715, ("rededge1", "rededge071", "red_edge_1", "rededge", "vre1")),
    ("RE2", "Red edge 2", 730, 750, ("rededge2", "rededge075", "red_edge_2", "vre2")),
    ("RE3", "Red edge 3", 765, 795, ("rededge3", "rededge078", "red_edge_3", "vre3")),
    ("N", "Near infrared", 760, 900, ("nir", "nir1", "near_infrared", "nir_broad")),
    ("N2", "Narrow near infrared", 850, 880, ("nir2", "nir08", "nir_narrow", "narrow_nir", "rededge4", "red_edge_4")),
    ("WV", "Water vapour", 930, 960, ("water_vapour", "water_vapor", "nir09")),
    ("CIRRUS", "Cirrus", 1360, 1390, ("cirrus",)),
    ("S1", "Short-wave infrared 1", 1550, 1750, ("swir1", "swir16", "swir_1")),
    ("S2", "Short-wave infrared 2", 2080, 2350, ("swir2", "swir22", "swir_2")),
    ("T", "Thermal infrared", 10400, 12500, ("thermal", "tir", "lwir")),
    ("T1", "Thermal infrared 1", 10600, 11190, ("thermal1", "tirs1", "lwir11")),
    ("T2", "Thermal infrared 2", 11500, 12510, ("thermal2", "tirs2", "lwir12")),
)
BAND_CODES: tuple[str, ...] = tuple(row[0] for row in SPECTRUM)


def standard_band(code: str, wavelength_nm: float | None = None, gsd_m: float | None = None, *aliases: str) -> Band:
    """Return the band of a known ``code`` with its common names, plus the sensor's own ``aliases``."""
    for known, name, _, _, common in SPECTRUM:
        if known == code:
            return Band(code, name, wavelength_nm, gsd_m, (*aliases, *common))
    raise BandError(f"{code!r} is not a band code; the codes are {listing(BAND_CODES)}.{nearest(code, BAND_CODES)}")


def fold(name: str) -> str:
    """``"Band 04"`` -> ``"b4"``: case, separators and leading zeros do not tell bands apart."""
    folded = re.sub(r"[\s_\-.]+", "", name).casefold()
    return re.sub(r"^(?:band|b)0*(?=\d)", "b", folded)


def split_date(name: str) -> tuple[str, str]:
    """``"N@1"`` -> ``("N", "@1")``: a band, and which further date it is of; ``""`` for the scene's own."""
    plain, date = re.fullmatch(r"(.*?)(@\d{1,2})?", name, re.DOTALL).groups("")  # type: ignore[union-attr]
    return plain, date


def is_band_number(name: str) -> bool:
    """Whether ``name`` is a number such as ``B04`` or ``band 8A``, which is another band on another sensor."""
    return re.fullmatch(r"b\d+a?", fold(name)) is not None


def is_reflectance(code: str) -> bool:
    """Whether a band holds reflectance by its code: not temperatures, nor codes of a user's own, such as ``DEM``."""
    plain, _ = split_date(code)
    return re.fullmatch(r"W\d{3,5}", plain) is not None or (plain in BAND_CODES and not plain.startswith("T"))


_NIR_NAMES = frozenset(fold(name) for code, _, _, _, names in SPECTRUM if code in SINGLE_NIR for name in (code, *names))


def refuse_numbers(names: Iterable[str]) -> None:
    """Raise a BandError if a band is given by its position instead of its name."""
    for name in names:
        if not isinstance(name, str):
            raise BandError(
                f"a band is chosen by its name, not by {name!r}: channel numbers say nothing about the band."
            )


def resolve_among(name: str, bands: Sequence[Band], among: str) -> Band:
    """Return the band of ``bands`` that goes by ``name``; ``among`` says in the error where they come from."""
    refuse_numbers([name])
    for band in bands:
        if name == band.code or name in band.aliases:
            return band
    matches = [band for band in bands if fold(name) in {fold(known) for known in (band.code, *band.aliases)}]
    matches = matches or [band for band in bands if fold(name) == fold(band.name)]  # free text: where nothing else fits
    if len(matches) == 1:
        return matches[0]
    near_infrared = [band for band in bands if band.code in SINGLE_NIR]
    if not matches and len(near_infrared) == 1 and fold(name) in _NIR_NAMES:
        return near_infrared[0]
    codes = [band.code for band in bands]
    names = [known for band in bands for known in (band.code, band.name, *band.aliases)]
    problem = "is ambiguous" if matches else "is not a band"
    raise BandError(f"{name!r} {problem} of {among}; the bands are {listing(codes)}.{nearest(name, names)}")


@dataclass(frozen=True)
class Sensor:
    """A sensor product: its bands in file order and how its numbers become reflectance.

    ``reflectance = digital number * scale + offset``. ``unit="8bit"`` marks stretched images whose values only look
    like reflectance. A digital number listed in ``nodata`` means that nothing was measured.
    """

    name: str
    bands: tuple[Band, ...]
    scale: float = 1.0
    offset: float = 0.0
    unit: Unit = "reflectance"
    nodata: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.bands:
            raise ConfigError(f"sensor {self.name!r} has no bands: list them under 'bands' or 'wavelengths_nm'.")
        if self.unit not in UNITS:
            raise ConfigError(f"sensor {self.name!r}: unit {self.unit!r} is not one of {listing(UNITS)}.")
        if not 0 < self.scale < math.inf:
            raise ConfigError(f"sensor {self.name!r}: scale {self.scale!r} is not positive and finite.")
        if not math.isfinite(self.offset):
            raise ConfigError(f"sensor {self.name!r}: offset {self.offset!r} is not finite.")
        refuse_duplicates([band.code for band in self.bands], f"sensor {self.name!r}")
        for band in self.bands:
            taken = next((alias for alias in band.aliases if alias in self.codes and alias != band.code), None)
            if taken is not None:
                raise BandError(
                    f"sensor {self.name!r}: {taken!r} is the code of one band and an alias of {band.code!r}: remove it."
                )

    @property
    def codes(self) -> list[str]:
        """The band codes in file order."""
        return [band.code for band in self.bands]

    def resolve(self, name: str) -> Band:
        """Return the band called ``name``: its code, or any alias, whatever the case and separators."""
        return resolve_among(name, self.bands, f"sensor {self.name!r}")


def refuse_duplicates(codes: Sequence[str], where: str, names: Sequence[str] | None = None) -> None:
    """Raise a BandError if a code stands twice in ``codes``; ``names`` are what the user wrote for them."""
    for position, code in enumerate(codes):
        if code in codes[:position]:
            shown = [names[i] for i, other in enumerate(codes) if other == code] if names else [code]
            detail = f" ({listing(shown)})" if names else ""
            raise BandError(f"{where}: band {code!r} is given twice{detail}; name each band once.")
