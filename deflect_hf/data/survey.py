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
from deflect_hf.raster.header import RasterInfo, is_unnamed, refuse_no_mask, reordered
from deflect_hf.raster.read import raster_info, read_quality
from deflect_hf.spectral.selection import match_bands

logger = logging.getLogger(__name__)

NAMED = 5  # files that a message names one by one
TAGS = ("scale", "offset")
TOLD = {  # what may differ from file to file, and what to do about it
    "pixels of": "the model is told one size of all: bring them to one, gdalwarp -tr",
    "the coordinate reference system is": "bring them to one: gdalwarp -t_srs",
    "the values are": "all are read by one scale and offset: separate the images where these differ",
    "the value that means no measurement is": "such a value counts as a measurement where the file does not tag it: "
    "gdal_edit.py -a_nodata, or `nodata` for all",
}


def typical(infos: Sequence[RasterInfo]) -> RasterInfo:
    """The first image with the tags, the pixel size and the kind of reference system that most of them have."""
    kinds = [
        (info.gsd_m and round(info.gsd_m, 3), projection(info), info.scales, info.offsets, _fills(info))
        for info in infos
    ]
    return infos[kinds.index(Counter(kinds).most_common(1)[0][0])]


def survey(root: str, infos: Sequence[RasterInfo], info: RasterInfo, reader: FolderReader, args: Any) -> None:
    """Refuse images that cannot be read as ``info``, and log which differ from it in what they are or hold."""
    _refuse_other_bands(infos, info, reader, args)

    def facts(one: RasterInfo) -> list[Any]:
        gsd, usual = one.gsd_m, info.gsd_m
        alike = gsd is None or usual is None or 1 / GSD_RATIO <= gsd / usual <= GSD_RATIO
        size = (usual if alike else gsd) or 0.0
        fills = _fills(one, reader.nodata) or "not tagged"
        return [f"{round(size, 3):g} m", projection(one) or "not known", _numbers(one), fills, _bands(one, reader)]

    usual = facts(info)
    others: list[dict[Any, list[str]]] = [defaultdict(list) for _ in usual]
    for other in infos:
        for expected, found, differing in zip(usual, facts(other), others, strict=True):
            if found != expected:
                differing[found].append(other.path)
    for (what, fix), expected, differing in zip(TOLD.items(), usual, others, strict=False):
        for found, paths in differing.items():
            logger.warning(
                "%s: %s %s in %d of %d images, unlike %s in the others: %s (%s)",
                root, what, found, len(paths), len(infos), expected, _named(paths), fix,
            )  # fmt: skip
    for found, paths in others[-1].items():
        differences = (("have", found - usual[-1]), ("lack", usual[-1] - found))
        more = [f"{what} {listing(sorted(bands))}" for what, bands in differences if bands]
        logger.warning(
            "%s: %d of %d images %s, unlike the others: %s (the model gets %s of all; images of several products or "
            "sensors may differ in more than that)",
            root, len(paths), len(infos), " and ".join(more), _named(paths), listing(reader.bands),
        )  # fmt: skip


def _bands(info: RasterInfo, reader: FolderReader) -> frozenset[str]:
    """What the bands of a file are called; those without a name by what the file says of them."""
    found = enumerate(zip(reader.names(info), info.descriptions, strict=True))
    return frozenset(
        (text or name) if is_unnamed(name) else name
        for k, (name, text) in found
        if k != info.alpha or not is_unnamed(name)
    )


def _numbers(info: RasterInfo) -> str:
    """What kind of numbers a file holds: 8 bits and fractions are seldom of the scale of digital numbers."""
    stored = np.dtype(info.dtype)
    return "fractions" if stored.kind == "f" else "of 8 bits" if stored.itemsize == 1 else "whole numbers"


def _fills(info: RasterInfo, known: Sequence[float] = ()) -> str:
    """The values that mean no measurement in a file, by its tags and by those that are ``known`` of all."""
    values = {value for value in (*info.nodata, *known) if value is not None and not np.isnan(value)}
    return ", ".join(f"{value:g}" for value in sorted(values))


def _refuse_other_bands(infos: Iterable[RasterInfo], info: RasterInfo, reader: FolderReader, args: Any) -> None:
    """Refuse images that lack a needed band or have another order, or other scale or offset tags, than ``info``."""
    expected, usual_names = _tags(info, reader), reader.names(info)
    problems = []
    for other in infos:
        if reordered(other.descriptions, reader.names(other), info.descriptions, usual_names):
            problems.append(
                f"{other.path} describes its bands as {listing(other.descriptions)}, most others as "
                f"{listing(info.descriptions)}, but all are named in file order ({listing(usual_names)}): store them "
                "in one order, or call them by their codes in the files"
            )
            continue
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
    positions = match_bands(reader.names(info), reader.bands, reader.needed_bands, info.path)
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
