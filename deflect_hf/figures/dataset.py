"""Pictures of a data set: sample sheets, values of each band, frequency of the classes, where splits of scenes lie."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from deflect_hf.config.tasks import TASKS
from deflect_hf.data.scene_reader import RasterLabels, SceneReader, ShapeLabels
from deflect_hf.figures.colors import (
    IGNORED,
    Array,
    class_colors,
    class_legend,
    composite,
    composites_of,
    legend_below,
    new_figure,
    paint,
    plain,
    save,
)
from deflect_hf.figures.results import in_words
from deflect_hf.raster.header import RasterInfo, overview_size
from deflect_hf.raster.read import open_raster, read_raster
from deflect_hf.spectral.bands import SPECTRUM, Unit
from deflect_hf.spectral.formulas import compile_program
from deflect_hf.spectral.indices import select_indices
from deflect_hf.spectral.probe import bound_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

    from deflect_hf.data import ImageDataset

CELL_INCHES = 2.0
ROWS = 6  # images on a sheet
# normalised differences, of vegetation, water, burns and built-up land, from -1 to 1: one scale serves all
SHOWN_INDICES = ("NDVI", "MNDWI", "NBR", "NDWI", "NDBI", "NDTI")
MAX_INDICES = 3
BINS = 120
PIXELS_PER_IMAGE = 4096  # drawn of each image for the histograms; labels are counted in full
MIN_BARS = 6  # places for bars, so that those of few classes do not get fat
SPANNED = (0.1, 99.9)  # percentiles of all values that the axis spans
AXIS = {"reflectance": "reflectance (1.0 = 100 %)", "8bit": "8-bit value (no reflectance)"}


def index_maps(pixel_values: torch.Tensor, bands: Sequence[str], unit: Unit) -> dict[str, Array]:
    """(C, H, W) reflectance -> up to MAX_INDICES spectral indices (H, W) by name, NaN where a band of theirs is."""
    formulas = dict(list(select_indices(bands, SHOWN_INDICES, unit).formulas.items())[:MAX_INDICES])
    program = compile_program([*formulas.values()], bands, [*map(bound_of, formulas.values())])
    values = program.values([plane.nan_to_num(0.0) for plane in pixel_values])
    maps = {}
    for name, value, used in zip(formulas, values, program.bands_used, strict=True):
        measured = torch.stack([pixel_values[bands.index(band)].isfinite() for band in used]).all(dim=0)
        maps[name] = torch.where(measured, value, torch.nan).numpy()
    return maps


def sample_sheets(folder: Path, images: ImageDataset, split: str, title: str, count: int) -> list[Path]:
    """Write ``samples_SPLIT_NN.png`` of ``count`` images spread over a split, ROWS of them on each."""
    chosen = spread(len(images), count)
    sheets = [chosen[start : start + ROWS] for start in range(0, len(chosen), ROWS)]
    return [_sheet(folder / f"samples_{split}_{k:02d}.png", images, title, sheet) for k, sheet in enumerate(sheets)]


def _sheet(path: Path, images: ImageDataset, title: str, chosen: Sequence[int]) -> Path:
    examples = [images[index] for index in chosen]
    rows = [_pictures(example, images) for example in examples]
    classes = TASKS[images.task].output == "class"
    masks = [example["labels"].numpy() for example in examples if classes and _has_mask(example)]
    columns = max(map(len, rows))
    width, height = CELL_INCHES * columns + 1.4, CELL_INCHES * len(rows) + 1.3
    figure = new_figure(width, height)
    axes = figure.subplots(
        len(rows), columns, squeeze=False, subplot_kw={"xticks": [], "yticks": [], "facecolor": "0.75"}
    )
    scale = None
    for number, (row, example, pictures) in enumerate(zip(axes, examples, rows, strict=True)):
        for axis, (name, picture) in zip(row, pictures.items(), strict=False):
            drawn = axis.imshow(picture, cmap="BrBG", vmin=-1, vmax=1, interpolation="nearest")
            scale = drawn if picture.ndim == 2 else scale
            axis.set_title(name if number == 0 else "", fontsize=9)
        row[0].set_ylabel(_caption(example, images), fontsize=8)
    if masks:
        class_legend(figure, images.classes, masks, images.labels.colors)
    if scale is not None:
        bar = figure.colorbar(scale, ax=axes, shrink=min(1.0, 2.5 / height), aspect=18, pad=0.01)
        bar.set_label("spectral index", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    size = " x ".join(map(str, images[0]["pixel_values"].shape[-2:]))
    gsd = "" if images.gsd_m is None else f", {images.gsd_m:.3g} m"
    facts = f"{len(images)} images, the first {size} pixels{gsd}; grey: not measured or no label"
    figure.suptitle(f"{title}: {facts}", fontsize=10)
    return save(figure, path)


def _pictures(example: Mapping[str, Any], images: ImageDataset) -> dict[str, Array]:
    """By title: (H, W, 3) colors, or (H, W) indices from -1 to 1."""
    pixels, bands = example["pixel_values"], images.bands
    found = {name: composite(pixels.numpy(), bands, shown) for name, shown in composites_of(bands).items()}
    found |= index_maps(pixels, bands, images.processor.unit)
    if _has_mask(example) and TASKS[images.task].output == "class":
        found["label"] = paint(example["labels"].numpy(), images.classes, images.labels.colors)
    elif _has_mask(example):
        values = example["labels"].numpy()
        found[f"{images.classes[0]}, dark: low"] = composite(values[None], ["label"], ("label",) * 3)
    return found


def _has_mask(example: Mapping[str, Any]) -> bool:
    return "labels" in example and example["labels"].ndim == 2


def _caption(example: Mapping[str, Any], images: ImageDataset) -> str:
    """What stands beside a row: the image's name without folders and its class."""
    name = "\n".join(textwrap.wrap(str(example["name"]).rpartition("/")[2], 26))
    if "labels" not in example or _has_mask(example):
        return name
    return f"{name}\n{in_words(example['labels'].numpy(), images.classes, images.labels.unit or '')}"


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
            if TASKS[images.task].output == "labels":
                counts += (labels == 1).astype(np.int64)
            elif TASKS[images.task].output == "value":
                counts += int(np.isfinite(labels).sum())
                ignored += int(np.isnan(labels).sum())
            else:
                counts += np.bincount(labels[labels >= 0], minlength=images.num_classes)
                ignored += int((labels < 0).sum())
    return np.concatenate(pixels), counts, ignored


