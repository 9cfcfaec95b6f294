"""Whether the files of a run that goes on are those that its statistics were made of: by their sizes and times."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from deflect_hf.data import ImageDataset
from deflect_hf.data.scene_reader import SceneReader

logger = logging.getLogger(__name__)

COLUMNS = ("image", "mask")  # of tables whose rows name files
NAMED = 5  # files that a message names one by one


def files_of(train: ImageDataset) -> list[str]:
    """The files of a split, as far as its rows or scenes name them."""
    if isinstance(train.reader, SceneReader):
        layers = [product.layers or () for product in train.reader.products]
        found = {label.path for label in train.reader.labels} | {info.path for info in train.reader.infos}
        return sorted(found | {layer.file for some in layers for layer in some})
    columns = [train.table[name] for name in COLUMNS if name in getattr(train.table, "column_names", ())]
    return sorted({str(path) for column in columns for path in column})


def stamps_of(files: Sequence[str]) -> list[list[int]]:
    """(n, 2) size in bytes and time of change in seconds of each file; zeros for folders and what is not on disk."""
    found = []
    for file in files:
        known = os.stat(file) if Path(file).is_file() else None
        found.append([0, 0] if known is None else [known.st_size, int(known.st_mtime)])
    return found


def warn_of_other_files(files: Sequence[str], now: Sequence[Sequence[int]], then: Sequence[Sequence[int]]) -> None:
    """Name the files that are not those of the run before: of another size, or of another time where others are not.

    A copy of all files has other times, and tells nothing.
    """
    pairs = list(zip(files, now, then, strict=False))
    later = [file for file, new, old in pairs if new[1] != old[1]]
    copied = len(later) == sum(any(new) for _, new, _ in pairs)
    other = [file for file, new, old in pairs if new[0] != old[0] or (new[1] != old[1] and not copied)]
    if not other and len(now) == len(then):
        return
    more = f" and {len(other) - NAMED} more" if len(other) > NAMED else ""
    logger.warning(
        "%d of %d files of the training split are not those that the run was started with: %s%s (normalisation and "
        "class weights stay those of the files before; start anew for others)",
        *(len(other), len(now), ", ".join(Path(file).name for file in other[:NAMED]) or "another number of them", more),
    )
