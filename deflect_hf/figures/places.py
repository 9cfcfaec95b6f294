"""Where the splits of scenes lie, and their labels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deflect_hf.data.scene_reader import RasterLabels, SceneReader, ShapeLabels
from deflect_hf.figures.canvas import new_figure, save
from deflect_hf.figures.colors import class_colors, composite, composites_of
from deflect_hf.raster.header import RasterInfo, overview_size
from deflect_hf.raster.read import read_raster

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
             for name, color in zip(reader.classes, class_colors(len(reader.classes)), strict=True)]  # fmt: skip
    letters = max(len(str(key.get_label())) for key in keys)
    columns = max(1, int(figure.get_figwidth() / (0.8 + 0.085 * letters)))
    figure.legend(handles=keys, loc="outside lower center", ncols=columns, fontsize=9, facecolor="0.6")
    return save(figure, path)


def _draw_scene(axis: Axes, reader: SceneReader, scene: int) -> None:
    from matplotlib.patches import Rectangle

    info, bands = reader.infos[scene], reader.reader.bands
    title, colors = next(iter(composites_of(bands).items()))
    raster = read_raster(
        info.path,
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
    colors = class_colors(len(reader.classes))
    for shapes in labels.shapes.values():
        for geometry, value in zip(shapes.geometries, shapes.values.tolist(), strict=True):
            color = colors[reader.values.index(value)]
            for part in shapely.get_parts(geometry):
                if part.geom_type == "Polygon":
                    axis.fill(*shapely.get_coordinates(part.exterior).T, facecolor=color, edgecolor="black", lw=0.5)
                else:
                    axis.plot(*shapely.get_coordinates(part).T, "s", color=color, markeredgecolor="black", ms=4)