def by_wavelength(bands: Sequence[str]) -> dict[str, str]:
    """Bands in the order of their wavelength, each with its range in words; unknown ones last."""
    ranges = {code: (low, high) for code, _, low, high, _ in SPECTRUM}
    ranges |= {code: (float(code[1:]),) * 2 for code in bands if code[0] == "W" and code[1:].isdigit()}
    words = {code: f"{low:.0f}-{high:.0f} nm" for code, (low, high) in ranges.items()}
    words |= {code: f"{low:.0f} nm" for code, (low, high) in ranges.items() if low == high}
    ordered = sorted(bands, key=lambda code: sum(ranges.get(code, (np.inf, np.inf))))
    return {code: words.get(code, "") for code in ordered}


def statistics_figure(path: Path, images: ImageDataset, title: str, limit: int | None = None) -> Path:
    """Write the histogram of each band beside the labels of each class, of ``limit`` images, or all for None."""
    chosen = spread(len(images), limit or len(images))
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
    low, high = np.percentile(finite, SPANNED) if finite.size else (0.0, 1.0)
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
    counts, names = labelled.tolist(), list(images.classes)
    colors: list[Any] = [*class_colors(names, images.labels.colors)]
    if ignored:
        counts, names, colors = [*counts, ignored], [*names, "no label"], [*colors, IGNORED]
    bars = axis.barh(range(len(counts)), counts, height=0.7, color=colors, edgecolor="black", linewidth=0.6)
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
    unit = "pixels" if TASKS[images.task].dense else "images"
    axis.set_xlabel(f"labelled {unit} (share of the labelled)", fontsize=9)


