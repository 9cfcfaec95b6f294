"""Presets of real sensor products, and sensors that a user describes in a mapping (YAML).

Sources: ESA Sentinel-2 product specification (centre wavelengths of S2A; processing baseline 04.00 and later adds 1000
to the digital numbers, hence the offset of -0.1); USGS Landsat Collection 2 Level 2 (scale 2.75e-5, offset -0.2); NASA
HLS v2 user guide (1e-4, fill -9999); Planet SuperDove band table; So2Sat LCZ42; MADOS (ACOLITE reflectance); EuroSAT;
ForestNet; the notebook that exported Brick Kiln (mliu356/kiln-scaling), whose order GEO-Bench's own names contradict.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from deflect_hf.config.reading import Numbers
from deflect_hf.config.schema import Arguments, option
from deflect_hf.errors import ConfigError, listing, nearest
from deflect_hf.spectral.bands import BAND_CODES, SPECTRUM, Band, Sensor, Unit, fold, is_band_number, standard_band


def _bands(gsd_m: float, *rows: tuple[str, float, *tuple[str, ...]]) -> tuple[Band, ...]:
    """Bands of one pixel size: code, centre in nm, names of the sensor's own."""
    return tuple(standard_band(code, wavelength_nm, gsd_m, *names) for code, wavelength_nm, *names in rows)


# code, centre nm, ground sampling distance m, band number
_SENTINEL2 = {
    number: standard_band(code, wavelength_nm, gsd_m, number)
    for code, wavelength_nm, gsd_m, number in (
        ("A", 442.7, 60.0, "B1"),
        ("B", 492.4, 10.0, "B2"),
        ("G", 559.8, 10.0, "B3"),
        ("R", 664.6, 10.0, "B4"),
        ("RE1", 704.1, 20.0, "B5"),
        ("RE2", 740.5, 20.0, "B6"),
        ("RE3", 782.8, 20.0, "B7"),
        ("N", 832.8, 10.0, "B8"),
        ("N2", 864.7, 20.0, "B8A"),
        ("WV", 945.1, 60.0, "B9"),
        ("CIRRUS", 1373.5, 60.0, "B10"),
        ("S1", 1613.7, 20.0, "B11"),
        ("S2", 2202.4, 20.0, "B12"),
    )
}
_L1C = "B1 B2 B3 B4 B5 B6 B7 B8 B8A B9 B10 B11 B12"
_L2A = "B1 B2 B3 B4 B5 B6 B7 B8 B8A B9 B11 B12"  # the cirrus band has no surface reflectance


def _sentinel2(numbers: str) -> tuple[Band, ...]:
    return tuple(_SENTINEL2[number] for number in numbers.split())


_LANDSAT = _bands(
    30.0,
    ("A", 443.0, "B1", "SR_B1"),
    ("B", 482.0, "B2", "SR_B2"),
    ("G", 561.4, "B3", "SR_B3"),
    ("R", 654.6, "B4", "SR_B4"),
    ("N", 864.7, "B5", "SR_B5"),
    ("S1", 1608.9, "B6", "SR_B6"),
    ("S2", 2200.7, "B7", "SR_B7"),
)
_LANDSAT_TM = _bands(
    30.0,
    ("B", 485.0, "B1", "SR_B1"),
    ("G", 560.0, "B2", "SR_B2"),
    ("R", 660.0, "B3", "SR_B3"),
    ("N", 830.0, "B4", "SR_B4"),
    ("S1", 1650.0, "B5", "SR_B5"),
    ("S2", 2215.0, "B7", "SR_B7"),
)
# The six bands that both HLS products share. Prithvi's configuration calls them B02..B07 (Landsat numbers) whichever
# satellite took the image; with six bands both numberings are free of contradiction.
_HLS_COMMON = _bands(
    30.0,
    ("B", 490.0, "B2"),
    ("G", 560.0, "B3"),
    ("R", 660.0, "B4"),
    ("N", 865.0, "B8A", "B5"),
    ("S1", 1610.0, "B11", "B6"),
    ("S2", 2200.0, "B12", "B7"),
)
_SUPERDOVE = _bands(
    3.0,
    ("A", 443.0, "B1"),
    ("B", 490.0, "B2"),
    ("G1", 531.0, "B3"),
    ("G", 565.0, "B4"),
    ("Y", 610.0, "B5"),
    ("R", 665.0, "B6"),
    ("RE1", 705.0, "B7"),
    ("N", 865.0, "B8"),
)
_RGB = (standard_band("R", 660.0), standard_band("G", 560.0), standard_band("B", 480.0))

