"""What the metadata of a product say: which file is which band, and how its numbers become reflectance.

Sources: Sentinel-2 product specification (PSD 14.9 and later: quantification values, RADIO_ADD_OFFSET, BOA_ADD_OFFSET);
USGS Landsat Collection 2 data format control books (MTL); Chander et al. 2009, RSE 113 (irradiance for TM and ETM+);
HLS v2 user guide; STAC 1.0 with the extensions eo and raster, STAC 1.1.
"""

from __future__ import annotations

import json
import math
import os
import re
import tarfile
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from deflect_hf.errors import DataError, UnitError, data_errors, listing
from deflect_hf.raster.access import beside_item, fetch_item
from deflect_hf.raster.quality import is_quality_layer
from deflect_hf.raster.stack import Layer
from deflect_hf.spectral.bands import Sensor, fold
from deflect_hf.spectral.selection import band_or_none
from deflect_hf.spectral.sensors import SENSORS

SAFE = re.compile(r"(?:^|/)MTD_MSIL(1C|2A)\.xml$")
LANDSAT = re.compile(r"_MTL\.txt$")
HLS = re.compile(r"^HLS\.(S30|L30)\..*\.(B\w{2}|Fmask)\.tif$")
QUALITY_FILES = {"SCL": re.compile(r"_SCL_\d+m\.jp2$"), "CLDPRB": re.compile(r"MSK_CLDPRB_20m\.jp2$")}
# mean solar irradiance outside of the atmosphere, W / (m2 um), of bands 1, 2, 3, 4, 5 and 7
SOLAR: Mapping[str, tuple[float, ...]] = {
    "LANDSAT_4": (1983, 1795, 1539, 1028, 219.8, 83.49),
    "LANDSAT_5": (1983, 1796, 1536, 1031, 220.0, 83.44),
    "LANDSAT_7": (1997, 1812, 1533, 1039, 230.8, 84.90),
}
ARCHIVES = {".zip": "/vsizip/", ".tar": "/vsitar/"}
DEEPEST = 6  # folders below that of a product; a SAFE has five
FILL_OF = {"SCL": 0.0, "QA_PIXEL": 1.0, "Fmask": 255.0}


class Folder:
    """The files of a product, in a folder or in an archive."""

    def __init__(self, path: Path) -> None:
        self.path = path
        archive = path.suffix.lower() if path.is_file() else ""
        kinds = (OSError, zipfile.BadZipFile, tarfile.TarError)
        with data_errors(f"{path} is a damaged archive", "copy it again.", *kinds):
            if archive == ".zip":
                with zipfile.ZipFile(path) as opened:
                    names = opened.namelist()
            elif archive == ".tar":
                with tarfile.open(path, "r:") as tar:
                    names = [member.name for member in tar if member.isfile()]
            else:
                names = _names_below(path)
        self.names = sorted(name.removeprefix("./") for name in names if not name.endswith("/"))
        self.prefix = ARCHIVES.get(archive, "")

    def gdal(self, name: str) -> str:
        """What GDAL opens for one of its files."""
        return f"{self.prefix}{self.path.absolute() if self.prefix else self.path}/{name}"

    def text(self, name: str) -> str:
        """A metadata file."""
        if self.prefix == "/vsizip/":
            with zipfile.ZipFile(self.path) as opened:
                return opened.read(name).decode("utf-8", "replace")
        if self.prefix == "/vsitar/":
            with tarfile.open(self.path, "r:") as tar:
                member = tar.extractfile(next(m for m in tar if m.name.removeprefix("./") == name))
                return "" if member is None else member.read().decode("utf-8", "replace")
        return (self.path / name).read_text(encoding="utf-8", errors="replace")


def _names_below(path: Path) -> list[str]:
    """The files of a folder; of its sub-folders where it is, or holds, a SAFE."""
    here = sorted(path.iterdir())
    safe = any(entry.suffix.upper() == ".SAFE" or SAFE.search(entry.name) for entry in here)
    if not safe:
        return [entry.name for entry in here if entry.is_file()]
    found = []
    for folder, folders, files in os.walk(path):
        below = Path(folder).relative_to(path)
        if len(below.parts) >= DEEPEST:
            folders.clear()
        found += [(below / file).as_posix() for file in files]
    return found


