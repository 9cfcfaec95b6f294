"""Which example belongs to which split: split files, seeded stratified shares and folds."""

from __future__ import annotations

import logging
import os
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deflect_hf.config.data import DatasetArguments
from deflect_hf.errors import ConfigError, DataError, listing
from deflect_hf.raster.arrays import SUFFIX as ARRAY
from deflect_hf.raster.header import LAYER_SUFFIXES

logger = logging.getLogger(__name__)

Row = dict[str, Any]  # of the table of a split: name, image, and mask, label or target
SPLITS = ("train", "val", "test")
SPLIT_WORDS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
LIST_FOLDERS = ("splits", "split", "lists", "list", "sets", "imagesets", "partitions", "partition", "folds")
LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".lst", ".list", ".json")
SPLIT_OF = {word: split for split, words in SPLIT_WORDS.items() for word in words}


def split_indices(
    strata: Sequence[Hashable], args: DatasetArguments, places: Sequence[int] | None = None
) -> dict[str, list[int]]:
    """Split examples by shares or folds, each class on its own: ``{"train": [...], "val": [...], "test": [...]}``.

    Deterministic in ``args.seed``; a split whose share is 0 is left out. Folds are dealt round robin, from one class
    on to the next, so that their sizes differ by one at most. With the ``places`` of the examples, whole places are
    drawn, whatever their classes.
    """
    if args.num_folds is not None:
        refuse_idle_shares(args, ["test_fraction"])
    if places is not None:
        return _split_places(places, args)
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    dealt = 0  # examples of the classes before this one
    for stratum, members in _shuffled(strata, args.seed).items():
        if args.num_folds is None:
            test = members[: _share(len(members), args.test_fraction)]
            val = members[len(test) : len(test) + _share(len(members), args.val_fraction, len(test))]
        else:
            if len(members) < args.num_folds:
                which = "The data set" if stratum is None else f"Class {stratum!r}"
                raise DataError(
                    f"{which} has {len(members)} image(s), too few for num_folds={args.num_folds}: "
                    f"lower num_folds or add images."
                )
            test = members[(args.fold - dealt) % args.num_folds :: args.num_folds]
            dealt += len(members)
            tested = set(test)
            rest = [member for member in members if member not in tested]
            val = rest[: _share(len(rest), args.val_fraction)]
        held_out = set(test) | set(val)
        parts["test"] += test
        parts["val"] += val
        parts["train"] += [member for member in members if member not in held_out]
    if not parts["train"]:
        raise DataError(f"{len(strata)} image(s) leave nothing to train on: lower val_fraction and test_fraction.")
    return {name: sorted(indices) for name, indices in parts.items() if indices}


def _split_places(places: Sequence[int], args: DatasetArguments) -> dict[str, list[int]]:
    """Whole places for each split, as near to its share of the images as they allow."""
    drawn, groups = _drawn(places, args.seed)
    largest = max(len(members) for members in groups.values())
    if largest > len(places) / 2:
        logger.warning(
            "place_km=%g: one place holds %d of %d images, by way of images in between: choose a smaller place_km, or "
            "the splits cannot have their shares",
            args.place_km, largest, len(places),
        )  # fmt: skip
    needed = args.num_folds or 1 + (args.val_fraction > 0) + (args.test_fraction > 0)
    if len(groups) < needed:
        raise DataError(
            f"place_km={args.place_km:g} makes {len(groups)} place(s) of {len(places)} images, but {needed} are "
            "needed: lower place_km or add images of other places."
        )
    if args.num_folds is None:
        test = _take(drawn, groups, args.test_fraction * len(places), left=needed - 1)
    else:
        folds: list[list[int]] = [[] for _ in range(args.num_folds)]
        for place in sorted(drawn, key=lambda place: -len(groups[place])):
            min(folds, key=lambda fold: sum(len(groups[one]) for one in fold)).append(place)
        test = folds[args.fold]
    rest = [place for place in drawn if place not in test]
    val = _take(rest, groups, args.val_fraction * sum(len(groups[place]) for place in rest), left=1)
    if args.val_fraction > 0 and not val:
        raise DataError(f"place_km={args.place_km:g}: fold {args.fold} leaves one place for training and validation.")
    train = [place for place in rest if place not in val]
    parts = {"train": train, "val": val, "test": test}
    return {name: sorted(i for place in part for i in groups[place]) for name, part in parts.items() if part}