SENSORS: Mapping[str, Sensor] = MappingProxyType(
    {
        sensor.name: sensor
        for sensor in (
            Sensor("sentinel2_l1c", _sentinel2(_L1C), scale=1e-4, offset=-0.1, nodata=(0.0,)),
            Sensor("sentinel2_l2a", _sentinel2(_L2A), scale=1e-4, offset=-0.1, nodata=(0.0,)),
            # before baseline 04.00 (January 2022), or with the offset already taken off ("harmonized" collections)
            Sensor("sentinel2_l1c_harmonized", _sentinel2(_L1C), scale=1e-4, nodata=(0.0,)),
            Sensor("sentinel2_l2a_harmonized", _sentinel2(_L2A), scale=1e-4, nodata=(0.0,)),
            # surface reflectance bands only: temperature has another unit and another scale
            Sensor("landsat_c2l2", _LANDSAT, scale=2.75e-5, offset=-0.2, nodata=(0.0,)),
            Sensor("landsat_tm_c2l2", _LANDSAT_TM, scale=2.75e-5, offset=-0.2, nodata=(0.0,)),  # 4, 5 and 7
            Sensor("hls", _HLS_COMMON, scale=1e-4, nodata=(-9999.0,)),
            Sensor("hls_s30", _sentinel2(_L1C), scale=1e-4, nodata=(-9999.0,)),
            Sensor("hls_l30", _LANDSAT, scale=1e-4, nodata=(-9999.0,)),
            Sensor("hls_burn_scars", _HLS_COMMON, nodata=(-9999.0, 9999.0)),
            Sensor("so2sat", _sentinel2("B2 B3 B4 B5 B6 B7 B8 B8A B11 B12")),
            Sensor("mados", _sentinel2("B1 B2 B3 B4 B5 B6 B7 B8 B8A B11 B12")),
            Sensor("eurosat", _sentinel2("B1 B2 B3 B4 B5 B6 B7 B8 B9 B10 B11 B12 B8A"), scale=1e-4),
            Sensor("brick_kiln", _sentinel2("B1 B2 B3 B4 B5 B7 B8A B8 B11 B12"), scale=1e-4),
            # stretched to 8 bits, so the values only look like reflectance
            Sensor("forestnet", _LANDSAT[1:], scale=1 / 255, unit="8bit"),
            Sensor("planetscope_superdove", _SUPERDOVE, scale=1e-4, nodata=(0.0,)),
            Sensor("rgb", _RGB, scale=1 / 255, unit="8bit"),
        )
    }
)

_COMMON = tuple(standard_band(code) for code in BAND_CODES)


def _code(written: str) -> str:
    """The code of a user's band, which may be a common name of one of the catalogue."""
    code = next((band.code for band in _COMMON if fold(written) in map(fold, (band.code, *band.aliases))), written)
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,31}", code):
        raise ConfigError("letters, digits and underscores, and start with a letter")
    if is_band_number(code):
        raise ConfigError(f"a code ({listing(BAND_CODES)}); a band number is an alias")
    return code


Wavelength = Annotated[float, Field(ge=100, le=99_999)]  # nm


