"""Plots of the benchmarks: what a method reaches over what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from deflect_hf.figures.canvas import new_figure, plain, save
from deflect_hf.figures.curves import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

MARKERS = "osD^vPX*<>"
# Where a label may stand beside its point, in points, best first; one farther off than NEAR is tied to it by a line.
NEAR = 12
OFFSETS = (
    *((9, 0), (-9, 0), (7, 8), (-7, 8), (7, -8), (-7, -8), (0, 12), (0, -12)),
    *((x, sign * y) for y in (18, 26, 36, 48) for sign in (1, -1) for x in (10, -10, 30, -30)),
)


def metric_over_parameters(path: Path, summary: Sequence[dict[str, Any]], title: str) -> Path:
    """Score over trained encoder parameters, logarithmic; a method without any stands at the left edge."""
    figure = new_figure(8, 5)
    axes = plain(figure.subplots())
    counts = [one["encoder_trainable"] for one in summary if one["encoder_trainable"]]
    if counts:
        fewest, most = min(counts), max(counts)
        axes.set_xscale("symlog", linthresh=fewest / 4, linscale=0.3)
        axes.set_xlim(-fewest / 12, most * 3)
        powers = [10**power for power in range(12)]
        axes.set_xticks([0, *(power for power in powers if fewest / 2 <= power <= most * 3)])
    axes.set_xlabel("trained parameters of the encoder")
    return finish(path, axes, summary, title, lambda one: one["encoder_trainable"])


def metric_over_time(
    path: Path, summary: Sequence[dict[str, Any]], title: str, ratios: Mapping[str, float] | None = None
) -> Path:
    """Score over step time as a ratio to the first row: ``ratios`` where they were measured apart, else in training."""
    figure = new_figure(8, 5)
    axes = plain(figure.subplots())
    first = summary[0]
    how = "measured apart, in turns" if ratios is not None else "median in training, with loading and other load"
    found = ratios or {one["row"]: one["seconds_per_step"] / first["seconds_per_step"] for one in summary}
    axes.set_xlabel(f"step time, ratio to {first['row']} ({how})")
    return finish(path, axes, summary, title, lambda one: found[one["row"]])


def finish(
    path: Path, axes: Axes, summary: Sequence[dict[str, Any]], title: str, place: Callable[[dict[str, Any]], float]
) -> Path:
    """A point per row: colour and marker by method, filled with a trained patch embedding, its name beside it."""
    from matplotlib.lines import Line2D

    figure = cast("Figure", axes.figure)
    methods = list(dict.fromkeys(one["method"] for one in summary))
    shared: dict[str, Any] = {"markersize": 8, "markeredgewidth": 1.6, "linestyle": "none"}
    labels = []
    for one in summary:
        number = methods.index(one["method"])
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        label = Label(short(one["row"]), place(one), one["mean"], one["half_interval"] or 0.0, colour)
        axes.errorbar(label.x, label.y, yerr=label.half or None, color=colour, capsize=3, elinewidth=1, alpha=0.5)
        fill = colour if one["trains_patch_embedding"] else "white"
        axes.plot(label.x, label.y, color=colour, marker=marker, markerfacecolor=fill, zorder=3, **shared)
        labels.append(label)
    axes.set_ylabel(f"test {title}, 95 % interval" if any(one["half_interval"] for one in summary) else f"test {title}")
    axes.margins(x=0.12, y=0.08)
    kinds = {"pretrained patch embedding, frozen": "white", "trained patch embedding": "0.3"}
    handles = [
        Line2D([], [], color="0.3", marker="o", markerfacecolor=fill, label=kind, **shared)
        for kind, fill in kinds.items()
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2, fontsize=8, frameon=False)
    figure.draw_without_rendering()  # settles the layout
    write_labels(axes, labels, figure.dpi / 72)
    return save(figure, path)


def short(row: str) -> str:
    """A row's name for a label: `lora:rank=4,target=qv,patch_embed=repeat` -> `lora rank=4 target=qv repeat`."""
    return row.removeprefix("peft:").replace("patch_embed=", "").replace(":", " ").replace(",", " ")


@dataclass(frozen=True)
class Label:
    """Text that belongs to a point, which has half an interval above and below."""

    text: str
    x: float
    y: float
    half: float
    colour: str


def write_labels(axes: Axes, labels: Sequence[Label], pixels: float) -> None:
    """Each beside its point, where it covers least of other labels and points, then of intervals.

    Args:
        pixels: in a point.
    """
    from matplotlib.patheffects import withStroke
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    inside = axes.get_window_extent()
    solid, bars = [], []
    for one in labels:
        ends = [(one.x, one.y + part) for part in (-one.half, 0.0, one.half)]
        (x, low), (_, y), (_, high) = axes.transData.transform(ends)
        bars.append(Bbox.from_extents(x - pixels, low, x + pixels, high))
        solid.append(Bbox.from_extents(x - 6 * pixels, y - 6 * pixels, x + 6 * pixels, y + 6 * pixels))

    def write(one: Label, offset: tuple[int, int]) -> Annotation:
        dx, dy = offset
        side = "left" if dx > 0 else "right" if dx < 0 else "center"
        line = {"arrowstyle": "-", "color": one.colour, "lw": 0.5} if abs(dy) > NEAR else None
        text = axes.annotate(one.text, (one.x, one.y), offset, textcoords="offset points", color=one.colour,
                             fontsize=7.5, ha=side, va="center", arrowprops=line, zorder=4)  # fmt: skip
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        text.set_in_layout(False)
        return text

    def box(text: Annotation) -> Bbox:
        text.get_window_extent()  # settles where the text is; the extent of an annotation has its line in it
        return Text.get_window_extent(text).padded(2 * pixels)

    def covered(offset: tuple[int, int], one: Label) -> float:
        text = write(one, offset)
        here = box(text)
        text.remove()
        outside = area(here) - overlap(here, inside)
        return 4 * outside + sum(overlap(here, other) for other in solid) + sum(overlap(here, bar) for bar in bars) / 3

    for one in labels:
        chosen = min(OFFSETS, key=lambda offset: covered(offset, one))
        solid.append(box(write(one, chosen)))


def area(box: Bbox) -> float:
    """In square pixels."""
    return float(box.width * box.height)


def overlap(one: Bbox, other: Bbox) -> float:
    """Shared area in square pixels."""
    from matplotlib.transforms import Bbox

    shared = Bbox.intersection(one, other)
    return area(shared) if shared is not None else 0.0
