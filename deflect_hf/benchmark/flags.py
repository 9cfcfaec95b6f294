"""What the benchmarks share: a parser, tables and files of results."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from deflect_hf.config.compose import Parser
from deflect_hf.errors import ConfigError
from deflect_hf.files import write_json, write_text


def flag_parser(benchmark: str, description: str | None, others: str | None = None) -> Parser:
    """A parser that knows ``--output``.

    Args:
        others: what the flags that it does not know are; they are never taken for short forms of known ones.
    """
    parser = Parser(
        prog=f"python -m deflect_hf.benchmark {benchmark}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"All other flags are those of {others}." if others else None,
        allow_abbrev=others is None,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    return parser


def refuse_cut_patches(image_size: int, patch_size: int) -> None:
    """Refuse images that are no whole number of patches (ConfigError)."""
    if image_size % patch_size:
        raise ConfigError(f"--image_size {image_size} must be a multiple of --patch_size {patch_size}.")


def report(output: Path, name: str, numbers: Any, table: str) -> None:
    """Write ``NAME.json`` and ``NAME.md`` into a folder, each whole or not at all, and print the table."""
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / f"{name}.json", numbers)
    write_text(output / f"{name}.md", table)
    print(table)


def markdown(columns: str, rows: Iterable[Sequence[str]], note: str) -> str:
    """A Markdown table and a note below it; ``columns`` are separated by " | "."""
    lines = [f"| {columns} |", "|" + "---|" * len(columns.split(" | "))]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), f"\n{note}"]) + "\n"