MOST_SCENES = 6
SIDE = 1800  # pixels of a scene's picture
MARGIN = 0.1  # around the blocks, as a share of what they span
SPLIT_COLORS = {"train": "#FFFFFF", "val": "#F0E442", "test": "#D55E00"}


def splits_figure(path: Path, reader: SceneReader) -> Path:
    """Write a picture of each scene, at most MOST_SCENES, with the blocks of each split and the labels by class."""
    from matplotlib.lines import Line2D

    shown = sorted({region.scene for region in reader.regions})[:MOST_SCENES]
    across = min(len(shown), 2)
    figure = new_figure(6.5 * across, 6.5 * math.ceil(len(shown) / across) + 0.6)
    axes = figure.subplots(math.ceil(len(shown) / across), across, squeeze=False).ravel()
    for axis, scene in zip(axes, shown, strict=False):
        _draw_scene(axis, reader, scene)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    said = [name for name in SPLIT_COLORS if any(region.split == name for region in reader.regions)]
    keys = [Line2D([], [], color=SPLIT_COLORS[name], linewidth=3, label=name) for name in said]
    keys += [Line2D([], [], color=color, marker="s", linestyle="", label=name)
             for name, color in zip(reader.classes, class_colors(reader.classes), strict=True)]  # fmt: skip
    legend_below(figure, keys, facecolor="0.6")
    return save(figure, path)


def _draw_scene(axis: Axes, reader: SceneReader, scene: int) -> None:
    from matplotlib.patches import Rectangle

    info, bands = reader.infos[scene], reader.reader.bands
    title, colors = next(iter(composites_of(bands).items()))
    with open_raster(reader.products[scene]) as file:  # which keeps few decoded blocks
        raster = read_raster(
            file,
            list(dict.fromkeys(colors)),
            source_bands=reader.reader.source_bands,
            sensor=reader.reader.sensor,
            size=overview_size(info, SIDE),
        )
    values = np.where(raster.valid, raster.values.astype(np.float32), np.nan)
    axis.imshow(composite(values, raster.bands, colors), extent=(0, info.width, info.height, 0))
    for region in reader.regions:
        if region.scene == scene:
            row, column, height, width = region.box
            edge = SPLIT_COLORS[region.split]
            axis.add_patch(Rectangle((column, row), width, height, facecolor=edge, alpha=0.18))
            axis.add_patch(Rectangle((column, row), width, height, fill=False, edgecolor=edge, linewidth=1.5))
    _draw_labels(axis, reader, scene, info)
    boxes = np.array([region.box for region in reader.regions if region.scene == scene])
    (top, left), (bottom, right) = boxes[:, :2].min(axis=0), (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    margin = MARGIN * max(bottom - top, right - left)
    axis.set(xlim=(max(left - margin, 0), min(right + margin, info.width)), xticks=[], yticks=[])
    axis.set(ylim=(min(bottom + margin, info.height), max(top - margin, 0)))
    axis.set_title(f"{Path(info.path).name}, {title}", fontsize=9)


def _draw_labels(axis: Axes, reader: SceneReader, scene: int, info: RasterInfo) -> None:
    """Polygons and points in the color of their class; rasters are left to the sample sheets."""
    import shapely

    labels: Any = reader.labels[scene]
    if isinstance(labels, RasterLabels):
        return
    assert isinstance(labels, ShapeLabels)
    colors = class_colors(reader.classes)
    for shapes in labels.shapes.values():
        for geometry, value in zip(shapes.geometries, shapes.values.tolist(), strict=True):
            color = colors[reader.values.index(value)]
            for part in shapely.get_parts(geometry):
                if part.geom_type == "Polygon":
                    axis.fill(*shapely.get_coordinates(part.exterior).T, facecolor=color, edgecolor="black", lw=0.5)
                else:
                    axis.plot(*shapely.get_coordinates(part).T, "s", color=color, markeredgecolor="black", ms=4)
