"""Labels of whole images in a CSV or Parquet file: several classes of each, or a number."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import math
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deflect_hf.data.splits import SPLIT_OF, SPLITS, by_any_name, without_suffix
from deflect_hf.errors import DataError, data_errors, listing, nearest

logger = logging.getLogger(__name__)

TABLE = "labels.csv"
PARQUET = (".parquet", ".pq")
BETWEEN = (",", ";", "\t")  # cells, by the names of the columns; spreadsheets of many countries write semicolons
SEPARATOR = ";"
EMPTY = ("nan", "na", "n/a", "<na>", "null")  # what programs write for an empty cell
LIST = "labels"  # the column of a list of classes
YES_NO = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}  # pandas writes True and False
YES_NO_UNKNOWN = {**YES_NO, **dict.fromkeys(("", *EMPTY), math.nan)}
Table = dict[str, dict[str, str]]  # image -> column -> cell


def read_table(path: Path) -> tuple[Table, list[str]]:
    """The rows of a table by their first column, an image's name with or without its ending, and the other columns."""
    missing = "write a CSV whose first column is the image's name, or name it by `label_table`."
    written = table_rows(path, missing)
    (_, *columns), *rows = [[unicodedata.normalize("NFC", cell) for cell in row] for row in written]
    if not rows or not columns:
        raise DataError(f"{path} has no labels: write a line of column names, then one line per image: name, labels.")
    if len(set(columns)) < len(columns) or "" in columns:
        raise DataError(f"{path}: the columns {listing(columns)} need a name each, all different.")
    table: Table = {}
    for cells in rows:
        name = without_suffix(cells[0])
        if name in table:
            raise DataError(f"{path}: {name!r} has two rows, keep one.")
        table[name] = dict(zip(columns, cells[1:], strict=True))
    return table, columns


def table_rows(path: Path, missing: str) -> list[list[str]]:
    """The rows of a CSV or Parquet file, the names of its columns first; ``missing`` says what to do without one."""
    if not path.exists():
        raise DataError(f"{path} is not there: {missing}")
    if path.suffix.lower() in PARQUET:
        return _from_parquet(path)
    with (
        data_errors(f"{path} is no CSV in UTF-8", "save it as one.", UnicodeDecodeError, csv.Error, OSError),
        path.open(encoding="utf-8-sig", newline="") as stream,
    ):
        text = stream.read()
        header = text.lstrip().partition("\n")[0]
        between = next((mark for mark in BETWEEN if mark in header), ",")
        lines = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text, newline=""), delimiter=between)]
    rows = [row for row in lines if any(row)] or [[""]]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise DataError(f"{path}, row {number} has {len(row)} cells instead of {len(rows[0])}: {row}.")
    return rows


def _from_parquet(path: Path) -> list[list[str]]:
    """As a CSV of the same table would be: numbers, 0 and 1 for yes and no, classes of a list with SEPARATOR."""
    import pyarrow
    import pyarrow.parquet

    with data_errors(f"{path} is no Parquet file", "write it again.", pyarrow.ArrowInvalid):
        table = pyarrow.parquet.ParquetFile(path).read()

    def cell(value: Any) -> str:
        if value is None or value != value:
            return ""
        if isinstance(value, list):
            return SEPARATOR.join(map(str, value))
        whole = isinstance(value, bool) or (isinstance(value, float) and value.is_integer())
        return str(int(value)) if whole else str(value)

    return [
        table.column_names,
        *([cell(value) for value in row] for row in zip(*table.to_pydict().values(), strict=True)),
    ]


def cells_of(table: Table, images: Mapping[str, Path], path: Path) -> list[dict[str, str]]:
    """The row of each image, called by its name or its file; images without one are refused, rows without are not."""
    rows = _called(table, images, path)
    missing = [name for name in images if name not in rows]
    if missing:
        fix = (
            "add those that are missing, with empty cells if they have no label"
            if rows
            else "put the names first (pandas: to_csv(index=False))"
        )
        raise DataError(
            f"{path} has no row for {len(missing)} of {len(images)} images, first {listing(missing[:3])}; "
            f"its first column, the names of images, begins with {listing(list(table)[:2])}: {fix}."
        )
    return [table[rows[name]] for name in images]


def _called(table: Table, images: Mapping[str, Path], path: Path) -> dict[str, str]:
    """What the table calls the images that it has."""
    names = by_any_name(images)
    rows: dict[str, str] = {}
    for called in table:
        name = names.get(called, names.get(posixpath.normpath(called.replace("\\", "/"))))
        if name is not None and rows.setdefault(name, called) != called:
            raise DataError(f"{path}: {called!r} and {rows[name]!r} are the same image, {images[name]}: keep one row.")
    return rows


def report_idle_rows(path: Path, folders: Sequence[Mapping[str, Path]]) -> None:
    """Log rows of a table that are of no image in any of the folders."""
    table, _ = read_table(path)
    found = {called for images in folders for called in _called(table, images, path).values()}
    idle = [called for called in table if called not in found]
    if idle:
        logger.warning(
            "%s: %d of %d rows have no image, such as %s: is an image missing, or called otherwise?",
            path, len(idle), len(table), listing(idle[:3]),
        )  # fmt: skip