def _drawn(places: Sequence[int], seed: int) -> tuple[list[int], dict[int, list[int]]]:
    """The places in seeded random order, and the examples of each."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, place in enumerate(places):
        groups[place].append(index)
    return [list(groups)[i] for i in np.random.default_rng(seed).permutation(len(groups))], groups


def _take(places: Sequence[int], groups: Mapping[int, Sequence[int]], images: float, left: int) -> list[int]:
    """The first places that have about so many images together: at least one place unless none, and some are left."""
    taken: list[int] = []
    for place in places[: len(places) - left]:
        if images <= 0 or (taken and len(groups[place]) / 2 > images):
            break
        taken.append(place)
        images -= len(groups[place])
    return taken


def hold_out(strata: Sequence[Hashable], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Hold a share of the examples out, each class on its own -> (kept, held out), both sorted."""
    shuffled = _shuffled(strata, seed).values()
    held = [member for members in shuffled for member in members[: _share(len(members), fraction)]]
    return sorted(set(range(len(strata))) - set(held)), sorted(held)


def keep_share(
    strata: Sequence[Hashable], fraction: float, seed: int, places: Sequence[int] | None = None
) -> list[int]:
    """Keep a share of the examples of each class, at least one; a smaller share is a subset of a larger one.

    With the ``places`` of the examples, whole places are kept, whatever their classes.
    """
    if fraction == 1.0:
        return list(range(len(strata)))
    if places is not None:
        drawn, groups = _drawn(places, seed)
        kept = [i for place in _take(drawn, groups, fraction * len(places), left=0) for i in groups[place]]
    else:
        shuffled = _shuffled(strata, seed).values()
        kept = [member for members in shuffled for member in members[: max(1, round(len(members) * fraction))]]
    if abs(len(kept) - fraction * len(strata)) > max(1, fraction * len(strata) / 4):
        logger.warning(
            "limited_label=%g keeps %d of the %d training images, %.0f %%: %s",
            *(fraction, len(kept), len(strata), 100 * len(kept) / len(strata)),
            "at least one of each class" if places is None else "a place is kept whole or not at all",
        )
    return sorted(kept)


def limited(rows: Sequence[Row], args: DatasetArguments) -> list[Row]:
    """What ``limited_label`` keeps of the rows for training, by their ``label``, or ``place``; see `keep_share`."""
    places = [row["place"] for row in rows] if rows and "place" in rows[0] else None
    return [rows[i] for i in keep_share([row.get("label") for row in rows], args.limited_label, args.seed, places)]


def refuse_idle_shares(args: DatasetArguments, keys: Sequence[str]) -> None:
    """Refuse a share (``keys``) that was asked for where files, folders or folds settle its split already."""
    for key in keys:
        share = getattr(args, key)
        if share not in (0, DatasetArguments.model_fields[key].default):
            raise ConfigError(
                f"{key}={share} does nothing for {args.root or args.name}, where files, folders, scenes or folds make "
                "that split: remove it."
            )


def _shuffled(strata: Sequence[Hashable], seed: int) -> dict[Hashable, list[int]]:
    """Indices of each stratum, strata in order of appearance, indices in seeded random order."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, stratum in enumerate(strata):
        groups[stratum].append(index)
    return {
        stratum: [members[i] for i in np.random.default_rng([seed, rank]).permutation(len(members))]
        for rank, (stratum, members) in enumerate(groups.items())
    }


def _share(total: int, fraction: float, taken: int = 0) -> int:
    """How many of ``total`` a share is: at least one unless it is 0, but one is left besides those already taken."""
    wanted = max(1, round(total * fraction)) if fraction > 0 else 0
    return max(0, min(wanted, total - taken - 1))


def called(root: Path, split: str, kind: Callable[[Path], bool], suffix: str = "") -> Path | None:
    """The file or folder below ``root`` that a split has by its name, ``val.txt`` or ``Validation.txt``; None without.

    Raises:
        DataError: There are several, of which one would be left out.
    """
    words = {word + suffix for word in SPLIT_WORDS[split]}
    found = _called(root, words, kind)
    if split == "val" and not found and _called(root, {word + suffix for word in SPLIT_WORDS["train"]}, kind):
        for path in _called(root, {f"dev{suffix}"}, kind):
            logger.warning("%s is not read: if it is the validation split, call it val%s", path, suffix)
    if suffix and root / f"{split}{suffix}" in found:  # beside train.txt, training.txt may be anything
        return root / f"{split}{suffix}"
    if len(found) > 1:
        raise DataError(f"{root} has {listing(path.name for path in found)} for the {split} split: keep one of them.")
    return found[0] if found else None


def _called(root: Path, words: Collection[str], kind: Callable[[Path], bool]) -> list[Path]:
    return sorted(path for path in root.glob("*") if path.name.casefold() in words and kind(path))


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows put a mark in front
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8: write one id a line.") from error
    return [unicodedata.normalize("NFC", line.strip()) for line in text.splitlines() if line.strip()]


def without_suffix(name: str) -> str:
    """A name of an image without the ending of a file; ``t_1.5`` has none."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in (*LAYER_SUFFIXES, ".gtif", ARRAY) else name


