"""A class map of a scene as one HTML file: picture, map, legend, areas, and what they were made with.

The file is complete in itself: its images are data URIs, it loads nothing, and its content security policy lets the
browser run no script but the page's own, whatever a class or a file is called.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import io
import itertools
import os
import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel

from deflect_hf.artifacts.environment import PACKAGES, version
from deflect_hf.config.inference import SceneArguments
from deflect_hf.errors import DataError
from deflect_hf.figures.colours import IGNORED, class_colours, composite, composites_of
from deflect_hf.inference.predictor import Predictor
from deflect_hf.inference.report_page import ClassRow, Facts, Page, Picture, as_html
from deflect_hf.methods import task_model
from deflect_hf.raster.georeference import crs_name, pixel_areas
from deflect_hf.raster.header import RasterInfo, file_bands
from deflect_hf.raster.maps import SQUARE
from deflect_hf.raster.read import open_raster, overview_size, raster_info, read_mask, read_raster
from deflect_hf.spectral.sensors import get_sensor

Array = np.ndarray[Any, Any]

OVERVIEW_SIDE = 1024  # longest side of the pictures in pixels
NO_DATA = -1
JPEG_QUALITY = 88


def write_report(
    path: Path,
    prediction: Path,
    source: Path,
    classes: Sequence[str],
    *,
    facts: Facts = (),
    reading: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report of one predicted scene as a single HTML file, whole or not at all.

    The scene and the map may be larger than memory: pictures are read shrunk, areas are counted square by square.

    Args:
        path: the HTML file.
        prediction: the class map, as `predict_raster` writes it: one band of class numbers, nodata tagged.
        source: the scene that was predicted.
        classes: their names, in the order of the numbers.
        facts: names and values of the section "How it was made", in order; see [`model_facts`].
        reading: how to name the bands of the scene, as keyword arguments of `raster.read_raster` (`source_bands`,
            `sensor`, `nodata`, `quality`), where the file does not do it by itself.

    Raises:
        DataError: a file is missing or broken, the map has other classes, or is not of this scene.
        BandError: nothing names the bands of the scene.
    """
    reading = dict(reading or {})
    scene, mapped = raster_info(source), raster_info(prediction)
    if (scene.height, scene.width) != (mapped.height, mapped.width):
        raise DataError(
            f"{prediction} has {mapped.height} x {mapped.width} pixels, but {source} has {scene.height} x "
            f"{scene.width}: give the scene that the map was predicted from."
        )
    areas = measure(prediction, classes)
    shown, picture = _quick_look(source, scene, reading)
    page = Page(
        title=source.name,
        picture=picture,
        overlay=_class_picture(prediction, mapped, len(classes)),
        rows=_rows(areas, classes),
        unit="pixels" if areas.rows_m2 is None else "ha",
        measured_by=areas.method,
        scale_bar=_scale_bar(mapped, areas.rows_m2),
        facts=(*facts, *_file_facts(prediction, source, mapped, shown)),
    )
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(as_html(page), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error}): make room on the disk, or choose a writable folder."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


def report_prediction(
    path: Path,
    prediction: Path,
    source: Path,
    predictor: Predictor,
    arguments: SceneArguments,
    *,
    adapter: str,
    command: Sequence[str] = (),
) -> Path:
    """Write the report of a map that `predict_raster` made of `source` with the same predictor and arguments.

    Args:
        adapter: what the report calls the model: its folder, or its name on the Hub.
        command: words of the command line that made the map; empty leaves it out.

    Raises:
        DataError: as [`write_report`].
    """
    # not settled as for the map, which has told all that is odd about the scene
    sensor = get_sensor(arguments.sensor) if arguments.sensor is not None else None
    fills = sensor.nodata if sensor is not None else predictor.processor.nodata
    reading = {
        "source_bands": arguments.source_bands,
        "sensor": sensor,
        "nodata": arguments.nodata if arguments.nodata is not None else fills,
    }
    facts = model_facts(predictor, adapter, command)
    return write_report(path, prediction, source, predictor.classes, facts=facts, reading=reading)


def model_facts(predictor: Predictor, adapter: str, command: Sequence[str] = ()) -> Facts:
    """What a report says of the model: method, adapter, the encoder that it adapts, bands, command line."""
    model, processor = predictor.model, predictor.processor
    method, encoder, revision = "no adapter", task_model(model).encoder.name_or_path, None
    if isinstance(model, PeftModel):
        saved = model.active_peft_config
        # what the adapter was trained on; it may have been loaded from another place
        method, encoder, revision = saved.peft_type.value, saved.base_model_name_or_path, saved.revision
    rows = [
        ("Task", f"{predictor.task}, {len(predictor.classes)} classes"),
        ("Model", adapter),
        ("Method", method),
        ("Base encoder", (encoder or "unnamed") + (f", revision {revision}" if revision else "")),
        ("Bands", f"{', '.join(processor.bands)}, in {processor.unit}"),
    ]
    return (*rows, ("Command line", shlex.join(command))) if command else tuple(rows)


@dataclass(frozen=True)
class MapAreas:
    """How much of a map each class covers.

    Attributes:
        pixels: (K + 1,) pixels of each class, and last those without one.
        square_metres: (K + 1,) the same on the ground; None where the map does not tell.
        rows_m2: (H,) square metres of a pixel of each row, None as above.
        method: one sentence on how they were found.
    """

    pixels: Array
    square_metres: Array | None
    rows_m2: Array | None
    method: str