def _one(folder: Folder, names: list[str], what: str) -> str | None:
    if len(names) > 1:
        raise DataError(f"{folder.path} holds {len(names)} {what} ({listing(names[:3])}): give one of them.")
    return names[0] if names else None


def safe_layers(folder: Folder) -> list[Layer] | None:
    """A Sentinel-2 SAFE, L1C or L2A: of each band the finest file; scene classes and cloud probability.

    reflectance = (stored + BOA_ADD_OFFSET or RADIO_ADD_OFFSET of the band) / quantification value; 0 is no measurement.
    """
    name = _one(folder, [name for name in folder.names if SAFE.search(name)], "Sentinel-2 products")
    if name is None:
        return None
    where = f"{folder.path}/{name}"
    with data_errors(f"{where} is damaged", "copy the product again.", ElementTree.ParseError, ValueError):
        root = ElementTree.fromstring(folder.text(name))
    level = SAFE.search(name)[1]  # type: ignore[index]
    key = "BOA_QUANTIFICATION_VALUE" if level == "2A" else "QUANTIFICATION_VALUE"
    quantification = _number(next((one.text for one in root.iter(key)), None), where, key)
    number_of = {one.get("bandId"): one.get("physicalBand") for one in root.iter("Spectral_Information")}
    numbers = dict(enumerate(f"B{n}" for n in (*range(1, 9), "8A", *range(9, 13))))
    key = "BOA_ADD_OFFSET" if level == "2A" else "RADIO_ADD_OFFSET"
    offsets = {
        fold(number_of.get(one.get("band_id")) or numbers[int(one.get("band_id", "0"))]): _number(one.text, where, key)
        for one in root.iter(key)
    }
    base = name[: -len(Path(name).name)]
    listed = {f"{base}{one.text.strip()}.jp2" for one in root.iter("IMAGE_FILE") if one.text}
    lost = sorted(listed - set(folder.names))
    sensor = SENSORS[f"sentinel2_l{level.lower()}"]
    layers: dict[str, tuple[int, Layer]] = {}
    for file in sorted(listed):
        match = re.search(r"_(B\w{2})(?:_(\d+)m)?\.jp2$", file)
        code = None if match is None else band_or_none(match[1], sensor)
        if match is None or code is None:
            continue
        size = int(match[2] or sensor.resolve(match[1]).gsd_m or 0)
        if code not in layers or size < layers[code][0]:
            layer = Layer(code, folder.gdal(file), match[1], 1 / quantification,
                          offsets.get(fold(match[1]), 0.0) / quantification, 0.0)  # fmt: skip
            layers[code] = size, layer
    missing = [file for file in lost if any(layer.file == folder.gdal(file) for _, layer in layers.values())]
    if missing or not layers:
        raise DataError(f"{where} names {listing(missing[:3]) or 'no band'}, which is not there: unpack all of it.")
    found = [layers[code][1] for code in sensor.codes if code in layers]
    for quality, pattern in QUALITY_FILES.items():
        files = sorted(file for file in folder.names if file.startswith(base) and pattern.search(file))
        if files:  # R20m before R60m
            found.append(Layer(quality, folder.gdal(files[0]), nodata=FILL_OF.get(quality), classes=True))
    return found


def _number(text: Any, where: str, key: str) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        raise DataError(f"{where}: {key} is {text!r}, not a number: copy the product again.") from None


