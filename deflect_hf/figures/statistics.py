"""What a data set is made of: the values of each band, and how often each class occurs."""

from __future__ import annotations

from collections.abc import Sequence
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


def spread(available: int, wanted: int) -> list[int]:
    """Up to ``wanted`` positions spread over ``range(available)``, both ends among them."""
    return np.unique(np.linspace(0, available - 1, min(wanted, available)).round().astype(int)).tolist()


def collect(images: ImageDataset, chosen: Sequence[int]) -> tuple[Array, Array, int]:
    """Pixels (N, C) of the chosen images, labels of each class, and labels that do not count."""
    pixels, counts, ignored = [], np.zeros(images.num_classes, dtype=np.int64), 0
    for index in chosen:
        example = images[index]
        values = example["pixel_values"].flatten(1).numpy().T
        pixels.append(values[:: max(1, len(values) // PIXELS_PER_IMAGE)])
        if "labels" in example:
            labels = example["labels"].numpy().ravel()
            counts += np.bincount(labels[labels >= 0], minlength=images.num_classes)
            ignored += int((labels < 0).sum())
    return np.concatenate(pixels), counts, ignored


def by_wavelength(bands: Sequence[str]) -> dict[str, str]:
    """Bands in the order of their wavelength, each with its range in words; unknown ones last."""
    ranges = {code: (low, high) for code, _, low, high, _ in SPECTRUM}
    ranges |= {code: (float(code[1:]),) * 2 for code in bands if code[0] == "W" and code[1:].isdigit()}
    words = {
        code: f"{low:.0f} nm" if low == high else f"{low:.0f}-{high:.0f} nm" for code, (low, high) in ranges.items()
    }
    return {
        code: words.get(code, "") for code in sorted(bands, key=lambda code: sum(ranges.get(code, (np.inf, np.inf))))
    }


def statistics_figure(path: Path, images: ImageDataset, title: str, limit: int | None = None) -> Path:
    """Write the histogram of each band, in the order of wavelength, beside the number of labels of each class.

    Of ``limit`` images spread over the split; of all for None.
    """
    chosen = spread(len(images), min(limit or len(images), len(images)))
    pixels, counts, ignored = collect(images, chosen)
    height = max(4.0, 0.5 * len(images.bands) + 1.4, 0.3 * images.num_classes + 1.6)
    figure = new_figure(11, height)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.15, 1))[0]
    _histograms(left, pixels, images)
    _class_counts(right, counts, ignored, images)
    some = "all" if len(chosen) == len(images) else f"{len(chosen)} of"
    figure.suptitle(f"{title}: {some} {len(images)} images", fontsize=10)
    return save(figure, path)


def _histograms(figure: SubFigure, pixels: Array, images: ImageDataset) -> None:
    finite = pixels[np.isfinite(pixels)]
    low, high = np.percentile(finite, SHOWN) if finite.size else (0.0, 1.0)
    low, high = (low, high) if high > low else (low - 0.5, low + 0.5)
    edges = np.linspace(min(low, 0.0), high, BINS + 1)
    ranges = by_wavelength(images.bands)
    axes = figure.subplots(len(ranges), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (band, where) in zip(axes, ranges.items(), strict=True):
        values = pixels[:, images.bands.index(band)]
        measured = values[np.isfinite(values)]
        axis.hist(measured, bins=edges, color="#0072B2", alpha=0.8)
        plain(axis).set_yticks([])
        axis.spines["left"].set_visible(False)
        axis.set_ylabel(f"{band}\n{where}".strip(), rotation=0, ha="right", va="center", fontsize=8)
        note = "nothing measured"
        if len(measured):
            axis.axvline(float(np.median(measured)), color="#D55E00", linewidth=1.2)
            missing = 1 - len(measured) / len(values)
            note = f"median {np.median(measured):.3g}" + (f", {missing:.1%} not measured" if missing else "")
        axis.text(0.995, 0.92, note, transform=axis.transAxes, ha="right", va="top", fontsize=7)
    axes[-1].set_xlabel(AXIS[images.processor.unit], fontsize=9)


def _class_counts(figure: SubFigure, labelled: Array, ignored: int, images: ImageDataset) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis = plain(figure.add_subplot())
    counts, names, colours = labelled.tolist(), list(images.classes), [*class_colours(images.num_classes)]
    if ignored:
        counts, names, colours = [*counts, ignored], [*names, "no label"], [*colours, IGNORED]
    bars = axis.barh(range(len(counts)), counts, height=0.7, color=colours, edgecolor="black", linewidth=0.6)
    axis.set_yticks(range(len(counts)), names, fontsize=8)
    axis.set_ylim(max(len(counts), MIN_BARS) - 0.5, -0.5)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.3)
    positive = [count for count in counts if count]
    if positive and max(positive) > 100 * min(positive):
        axis.set_xscale("log")
        axis.set_xlim(min(positive) / 3, max(positive) * (max(positive) / min(positive)) ** 0.3)
    axis.xaxis.set_major_formatter(EngFormatter(sep=" "))
    total = max(int(labelled.sum()), 1)
    shares = [f" ({count / total:.1%})" for count in counts[: images.num_classes]] + [""] * bool(ignored)
    written = [f"{count:,}{share}" for count, share in zip(counts, shares, strict=True)]
    axis.bar_label(bars, written, padding=3, fontsize=7)
    unit = "images" if images.task == "classification" else "pixels"
    axis.set_xlabel(f"labelled {unit} (share of the labelled)", fontsize=9)