def measure(prediction: Path, classes: Sequence[str]) -> MapAreas:
    """Count the classes of a map square by square, on the ground where it has a georeference.

    Raises:
        DataError: the map holds a number that is no class.
    """
    info = raster_info(prediction)
    ground = pixel_areas(info)
    count = len(classes)
    pixels = np.zeros(count + 1, dtype=np.int64)
    square_metres = np.zeros(count + 1)
    for row, values in _squares(prediction, info):
        wrong = np.unique(values[(values < NO_DATA) | (values >= count)])
        if wrong.size:
            raise DataError(
                f"{prediction} holds the value {wrong[0]}, but the model has {count} classes, 0 to {count - 1}: "
                "give the map that this model predicted, in classes."
            )
        # one histogram per row, because the area of a pixel may change from row to row
        height = len(values)
        flat = (np.where(values == NO_DATA, count, values) + np.arange(height)[:, None] * (count + 1)).ravel()
        histogram = np.bincount(flat, minlength=height * (count + 1)).reshape(height, count + 1)
        pixels += histogram.sum(axis=0)
        if ground.rows_m2 is not None:
            square_metres += ground.rows_m2[row : row + height] @ histogram
    return MapAreas(pixels, None if ground.rows_m2 is None else square_metres, ground.rows_m2, ground.method)


def _squares(prediction: Path, info: RasterInfo) -> Iterator[tuple[int, Array]]:
    """First row and (h, w) int64 class numbers of each square, NO_DATA where the map has none."""
    corners = itertools.product(range(0, info.height, SQUARE), range(0, info.width, SQUARE))
    with open_raster(prediction) as opened:
        for row, column in corners:
            size = min(SQUARE, info.height - row), min(SQUARE, info.width - column)
            square = read_mask(opened, window=(row, column, *size))
            yield row, np.where(square.valid[0], square.values[0].astype(np.int64), NO_DATA)


def _rows(areas: MapAreas, classes: Sequence[str]) -> tuple[ClassRow, ...]:
    """The table: one row per class and one for what has none."""
    sizes = areas.pixels if areas.square_metres is None else areas.square_metres / 1e4
    total = sizes.sum()
    mapped = total - sizes[-1]
    colours = [_hex(colour) for colour in class_colours(len(classes))]
    rows = [
        ClassRow(name, colour, float(size), float(size / mapped) if mapped else 0.0)
        for name, colour, size in zip(classes, colours, sizes[:-1], strict=True)
    ]
    return (*rows, ClassRow("no data", None, float(sizes[-1]), float(sizes[-1] / total)))


def _quick_look(source: Path, info: RasterInfo, reading: Mapping[str, Any]) -> tuple[str, Picture]:
    """Which bands of the scene are shown, and the picture."""
    names = file_bands(info, reading.get("source_bands"), reading.get("sensor"))
    said, shown = next(iter(composites_of(names).items()))
    with open_raster(source) as scene:
        raster = read_raster(scene, list(dict.fromkeys(shown)), size=overview_size(info, OVERVIEW_SIDE), **reading)
    values = np.where(raster.valid, raster.values.astype(np.float32), np.nan)
    colours = (composite(values, raster.bands, shown) * 255).round().astype(np.uint8)
    return said, _picture(colours, "JPEG", f"{source.name}, {said}", quality=JPEG_QUALITY)


def _class_picture(prediction: Path, info: RasterInfo, count: int) -> Picture:
    """The map with a palette, transparent where it has no data."""
    with open_raster(prediction) as opened:
        mask = read_mask(opened, size=overview_size(info, OVERVIEW_SIDE))
    numbers = np.where(mask.valid[0], mask.values[0], count).astype(np.uint8)
    palette = bytes((class_colours(count) * 255).round().astype(np.uint8)) + bytes.fromhex(IGNORED[1:])
    text = f"{prediction.name}, the most frequent class"
    return _picture(numbers, "PNG", text, palette=palette, transparency=count, optimize=True)


def _picture(values: Array, kind: str, text: str, palette: bytes | None = None, **options: Any) -> Picture:
    """(H, W) numbers of a palette or (H, W, 3) colours, uint8 -> the picture as a data URI."""
    from PIL import Image

    image = Image.fromarray(values)
    if palette is not None:
        image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(f"data:image/{kind.lower()};base64,{encoded}", text, image.width / image.height)


def _hex(colour: Array) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)


def _scale_bar(info: RasterInfo, rows_m2: Array | None) -> tuple[str, float] | None:
    """Length of a scale bar, in words and as a share of the map's width; None without square pixels on the ground."""
    a, b, _, d, e, _ = info.transform
    if info.gsd_m is None or rows_m2 is None or not np.isclose(np.hypot(a, d), np.hypot(b, e)):
        return None
    width_m = info.width * float(np.sqrt(rows_m2[len(rows_m2) // 2]))
    power = 10.0 ** np.floor(np.log10(width_m / 4))
    length_m = power * max(step for step in (1, 2, 5) if step * power <= width_m / 4)
    return f"{length_m / 1000:g} km" if length_m >= 1000 else f"{length_m:g} m", length_m / width_m


def _file_facts(prediction: Path, source: Path, info: RasterInfo, shown: str) -> Facts:
    left, top = info.transform[2], info.transform[5]
    now = datetime.datetime.now(datetime.UTC)
    packages = [f"{package} {version(package)}" for package in PACKAGES if version(package) is not None]
    return (
        ("Scene", str(source)),
        ("Map", str(prediction)),
        ("Size", f"{info.height} x {info.width} pixels (height x width)"),
        (
            "Reference system",
            crs_name(info) if info.crs is None else f"{crs_name(info)}, upper left {left:.10g}, {top:.10g}",
        ),
        ("Picture", f"{shown}, stretched from the 2nd to the 98th percentile"),
        ("Date", now.strftime("%Y-%m-%d %H:%M UTC")),
        ("Versions", f"Python {platform.python_version()}, {', '.join(packages)}"),
    )
