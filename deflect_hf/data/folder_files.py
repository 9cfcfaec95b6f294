"""The images and masks of a folder: in images/ and masks/, in class folders, or wherever patterns find them.

A pattern is relative to the folder: ``*`` and ``?`` as in a shell, ``**/`` for folders of any depth, ``{split}`` for a
folder or word that says train, val or test. What the ``*`` stand for is the name of an image, and that of its mask.
"""

from __future__ import annotations

import glob
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from deflect_hf.config.data import SPLIT, DatasetArguments
from deflect_hf.data.splits import SPLIT_WORDS, SPLITS, called
from deflect_hf.errors import DataError, listing
from deflect_hf.raster.arrays import SUFFIX as ARRAY

logger = logging.getLogger(__name__)

RASTER_SUFFIXES = (".tif", ".tiff", ".gtif", ".jp2", ".vrt")
ARRAY_SUFFIXES = (ARRAY,)
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")  # beside rasters, they are previews
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".gtif", ".jp2", ".vrt")
PRODUCT_SUFFIXES = (".safe", ".zip", ".tar")
MOST_LOOKED_AT = 10_000  # files of a folder that a message describes


def split_folders(root: Path, args: DatasetArguments) -> dict[str, Path]:
    """Where the images of each split are looked for, or those of all, under ``""``."""
    if SPLIT in (args.images or ""):
        found = {split: root for split in SPLITS if _matches(root, str(args.images), split)}
        if not found:
            raise DataError(_nothing(root, "images", str(args.images)))
        return found
    return {split: path for split in SPLITS if (path := called(root, split, Path.is_dir)) is not None} or {"": root}


def images_of(base: Path, args: DatasetArguments, split: str) -> dict[str, Path]:
    """The images of a split by name."""
    if args.images is not None:
        masks = _matches(base, args.masks or "masks/*", split)
        found = [pair for pair in _matches(base, args.images, split).items() if pair[0] not in masks]
        if not found:
            raise DataError(_nothing(base, "images", args.images))
        return _by_name(found, "images of the same name")
    folder = base / "images"
    images = by_file_name(_images([folder], args.files is not None).get(folder, []), "images of the same name")
    if not images:
        known = (*RASTER_SUFFIXES, *ARRAY_SUFFIXES, *PICTURE_SUFFIXES)
        raise DataError(
            f"{folder} holds no GeoTIFF, nor another image ({listing(known)}){holding(folder)}"
            f': put the images there, or say where they are, `images: "**/*.tif"`.'
        )
    deeper = [path for below in _folders(folder) if below not in images.values() for path in _rasters(below)]
    if deeper:
        logger.warning(
            "%s: %d image(s) in folders below, such as %s, are not read: `images: \"images/**/*%s\"` reads them, too",
            folder, len(deeper), deeper[0].relative_to(folder), deeper[0].suffix,
        )  # fmt: skip
    return images


def masks_of(base: Path, args: DatasetArguments, split: str, images: Mapping[str, Path]) -> dict[str, Path]:
    """The mask of each image, by the image's name."""
    folder = base / "masks"
    if args.masks is None:
        masks = by_file_name(_files(folder, MASK_SUFFIXES) or _files(folder, ARRAY_SUFFIXES), "masks of the same image")
    else:
        masks = _by_name(list(_matches(base, args.masks, split).items()), "masks of the same image")
        if not masks:
            raise DataError(_nothing(base, "masks", args.masks))
    bare = [name for name in images if name not in masks]
    if bare and args.masks is not None:
        raise DataError(
            f"{images[bare[0]]} has no mask ({len(bare)} of {len(images)} images have none): in `images` the * stand "
            f"for {bare[0]!r}, in `masks` for {listing(sorted(masks)[:3])}; correct the patterns, so that both are the "
            "same, or take the image away."
        )
    if bare:
        found = "" if masks else f" ({folder} holds no file of {listing(MASK_SUFFIXES)}{holding(folder)})"
        image, near = images[bare[0]], next((path for name, path in masks.items() if bare[0] in name), None)
        where = '`masks: "**/*.png"`'
        if near is not None:  # a_mask.png of a.tif
            where = f'`images: "images/*{image.suffix}"`, `masks: "masks/{near.name.replace(bare[0], "*", 1)}"`'
        raise DataError(
            f"{image} has no mask ({len(bare)} of {len(images)} images have none){found}: add "
            f"{folder / bare[0]}.png, take the image away, or say where the masks are, {where}."
        )
    idle = [masks[name] for name in masks if name not in images] if args.images is None else []
    if idle:
        logger.warning(
            "%s: %d of %d masks have no image, such as %s: is an image missing, called otherwise, or of another ending "
            "than the others?",
            base, len(idle), len(masks), idle[0].name,
        )  # fmt: skip
    return {name: masks[name] for name in images}


