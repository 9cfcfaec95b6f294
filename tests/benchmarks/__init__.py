"""Measurements for maintainers; nothing here is timed in a test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown(columns: str, rows: Iterable[Sequence[str]], note: str) -> str:
    """A Markdown table and a note below it; ``columns`` are separated by " | "."""
    lines = [f"| {columns} |", "|" + "---|" * len(columns.split(" | "))]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), f"\n{note}"]) + "\n"
