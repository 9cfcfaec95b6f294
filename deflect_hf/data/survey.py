"""All headers of a folder's files, read once: what differs from file to file is logged, or refused file by file."""

from __future__ import annotations

import filecmp
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deflect_hf.data.contract import GSD_RATIO
from deflect_hf.data.dataset import Labels
from deflect_hf.data.folder_reader import FolderReader
from deflect_hf.errors import DataError, listing
from deflect_hf.raster.georeference import projection, refuse_misplaced
from deflect_hf.raster.header import RasterInfo, file_bands, is_unnamed, refuse_no_mask
from deflect_hf.raster.read import raster_info, read_quality
from deflect_hf.spectral.selection import match_bands

logger = logging.getLogger(__name__)

NAMED = 5  # files that a message names one by one
TAGS = ("scale", "offset")
SIZES = (
    "%s: pixels of %g m in %d of %d images, unlike the %g m that the model is told of all: %s (bring them to one pixel "
    "size: gdalwarp -tr)"
)
SYSTEMS = (
    "%s: the coordinate reference system is %s in %d of %d images, unlike %s in the others: %s (bring them to one: "
    "gdalwarp -t_srs)"
)
NUMBERS = (
    "%s: the values are %s in %d of %d images, unlike %s in the others: %s (all are read by one scale and offset: "
    "separate the images where these differ)"
)

NODATA = (
    "%s: the value that means no measurement is %s in %d of %d images, unlike %s in the others: %s (such a value "
    "counts as a measurement where the file does not tag it: gdal_edit.py -a_nodata, or `nodata` for all)"
)


def typical(infos: Sequence[RasterInfo]) -> RasterInfo:
    """The first image with the tags, the pixel size and the kind of reference system that most of them have."""
    kinds = [
        (info.gsd_m and round(info.gsd_m, 3), projection(info), info.scales, info.offsets, _fills(info))
        for info in infos
    ]
    return infos[kinds.index(Counter(kinds).most_common(1)[0][0])]


def report_grids(root: str, infos: Sequence[RasterInfo], info: RasterInfo, reader: FolderReader) -> None:
    """Log which images have other pixel sizes, reference systems, kinds of numbers or nodata values than ``info``."""

    def facts(one: RasterInfo) -> dict[str, str]:
        fills = _fills(one, reader.nodata)
        return {SYSTEMS: projection(one) or "not known", NUMBERS: _numbers(one), NODATA: fills or "not tagged"}

    usual = {SIZES: info.gsd_m, **facts(info)}
    others: dict[str, dict[Any, list[str]]] = {message: defaultdict(list) for message in usual}
    for other in infos:
        gsd = other.gsd_m
        if gsd is not None and info.gsd_m is not None and not 1 / GSD_RATIO <= gsd / info.gsd_m <= GSD_RATIO:
            others[SIZES][round(gsd, 3)].append(other.path)
        for message, found in facts(other).items():
            if found != usual[message]:
                others[message][found].append(other.path)
    for message, differing in others.items():
        for found, paths in differing.items():
            logger.warning(message, root, found, len(paths), len(infos), usual[message], _named(paths))


def report_bands(root: str, infos: Sequence[RasterInfo], info: RasterInfo, reader: FolderReader) -> None:
    """Log which images have other bands than ``info``: more, which are left out, or fewer."""

    def names(one: RasterInfo) -> frozenset[str]:
        quality = None if reader.quality is None else reader.quality.band
        found = enumerate(
            zip(file_bands(one, reader.source_bands, reader.sensor, quality), one.descriptions, strict=True)
        )
        return frozenset(
            (text or name) if is_unnamed(name) else name
            for k, (name, text) in found
            if k != one.alpha or not is_unnamed(name)
        )

    usual = names(info)
    others: dict[frozenset[str], list[str]] = defaultdict(list)
    for other in infos:
        if (found := names(other)) != usual:
            others[found].append(other.path)
    for found, paths in others.items():
        more = [f"{what} {listing(sorted(bands))}" for what, bands in (("have", found - usual), ("lack", usual - found))
                if bands]  # fmt: skip
        logger.warning(
            "%s: %d of %d images %s, unlike the others: %s (the model gets %s of all; images of several products or "
            "sensors may differ in more than that)",
            root, len(paths), len(infos), " and ".join(more), _named(paths), listing(reader.bands),
        )  # fmt: skip


def _numbers(info: RasterInfo) -> str:
    """What kind of numbers a file holds: 8 bits and fractions are seldom of the scale of digital numbers."""
    stored = np.dtype(info.dtype)
    return "fractions" if stored.kind == "f" else "of 8 bits" if stored.itemsize == 1 else "whole numbers"


def _fills(info: RasterInfo, known: Sequence[float] = ()) -> str:
    """The values that mean no measurement in a file, by its tags and by those that are ``known`` of all."""
    values = {value for value in (*info.nodata, *known) if value is not None and not np.isnan(value)}
    return ", ".join(f"{value:g}" for value in sorted(values))


