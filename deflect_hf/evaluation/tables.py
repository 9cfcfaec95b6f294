"""What the entry scripts show: tables of scores."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deflect_hf.config.tasks import SCORES
from deflect_hf.errors import counted
from deflect_hf.evaluation.boundaries import TOLERANCE


def score_table(scores: Mapping[str, Any]) -> str:
    """The means and the table per class of one split as text."""
    intervals = scores.get("intervals") or {}  # results of earlier versions have none
    means = ", ".join(
        f"{name} {_cell(scores[name])}{_interval(intervals.get(name), ' [{:.4f}, {:.4f}]')}"
        for name in dict.fromkeys(name for names in SCORES.values() for name in names)
        if name in scores
    )
    if "per_class" in scores:
        means += (
            " (means over all classes)" if scores.get("convention") == "pangaea" else " (means over classes present)"
        )
        lines = [means, *_class_lines(scores["per_class"], intervals)]
    else:
        unit = "" if scores["unit"] is None else f" in {scores['unit']}"
        lines = [f"{means}, bias {scores['bias']:.4g}{unit}, over {scores['labels']} labels"]
    if intervals:
        lines.append(
            f"intervals: {intervals['level']:.0%}, bootstrap over {counted(intervals['images'], 'image')}; they say "
            "nothing of other places or other seeds"
        )
    if scores.get("boundary_f1") is not None:
        lines.append(f"boundaries: F1 {scores['boundary_f1']:.4f}, found within {TOLERANCE} pixels")
    if "ece" in scores:
        lines.append(
            f"confidence: expected calibration error {scores['ece']:.4f}, with the temperature of validation, "
            f"{scores['temperature']:.3g}, {scores['ece_calibrated']:.4f}"
        )
    return "\n".join(lines)


def _class_lines(table: Mapping[str, Mapping[str, Any]], intervals: Mapping[str, Any]) -> list[str]:
    """The table per class, with the intervals of its first column."""
    width = max(len("class"), *map(len, table))
    columns = tuple(next(iter(table.values())))
    widths = [max(10, 1 + len(name)) for name in columns]
    heading = f"{'class':<{width}}" + "".join(map(str.rjust, columns, widths))
    lines = [heading + (f"{f'interval of {columns[0]}':>18}" if intervals else "")]
    for name, row in table.items():
        told = _interval(intervals.get(columns[0], {}).get(name), "{:.4f}-{:.4f}") or "-"
        cells = "".join(_cell(row[column]).rjust(wide) for column, wide in zip(columns, widths, strict=True))
        lines.append(f"{name:<{width}}{cells}" + (f"{told:>18}" if intervals else ""))
    return lines


def results_text(results: Mapping[str, Any], work_dir: Path) -> str:
    """What a run tells at its end: the scores of each split, and where the model is."""
    tables = [f"\n{split}: {score_table(results[split])}" for split in ("val", "test") if split in results]
    look = f"python evaluate.py --eval_dir {shlex.quote(str(work_dir))}"
    return "\n".join([*tables, f"\n{work_dir}: best/ holds the trained model. Look at it: {look}"])


def drop_table(dropped: Mapping[str, Any]) -> str:
    """The means with each band missing, and the change of the most important one, as text."""
    table, metric = dropped["scores"], dropped["metric"]
    names = tuple(table[""])
    width = max(len("no band"), *map(len, table))
    lines = [f"{'missing':<{width}}{''.join(f'{name:>10}' for name in (*names, 'change'))}"]
    for band, row in table.items():
        means = "".join(f"{_cell(row[name]):>10}" for name in names)
        lines.append(f"{band or 'no band':<{width}}{means}{row[metric] - table[''][metric]:>+10.4f}")
    lines.append(f"change: of {metric}; trained with band_dropout {dropped['band_dropout']:g}")
    return "\n".join(lines)


def _interval(bounds: Sequence[float] | None, form: str) -> str:
    return "" if bounds is None else form.format(*bounds)


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
