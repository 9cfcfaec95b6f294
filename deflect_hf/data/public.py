"""What all public data sets share: the facts of a release, how its files are read, and its splits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deflect_hf.config.data import DatasetArguments
from deflect_hf.config.readers import DatasetSpec
from deflect_hf.data.dataset import ImageDataset, Labels, Reader, Stored, make_datasets
from deflect_hf.data.folder_reader import FolderReader
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.data.splits import SPLITS, Row, limited
from deflect_hf.errors import BandError, DataError, listing
from deflect_hf.raster.georeference import projection
from deflect_hf.raster.read import raster_info
from deflect_hf.spectral.bands import Sensor
from deflect_hf.spectral.selection import match_bands, resolve_bands

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PublicDataset(DatasetSpec):
    """The facts of a public release.

    Attributes:
        sensor: Its bands in stored order, scale, offset, nodata values and unit.
        gsd_m: Pixel size on the ground as stored, in metres.
        classes: Class names in label order.
        counts: Published number of images of each split; others are a reason to warn.
        source: Where it is published.
        license: Terms of its use.
        citation: Whom to cite, in one line.
        class_values: Stored mask value of each class (segmentation).
        ignore_values: Stored mask values of pixels without a label.
        folder: Name that its own folder has by custom; ``root`` may be that folder or the one that holds it.
        marks: Paths in that folder by which it is known; one of them is enough.
        fetch: Fetches the published archive into a folder and returns its path; None: there is none to fetch.
    """

    task: str
    sensor: Sensor
    gsd_m: float
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    source: str
    license: str
    citation: str
    folder: str
    marks: tuple[str, ...]
    class_values: tuple[int, ...] = ()
    ignore_values: tuple[int, ...] = ()
    fetch: Callable[[Path], Path] | None = None
    public = True

    def __post_init__(self) -> None:
        shared = {"root", "download", "scale", "offset", "nodata"}
        shared |= {"ignore_index"} if self.task == "segmentation" else set()
        object.__setattr__(self, "keys", self.keys | shared)


@dataclass(frozen=True)
class RasterReader:
    """Reads a row's ``image``, and its ``mask`` or ``label``: one file with all bands in the order of the sensor."""

    dataset: PublicDataset
    bands: tuple[str, ...]  # codes of the bands to read, in stored order

    def read(self, row: Mapping[str, Any]) -> Stored:
        """Read them."""
        sensor = self.dataset.sensor
        try:
            return FolderReader(self.bands, self.bands, None, sensor).read(row)
        except BandError as error:
            raise DataError(
                f"{row['image']} does not have the {len(sensor.bands)} bands of {self.dataset.title}, "
                f"{listing(sensor.codes)}: copy the file again."
            ) from error


def build_splits(
    dataset: PublicDataset,
    rows_by_split: Mapping[str, Sequence[Row]],
    args: DatasetArguments,
    processor: MultispectralImageProcessor | None = None,
    make_reader: Callable[[tuple[str, ...]], Reader] | None = None,
) -> dict[str, ImageDataset]:
    """Build the splits of a public data set; bands, unit and size of a trained model's ``processor`` stand.

    Keeps ``args.limited_label`` of the training rows, logs the counts, and warns where they are not the published ones.

    Args:
        rows_by_split: One row per image: ``name``, for classification ``label``, and what the reader looks at.
        args: Its ``bands``, ``scale``, ``offset``, ``nodata``, ``image_size``, ... win over the release's own.
        make_reader: Makes the reader from the codes of the stored bands that are needed, in stored order; None:
            a :class:`RasterReader`.
    """
    splits = {split: list(rows_by_split[split]) for split in SPLITS if rows_by_split.get(split)}
    if not splits:
        raise DataError(f"{args.root} holds no images of {dataset.title}: download it from {dataset.source}.")
    logger.info("%s (%s), %s. License: %s", dataset.title, dataset.source, dataset.citation, dataset.license)
    for split, rows in splits.items():
        published = dataset.counts.get(split)
        if published is not None and published != len(rows) and getattr(args, f"{split}_split") is None:
            logger.warning(
                "%s: %d images in the %s split, but %d are published: results do not compare with published ones",
                dataset.title, len(rows), split, published,
            )  # fmt: skip
    if "train" in splits:
        splits["train"] = limited(splits["train"], args)
    first = next(iter(splits.values()))[0]
    scene = str(first.get("image") or first["mask"])  # one of several files has its mask on the same grid
    sensor = dataset.sensor
    processor = MultispectralImageProcessor.for_images(
        dataset.title,
        sensor.codes,
        processor,
        bands=resolve_bands(args.bands, sensor) if processor is None and args.bands is not None else sensor.codes,
        scale=args.scale if args.scale is not None else sensor.scale,
        offset=args.offset if args.offset is not None else sensor.offset,
        nodata=args.nodata if args.nodata is not None else sensor.nodata,
        unit=sensor.unit,
        unit_check=args.unit_check,
        size=args.size,
        gsd_m=dataset.gsd_m,
        projection=projection(raster_info(scene)) if Path(scene).suffix == ".tif" else None,
    )
    positions = match_bands(sensor.codes, processor.bands, processor.needed_bands)
    bands = tuple(sensor.codes[position] for position in sorted(p for p in positions if p is not None))
    reader = RasterReader(dataset, bands) if make_reader is None else make_reader(bands)
    gsd_m = processor.gsd_m
    if processor.size is not None:
        gsd_m = processor.effective_gsd_m(reader.read(first).values.shape[-2])
    labels = Labels(str(dataset.task), dataset.classes, dataset.class_values, dataset.ignore_values, args.ignore_index)
    return make_datasets(splits, reader, processor, labels, gsd_m, args.seed, dataset.title)
