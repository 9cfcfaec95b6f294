"""What agencies deliver, as one raster: a Sentinel-2 SAFE, a Landsat or HLS scene, a STAC item, one file per band.

All of them are opened as any file is, ``open_raster(PATH)``; what a path alone does not say is in a :class:`Product`.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rasterio.enums import ColorInterp

from deflect_hf.errors import ConfigError, DataError, listing
from deflect_hf.raster import metadata
from deflect_hf.raster.access import LOCAL, Access, access_to, gdal_name, is_address, is_item
from deflect_hf.raster.arrays import SUFFIX, array_xml
from deflect_hf.raster.header import BAND, LAYER_SUFFIXES, PathLike
from deflect_hf.raster.local import refuse_remote
from deflect_hf.raster.metadata import ARCHIVES, Folder
from deflect_hf.raster.quality import is_quality_layer
from deflect_hf.raster.stack import Layer, opened_layer, stack
from deflect_hf.spectral.bands import is_band_number, split_date
from deflect_hf.spectral.selection import band_or_none

PICTURES = {"tci", "pvi"}  # of the bands of a Sentinel-2 product, beside them
ZARR = {"zarr.json", ".zgroup", ".zarray"}  # in the folder of a store


@dataclass(frozen=True)
class Product(os.PathLike[str]):
    """A scene of several files, and what of it is not in the files; stands wherever the path of a raster does.

    Attributes:
        path: Its folder, archive or metadata file; or the files of its bands, ``SCENE/*_{band}.tif``.
        files: Where the bands are in the folder: such a pattern, or pairs of band and file (a pattern for one file).
        grid: The band whose grid the others come onto, or the side of a pixel in metres; None: the finest.
        resampling: How bands come onto it, ``"bilinear"`` or ``"cubic"``. Classes are taken from the nearest pixel.
        dates: The same place at other times, whose bands are called ``N@1``, ``N@2``, ...: products like this one, on
            whose grid they come. ``*`` stands for this one's name, without folder and ending.
        composite: Bands without a date are the median of all dates, of which this one is then ``N@0``.
        written: The user wrote the path, as an argument or in a configuration: it may then be an address, ``https://``,
            ``s3://``, ``/vsizip/...``, of a GeoTIFF, a JPEG 2000 file or a STAC item. What a file names is none.
        classes: Names of layers, in lower case, that are never interpolated, besides the known layers of classes.
        nodata: Stored values that are no measurement, so that no others are interpolated from them; None: not said.
    """

    path: str
    files: str | tuple[tuple[str, str], ...] | None = None
    grid: str | float | None = None
    resampling: str = "bilinear"
    dates: tuple[str, ...] = ()
    composite: bool = False
    written: bool = False
    classes: tuple[str, ...] = ()
    nodata: tuple[float, ...] | None = None

    @classmethod
    def of(cls, path: PathLike, files: str | Mapping[str, str] | None = None, **said: Any) -> Product:
        """The product at a path, with what a configuration says of it."""
        pairs = tuple(files.items()) if isinstance(files, Mapping) else files
        return cls(os.fspath(path), pairs, **said)

    def __fspath__(self) -> str:
        return self.path

    def __str__(self) -> str:
        return self.path

    @property
    def address(self) -> bool:
        """Whether it is read from a server, or out of an archive."""
        return self.written and is_address(self.path)

    @property
    def access(self) -> Access:
        """How GDAL is to open it."""
        return access_to([self.path, *self.dates]) if self.address else LOCAL

    @functools.cached_property
    def layers(self) -> list[Layer] | None:
        """Its bands; None where the path is a raster already.

        Raises:
            DataError: It is not there, files are missing, or there are several products.
            ConfigError: It is an address, and what is said of it is for files on disk.
        """
        if self.written and len({is_address(path) for path in (self.path, *self.dates)}) > 1:
            raise ConfigError(
                f"{self.path}: of an image and its `dates` all are addresses, or none: download the others."
            )
        if self.address and (self.files is not None or BAND in self.path):
            raise ConfigError(
                f"{self.path}: `files` are looked for on disk: give the address of one file that holds all bands, or "
                "of a STAC item."
            )
        found = self._dated() if self.dates else find_layers(self)
        return found and [
            dataclasses.replace(
                layer,
                classes=layer.classes or split_date(layer.name)[0].casefold() in self.classes,
                fills=self.nodata,
            )
            for layer in found
        ]

    def _dated(self) -> list[Layer]:
        """The bands of all dates."""
        name = Path(self.path).stem
        others = [(f"@{number}", date.replace("*", name)) for number, date in enumerate(self.dates, start=1)]
        given = [self.path, *(path for _, path in others)]
        if len({os.path.realpath(path) for path in given}) < len(given):
            raise DataError(f"{self.path}: of the image and its `dates`, {listing(given)}, two are one file.")
        found = []
        for date, path in [("", self.path), *([("@0", self.path)] if self.composite else []), *others]:
            product = dataclasses.replace(self, path=path, dates=())
            layers = product.layers
            if layers is None and path.lower().endswith(SUFFIX):
                raise DataError(f"{path}: an array does not name its bands, as `dates` need it: write it as a GeoTIFF.")
            if layers is None:
                layers = layers_of(product.open_name(), self.path, product.address)
            found += [dataclasses.replace(layer, name=layer.name + date) for layer in layers]
        return found

    def open_name(self) -> str:
        """What GDAL opens: the file, or a virtual raster as XML."""
        if self.layers is None and self.address:
            return gdal_name(self.path)
        if self.layers is None:
            refuse_remote(self.path)
            return array_xml(self.path) if self.path.lower().endswith(SUFFIX) else self.path
        return _stack(tuple(self.layers), self.path, self.grid, self.resampling, self.composite and bool(self.dates))


@functools.lru_cache(maxsize=256)  # as many scenes as are read in turns
def _stack(layers: Sequence[Layer], where: str, grid: str | float | None, resampling: str, composite: bool) -> str:
    for layer in layers:
        if not layer.remote and not layer.file.startswith(tuple(ARCHIVES.values())):
            refuse_remote(layer.file)
    return stack(layers, where, grid, resampling, composite)


def unnamed(number: int) -> str:
    """What a band is called that its file does not describe, counted from 1."""
    return f"layer {number}"


def layers_of(file: str, where: str, remote: bool = False) -> list[Layer]:
    """The bands of a raster as layers, by their descriptions; ``remote``: at an address."""
    with opened_layer(file, remote, f"{where}: {file}") as source:
        texts, kinds = source.descriptions, source.colorinterp
        named = [text or unnamed(number) for number, text in enumerate(texts, start=1)]
        alpha = kinds.index(ColorInterp.alpha) if ColorInterp.alpha in kinds and len(kinds) > 1 else None
        if alpha is not None and texts[alpha] and (is_band_number(texts[alpha]) or band_or_none(texts[alpha])):
            alpha = None  # GDAL calls the last of four bands of 8 bits so
        mask = None if alpha is None else alpha + 1
        return [
            Layer(name, file, classes=is_quality_layer(name), band=number, remote=remote, alpha=mask)
            for number, name in enumerate(named, start=1)
            if number != mask
        ]


def find_layers(product: Product) -> list[Layer] | None:
    """The bands of a product: as ``files`` says, else by its metadata, else by the names of its files."""
    if product.address:
        return metadata.stac_layers(product.path, fetch=True) if is_item(product.path) else None
    path = Path(product.path)
    if BAND in product.path and not path.exists():
        return _by_pattern(Folder(_existing_parent(path)), product.path)
    if path.suffix.lower() in (".json", ".geojson") and path.is_file():
        return metadata.stac_layers(product.path, fetch=False)
    if metadata.LANDSAT.search(path.name) or metadata.SAFE.search(path.name):
        path = path.parent
    elif not path.is_dir() and not (path.suffix.lower() in ARCHIVES and path.is_file()):
        return None
    folder = Folder(path)
    if isinstance(product.files, str):
        return _by_pattern(folder, f"{path}/{product.files}")
    if product.files is not None:
        return [_by_file(folder, band, pattern) for band, pattern in product.files]
    return known_product(folder) or _by_name(folder)


def is_known_product(path: PathLike) -> bool:
    """Whether a path is more than a folder of files: a raster, a STAC item, a product that brings metadata."""
    folder = Path(path)
    return not folder.is_dir() or known_product(Folder(folder)) is not None


def known_product(folder: Folder) -> list[Layer] | None:
    """The bands of a product that brings metadata, or that is known by its names; None for any other folder."""
    return metadata.safe_layers(folder) or metadata.landsat_layers(folder) or metadata.hls_layers(folder)


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.is_dir())


def _matches(folder: Folder, pattern: str) -> list[str]:
    """The files, relative to the folder, that fit a pattern with ``*`` and ``?``."""
    if folder.prefix:
        return [name for name in folder.names if PurePosixPath(name).match(pattern)]
    found = glob.glob(pattern, root_dir=folder.path)
    return sorted(name for name in found if Path(name).suffix.lower() in LAYER_SUFFIXES)


def _by_pattern(folder: Folder, pattern: str) -> list[Layer]:
    below = os.path.relpath(pattern, folder.path)
    if below.count(BAND) != 1:
        raise ConfigError(f"{pattern}: {BAND} stands once in a pattern of files, where the band is in their names.")
    parts = [re.escape(part).replace(r"\*", "[^/]*").replace(r"\?", "[^/]") for part in below.split(BAND)]
    # of QA_PIXEL and SR_B4, the first half is no part of what stands before
    named = re.compile(parts[0] + r"(?<![_.]QA_)(?<![_.]SR_)(?P<band>[^/]+?)" + parts[1])
    found: dict[str, str] = {}
    for name in _matches(folder, below.replace(BAND, "*")):
        match = named.fullmatch(name)
        if match is None or match["band"].casefold() in PICTURES:
            continue
        band = match["band"]
        if band in found:
            raise DataError(
                f"{folder.path}: {found[band]} and {name} are both band {band}: make the pattern {below!r} narrower, "
                "or give a pair of band and file for each."
            )
        found[band] = name
    if not found:
        raise DataError(f"{folder.path}: no file fits {below!r}{_holding(folder)}: correct `files`.")
    return [_layer(folder, band, name) for band, name in found.items()]


def _by_file(folder: Folder, band: str, pattern: str) -> Layer:
    names = _matches(folder, pattern)
    if len(names) != 1:
        found = f"{listing(names)} fit" if names else "no file fits"
        raise DataError(f"{folder.path}: band {band}: {found} {pattern!r}{_holding(folder)}: correct `files`.")
    return _layer(folder, band, names[0])


def _layer(folder: Folder, band: str, name: str) -> Layer:
    return Layer(band, folder.gdal(name), classes=is_quality_layer(band))


def _by_name(folder: Folder) -> list[Layer]:
    """One file per band, by the last word of their names."""
    layers: dict[str, Layer] = {}
    begins = set()
    for name in folder.names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in LAYER_SUFFIXES:
            continue
        match = re.fullmatch(r"(?P<begin>.*?)(?P<band>(?:QA_|SR_)?[^_.\- ]+)", stem)
        band = "" if match is None else match["band"].removeprefix("SR_")
        begin = "" if match is None else match["begin"]
        if is_quality_layer(band) or ((is_band_number(band) or band_or_none(band)) and (len(band) > 1 or not begin)):
            begins.add(begin)
            layers[band] = _layer(folder, band, name)
    if folder.path.suffix.upper() == ".SAFE":
        raise DataError(f"{folder.path} holds no MTD_MSIL1C.xml or MTD_MSIL2A.xml: copy all of it.")
    if ZARR & set(folder.names):
        raise DataError(f"{folder.path} is a Zarr store, which is not opened: write it as a GeoTIFF (rioxarray).")
    if len(layers) < 2 or len(begins) != 1 or all(layer.classes for layer in layers.values()):
        raise DataError(
            f"{folder.path} is {'an archive' if folder.prefix else 'a folder'}, not a raster{_holding(folder)}: give "
            "one file that holds all bands, a product (a Sentinel-2 SAFE, a Landsat scene with its MTL file, an HLS "
            "scene), or say which file is which band, `files: '*_{band}.tif'`; if it holds images, say so by `images: "
            "'**/*.tif'` (their classes then are those of a table, labels.csv)."
        )
    return list(layers.values())


def _holding(folder: Folder) -> str:
    names = [name for name in folder.names if Path(name).suffix.lower() in LAYER_SUFFIXES] or folder.names
    if not names:
        return "; it holds no files"
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"; it holds {', '.join(names[:4])}{more}"
