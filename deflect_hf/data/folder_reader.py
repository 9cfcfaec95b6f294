"""How the GeoTIFFs of a folder are read: bands, scale, offset and nodata from the config, the files and the sensor."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deflect_hf.config.data import DatasetArguments
from deflect_hf.config.reading import ReadingArguments
from deflect_hf.data.dataset import Stored
from deflect_hf.data.processor import READING, MultispectralImageProcessor
from deflect_hf.errors import ConfigError, DataError, listing
from deflect_hf.raster.access import is_address
from deflect_hf.raster.georeference import projection
from deflect_hf.raster.header import (
    SKIPPED,
    Box,
    Color,
    PathLike,
    RasterInfo,
    file_bands,
    is_no_band,
    is_unnamed,
    names_bands,
    off_wavelength,
    only_counts,
    report_numbers,
)
from deflect_hf.raster.products import Product, is_known_product, unnamed
from deflect_hf.raster.quality import Quality, is_quality_layer, quality_layer
from deflect_hf.raster.read import OpenRaster, Raster, read_mask, read_raster
from deflect_hf.spectral.bands import Sensor, split_date
from deflect_hf.spectral.selection import match_bands, resolve_bands
from deflect_hf.spectral.sensors import get_sensor

logger = logging.getLogger(__name__)

LOOSE = Product("")  # nothing is said of how scenes of several files are put together
Factor = float | list[float]


@dataclass(frozen=True)
class FolderReader:
    """Reads one image and its mask or class."""

    bands: tuple[str, ...]  # band codes to read, in order
    needed_bands: tuple[str, ...]  # those that every file must have
    source_bands: tuple[str, ...] | None
    sensor: Sensor | None
    quality: Quality | None = None
    resample: bool = False  # bring masks on another grid to that of their images
    numbers: bool = False  # masks hold numbers, not classes
    layout: Product = LOOSE  # how scenes of several files are put together
    nodata: tuple[float, ...] = ()  # stored values that are no measurement
    colors: Mapping[Color, int] | None = None  # the class of each color of painted masks; None: masks hold class values

    def product(self, path: str) -> Product:
        """A scene, put together as the others."""
        return dataclasses.replace(self.layout, path=path)

    def names(self, info: RasterInfo) -> list[str]:
        """What the bands of a file are called, see :func:`~deflect_hf.raster.header.file_bands`."""
        return file_bands(info, self.source_bands, self.sensor, None if self.quality is None else self.quality.band)

    def raster(self, file: PathLike | OpenRaster, window: Box | None = None) -> Raster:
        """Read the bands of a file, whole or a window of it."""
        return read_raster(
            file,
            self.bands,
            window=window,
            needed=self.needed_bands,
            source_bands=self.source_bands,
            sensor=self.sensor,
            nodata=self.nodata,
            quality=self.quality,
        )

    def read(self, row: Mapping[str, Any]) -> Stored:
        """Read the example of a row."""
        path = row["image"]
        raster = self.raster(self.product(path))
        if row.get("mask") is None:
            target = row["target"] if "target" in row else row["label"]
            return Stored(raster.values, raster.bands, target, path, raster.valid)
        mask = read_mask(
            row["mask"], onto=raster.info, resample=self.resample, numbers=self.numbers, colors=self.colors
        )
        values = mask.values[0]
        if self.numbers:
            values = values * mask.scales[0] + mask.offsets[0]
        return Stored(
            raster.values,
            raster.bands,
            values,
            path,
            raster.valid,
            mask.valid[0],
            row["mask"],
            mask.info.nodata[0] if self.colors is None else None,
        )


def layout_of(args: Any, trained: MultispectralImageProcessor | None = None, path: str = "") -> Product:
    """How scenes of several files are put together: as given, else as in training.

    Args:
        args: ``DatasetArguments`` or ``SceneArguments``.
        path: Of a scene, as the user wrote it. Names of files that training was given stand for one that is not known
            by its own.
    """
    reading = trained.reading if trained is not None else {}
    resampling = args.band_resampling or reading.get("band_resampling") or "bilinear"
    known = "files" not in reading or (path != "" and is_known_product(path))
    product = Product.of(
        path,
        args.files if args.files is not None or known else reading["files"],
        grid=args.grid if args.grid is not None else reading.get("grid"),
        resampling=resampling,
        dates=tuple(at_root(getattr(args, "root", None) or "", date) for date in args.dates or ()),
        composite=bool(args.composite or reading.get("composite")),
        written=path != "",
        classes=_classified(args, reading),
        nodata=nodata_of(args, trained),
    )
    if path and product.composite and not product.dates:
        logger.warning("%s: the model was trained on medians of several dates, but this is one: give `dates`", path)
    idle = [key for key in ("files", "grid", "band_resampling") if getattr(args, key) is not None]
    if path and idle and product.layers is None:
        raise ConfigError(f"{path} is one file: `{idle[0]}` does nothing for it, remove it.")
    return product


def at_root(root: PathLike, name: str) -> str:
    """A file below ``root``; an address as it is written."""
    return name if is_address(name) else os.path.join(root, name)


def nodata_of(args: Any, trained: MultispectralImageProcessor | None) -> tuple[float, ...] | None:
    """The stored values that are no measurement, as they are said of the files, of their sensor or in training."""
    known = trained.reading if trained is not None and args.sensor is None else {}
    said = known.get("nodata") if args.nodata is None else args.nodata
    if said is not None:  # an empty list says that there is none
        return tuple(said)
    usual = get_sensor(args.sensor).nodata if args.sensor is not None else trained.nodata if trained else ()
    return tuple(usual) or None  # a sensor without such a value says nothing of it


def _classified(args: Any, reading: Mapping[str, Any]) -> tuple[str, ...]:
    """What the layer may be called that a configuration has as its quality layer, besides the known ones."""
    band = str(args.qa_band or reading.get("quality", [""])[0]).casefold()
    listed = enumerate(args.source_bands or reading.get("source_bands") or (), start=1)
    return (band, *(unnamed(number) for number, name in listed if name.casefold() == band)) if band else ()


def settle_reader(
    args: DatasetArguments, info: RasterInfo, trained: MultispectralImageProcessor | None, height: int | None = None
) -> tuple[FolderReader, MultispectralImageProcessor]:
    """Settle bands, scale, offset, nodata and unit from the config, a file's header and the sensor preset.

    Bands, unit and size of a ``trained`` model's processor stand; scale, offset and nodata values belong to the files.
    Bands of the file that nobody will look at are logged.

    Args:
        height: pixels of what is resized to the processor's size, if anything is; None: of the whole file.
    """
    given = get_sensor(args.sensor) if args.sensor is not None else None
    sensor, source_bands = names_in_training(args.sensor, args.source_bands, info, trained)
    quality = quality_of(args, info, source_bands, trained)
    names = file_bands(info, source_bands, sensor, None if quality is None else quality.band)
    named = [name for name in names if not is_unnamed(name)]
    unknown = _unknown(info, names, source_bands, quality)
    _report_names(info, names, sensor, source_bands)
    gsd_m = args.gsd_m if args.gsd_m is not None else info.gsd_m
    grid = projection(info)
    if trained is None:
        unit = sensor.unit if sensor is not None else "reflectance"
        usual = [name for name in named if not (info.composite and split_date(name)[1])]
        bands = needed = resolve_bands(args.bands, sensor) if args.bands is not None else usual
        if unknown and args.bands is None:
            logger.warning(
                "%s: the model gets %s; left out are %s, which %s does not know (describe them in a `sensor` of your "
                "own, under codes of your own, to use them; `source_bands` with %r in their place to leave them out "
                "silently)",
                info.path,
                listing(bands),
                listing(unknown),
                "the catalogue of bands" if sensor is None else f"sensor {sensor.name!r}",
                SKIPPED,
            )
    else:
        unit, bands, needed = trained.unit, trained.bands, trained.needed_bands
        seen = info.height if height is None else height
        given_unit = "reflectance" if info.calibrated else given.unit if given is not None else unit
        trained.contract.compare(info.path, [*named, *unknown], given_unit, gsd_m, grid, seen)
    if args.dates and not (info.composite or any(split_date(band)[1] for band in bands)):
        raise ConfigError(
            f"`dates` does nothing for the bands {listing(bands)}: remove it, or train with bands of the other dates, "
            f"such as {bands[0] + '@1'!r}, or with `composite: median`."
        )
    if args.composite is not None and not info.composite:
        raise ConfigError(f"{info.path}: a composite is of several dates: give the others, `dates`, or remove it.")
    positions = match_bands(names, bands, needed, info.path)
    first = next(position for position in positions if position is not None)
    # a band that this file lacks is taken to be tagged as the others are
    sources = [first if position is None else position for position in positions]
    scale, offset = _calibration(args, info, sources, given, trained)
    layout = layout_of(args, trained)
    # reflectance has no stored value that means nodata
    fills = () if info.calibrated and args.nodata is None else layout.nodata or ()
    reading = {key: getattr(args, key, None) for key in READING} | {"quality": quality and quality.entry}
    processor = MultispectralImageProcessor(
        bands=bands,
        needed_bands=needed,
        source_bands=names,
        scale=scale,
        offset=offset,
        nodata=list(fills),
        unit=unit,
        unit_check=args.unit_check and (trained is None or trained.unit_check),
        size=args.size if trained is None else trained.size,
        gsd_m=gsd_m if gsd_m is not None or trained is None else trained.gsd_m,
        projection=grid if grid is not None or trained is None else trained.projection,
        reading={key: value for key, value in reading.items() if value is not None},
    )
    resample = args.label_alignment == "resample"
    listed = tuple(source_bands) if source_bands is not None else None
    reader = FolderReader(
        tuple(bands), tuple(needed), listed, sensor, quality, resample, False, layout, fills, args.color_table
    )
    return reader, processor


def _report_names(
    info: RasterInfo, names: Sequence[str], sensor: Sensor | None, source_bands: Sequence[str] | None
) -> None:
    """Log names of bands that a file may not mean, or that it contradicts."""
    report_numbers(info, source_bands or (), sensor)
    if sensor is not None and source_bands is None and only_counts(info.descriptions, names):
        logger.warning(
            "%s calls its bands %s, which are %s of sensor %r: if these names only count the bands, say which they "
            "are by `source_bands` (of four bands mostly B, G, R, N or R, G, B, N)",
            info.path, listing(info.descriptions), listing(names), sensor.name,
        )  # fmt: skip
    problems = off_wavelength(names, info.wavelengths_nm or (None,) * len(names))
    if problems:
        logger.warning(
            "%s: by the wavelengths in its metadata, bands have a wrong name: %s. Correct `source_bands`, the "
            "descriptions or the wavelengths, whichever is wrong",
            info.path, "; ".join(problems),
        )  # fmt: skip


def names_in_training(
    sensor: str | dict[str, Any] | None,
    source_bands: Sequence[str] | None,
    info: RasterInfo,
    trained: MultispectralImageProcessor | None,
) -> tuple[Sensor | None, Sequence[str] | None]:
    """The sensor and the list that name the bands of a file: as given, else as in training.

    A list that training was given stands for a file whose descriptions name no band.
    """
    known = trained.reading if trained is not None else {}
    own = sensor is None and source_bands is None
    sensor = sensor if sensor is not None else known.get("sensor")
    settled = get_sensor(sensor) if sensor is not None else None
    if own and not names_bands(info, settled):
        source_bands = known.get("source_bands")
    return settled, source_bands


def quality_of(
    args: ReadingArguments,
    info: RasterInfo,
    source_bands: Sequence[str] | None,
    trained: MultispectralImageProcessor | None,
) -> Quality | None:
    """The quality layer of a file: as given, else that of the training images, if the file has it."""
    given = quality_layer(args)
    if given is not None or trained is None or "quality" not in trained.reading:
        return given
    band, values, bits, *limit = trained.reading["quality"]
    if any(text.casefold() == str(band).casefold() for text in (*info.descriptions, *(source_bands or ()))):
        return Quality(band, tuple(values), tuple(bits), *limit)
    logger.warning(
        "%s: has no quality band %s, by which pixels were left out in training: clouds are mapped, too", info.path, band
    )
    return None


def _unknown(
    info: RasterInfo, names: Sequence[str], source_bands: Sequence[str] | None, quality: Quality | None
) -> list[str]:
    """Bands of a file that have no name, by what the file calls them, without those that are meant to have none."""
    quality_band = None if quality is None else quality.band
    meant = {info.alpha} if info.alpha is not None else set()
    meant |= {position for position, name in enumerate(source_bands or ()) if is_no_band(name, quality_band)}
    return [
        text or name
        for position, (name, text) in enumerate(zip(names, info.descriptions, strict=True))
        if is_unnamed(name)
        and position not in meant
        and not is_quality_layer(split_date(text)[0])
        and not is_no_band(split_date(text)[0], quality_band)
    ]


def _calibration(
    args: DatasetArguments,
    info: RasterInfo,
    sources: Sequence[int],
    sensor: Sensor | None,
    trained: MultispectralImageProcessor | None,
) -> tuple[Factor, Factor]:
    """Scale and offset: the config's, else the file's tags, else the sensor's, else as in training.

    Tags and sensor must not disagree, but a sensor of the user's own need not say a scale.

    Args:
        sources: Where the bands are in the file.
    """
    scales, offsets = ([tags[source] for source in sources] for tags in (info.scales, info.offsets))
    if info.calibrated:
        for key in ("scale", "offset"):
            if getattr(args, key) is not None:
                raise ConfigError(
                    f"{info.path} is reflectance by the metadata of the product, which `{key}` would change: remove it."
                )
        return 1.0, 0.0
    tagged = set(scales) != {1.0} or set(offsets) != {0.0}
    silent = isinstance(args.sensor, Mapping) and not {"scale", "offset"} & {*args.sensor}
    explicit = silent or (args.scale is not None and args.offset is not None)
    scale: Factor = scales[0] if len(set(scales)) == 1 else scales
    offset: Factor = offsets[0] if len(set(offsets)) == 1 else offsets
    if not tagged and sensor is not None:
        scale, offset = sensor.scale, sensor.offset
    elif not tagged and trained is not None:
        scale, offset = trained.scale, trained.offset
    elif sensor is not None and not explicit and not np.allclose((scales, offsets), ([sensor.scale], [sensor.offset])):
        raise DataError(
            f"{info.path} is tagged scale {scales[0]}, offset {offsets[0]}, but sensor {sensor.name!r} has scale "
            f"{sensor.scale}, offset {sensor.offset}: give `scale` and `offset` in the config to say which is right."
        )
    return args.scale if args.scale is not None else scale, args.offset if args.offset is not None else offset
