"""How the GeoTIFFs of a folder are read: bands, scale, offset and nodata from the config, the files and the sensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data.dataset import Stored
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.errors import BandError, DataError
from deflect_hf.raster.georeference import projection
from deflect_hf.raster.header import Quality, RasterInfo, file_bands
from deflect_hf.raster.read import read_mask, read_raster
from deflect_hf.spectral.selection import Sensor, match_bands, resolve_bands
from deflect_hf.spectral.sensors import get_sensor

Tags = Mapping[str, tuple[float, float]]  # band -> its GDAL scale and offset tags
TAGS = ("scale", "offset")
Factor = float | list[float]


@dataclass(frozen=True)
class FolderReader:
    """Reads one image and its mask or class.

    Attributes:
        bands: Band codes to read, in order.
        needed_bands: Those that every file must have.
        tags: GDAL tags of these bands; every file must repeat those of them in ``repeated``.
        repeated: Of ``TAGS``, those that the config does not overrule.
    """

    bands: tuple[str, ...]
    needed_bands: tuple[str, ...]
    source_bands: tuple[str, ...] | None
    sensor: Sensor | None
    tags: Tags | None = None
    repeated: tuple[str, ...] = TAGS
    quality: Quality | None = None

    def read(self, row: Mapping[str, Any]) -> Stored:
        """Read the example of a row.

        Raises:
            DataError: A file is damaged, the mask has another size, or the scale tags differ from the first file's.
            BandError: A band is missing, or the file has another number of bands than announced.
        """
        path = row["image"]
        raster = read_raster(
            path,
            self.bands,
            needed=self.needed_bands,
            source_bands=self.source_bands,
            sensor=self.sensor,
            quality=self.quality,
        )
        for band, *tags in zip(raster.bands, raster.scales, raster.offsets, strict=True):
            others = tags if self.tags is None else self.tags[band]
            for name, tag, other in zip(TAGS, tags, others, strict=True):
                if name in self.repeated and tag != other:
                    raise DataError(
                        f"{path} has the {name} tag {tag} for band {band!r}, unlike the other images ({other}): give "
                        f"`{name}` in the config, or separate the images."
                    )
        if row.get("mask") is None:
            return Stored(raster.values, raster.bands, row["label"], path, raster.valid)
        mask = read_mask(row["mask"])
        if mask.values.shape[-2:] != raster.values.shape[-2:]:
            size, image_size = (f"{one.info.height} x {one.info.width}" for one in (mask, raster))
            raise DataError(
                f"{row['mask']} is {size} pixels, but its image {path} is {image_size}: "
                f"make the mask on the grid of the image."
            )
        return Stored(raster.values, raster.bands, mask.values[0], path, raster.valid, mask.valid[0], row["mask"])


def settle_reader(
    args: DatasetArguments,
    info: RasterInfo,
    trained: MultispectralImageProcessor | None,
    height: int | None = None,
) -> tuple[FolderReader, MultispectralImageProcessor]:
    """Settle bands, scale, offset, nodata and unit from the config, the first file's header and the sensor preset.

    Bands, unit and size of a ``trained`` model's processor stand; scale, offset and nodata values belong to the files.

    Args:
        height: pixels of what is resized to the processor's size, if anything is; None: of the whole file.

    Raises:
        BandError: The bands cannot be named, or a needed one is missing.
        DataError: The file's tags contradict the sensor.
        UnitError: The sensor's unit is not that of the trained model.
    """
    sensor = get_sensor(args.sensor) if args.sensor is not None else None
    names = file_bands(info, args.source_bands, sensor)
    named = [name for name in names if " " not in name]  # file_bands writes "band 3" where there is no name
    gsd_m = args.gsd_m if args.gsd_m is not None else info.gsd_m
    grid = projection(info)
    if trained is None:
        unit = sensor.unit if sensor is not None else "reflectance"
        bands = needed = resolve_bands(args.bands, sensor) if args.bands is not None else named
    else:
        unit, bands, needed = trained.unit, trained.bands, trained.needed_bands
        given = sensor.unit if sensor is not None else unit
        trained.contract.compare(info.path, named, given, gsd_m, grid, info.height if height is None else height)
    try:
        positions = match_bands(names, bands, needed)
    except BandError as error:
        raise BandError(f"{info.path}: {error}") from error
    first = next(position for position in positions if position is not None)
    # a band that the first file lacks is taken to be tagged as the others are
    sources = {band: first if position is None else position for band, position in zip(bands, positions, strict=True)}
    tags = {band: (info.scales[source], info.offsets[source]) for band, source in sources.items()}
    scale, offset = _calibration(args, tags, sensor, trained, info)
    fills = sensor.nodata if sensor is not None else trained.nodata if trained is not None else []
    processor = MultispectralImageProcessor(
        bands=bands,
        needed_bands=needed,
        source_bands=names,
        scale=scale,
        offset=offset,
        nodata=args.nodata if args.nodata is not None else list(fills),
        unit=unit,
        unit_check=args.unit_check and (trained is None or trained.unit_check),
        size=args.size if trained is None else trained.size,
        gsd_m=gsd_m if gsd_m is not None or trained is None else trained.gsd_m,
        projection=grid if grid is not None or trained is None else trained.projection,
    )
    source_bands = tuple(args.source_bands) if args.source_bands is not None else None
    repeated = tuple(name for name in TAGS if getattr(args, name) is None)
    quality = Quality(args.qa_band, tuple(args.qa_values)) if args.qa_band is not None else None
    reader = FolderReader(tuple(bands), tuple(needed), source_bands, sensor, tags, repeated, quality)
    return reader, processor


def _calibration(
    args: DatasetArguments,
    tags: Tags,
    sensor: Sensor | None,
    trained: MultispectralImageProcessor | None,
    info: RasterInfo,
) -> tuple[Factor, Factor]:
    """Scale and offset: the config's, else the file's tags, else the sensor's, else as in training.

    Tags and sensor must not disagree.
    """
    scales, offsets = ([tag[part] for tag in tags.values()] for part in (0, 1))
    tagged = set(scales) != {1.0} or set(offsets) != {0.0}
    explicit = args.scale is not None and args.offset is not None
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