def refuse_other_bands(infos: Iterable[RasterInfo], info: RasterInfo, reader: FolderReader, args: Any) -> None:
    """Refuse images that lack a needed band, or whose scale or offset tags are not those of ``info``."""
    expected = _tags(info, reader)
    problems = []
    for other in infos:
        differing = [
            f"{other.path} has the {name} tag {tag} for band {band!r}, unlike the other images ({usual}): "
            f"give `{name}` in the config, or separate the images"
            for band, tags in _tags(other, reader).items()
            for name, tag, usual in zip(TAGS, tags, expected.get(band, tags), strict=True)
            if tag != usual and getattr(args, name) is None
        ]
        problems += differing[:1]
    _refuse(problems)


def _tags(info: RasterInfo, reader: FolderReader) -> dict[str, tuple[float, float]]:
    quality = None if reader.quality is None else reader.quality.band
    names = file_bands(info, reader.source_bands, reader.sensor, quality)
    positions = match_bands(names, reader.bands, reader.needed_bands, info.path)
    return {
        band: (info.scales[position], info.offsets[position])
        for band, position in zip(reader.bands, positions, strict=True)
        if position is not None
    }


def refuse_other_masks(
    rows: Sequence[Mapping[str, Any]], infos: Sequence[RasterInfo], labels: Labels, resample: bool, painted: bool
) -> None:
    """Refuse masks that are none, lie on another grid than their images, or whose palettes disagree about a class."""
    problems = []
    colors: dict[int, tuple[tuple[int, ...], str]] = {}
    tags: dict[tuple[float, float], list[str]] = defaultdict(list)
    for row, image in zip(rows, infos, strict=True):
        mask = raster_info(row["mask"])
        tags[mask.scales[0], mask.offsets[0]].append(mask.path)
        try:
            refuse_no_mask(mask, painted)
            if not (resample and mask.georeferenced and image.georeferenced):
                refuse_misplaced(mask, image)
        except DataError as error:
            problems.append(str(error).removesuffix("."))
        for name, value in zip(labels.classes, labels.values, strict=False) if not painted else ():
            if 0 <= value < len(mask.colors):
                color, where = colors.setdefault(value, (mask.colors[value], mask.path))
                if color != mask.colors[value]:
                    problems.append(
                        f"{mask.path} paints {value}, the value of class {name!r}, in color {mask.colors[value][:3]}, "
                        f"but {where} in {color[:3]}: palettes were made anew for each file, so that values mean "
                        "another class; write class numbers, or one palette for all"
                    )
    _refuse(problems)
    bare = tags.get((1.0, 0.0), [])
    if labels.task == "pixel_regression" and len(tags) > 1 and bare:
        logger.warning(
            "%d of %d masks have neither a scale nor an offset tag, unlike the others: %s (their numbers are taken as "
            "they are stored: tag them as the others, gdal_edit.py -scale)",
            len(bare), len(rows), _named(bare),
        )  # fmt: skip


def report_quality(root: str, rows: Sequence[Mapping[str, Any]], reader: FolderReader) -> None:
    """Log that no pixel of the images is one of those that the quality layer is to take out."""
    quality = reader.quality
    if quality is None:
        return
    found: set[int] = set()
    for row in rows:
        layer = read_quality(reader.product(row["image"]), quality, reader.source_bands)
        if quality.flags(layer).any():
            return
        if len(found) <= NAMED:
            found |= set(np.unique(layer).tolist())
    asked = [f"the value(s) {list(quality.invalid)}"] if quality.invalid else []
    asked += [f"bit(s) {list(quality.bits)} set"] if quality.bits else []
    asked += [f"a value above {quality.above:g}"] if quality.above is not None else []
    logger.warning(
        "%s: nothing is left out by the quality layer %r: none of the %d images has a pixel with %s; it holds %s%s (a "
        "layer of bit fields, such as QA_PIXEL or Fmask, needs `qa_bits` or a preset, `qa`)",
        root,
        quality.band,
        len(rows),
        " or ".join(asked),
        ", ".join(f"{value:g}" for value in sorted(found)[:NAMED]),
        ", ..." if len(found) > NAMED else "",
    )


def report_repeated(root: str, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Log images that two splits share, perhaps under two names: links to one file, or copies of it."""
    alike: dict[tuple[int, bytes], list[tuple[str, Path]]] = defaultdict(list)
    files = [(split, Path(row["image"])) for split, rows in splits.items() for row in rows]
    sizes = {path: path.stat().st_size for _, path in files if path.is_file()}
    frequent = Counter(sizes.values())
    for split, path in files:
        if frequent[sizes.get(path, -1)] > 1:
            alike[sizes[path], _middle(path, sizes[path])].append((split, path))
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for members in alike.values():
        first, path = members[0]
        for split, other in members[1:]:
            if split != first and filecmp.cmp(path, other, shallow=False):
                found[first, split].append(f"{other} (= {path.name})")
    for (first, split), images in found.items():
        logger.warning(
            "%s: %d image(s) of the %s split are those of the %s split, byte for byte: %s (what was seen before tells "
            "nothing of a model: keep each image in one split)",
            root, len(images), split, first, _named(images),
        )  # fmt: skip


def _middle(path: Path, size: int) -> bytes:
    """Some bytes of a file, which tell most files of one size apart."""
    with path.open("rb") as file:
        file.seek(size // 2)
        return file.read(4096)


def _named(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return ", ".join(Path(path).name for path in paths[:NAMED]) + more


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        more = f" (and {len(problems) - NAMED} more)" if len(problems) > NAMED else ""
        raise DataError(f"{'; '.join(problems[:NAMED])}{more}.")
