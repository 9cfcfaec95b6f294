"""A class map of a scene as one HTML file: picture, map, legend, areas, and what they were made with.

The file is complete in itself: its images are data URIs, it loads nothing, and its content security policy lets the
browser run no script but the page's own, whatever a class or a file is called. The page is ``report.html.j2``.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import io
import itertools
import os
import platform
import shlex
import sys
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from deflect_hf.artifacts.environment import PACKAGES, version
from deflect_hf.config.inference import SceneArguments
from deflect_hf.data.folder_reader import layout_of, names_in_training, quality_of
from deflect_hf.errors import DataError
from deflect_hf.evaluation.metrics import scores
from deflect_hf.figures.colors import IGNORED, Array, class_colors, composite, composites_of
from deflect_hf.files import write_text
from deflect_hf.inference.model import Facts, MapModel
from deflect_hf.raster.georeference import PixelAreas, crs_name, pixel_areas
from deflect_hf.raster.header import PathLike, RasterInfo, file_bands, overview_size
from deflect_hf.raster.maps import SQUARE
from deflect_hf.raster.read import open_raster, raster_info, read_mask, read_raster
from deflect_hf.raster.tiles import in_pieces

OVERVIEW_SIDE = 1024  # longest side of the pictures in pixels
JPEG_QUALITY = 88
NORMAL_95 = 1.96


def write_report(
    path: Path,
    prediction: Path,
    source: PathLike,
    classes: Sequence[str],
    *,
    facts: Facts = (),
    reading: Mapping[str, Any] | None = None,
    confusion: tuple[str, Any] | None = None,
) -> Path:
    """Write the report of one predicted scene as a single HTML file, whole or not at all.

    The scene and the map may be larger than memory: pictures are read shrunk, areas are counted square by square.

    Args:
        prediction: the class map, as `predict_raster` writes it: class numbers in the first band, nodata tagged.
        facts: names and values of the section "How it was made", in order.
        reading: how to name the bands of the scene, as keyword arguments of `raster.read_raster` (`source_bands`,
            `sensor`, `nodata`, `quality`), where the file does not do it by itself.
        confusion: a split that the model was scored on, and its counts (rows are targets, columns predictions), which
            add areas that are corrected for the model's errors, with confidence intervals.
    """
    reading = dict(reading or {})
    scene, mapped = raster_info(source), raster_info(prediction)
    if (scene.height, scene.width) != (mapped.height, mapped.width):
        raise DataError(
            f"{prediction} has {mapped.height} x {mapped.width} pixels, but {source} has {scene.height} x "
            f"{scene.width}: give the scene that the map was predicted from."
        )
    ground = pixel_areas(mapped)
    pixels, square_metres = measure(prediction, mapped, ground, classes)
    in_pixels = ground.rows_m2 is None
    colors = class_colors(classes, [color[:3] for color in mapped.colors[: len(classes)]])
    rows = _rows(pixels if in_pixels else square_metres / 1e4, classes, colors)
    estimated = _add_estimates(rows, confusion)
    title, picture = _quick_look(source, scene, reading, path)
    pages = Environment(loader=PackageLoader("deflect_hf", "inference"), autoescape=True, undefined=StrictUndefined)
    pages.filters["area"] = functools.partial(_area, in_pixels)
    pages.filters["sha256"] = lambda script: "sha256-" + b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = pages.get_template("report.html.j2").render(
        title=Path(source).name,
        picture=picture,
        overlay=_class_picture(prediction, mapped, colors),
        rows=rows,
        estimated=estimated,
        unit="pixels" if in_pixels else "ha",
        method=ground.method,
        scale_bar=_scale_bar(mapped, ground.rows_m2),
        facts=[*facts, *_file_facts(prediction, source, mapped, title)],
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # the words of a command line need not be text
        write_text(path, page.encode("utf-8", "replace").decode("utf-8"))
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error}): make room on the disk, or choose a writable folder."
        ) from error
    return path


def _area(in_pixels: bool, size: float) -> str:
    """Sizes with thousands apart; small areas keep three digits."""
    if in_pixels:
        return f"{size:,.0f}"
    return f"{size:,.2f}" if size >= 1 or size == 0 else f"{size:.3g}"


def report_prediction(
    path: Path,
    prediction: Path,
    source: PathLike,
    predictor: MapModel,
    arguments: SceneArguments,
    name: str,
) -> Path:
    """Write the report of a map that this command line made of `source` with the predictor, called `name`."""
    # not settled as for the map, which has logged all that is odd about the scene
    product = layout_of(arguments, predictor.processor, os.fspath(source))
    info = raster_info(product)
    sensor, source_bands = names_in_training(arguments.sensor, arguments.source_bands, info, predictor.processor)
    nodata = () if info.calibrated and arguments.nodata is None else product.nodata or ()
    quality = quality_of(arguments, info, source_bands, predictor.processor)
    reading = {"source_bands": source_bands, "sensor": sensor, "nodata": nodata, "quality": quality}
    confidence = "not calibrated"
    if predictor.temperature is not None:
        confidence = f"calibrated on the validation split, temperature {predictor.temperature:.3g}"
    facts = [
        ("Task", f"{predictor.task}, {len(predictor.classes)} classes"),
        ("Model", name),
        *predictor.origin(),
        ("Bands", f"{', '.join(predictor.processor.bands)}, in {predictor.processor.unit}"),
        ("Scores", _scores(predictor.confusion, predictor.classes)),
        ("Confidence", confidence),
        ("Command line", shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
    ]
    return write_report(
        path, prediction, product, predictor.classes, facts=facts, reading=reading, confusion=predictor.confusion
    )


def measure(prediction: Path, info: RasterInfo, ground: PixelAreas, classes: Sequence[str]) -> tuple[Array, Array]:
    """(K + 1,) pixels of each class and last those without one, square by square, and the same in square metres.

    Args:
        ground: areas of its pixels; where the map does not tell, all are 0.
    """
    count = len(classes)
    pixels = np.zeros(count + 1, dtype=np.int64)
    square_metres = np.zeros(count + 1)
    corners = itertools.product(range(0, info.height, SQUARE), range(0, info.width, SQUARE))
    with open_raster(prediction) as opened:
        for row, column in corners:
            size = min(SQUARE, info.height - row), min(SQUARE, info.width - column)
            square = read_mask(opened, window=(row, column, *size), band=0)
            values = np.where(square.valid[0], square.values[0].astype(np.int64), count)
            wrong = values[square.valid[0] & ((values < 0) | (values >= count))]
            if wrong.size:
                raise DataError(
                    f"{prediction} holds the value {wrong.min()}, but the model has {count} classes, 0 to {count - 1}: "
                    "give the map that this model predicted, in classes."
                )
            flat = values.ravel()
            pixels += np.bincount(flat, minlength=count + 1)
            if ground.rows_m2 is not None:
                square_metres += np.bincount(flat, ground.of((row, column, *size)).ravel(), minlength=count + 1)
    return pixels, square_metres


def _rows(sizes: Array, classes: Sequence[str], colors: Array) -> list[dict[str, Any]]:
    """The table: one row per class and one, without a color, for what has none."""
    from matplotlib.colors import to_hex

    mapped = sizes[:-1].sum()
    rows = [
        {"name": name, "color": to_hex(color), "size": float(size), "share": float(size / mapped) if mapped else 0.0}
        for name, color, size in zip(classes, colors, sizes[:-1], strict=True)
    ]
    return [*rows, {"name": "no data", "color": None, "size": float(sizes[-1]), "share": sizes[-1] / sizes.sum()}]


def _add_estimates(rows: list[dict[str, Any]], confusion: tuple[str, Any] | None) -> str:
    """Add the corrected area of each class to its row; what is to be said of them, if there are any."""
    if confusion is None:
        return ""
    split, matrix = confusion
    found = estimate_areas(np.array(matrix), np.array([row["size"] for row in rows[:-1]]))
    if found is None:
        return (
            f"Areas are not corrected for errors: too few pixels of the {split} split are mapped as one of the classes."
        )
    if not found[1].any():
        return (
            f"Areas are not corrected for errors: none of the {int(np.sum(matrix))} pixels of the {split} split is "
            "mapped wrongly, so that nothing is known of how wide an interval would be."
        )
    for row, area, half in zip(rows, *found, strict=False):
        row |= {"area": float(area), "half": float(half)}
    return (
        f"Estimated areas are corrected by the confusion of the {split} split ({int(np.sum(matrix))} pixels), with "
        "95 % confidence intervals (stratified estimator, Olofsson et al. 2014, equations 9 to 11). They hold for "
        "scenes like those of the split and for pixels drawn at random; labels from few polygons make the true "
        "intervals wider. Without an interval: classes that the split does not hold, or that it confuses with no other."
    )


def _scores(confusion: tuple[str, Any] | None, classes: Sequence[str]) -> str:
    """What the model scored on labelled pixels, in words."""
    if confusion is None:
        return "not known: the model comes without results"
    split, counts = confusion
    matrix = torch.tensor(counts)
    found = scores(matrix, classes)
    each = ", ".join(f"{name} {one['iou']:.3f}" for name, one in found["per_class"].items() if one["iou"] is not None)
    return (
        f"{split} split, {int(matrix.sum()):,} labelled pixels: accuracy {found['accuracy']:.3f}, "
        f"mIoU {found['miou']:.3f} ({each})"
    )


def estimate_areas(confusion: Array, mapped: Array) -> tuple[Array, Array] | None:
    """(K, K) counts, rows the reference and columns the map, (K,) mapped areas -> (K,) areas and half 95 % intervals.

    With W_i the mapped share of class i, and n_ij of the n_i reference pixels mapped as i of class j:

        area_j = A sum_i W_i n_ij / n_i                                                           (9)
        S(area_j) = A sqrt(sum_i W_i^2 (n_ij / n_i) (1 - n_ij / n_i) / (n_i - 1))                  (10, 11)

    None where fewer than two reference pixels are mapped as a class that the map has: nothing is known of its errors.
    The pixels are taken as drawn independently; those of a few polygons are not, and the true intervals wider.

    Source: Olofsson et al., Good practices for estimating area and assessing accuracy of land change, Remote Sensing of
    Environment 148 (2014): the stratified estimator, its strata being the classes of the map.
    """
    by_map = np.asarray(confusion, dtype=float).T
    sizes, total = by_map.sum(axis=1), float(mapped.sum())
    there = mapped > 0
    if not total or (sizes[there] < 2).any():
        return None
    weight = (mapped / total)[there, None]
    share = by_map[there] / sizes[there, None]
    variance = (weight**2 * share * (1 - share) / (sizes[there, None] - 1)).sum(axis=0)
    return total * (weight * share).sum(axis=0), NORMAL_95 * total * np.sqrt(variance)


def _quick_look(
    source: PathLike, info: RasterInfo, reading: Mapping[str, Any], beside: Path
) -> tuple[str, dict[str, Any]]:
    """Which bands of the scene are shown, and the picture; ``beside`` the page is room for what helps to read it."""
    quality = reading.get("quality")
    names = file_bands(info, reading.get("source_bands"), reading.get("sensor"), quality and quality.band)
    said, shown = next(iter(composites_of(names).items()))
    with in_pieces(source, beside) as scene:
        raster = read_raster(scene, list(dict.fromkeys(shown)), size=overview_size(info, OVERVIEW_SIDE), **reading)
    values = np.where(raster.valid, raster.values.astype(np.float32), np.nan)
    colors = (composite(values, raster.bands, shown) * 255).round().astype(np.uint8)
    return said, _picture(colors, "JPEG", f"{Path(source).name}, {said}", quality=JPEG_QUALITY)


def _class_picture(prediction: Path, info: RasterInfo, colors: Array) -> dict[str, Any]:
    """The map with a palette, transparent where it has no data."""
    with open_raster(prediction) as opened:
        mask = read_mask(opened, size=overview_size(info, OVERVIEW_SIDE), band=0)
    numbers = np.where(mask.valid[0], mask.values[0], len(colors)).astype(np.uint8)
    palette = bytes((colors * 255).round().astype(np.uint8)) + bytes.fromhex(IGNORED[1:])
    text = f"{prediction.name}, the most frequent class"
    return _picture(numbers, "PNG", text, palette=palette, transparency=len(colors), optimize=True)


def _picture(values: Array, kind: str, text: str, palette: bytes | None = None, **options: Any) -> dict[str, Any]:
    """(H, W) numbers of a palette or (H, W, 3) colors, uint8 -> a data URI, its text, and width over height."""
    from PIL import Image

    image = Image.fromarray(values)
    if palette is not None:
        image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    uri = f"data:image/{kind.lower()};base64,{b64encode(buffer.getvalue()).decode()}"
    return {"uri": uri, "text": text, "aspect": image.width / image.height}


def _scale_bar(info: RasterInfo, rows_m2: Array | None) -> dict[str, Any] | None:
    """Length of a scale bar, in words and as a share of the map's width; None without square pixels on the ground."""
    a, b, _, d, e, _ = info.transform
    if info.gsd_m is None or rows_m2 is None or not np.isclose(np.hypot(a, d), np.hypot(b, e)):
        return None
    width_m = info.width * float(np.sqrt(rows_m2[len(rows_m2) // 2]))
    power = 10.0 ** np.floor(np.log10(width_m / 4))
    length_m = power * max(step for step in (1, 2, 5) if step * power <= width_m / 4)
    length = f"{length_m / 1000:g} km" if length_m >= 1000 else f"{length_m:g} m"
    return {"length": length, "share": length_m / width_m}


def _file_facts(prediction: Path, source: PathLike, info: RasterInfo, shown: str) -> Facts:
    now = datetime.datetime.now(datetime.UTC)
    corner = "" if info.crs is None else f", upper left {info.transform[2]:.10g}, {info.transform[5]:.10g}"
    packages = [f"{package} {version(package)}" for package in PACKAGES if version(package) is not None]
    return (
        ("Scene", str(source)),
        ("Map", str(prediction)),
        ("Size", f"{info.height} x {info.width} pixels (height x width)"),
        ("Reference system", crs_name(info) + corner),
        ("Picture", f"{shown}, stretched from the 2nd to the 98th percentile of each band"),
        ("Date", now.strftime("%Y-%m-%d %H:%M UTC")),
        ("Versions", f"Python {platform.python_version()}, {', '.join(packages)}"),
    )
