"""Sample sheets of a data set: each image in true and false colour, as spectral indices, and with its label."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from deflect_hf.figures.canvas import class_legend, new_figure, save
from deflect_hf.figures.colours import Array, composite, composites_of, paint
from deflect_hf.figures.statistics import spread
from deflect_hf.spectral.bands import Unit
from deflect_hf.spectral.formulas import bands_of, parse
from deflect_hf.spectral.indices import compile_formula, select_indices

if TYPE_CHECKING:
    from deflect_hf.data import ImageDataset

CELL_INCHES = 2.0
ROWS = 6  # images on a sheet
# normalised differences, of vegetation, water, burns and built-up land, from -1 to 1: one scale serves all
SHOWN_INDICES = ("NDVI", "MNDWI", "NBR", "NDWI", "NDBI", "NDTI")
MAX_INDICES = 3


def index_maps(pixel_values: torch.Tensor, bands: Sequence[str], unit: Unit) -> dict[str, Array]:
    """(C, H, W) reflectance -> up to MAX_INDICES spectral indices (H, W) by name, NaN where a band of theirs is."""
    planes = dict(zip(bands, pixel_values, strict=True))
    maps = {}
    for name, formula in list(select_indices(bands, SHOWN_INDICES, unit).formulas.items())[:MAX_INDICES]:
        values = compile_formula(formula, bands)({band: plane.nan_to_num(0.0) for band, plane in planes.items()})
        measured = torch.stack([planes[band].isfinite() for band in bands_of(parse(formula, bands))]).all(dim=0)
        maps[name] = torch.where(measured, values, torch.nan).numpy()
    return maps


def sample_sheets(folder: Path, images: ImageDataset, split: str, title: str, count: int) -> list[Path]:
    """Write ``samples_SPLIT_NN.png`` of ``count`` images spread over a split, ROWS of them on each.

    ``title`` says what they are. A mask is drawn in the colours of the legend; the class of a whole image stands
    beside it.
    """
    chosen = spread(len(images), count)
    sheets = [chosen[start : start + ROWS] for start in range(0, len(chosen), ROWS)]
    return [_sheet(folder / f"samples_{split}_{k:02d}.png", images, title, sheet) for k, sheet in enumerate(sheets)]


def _sheet(path: Path, images: ImageDataset, title: str, chosen: Sequence[int]) -> Path:
    examples = [images[index] for index in chosen]
    rows = [_pictures(example, images) for example in examples]
    masks = [example["labels"].numpy() for example in examples if _has_mask(example)]
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
        class_legend(figure, images.classes, masks)
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
    """By title: (H, W, 3) colours, or (H, W) indices from -1 to 1."""
    pixels, bands = example["pixel_values"], images.bands
    found = {name: composite(pixels.numpy(), bands, shown) for name, shown in composites_of(bands).items()}
    found |= index_maps(pixels, bands, images.processor.unit)
    if _has_mask(example):
        found["label"] = paint(example["labels"].numpy(), images.num_classes)
    return found


def _has_mask(example: Mapping[str, Any]) -> bool:
    return "labels" in example and example["labels"].ndim == 2


def _caption(example: Mapping[str, Any], images: ImageDataset) -> str:
    """What stands beside a row: the image's name without folders, broken where it is long, and its class."""
    name = "\n".join(textwrap.wrap(str(example["name"]).rpartition("/")[2], 26))
    if "labels" not in example or _has_mask(example):
        return name
    return f"{name}\n{images.classes[int(example['labels'])]}"