def landsat_layers(folder: Folder) -> list[Layer] | None:
    """A Landsat scene with its ``_MTL.txt``.

    Level 2: surface reflectance = stored * REFLECTANCE_MULT + REFLECTANCE_ADD. Level 1: reflectance at the top of the
    atmosphere, the same divided by the sine of the sun's elevation; where the file has radiance only (TM and ETM+
    before Collection 1), pi * radiance * d2 / (solar irradiance * sine of the sun's elevation).
    """
    name = _one(folder, [name for name in folder.names if LANDSAT.search(name)], "Landsat scenes")
    if name is None:
        return None
    where = f"{folder.path}/{name}"
    fields, groups = _mtl(folder.text(name))
    craft = fields.get("SPACECRAFT_ID", "")
    number = re.search(r"\d+$", craft)
    if number is None or int(number[0]) not in (4, 5, 7, 8, 9) or fields.get("SENSOR_ID") == "MSS":
        raise DataError(f"{where}: {craft or 'no spacecraft'} {fields.get('SENSOR_ID', '')} is not known: the bands of "
                        "Landsat 4, 5, 7 (TM, ETM+), 8 and 9 are.")  # fmt: skip
    sensor = SENSORS["landsat_c2l2" if int(number[0]) > 7 else "landsat_tm_c2l2"]
    base = name[: -len(Path(name).name)]
    surface = groups.get("LEVEL2_SURFACE_REFLECTANCE_PARAMETERS")
    layers = []
    for band in sensor.bands:
        digit = next(alias for alias in band.aliases if alias.startswith("B"))[1:]
        file = fields.get(f"FILE_NAME_BAND_{digit}")
        if file is None:
            continue
        scale, offset = _rescaling(fields if surface is None else surface, surface is None, craft, digit, where)
        if base + file not in folder.names:
            raise DataError(f"{where} names {file}, band {band.code}, which is not there: copy all of the scene.")
        layers.append(Layer(band.code, folder.gdal(base + file), f"B{digit}", scale, offset, 0.0))
    for quality in ("QA_PIXEL", "QA_RADSAT"):
        files = [file for file in folder.names if file.startswith(base) and file.endswith(f"_{quality}.TIF")]
        layers += [Layer(quality, folder.gdal(file), nodata=FILL_OF.get(quality), classes=True) for file in files[:1]]
    return layers


def _mtl(text: str) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """All fields of an MTL file, the first of each name, and those of each group."""
    fields: dict[str, str] = {}
    groups: dict[str, dict[str, str]] = {}
    group = ""
    for key, value in re.findall(r"^\s*([A-Z0-9_]+)\s*=\s*\"?([^\"\n\r]*)", text, re.MULTILINE):
        group = value.strip() if key == "GROUP" else group
        fields.setdefault(key, value.strip())
        groups.setdefault(group, {}).setdefault(key, value.strip())
    return fields, groups


def _rescaling(fields: Mapping[str, str], top: bool, craft: str, digit: str, where: str) -> tuple[float, float]:
    """Scale and offset of a band; ``top``: of its reflectance at the top of the atmosphere."""

    def field(key: str) -> float:
        return _number(fields.get(key), where, key)

    sun = math.sin(math.radians(field("SUN_ELEVATION"))) if top else 1.0
    if f"REFLECTANCE_MULT_BAND_{digit}" in fields:
        return field(f"REFLECTANCE_MULT_BAND_{digit}") / sun, field(f"REFLECTANCE_ADD_BAND_{digit}") / sun
    if craft not in SOLAR or f"RADIANCE_MULT_BAND_{digit}" not in fields:
        raise UnitError(
            f"{where} says neither how band {digit} becomes reflectance nor radiance: its numbers cannot be read; "
            "order the scene as Collection 2, Level 2."
        )
    acquired = date.fromisoformat(fields.get("DATE_ACQUIRED", fields.get("ACQUISITION_DATE", "")))
    distance = 1 - 0.01672 * math.cos(math.radians(0.9856 * (acquired.timetuple().tm_yday - 4)))
    irradiance = SOLAR[craft][("1", "2", "3", "4", "5", "7").index(digit)]
    factor = math.pi * distance**2 / (irradiance * sun)
    return field(f"RADIANCE_MULT_BAND_{digit}") * factor, field(f"RADIANCE_ADD_BAND_{digit}") * factor