def splits_of(
    cells: Sequence[Mapping[str, str]], names: Sequence[str], column: str, path: Path
) -> dict[str, list[str]]:
    """The images of each split, by a column that says train, val or test; an empty cell leaves an image out."""
    if cells and column not in cells[0]:
        raise DataError(f"{path} has no column {column!r}, only {listing(cells[0])}: correct `split_column`.")
    counts = Counter(row[column] for row in cells)
    unknown = {cell: count for cell, count in counts.items() if cell and cell.casefold() not in SPLIT_OF}
    if unknown:
        found = ", ".join(f"{cell!r} in {count} row(s)" for cell, count in sorted(unknown.items())[:3])
        raise DataError(f"{path}, column {column!r} holds {found}: write one of {listing(SPLIT_OF)}, or nothing.")
    if counts[""]:
        logger.info("%s: %d of %d images are left out, the column %r is empty", path, counts[""], len(cells), column)
    members_of: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name, row in zip(names, cells, strict=True):
        if row[column]:
            members_of[SPLIT_OF[row[column].casefold()]].append(name)
    return {split: members for split, members in members_of.items() if members}


def class_names(table: Table, columns: Sequence[str]) -> list[str]:
    """The classes of a table: those of its lists, whatever stands beside them, else its columns."""
    if LIST not in columns or (len(columns) > 1 and all(_is_number(row[LIST]) for row in table.values())):
        return list(columns)
    found = {name for row in table.values() for name in _listed(row[LIST])}
    several = any(len(_listed(row[LIST])) > 1 for row in table.values())
    for name in sorted(found):
        parts = [part.strip() for part in re.split("[,|/]", name) if part != name]
        if any(part in found for part in parts) or (set(name) & {",", "|"} and not several):
            raise DataError(
                f"the column {LIST!r} holds {name!r}, part of which is a class of its own, as it seems: separate the "
                f"classes of an image by {SEPARATOR!r}, or name all of them by `classes`."
            )
    return sorted(found)


def report_no_names(classes: Sequence[str], path: Path) -> None:
    """Log classes of a table that are called as programs call an empty cell."""
    if unknown := [name for name in classes if name.casefold() in EMPTY]:
        logger.warning(
            "%s: %s is a class, but tables mostly mean by it that a label is not known: if so, take those images away",
            path, listing(unknown),
        )  # fmt: skip


def report_idle_splits(path: Path, target: str | None) -> None:
    """Log a column that says train, val or test of each image, where nobody reads it."""
    with contextlib.suppress(DataError):
        table, columns = read_table(path)
        for column in columns:
            words = {row[column].casefold() for row in table.values()} - {""}
            if column != target and words and words <= set(SPLIT_OF):
                logger.warning(
                    "%s: the column %r says which split an image is in, and is not read: `split_column: %s` reads it",
                    path, column, column,
                )  # fmt: skip


def class_labels(cells: dict[str, str], classes: Sequence[str], where: str) -> list[float]:
    """0, 1, or NaN where unknown, for each class, of one row of a table."""
    if LIST in cells and LIST not in classes:
        found = _listed(cells[LIST])
        unknown = [name for name in found if name not in classes]
        if unknown:
            raise DataError(f"{where}: {unknown[0]!r} is none of {listing(classes)}.{nearest(unknown[0], classes)}")
        for name in classes:
            if YES_NO.get(cells.get(name, "").casefold(), name in found) != (name in found):
                raise DataError(
                    f"{where}: the column {LIST!r} holds {cells[LIST]!r}, but the column {name!r} {cells[name]!r}: "
                    "correct one of them, or take it away."
                )
        return [float(name in found) for name in classes]
    missing = [name for name in classes if name not in cells]
    if missing:
        raise DataError(
            f"{where}: there is no column {missing[0]!r}, only {listing(cells)}: give a column of 0 and 1 for each "
            f"class, or one column {LIST!r} with the names of an image's classes, separated by {SEPARATOR!r}."
        )
    wrong = [name for name in classes if cells[name].casefold() not in YES_NO_UNKNOWN]
    if wrong:
        raise DataError(
            f"{where}, column {wrong[0]!r} holds {cells[wrong[0]]!r}: write 1 for a class that the image shows, 0 for "
            "others; `classes` names the columns that are classes, if others are none."
        )
    return [YES_NO_UNKNOWN[cells[name].casefold()] for name in classes]


def _is_number(cell: str) -> bool:
    with contextlib.suppress(DataError):
        number_of(str(YES_NO.get(cell.casefold(), cell)), LIST)
        return True
    return False


def number_of(cell: str, where: str) -> float:
    """A cell as a number; NaN for an empty one."""
    if cell == "" or cell.casefold() in EMPTY:
        return math.nan
    try:
        value = float(cell.replace("_", "?"))  # to Python, 1_3 is 13
    except ValueError as error:
        raise DataError(
            f"{where} holds {cell!r}, which is no number; write 1.5, not 1,5, and leave it empty if it is not known."
        ) from error
    if math.isinf(value):
        raise DataError(f"{where} holds {cell!r}: leave it empty if it is not known.")
    return value


def _listed(cell: str) -> list[str]:
    return [name.strip() for name in cell.split(SEPARATOR) if name.strip()]
