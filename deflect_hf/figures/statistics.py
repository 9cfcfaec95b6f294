"""What a data set is made of: the values of each band, and how often each class occurs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deflect_hf.figures.canvas import new_figure, plain, save
from deflect_hf.figures.colours import IGNORED, Array, class_colours
from deflect_hf.spectral.bands import SPECTRUM

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

    from deflect_hf.data import ImageDataset

BINS = 120
PIXELS_PER_IMAGE = 4096  # drawn of each image for the histograms; labels are counted in full
MIN_BARS = 6  # places for bars, so that those of few classes do not get fat
SHOWN = (0.1, 99.9)  # percentiles of all values that the axis spans
AXIS = {"reflectance": "reflectance (1.0 = 100 %)", "8bit": "8-bit value (no reflectance)"}


@dataclass
class Collected:
    """Pixels (N, C) of the images that were read, labels per class, and labels that do not count."""

    pixels: list[Array] = field(default_factory=list)
    counts: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    ignored: int = 0
    images: int = 0


def collect(images: ImageDataset, limit: int | None) -> Collected:
    """Read ``limit`` images spread over a split, all for None."""
    count = len(images) if limit is None else min(limit, len(images))
    found = Collected(counts=np.zeros(images.num_classes, dtype=np.int64), images=count)
    for index in np.unique(np.linspace(0, len(images) - 1, count).round().astype(int)).tolist():
        example = images[index]
        values = example["pixel_values"].flatten(1).numpy().T
        found.pixels.append(values[:: max(1, len(values) // PIXELS_PER_IMAGE)])
        labels = example["labels"].numpy().ravel() if "labels" in example else np.zeros(0, dtype=np.int64)
        found.counts += np.bincount(labels[labels >= 0], minlength=images.num_classes)
        found.ignored += int((labels < 0).sum())
    return found


def by_wavelength(bands: Sequence[str]) -> dict[str, str]:
    """Bands in the order of their wavelength, each with its range in words; unknown ones last."""
    ranges = {code: (low, high) for code, _, low, high, _ in SPECTRUM}
    ranges |= {code: (float(code[1:]),) * 2 for code in bands if code[0] == "W" and code[1:].isdigit()}
    ordered = sorted(bands, key=lambda code: sum(ranges.get(code, (np.inf, np.inf))))
    told = {}
    for code in ordered:
        low, high = ranges.get(code, (np.nan, np.nan))
        told[code] = "" if np.isnan(low) else f"{low:.0f} nm" if low == high else f"{low:.0f}-{high:.0f} nm"
    return told


def statistics_figure(path: Path, images: ImageDataset, title: str, limit: int | None = None) -> Path:
    """Write the histogram of each band, in the order of wavelength, beside the number of labels of each class."""
    found = collect(images, limit)
    rows = max(len(images.bands), 1)
    height = max(4.0, 0.5 * rows + 1.4, 0.3 * images.num_classes + 1.6)
    figure = new_figure(11, height)
    halves = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.15, 1))[0]
    _histograms(halves[0], np.concatenate(found.pixels), images)
    _class_counts(halves[1], found, images)
    some = "all" if found.images == len(images) else f"{found.images} of"
    figure.suptitle(f"{title}: {some} {len(images)} images", fontsize=10)
    return save(figure, path)


def _histograms(figure: SubFigure, pixels: Array, images: ImageDataset) -> None:
    told = by_wavelength(images.bands)
    finite = pixels[np.isfinite(pixels)]
    low, high = np.percentile(finite, SHOWN) if finite.size else (0.0, 1.0)
    low, high = (low, high) if high > low else (low - 0.5, low + 0.5)
    edges = np.linspace(min(low, 0.0), high, BINS + 1)
    axes = figure.subplots(len(told), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (band, where) in zip(axes, told.items(), strict=True):
        values = pixels[:, images.bands.index(band)]
        measured = values[np.isfinite(values)]
        axis.hist(measured, bins=edges, color="#0072B2", alpha=0.8)
        plain(axis).set_yticks([])
        axis.spines["left"].set_visible(False)
        axis.set_ylabel(f"{band}\n{where}" if where else band, rotation=0, ha="right", va="center", fontsize=8)
        missing = 1 - len(measured) / max(len(values), 1)
        note = "nothing measured"
        if len(measured):
            axis.axvline(float(np.median(measured)), color="#D55E00", linewidth=1.2)
            note = f"median {np.median(measured):.3g}" + (f", {missing:.1%} not measured" if missing else "")
        axis.text(0.995, 0.92, note, transform=axis.transAxes, ha="right", va="top", fontsize=7)
    axes[-1].set_xlabel(AXIS[images.processor.unit], fontsize=9)


def _class_counts(figure: SubFigure, found: Collected, images: ImageDataset) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis = plain(figure.add_subplot())
    unit = "images" if images.task == "classification" else "pixels"
    counts, names = [*found.counts.tolist()], list(images.classes)
    colours = [*class_colours(len(names))]
    if found.ignored:
        counts, names, colours = [*counts, found.ignored], [*names, "no label"], [*colours, IGNORED]
    places = range(len(counts))
    axis.barh(places, counts, height=0.7, color=colours, edgecolor="black", linewidth=0.6)
    axis.set_yticks(places, names, fontsize=8)
    axis.set_ylim(max(len(counts), MIN_BARS) - 0.5, -0.5)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.3)
    positive = [count for count in counts if count]
    if positive and max(positive) > 100 * min(positive):
        axis.set_xscale("log")
        axis.set_xlim(min(positive) / 3, max(positive) * (max(positive) / min(positive)) ** 0.3)
    axis.xaxis.set_major_formatter(EngFormatter(sep=" "))
    total = max(int(found.counts.sum()), 1)
    for place, count in zip(places, counts, strict=True):
        share = "" if place >= len(images.classes) else f" ({count / total:.1%})"
        axis.annotate(f"{count:,}{share}", (count or axis.get_xlim()[0], place), (3, 0),
                      textcoords="offset points", va="center", fontsize=7)  # fmt: skip
    axis.set_xlabel(f"labelled {unit} (share of the labelled)", fontsize=9)
