"""What all readers of public data sets share: the facts of a release, its splits, and complaints file by file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data.dataset import ImageDataset, Labels, Reader, make_datasets
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.data.splits import SPLITS, check_disjoint, check_unique, keep_share, read_lines
from deflect_hf.errors import BandError, DataError
from deflect_hf.raster.georeference import projection
from deflect_hf.spectral.bands import Sensor
from deflect_hf.spectral.selection import match_bands, resolve_bands

logger = logging.getLogger(__name__)

Row = dict[str, Any]
_NAMED = 8  # problems that an error names one by one


@dataclass(frozen=True)
class PublicDataset:
    """The facts of a public release.

    Attributes:
        name: What ``DatasetArguments.name`` calls it.
        title: What messages call it.
        task: ``"classification"`` or ``"segmentation"``.
        sensor: Its bands in stored order, scale, offset, nodata values and unit.
        gsd_m: Pixel size on the ground as stored, in metres.
        classes: Class names in label order.
        counts: Published number of images of each split; others are a reason to warn.
        source: Where it is published.
        licence: Terms of its use.
        citation: Whom to cite, in one line.
        class_values: Stored mask value of each class (segmentation).
        ignore_values: Stored mask values of pixels without a label.
    """

    name: str
    title: str
    task: str
    sensor: Sensor
    gsd_m: float
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    source: str
    licence: str
    citation: str
    class_values: tuple[int, ...] = field(default=())
    ignore_values: tuple[int, ...] = field(default=())

    def labels(self, ignore_index: int) -> Labels:
        """What its labels mean."""
        return Labels(self.task, self.classes, self.class_values, self.ignore_values, ignore_index)


def build_splits(
    public: PublicDataset,
    rows_by_split: Mapping[str, Sequence[Row]],
    make_reader: Callable[[tuple[str, ...]], Reader],
    args: DatasetArguments,
    processor: MultispectralImageProcessor | None = None,
) -> dict[str, ImageDataset]:
    """Build the splits of a public data set; bands, unit and size of a trained model's ``processor`` stand.

    Keeps ``args.limited_label`` of the training rows, logs the counts, and warns where they are not the published ones.

    Args:
        rows_by_split: One row per image: ``name``, for classification ``label``, and what the reader looks at.
        make_reader: Makes the reader from the codes of the stored bands that are needed, in stored order.
        args: Its ``bands``, ``scale``, ``offset``, ``nodata``, ``image_size``, ... win over the release's own.

    Raises:
        DataError: No split has an image.
        BandError: A wanted band is not among those of the release.
        UnitError: A trained model expects another unit.
    """
    splits = {split: list(rows_by_split[split]) for split in SPLITS if rows_by_split.get(split)}
    if not splits:
        raise DataError(f"{args.root} holds no images of {public.title}: download it from {public.source}.")
    logger.info("%s (%s), %s. Licence: %s", public.title, public.source, public.citation, public.licence)
    for split, rows in splits.items():
        published = public.counts.get(split)
        if published is not None and published != len(rows) and getattr(args, f"{split}_split") is None:
            logger.warning(
                "%s: %d images in the %s split, but %d are published: results do not compare with published ones",
                public.title, len(rows), split, published,
            )  # fmt: skip
    if "train" in splits:
        keep = keep_share([row.get("label") for row in splits["train"]], args.limited_label, args.seed)
        splits["train"] = [splits["train"][i] for i in keep]
    processor = _processor(public, args, processor, _grid(next(iter(splits.values()))[0]))
    positions = match_bands(public.sensor.codes, processor.bands, processor.needed_bands)
    stored = sorted(position for position in positions if position is not None)
    reader = make_reader(tuple(public.sensor.codes[position] for position in stored))
    gsd_m = processor.gsd_m
    if processor.size is not None:
        first = next(iter(splits.values()))[0]
        gsd_m = processor.effective_gsd_m(reader.read(first).values.shape[-2])
    return make_datasets(splits, reader, processor, public.labels(args.ignore_index), gsd_m, args.seed, public.title)


def _grid(row: Row) -> str | None:
    """How the grid of an image lies on the ground, None where its files are not georeferenced."""
    path = str(row.get("image") or row["mask"])  # a scene of several files has its mask on the same grid
    if Path(path).suffix != ".tif":
        return None
    from deflect_hf.raster.read import raster_info

    return projection(raster_info(path))


def _processor(
    public: PublicDataset, args: DatasetArguments, trained: MultispectralImageProcessor | None, grid: str | None
) -> MultispectralImageProcessor:
    """Stored values of the release -> reflectance, for the bands of the config or of a trained model."""
    sensor = public.sensor
    if trained is None:
        bands = needed = resolve_bands(args.bands, sensor) if args.bands is not None else sensor.codes
    else:
        bands, needed = trained.bands, trained.needed_bands
        trained.contract.compare(public.title, sensor.codes, sensor.unit, public.gsd_m, grid)
    try:
        return MultispectralImageProcessor(
            bands=bands,
            needed_bands=needed,
            source_bands=sensor.codes,
            scale=args.scale if args.scale is not None else sensor.scale,
            offset=args.offset if args.offset is not None else sensor.offset,
            nodata=args.nodata if args.nodata is not None else sensor.nodata,
            unit=sensor.unit,
            unit_check=args.unit_check and (trained is None or trained.unit_check),
            size=args.size if trained is None else trained.size,
            gsd_m=public.gsd_m,
            projection=grid,
        )
    except BandError as error:
        raise BandError(f"{public.title}: {error}") from error


def split_rows(
    public: PublicDataset, root: Path, files: Mapping[str, str], row_of: Callable[[str], tuple[Row, list[str]]]
) -> dict[str, list[Row]]:
    """One row for each line of each split file.

    Args:
        files: Split -> its file, below ``root``.
        row_of: From a line to its row, and what is wrong with its files.

    Raises:
        DataError: A split file or a file that it needs is missing or empty, all of them in one message; or an image is
            listed twice.
    """
    problems: list[str] = []
    rows: dict[str, list[Row]] = {}
    for split, file in files.items():
        there = (root / file).is_file()
        lines = read_lines(root / file) if there else []
        if not lines:
            problems.append(f"{file} lists no images" if there else f"{file} is missing")
        found = [row_of(line) for line in lines]
        rows[split] = [row for row, _ in found]
        problems += [f"{problem} (listed in {file})" for _, faults in found for problem in faults]
    refuse_incomplete(public, root, problems)
    names = {split: [row["name"] for row in members] for split, members in rows.items()}
    for split, file in files.items():
        check_unique(names[split], root / file)
    check_disjoint(names, {split: root / file for split, file in files.items()})
    return rows


def refuse_incomplete(public: PublicDataset, root: Path, problems: Iterable[str]) -> None:
    """Complain about a broken folder file by file, the first several by name.

    Raises:
        DataError: There is a problem.
    """
    unique = list(dict.fromkeys(problems))
    if unique:
        more = f"; and {len(unique) - _NAMED} more" if len(unique) > _NAMED else ""
        raise DataError(
            f"{root} is not {public.title} as published, {len(unique)} problem(s): {'; '.join(unique[:_NAMED])}{more}. "
            f"Copy it again, or download it again from {public.source}."
        )