def class_folders(base: Path, of_files: bool = False) -> dict[Path, list[Path]]:
    """The images of each sub-folder that has some."""
    return _images(_folders(base), of_files)


def report_no_classes(base: Path, of_files: bool) -> None:
    """Log sub-folders of class folders that are no class, though they hold files."""
    classes = class_folders(base, of_files)
    for folder in _folders(base):
        found = holding(folder, deep=True)
        if folder not in classes and "such as" in found:
            logger.warning("%s is no class: it has no images of the kind that the classes have%s", folder, found)


def _matches(base: Path, pattern: str, split: str) -> dict[Path, str]:
    """What fits a pattern, and what its ``*`` stand for."""
    words = SPLIT_WORDS[split] if SPLIT in pattern else ("",)
    parts = re.split(rf"(\*\*/|[*?]+|{re.escape(SPLIT)})", pattern)  # every other one is a wildcard
    shape = re.compile("".join(_shape(part, words) if k % 2 else re.escape(part) for k, part in enumerate(parts)))
    found = {}
    for word in words:
        plain = "".join(part.replace(SPLIT, word) if k % 2 else glob.escape(part) for k, part in enumerate(parts))
        for name in glob.glob(plain, root_dir=base, recursive=True):
            match = shape.fullmatch(name)
            suffix = Path(name).suffix
            if match is not None and (suffix.lower() in _KNOWN or pattern.endswith(suffix)):
                stem = "/".join(filter(None, match.groups()))
                found[base / name] = stem[: -len(suffix)] if suffix and stem.endswith(suffix) else stem
    files = {path: name for path, name in found.items() if path.is_file() or path.suffix.lower() in PRODUCT_SUFFIXES}
    return dict(sorted((files or found).items()))


_KNOWN = {*RASTER_SUFFIXES, *ARRAY_SUFFIXES, *PICTURE_SUFFIXES, *PRODUCT_SUFFIXES, ""}


def _shape(wildcard: str, words: Sequence[str]) -> str:
    if wildcard == SPLIT:
        return f"(?:{'|'.join(words)})"
    return "(?:(.+)/)?" if wildcard == "**/" else f"({wildcard.replace('*', '[^/]*').replace('?', '[^/]')})"


def _nothing(base: Path, key: str, pattern: str) -> str:
    return f"{base}: no file fits `{key}: {pattern!r}`{holding(base, deep=True)}: correct the pattern."


def holding(folder: Path, deep: bool = False) -> str:
    """What a folder without images or masks holds instead, for the end of a sentence."""
    files = list(islice(_below(folder, deep), MOST_LOOKED_AT)) if folder.is_dir() else []
    endings = Counter(path.suffix for path in files)
    found = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in endings.most_common(3))
    such = f", such as {listing(str(path.relative_to(folder)) for path in sorted(files)[:3])}" if deep else ""
    return f"; it holds {found}{such}" if found else "; it holds no files" if deep else ""


def _below(folder: Path, deep: bool) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        yield from (Path(where) / file for file in files)
        folders[:] = sorted(folders) if deep else []


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files with one of the suffixes, sorted; none where the folder is missing. Hidden files are skipped."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith("."))


def _images(folders: Sequence[Path], of_files: bool = False) -> dict[Path, list[Path]]:
    """The images of each folder that has some: pictures only where none of them holds a raster, folders last."""
    named = [partial(_files, suffixes=suffixes) for suffixes in (ARRAY_SUFFIXES, PICTURE_SUFFIXES)]
    kinds: list[Callable[[Path], list[Path]]] = [_rasters, *named, _scenes]
    for kind in [_folders] if of_files else kinds:
        found = {folder: files for folder in folders if (files := kind(folder))}
        if found:
            return found
    return {}


def _rasters(folder: Path) -> list[Path]:
    products = [path for path in folder.glob("*") if path.suffix.lower() in PRODUCT_SUFFIXES]
    return sorted([*_files(folder, RASTER_SUFFIXES), *products])


def _scenes(folder: Path) -> list[Path]:
    """Folders of band files; none in a folder that is a data set itself."""
    found = _folders(folder)
    return [] if {"images", "masks"} & {path.name for path in found} else found


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_dir() and path.name[0] not in "._")


def by_file_name(paths: Sequence[Path], what: str) -> dict[str, Path]:
    """Files by their name without suffix."""
    whole = [path.is_dir() and path.suffix.lower() not in PRODUCT_SUFFIXES for path in paths]
    return _by_name([(path, path.name if all_ else path.stem) for path, all_ in zip(paths, whole, strict=True)], what)


def _by_name(pairs: Sequence[tuple[Path, str]], what: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path, written in pairs:
        name = unicodedata.normalize("NFC", written)  # macOS writes letters with accents as two
        if name in found:
            raise DataError(f"{found[name]} and {path} are {what}: keep one of them.")
        found[name] = path
    return found
