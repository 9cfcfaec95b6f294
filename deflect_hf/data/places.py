"""Splits by place: rectangles of scenes, each in one split, with the classes balanced among the splits."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data.splits import refuse_idle_shares
from deflect_hf.errors import DataError, MissingPackageError
from deflect_hf.raster.georeference import is_geographic, pixels_of, unit_m
from deflect_hf.raster.header import IDENTITY, Array, Box, RasterInfo
from deflect_hf.raster.vector import need_vector, write_features

logger = logging.getLogger(__name__)


KM_PER_DEGREE = 111.195  # of latitude, on a sphere


@dataclass(frozen=True)
class Region:
    """A rectangle of a scene, which windows never leave."""

    scene: int  # which of the scenes, from 0
    box: Box
    split: str = ""  # ``""`` before it is drawn
    counts: tuple[int, ...] = ()  # labelled pixels of each class in it


def blocks_of(info: RasterInfo, km: float, buffer_km: float, middle: float | None = None) -> list[Box]:
    """Squares of ``km`` on a grid that all scenes of a reference system share, each without half of the buffer.

    Args:
        middle: degrees of latitude at which the squares of a system in degrees are square; None: those of the scene's
            middle.
    """
    if info.crs is None or not info.georeferenced:
        raise DataError(f"{info.path} does not say where it lies: leave block_km out, or georeference it.")
    a, b, left, d, e, top = info.transform
    if b or d:
        a, e, left, top = math.hypot(a, d), math.hypot(b, e), 0.0, 0.0  # a turned grid has squares of its own
    across = down = km / KM_PER_DEGREE if is_geographic(info.crs) else km * 1000 / unit_m(info)
    if is_geographic(info.crs):
        latitude = top + e * info.height / 2 if middle is None else middle
        across /= max(math.cos(math.radians(latitude)), 0.01)
    share = buffer_km / km / 2
    columns = _stretches(info.width, left, a, across, share)
    rows = _stretches(info.height, top, e, down, share)
    return [(row, column, height, width) for row, height in rows for column, width in columns]


def _stretches(length: int, start: float, step: float, side: float, share: float) -> list[tuple[int, int]]:
    """First pixel and length of the pieces of a line of pixels between multiples of ``side``, on the map."""
    low, high = sorted((start, start + step * length))
    multiples = np.arange(math.floor(low / side), math.ceil(high / side) + 1) * side
    inside = {round(float((one - start) / step)) for one in multiples}
    edges = sorted({0, length, *(edge for edge in inside if 0 < edge < length)})
    margin = math.ceil(share * side / abs(step)) if share else 0
    pieces = []
    for first, last in pairwise(edges):
        first, last = first + margin * (first > 0), last - margin * (last < length)
        if last > first:
            pieces.append((first, last - first))
    return pieces


def cells_of(box: Box, side: int) -> list[tuple[Box, Box]]:
    """Windows of a region, and the part of each that no other one has: together they are the region, each pixel once.

    Windows at the far ends are moved inwards.
    """
    top, left, height, width = box

    def along(first: int, length: int) -> list[tuple[int, int, int]]:
        starts = range(first, first + length, side)
        return [(max(first, min(start, first + length - side)), start, min(side, first + length - start))
                for start in starts]  # fmt: skip

    return [
        ((row, column, min(side, height), min(side, width)), (own_row, own_column, own_height, own_width))
        for row, own_row, own_height in along(top, height)
        for column, own_column, own_width in along(left, width)
    ]


def draw_splits(counts: Sequence[Sequence[int]], args: DatasetArguments) -> list[str]:
    """The split of each place, by shares or folds, with the labels of each class balanced among them."""
    if args.num_folds is None:
        test, val = args.test_fraction, args.val_fraction
        return balanced(counts, {"train": 1 - val - test, "val": val, "test": test}, args.seed)
    refuse_idle_shares(args, ["test_fraction"])
    folds = balanced(counts, {str(fold): 1 / args.num_folds for fold in range(args.num_folds)}, args.seed)
    splits = ["test" if fold == str(args.fold) else "" for fold in folds]
    rest = [place for place, split in enumerate(splits) if not split]
    shares = {"train": 1 - args.val_fraction, "val": args.val_fraction}
    for place, split in zip(rest, balanced([counts[place] for place in rest], shares, args.seed), strict=True):
        splits[place] = split
    return splits


def balanced(counts: Sequence[Sequence[int]], shares: Mapping[str, float], seed: int) -> list[str]:
    """A split for each place, so that of each class every split has about its share; one of a share of 0 has none.

    Places that hold much of a class are dealt first, each to the split where it takes most off the squares of what is
    lacking; a greedy form of the stratification of Sechidis, Tsoumakas and Vlahavas (On the Stratification of
    Multi-label Data, ECML PKDD 2011).
    """
    labels, names = np.asarray(counts, dtype=float), [name for name, share in shares.items() if share > 0]
    if len(labels) < len(names):
        raise DataError(
            f"{len(labels)} place(s) with labels are too few for {len(names)} splits or folds (without block_km, a "
            "scene is one place): give smaller blocks (block_km), split_column, more scenes, fewer folds, or "
            "val_fraction and test_fraction of 0."
        )
    labels = labels / np.maximum(labels.sum(axis=0), 1)  # of each class 1 in all
    wanted = np.array([shares[name] for name in names])[:, None] * (labels.sum(axis=0) > 0)
    weight = labels.max(axis=1, initial=0) * np.random.default_rng(seed).uniform(0.5, 1, len(labels))
    found = np.full(len(labels), -1)
    for done, place in enumerate(np.argsort(-weight, kind="stable")):
        empty = [split for split in range(len(names)) if split not in found]
        splits = empty if len(empty) >= len(labels) - done else range(len(names))
        found[place] = max(splits, key=lambda split: float(wanted[split] @ labels[place]))
        wanted[found[place]] -= labels[place]
    return [names[split] for split in found]


def report_splits(regions: Sequence[Region], infos: Sequence[RasterInfo], classes: Sequence[str], where: str) -> None:
    """Log the labels of each class in each split, and which splits overlap or touch on the ground."""
    for split in sorted({region.split for region in regions}):
        members = [region for region in regions if region.split == split]
        totals = np.sum([region.counts for region in members], axis=0)
        said = ", ".join(f"{name} {count}" for name, count in zip(classes, totals.tolist(), strict=True))
        logger.info("%s: %s split, %d place(s), labelled pixels: %s", where, split, len(members), said)
        absent = [name for name, count in zip(classes, totals, strict=True) if not count]
        if absent:
            logger.warning("%s: no pixel of %s is in the %s split", where, ", ".join(absent), split)
    found = [f"{one} and {other} at {pairs}" for (one, other), pairs in touching(regions, infos).items()]
    if found:
        logger.warning(
            "%s: splits overlap or touch on the ground, %s place(s), where they look alike: scores are too good there "
            "(buffer_km keeps blocks apart; scenes of one place belong to one split)",
            where, ", ".join(found),
        )  # fmt: skip


def touching(regions: Sequence[Region], infos: Sequence[RasterInfo]) -> Counter[tuple[str, str]]:
    """How many pairs of regions of two splits share ground or a border, by the names of the two splits."""
    found: Counter[tuple[str, str]] = Counter()
    by_scene: dict[int, list[Region]] = {}
    for region in regions:
        by_scene.setdefault(region.scene, []).append(region)
    pairs = [(scene, scene) for scene in by_scene]
    for one, other in [*pairs, *combinations(by_scene, 2)]:
        here, there = by_scene[one], by_scene[other]
        first = np.array([(row, column, row + height, column + width) for row, column, height, width in
                          (region.box for region in here)], dtype=float)  # fmt: skip
        second = first if one == other else _boxes_in(infos[one], infos[other], there)
        if second is None:
            continue
        near = (first[:, None, :2] <= second[None, :, 2:] + 0.5) & (second[None, :, :2] <= first[:, None, 2:] + 0.5)
        for k, n in np.argwhere(near.all(axis=2)).tolist():
            if here[k].split != there[n].split and (one != other or k < n):
                low, high = sorted((here[k].split, there[n].split))
                found[low, high] += 1
    return found


def _boxes_in(info: RasterInfo, other: RasterInfo, regions: Sequence[Region]) -> Array | None:
    """(n, 4) first and last row and column in one scene of regions of another; None where nothing says where."""
    if not (info.georeferenced and other.georeferenced):
        return None
    corners = np.array([[(row, column), (row, column + width), (row + height, column), (row + height, column + width)]
                        for row, column, height, width in (region.box for region in regions)])  # fmt: skip
    columns, rows = pixels_of(other, info, corners[..., 1], corners[..., 0])
    return np.stack([rows.min(axis=1), columns.min(axis=1), rows.max(axis=1), columns.max(axis=1)], axis=1)


def write_regions(path: Path, regions: Sequence[Region], infos: Sequence[RasterInfo], classes: Sequence[str]) -> None:
    """Write where each split lies as a GeoPackage.

    In the reference system of the scenes, in longitude and latitude where they have several, or in pixels where they
    lie nowhere. Without the extra ``vector``, which scenes with masks do not need, it only says that it does not.
    """
    try:
        need_vector()
    except MissingPackageError as error:
        logger.warning("%s is not written: %s", path.name, error)
        return
    import shapely

    systems = {info.crs for info in infos}
    outlines = []
    for region in regions:
        row, column, height, width = region.box
        corners = np.array([(0, 0), (0, 1), (1, 1), (1, 0), (0, 0)])  # against the clock, seen from above
        columns, rows = column + corners[:, 1] * width, row + corners[:, 0] * height
        info = infos[region.scene]
        on_map = dataclasses.replace(info, transform=IDENTITY) if len(systems) == 1 else None
        outlines.append(shapely.Polygon(np.stack(pixels_of(info, on_map, columns, rows), axis=1)))
    counts = np.array([region.counts for region in regions], dtype=np.int64)
    attributes = {
        "split": np.array([region.split for region in regions], dtype=object),
        "scene": np.array([infos[region.scene].path for region in regions], dtype=object),
        "pixels": counts.sum(axis=1),
        **{f"pixels of {name}": counts[:, number] for number, name in enumerate(classes)},
    }
    crs = systems.pop() if len(systems) == 1 else "EPSG:4326"
    write_features(path, np.array(outlines, dtype=object), attributes, crs)


def settled(regions: Sequence[Region], args: DatasetArguments, given: Mapping[int, str]) -> list[Region]:
    """The regions with labels, each in a split: that of its scene where one is ``given``, else one that is drawn."""
    if given:
        return [dataclasses.replace(region, split=given[region.scene]) for region in regions]
    splits = draw_splits([region.counts for region in regions], args)
    return [dataclasses.replace(region, split=split) for region, split in zip(regions, splits, strict=True)]