class _BandMapping(Arguments):
    """A band as a user describes it."""

    model_config = ConfigDict(strict=False, coerce_numbers_to_str=True)
    prefix = "bands."
    code: Annotated[str, AfterValidator(_code)] = option("", "", validate_default=True)
    name: str | None = None
    wavelength_nm: Wavelength | None = None
    gsd_m: float | None = None
    aliases: list[str] = option([], "")

    def band(self) -> Band:
        """With the common names of a band of the catalogue."""
        known = next((band for band in _COMMON if band.code == self.code), Band(self.code, self.code))
        aliases = (*self.aliases, *known.aliases)
        return Band(self.code, self.name or known.name, self.wavelength_nm, self.gsd_m, aliases)


class _SensorMapping(Arguments):
    """A sensor as a user describes it; numbers may be text, which YAML makes of ``1e-4``."""

    model_config = ConfigDict(strict=False, coerce_numbers_to_str=True)
    prefix = "sensor."
    name: str = "user"
    bands: list[Any] | None = option(None, "", min_length=1)
    wavelengths_nm: list[Wavelength] | None = option(None, "", min_length=1)
    scale: float = 1.0
    offset: float = 0.0
    unit: Unit = "reflectance"
    nodata: Annotated[Numbers, BeforeValidator(lambda one: one if isinstance(one, list | tuple) else [one])] = option(
        [], ""
    )


def get_sensor(sensor: str | Sensor | Mapping[str, Any]) -> Sensor:
    """Return a sensor: a preset by name, or one described in a mapping.

    The mapping holds ``name``, ``scale``, ``offset``, ``unit``, ``nodata`` and either ``bands`` (each a code or common
    name, or a mapping with ``code``, ``name``, ``wavelength_nm``, ``gsd_m``, ``aliases``) or, for hyperspectral
    images, ``wavelengths_nm``: each spyndex code goes to the nearest band inside its range, and the other bands are
    called ``W`` and their wavelength, such as ``W1034``.

    Raises:
        ConfigError: the preset or a key is unknown, or a value does not fit.
        BandError: a band is unknown or given twice.
    """
    if isinstance(sensor, Sensor):
        return sensor
    if isinstance(sensor, str):
        if sensor not in SENSORS:
            raise ConfigError(
                f"{sensor!r} is not a sensor preset; the presets are {listing(SENSORS)}.{nearest(sensor, SENSORS)}"
            )
        return SENSORS[sensor]
    if not isinstance(sensor, Mapping):
        raise ConfigError(f"a sensor is the name of a preset or a mapping, not {sensor!r:.80}")
    told = _SensorMapping.from_values(dict(sensor), {})
    if (told.bands is None) == (told.wavelengths_nm is None):
        raise ConfigError(f"sensor {told.name!r}: give either 'bands' or 'wavelengths_nm'.")
    if told.bands is None:
        bands = _hyperspectral_bands(told.wavelengths_nm or [])
    else:
        entries = [entry if isinstance(entry, Mapping) else {"code": entry} for entry in told.bands]
        bands = tuple(_BandMapping.from_values(dict(entry), {}).band() for entry in entries)
    return Sensor(told.name, bands, told.scale, told.offset, told.unit, tuple(told.nodata))


def _hyperspectral_bands(wavelengths_nm: Sequence[float]) -> tuple[Band, ...]:
    """Give each code of the catalogue to the band nearest to the middle of its range; each band serves one code."""
    candidates = sorted(
        (abs(wavelength - (low + high) / 2), position, code)
        for code, _, low, high, _ in SPECTRUM
        if code not in ("CIRRUS", "T")
        for position, wavelength in enumerate(wavelengths_nm)
        if low <= wavelength <= high
    )
    codes: dict[int, str] = {}
    for _, position, code in candidates:
        if position not in codes and code not in codes.values():
            codes[position] = code
    return tuple(
        standard_band(codes[position], wavelength)
        if position in codes
        else Band(f"W{round(wavelength)}", f"{wavelength:g} nm", wavelength)
        for position, wavelength in enumerate(wavelengths_nm)
    )