def hls_layers(folder: Folder) -> list[Layer] | None:
    """A scene of HLS, by its names: reflectance is stored times 10,000, -9999 is no measurement."""
    found = [(match, name) for name in folder.names if (match := HLS.search(name))]
    if not found:
        return None
    scenes = sorted({name[: match.start(2)] for match, name in found})
    _one(folder, scenes, "HLS scenes")
    sensor = SENSORS["hls_s30" if found[0][0][1] == "S30" else "hls_l30"]
    layers = []
    for match, name in found:
        code = band_or_none(match[2], sensor)
        if match[2] == "Fmask":
            layers.append(Layer("Fmask", folder.gdal(name), nodata=FILL_OF["Fmask"], classes=True))
        elif code is not None:  # not the thermal bands of L30
            layers.append(Layer(code, folder.gdal(name), match[2], sensor.scale, sensor.offset, sensor.nodata[0]))
    return layers


def stac_layers(path: str, fetch: bool) -> list[Layer]:
    """The assets of a STAC item whose band is known: by key, by name, else by common name; unit by ``raster:bands``.

    Args:
        fetch: It is at an address, and its assets are on its server; else they are files below it.
    """
    base, text = fetch_item(path) if fetch else (path, Path(path).read_bytes())
    with data_errors(f"{path} is no STAC item", "an item is JSON with `assets`.", ValueError, KeyError, TypeError):
        item = json.loads(text)
        assets = dict(item["assets"])
    properties = item.get("properties") or {}
    sensor = _stac_sensor(properties)
    # of Earth Search: where it has taken the offset off, the offset that it still states is not to be taken off again
    applied = any(properties.get(f"{key}:boa_offset_applied") is True for key in ("earthsearch", "sentinel"))
    layers: dict[str, Layer] = {}
    for key, asset in assets.items():
        bands = asset.get("eo:bands") or asset.get("bands") or [{}]
        name = _stac_band(key, bands[0], sensor) if len(bands) == 1 else None
        if name is None or name in layers or not str(asset.get("href", "")).lower().endswith((".tif", ".tiff", ".jp2")):
            continue
        href = str(asset["href"])
        if not fetch and ("://" in href or href.startswith("/vsi")):
            raise DataError(
                f"{path}: asset {key!r} is at {href}: what a file names is not fetched; download it beside the item, "
                "and name it there."
            )
        raster = {**asset, **bands[0], **(asset.get("raster:bands") or [{}])[0]}
        scale, offset, nodata = (
            raster.get(word, raster.get(f"raster:{word}")) for word in ("scale", "offset", "nodata")
        )
        quality = is_quality_layer(name)
        layers[name] = Layer(
            name,
            beside_item(base, key, href) if fetch else str(Path(path).parent / href),
            key,
            None if quality or scale is None else _number(scale, path, "scale"),
            0.0 if offset is None or applied else _number(offset, path, "offset"),
            FILL_OF.get(name) if quality else None if nodata is None else _number(nodata, path, "nodata"),
            quality,
            remote=fetch,
        )
    if not layers:
        raise DataError(f"{path}: no asset is a band by its key, name or common name; it has {listing(assets)}.")
    return list(layers.values())


def _stac_sensor(properties: Mapping[str, Any]) -> Sensor | None:
    """The numbering of the bands, by the platform."""
    craft = f"{properties.get('platform')} {properties.get('constellation')}".casefold()
    if "sentinel-2" in craft:
        return SENSORS["sentinel2_l1c"]
    numbered = re.search(r"landsat-?_?0?([4-9])", craft)
    return None if numbered is None else SENSORS["landsat_c2l2" if int(numbered[1]) > 7 else "landsat_tm_c2l2"]


def _stac_band(key: str, band: Mapping[str, Any], sensor: Sensor | None) -> str | None:
    if is_quality_layer(key):
        return {fold(name): name for name in FILL_OF}.get(fold(key), key)
    for name in filter(None, (key, band.get("name"), band.get("common_name"), band.get("eo:common_name"))):
        if (code := band_or_none(name, sensor)) is not None:
            return None if code.startswith("T") else code  # a temperature
    return None