def by_any_name(images: Mapping[str, Path]) -> dict[str, str]:
    """What a list may call each image -> its name: that, without its folders, the path of its file or the end of it.

    A suffix may be left out. What would be several images is none of them.
    """
    words: dict[str, set[str]] = defaultdict(set)
    for name, file in images.items():
        words[name.rsplit("/", 1)[-1]].add(name)
        parts = unicodedata.normalize("NFC", str(file)).split(os.sep)  # as macOS does not write it
        for path in (parts, [*parts[:-1], Path(parts[-1]).stem]):
            for begin in range(len(path)):
                words["/".join(path[begin:])].add(name)
    return {word: names.pop() for word, names in words.items() if len(names) == 1} | {name: name for name in images}


def read_split_file(path: Path, images: Mapping[str, Path]) -> list[str]:
    """Read ids, one a line, and check that each is an image, by its name or its file."""
    lines = read_lines(path)
    if not lines:
        raise DataError(f"{path} lists no images: write one id a line, or remove the file for a random split.")
    names = by_any_name(images)
    paths = [posixpath.normpath(line.replace("\\", "/")) for line in lines]  # ./images/a.tif, images\a.tif
    ids = [
        next((names[word] for word in (line, without_suffix(line), path) if word in names), None)
        for line, path in zip(lines, paths, strict=True)
    ]
    missing = [line for line, id_ in zip(lines, ids, strict=True) if id_ is None]
    if missing:
        raise DataError(
            f"{path} lists {len(missing)} id(s) without an image, first {listing(missing[:3])}; the images are called "
            f"{listing(list(images)[:2])}, ...: write one name or path of an image a line, add the images, or remove "
            "these lines."
        )
    found = [id_ for id_ in ids if id_ is not None]
    check_unique(found, path)
    return found


def report_unread_lists(root: Path) -> None:
    """Log files that look like the list of a split, but are not called as those that are read."""
    below = [path for path in root.glob("*") if path.is_dir() and path.name.casefold() in LIST_FOLDERS]
    files = [path for folder in (root, *below) for path in sorted(folder.glob("*"))]
    found = [
        str(path.relative_to(root))
        for path in files
        if path.suffix.casefold() in LIST_SUFFIXES and set(re.split(r"[\W_]+", path.stem.casefold())) & set(SPLIT_OF)
    ]
    if found:
        logger.warning(
            "%s: %s look like lists of splits, and are not read: name them by `train_split`, `val_split` and "
            "`test_split` (one name a line), or a column of a CSV by `label_table` and `split_column`",
            root,
            listing(found[:3]),
        )


def check_unique(ids: Sequence[str], path: Path) -> None:
    """Refuse a split file that lists an image twice."""
    repeated = [id_ for id_, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DataError(f"{path} lists {listing(repeated[:3])} more than once: keep one line each.")


def check_disjoint(ids: dict[str, list[str]], files: dict[str, Path]) -> None:
    """Refuse splits that share images."""
    seen: dict[str, str] = {}
    for split, names in ids.items():
        for name in names:
            if name in seen:
                raise DataError(
                    f"{files[split]} and {files[seen[name]]} both list {name!r}: an image belongs to one split only."
                )
            seen[name] = split
