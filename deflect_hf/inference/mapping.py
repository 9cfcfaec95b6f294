"""From an image file to a map file: what is refused, what is written, who of several processes does what."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio import Affine
from tqdm import tqdm

from deflect_hf.config.inference import SceneArguments
from deflect_hf.config.tasks import TASKS
from deflect_hf.data.folder_reader import layout_of
from deflect_hf.errors import ConfigError, DataError, DeflectError, UnsupportedOperationError
from deflect_hf.files import is_ours, refuse_foreign, write_text
from deflect_hf.inference.blocks import Block, Overhang, SceneWindows
from deflect_hf.inference.memory import give_back
from deflect_hf.inference.model import NODATA, STEPS, MapModel, map_layout
from deflect_hf.inference.parts import Parts
from deflect_hf.inference.polygons import refuse_polygons, refuse_unplaced, write_polygons
from deflect_hf.inference.scenes import Scene, cut, files_of
from deflect_hf.raster.access import is_address, stamp_of
from deflect_hf.raster.header import PathLike, RasterInfo
from deflect_hf.raster.maps import (
    Array,
    MapLayout,
    Square,
    category_names,
    job_of_map,
    qgis_style,
    sidecar,
    style_of,
    write_map,
)
from deflect_hf.raster.products import Product
from deflect_hf.raster.read import OpenRaster, open_raster
from deflect_hf.raster.tiles import in_pieces

if TYPE_CHECKING:
    from accelerate import PartialState

logger = logging.getLogger(__name__)


def predict_raster(
    predictor: MapModel,
    source: PathLike,
    target: Path,
    arguments: SceneArguments,
    processes: PartialState | None = None,
) -> None:
    """Write the map of one image: a GeoTIFF with its size, CRS and transform.

    Interrupted, the same call goes on where it stopped; ``TARGET.parts`` holds what is finished until the map is there.
    A map that the same call has made before is left as it is. Several processes share the work, and the first of them
    writes the map.

    After each block, memory that is free goes back to the system. `deflect-predict` also begins with
    :func:`deflect_hf.inference.memory.give_large_blocks_back`, so that this happens within a block, too; it holds for
    all that the process does and cannot be taken back, so here it is left to the caller.

    Raises:
        UnsupportedOperationError: the model classifies whole images, or has more classes than a map can hold.
        ConfigError: the map's name is taken, or the windows do not fit.
        DataError: the image is damaged or holds values that no model can compute with, or the map cannot be written.
        BandError, UnitError: the image lacks a band, or is not in the model's unit.
    """
    if refuse(predictor, source, target, arguments):
        return
    source = layout_of(arguments, predictor.processor, os.fspath(source))
    layout, finish = map_layout(predictor, arguments)
    count = max(layout.count, 2) if arguments.polygons is not None else layout.count
    parts = Parts(target.with_name(f"{target.name}.parts"), count, np.dtype(layout.dtype), layout.side)
    with ExitStack() as held:
        windows = windows_of(_opened(held, source, target, processes), predictor, arguments)
        info, job, blocks = grid_of(windows), job_of(windows, arguments), windows.blocks()
        if arguments.polygons is not None:
            refuse_unplaced(Path(arguments.polygons), info)
        begun = parts.begun(job, overwrite=arguments.overwrite)
        together(processes, lambda: held.enter_context(begun), main_only=True)
        together(processes, partial(_predict, parts, windows, blocks, finish, processes))
        layout = dataclasses.replace(layout, job=digest_of(job, arguments))
        together(processes, lambda: _assemble(parts, blocks, layout, info, target, arguments), main_only=True)


def _opened(held: ExitStack, source: Product, target: Path, processes: PartialState | None) -> OpenRaster:
    """The image, open while ``held`` is; what the first process makes to read it in pieces is read by all of them."""
    files: list[OpenRaster] = []
    together(processes, lambda: files.append(held.enter_context(in_pieces(source, target))), main_only=True)
    if processes is None or processes.num_processes == 1:
        return files[0]
    from accelerate.utils import gather_object

    (read,) = gather_object([file.source.name for file in files])
    copied = Product(read) if Path(read[:256]).is_file() else source
    return files[0] if files else dataclasses.replace(held.enter_context(open_raster(copied)), path=str(source))


def windows_of(file: OpenRaster, predictor: MapModel, arguments: SceneArguments) -> SceneWindows:
    """The windows of an open image."""
    scene = Scene.of(file, predictor.processor, arguments)
    rows, columns, token = cut(predictor, scene.info, arguments)
    return SceneWindows(scene, predictor, rows, columns, arguments.batch_size, token)


def grid_of(windows: SceneWindows) -> RasterInfo:
    """Size and place of the map: those of its image, or of the tokens that lie over it from its upper left corner."""
    info = windows.scene.info
    if windows.token is None:
        return info
    down, across = windows.token
    placed = Affine(*info.transform) @ Affine.scale(across, down)
    return dataclasses.replace(
        info, height=windows.rows.length, width=windows.columns.length, transform=tuple(placed)[:6]
    )


def refuse(predictor: MapModel, image: PathLike, target: Path, arguments: SceneArguments) -> bool:
    """Refuse what cannot become a map; whether the map is there and is what the same command would write again."""
    source, there = Path(image), is_address(image) or Path(image).exists()
    if arguments.output == "embeddings":
        _ = predictor.embedding_size  # of any task
    elif not TASKS[predictor.task].dense:
        raise UnsupportedOperationError(
            f"{image}: the model's task is {predictor.task}, of whole images, which makes no map. Give the folder of "
            "a segmentation model, or cut the scene into images and call the model on them."
        )
    if TASKS[predictor.task].output == "value" and arguments.output in ("probabilities", "confidence"):
        raise ConfigError(
            f"--output {arguments.output} is for maps of classes, but the model predicts {predictor.classes[0]!r}, one "
            "band of numbers: leave it out"
        )
    if TASKS[predictor.task].output == "value" and arguments.polygons is not None:
        raise ConfigError(f"--polygons are of a map of classes, but the model predicts {predictor.classes[0]!r}.")
    if len(predictor.classes) > NODATA:
        raise UnsupportedOperationError(
            f"{image}: {len(predictor.classes)} classes do not fit into a map of 8 bits, which holds {NODATA}."
        )
    if target.exists() and source.exists() and target.samefile(source):
        raise ConfigError(f"{target} is the image itself: give the map another name.")
    if target.is_dir():
        raise ConfigError(f"{target} is a folder: give the map a name.")
    if target.suffix.lower() not in (".tif", ".tiff"):
        raise ConfigError(f"{target}: maps are GeoTIFFs, call it {target.with_suffix('.tif')}.")
    polygons = None if arguments.polygons is None else Path(arguments.polygons)
    if polygons is not None and not (target.exists() and polygons.exists()):
        refuse_polygons(polygons, arguments.overwrite)
    if arguments.overwrite and arguments.output == "confidence":
        refuse_foreign(style_of(target))
    if not target.exists():
        ours = {sidecar(target): category_names(predictor.classes)}
        if arguments.output == "confidence":
            ours[style_of(target)] = qgis_style(map_layout(predictor, arguments)[0])
        for beside, own in ours.items():
            if not arguments.overwrite and beside.exists() and beside.read_bytes() != own.encode():
                raise ConfigError(f"{beside} is there already: move it, or replace it with --overwrite.")
        return False
    made = job_of_map(target)
    if not arguments.overwrite:
        if made and there and (polygons is None or polygons.exists()):
            with open_raster(layout_of(arguments, predictor.processor, os.fspath(image))) as file:
                if made == digest_of(job_of(windows_of(file, predictor, arguments), arguments), arguments):
                    return True
        raise ConfigError(f"{target} is there already: give the map another name, or replace it with --overwrite.")
    if made is None:
        raise ConfigError(
            f"{target} is no map that deflect_hf wrote, and is not replaced: give the map another name. (An unquoted "
            "pattern that fits two images takes the second for the map: give a folder, too.)"
        )
    return False


def job_of(windows: SceneWindows, arguments: SceneArguments) -> dict[str, Any]:
    """All that the values of the map depend on; parts of another job are of no use."""
    scene, predictor = windows.scene, windows.predictor
    product = layout_of(arguments, predictor.processor, scene.info.path)
    stats = [(path.resolve(), path.stat()) for path in files_of(product)]
    sure = arguments.polygons is not None or arguments.output == "confidence"
    at = [product.path, *(layer.file for layer in product.layers or ())] if product.address else []
    return {
        "image": [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats],
        **({} if not at else {"addresses": [[address, *stamp_of(address)] for address in at]}),
        **({} if product.layers is None else {"put together as": product.open_name()}),
        "model": predictor.digest(),
        "classes": [predictor.classes, predictor.class_values, *([predictor.colors] if predictor.colors else [])],
        "precision": str(predictor.precision),
        "reading": {
            **scene.processor.to_dict(),
            "resized to": predictor.processor.size,
            "quality layer": str(scene.reader.quality),
        },
        "windows": [windows.rows.size, windows.columns.size, arguments.overlap, windows.batch_size, predictor.window],
        "output": [arguments.output, arguments.dtype, *([predictor.temperature] if sure else [])],
        "version": [3, len(windows.blocks())],  # of the files in the folder
    }


def digest_of(job: dict[str, Any], arguments: SceneArguments) -> str:
    """By what a finished map is known again."""
    text = json.dumps([job, arguments.cog], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _predict(
    parts: Parts,
    windows: SceneWindows,
    blocks: list[Block],
    finish: Callable[[Array], Array],
    processes: PartialState | None,
) -> None:
    """This process's share of the blocks that are not there yet."""
    index, count = (0, 1) if processes is None else (processes.process_index, processes.num_processes)
    share = sorted(blocks[index::count], key=lambda block: (block.left, block.top))  # a block after that above it
    missing = parts.missing(share)
    if len(missing) < len(share):
        logger.info("%s: %d of %d parts are finished and are kept", parts.folder, len(share) - len(missing), len(share))
    # one bar is enough, and none in a log file
    total = sum(len(block.rows) * len(block.columns) for block in missing)
    with tqdm(total=total, unit="window", disable=None if index == 0 else True) as bar:
        overhang = Overhang()
        for block in missing:
            with closing(windows.logits(block, bar.update, overhang)) as pieces:
                parts.write(block, (finish(piece.numpy()) for piece in pieces))
            give_back()
    quality = windows.scene.reader.quality
    if quality is not None and len(missing) == len(blocks) and not windows.scene.flagged:  # all of it was read here
        logger.warning(
            "%s: nothing is left out by the quality layer %r: no pixel has a value or bit that is to be (--qa_values, "
            "--qa_bits, or the product, --qa)",
            windows.scene.info.path,
            quality.band,
        )


def _assemble(
    parts: Parts, blocks: list[Block], layout: MapLayout, info: RasterInfo, target: Path, arguments: SceneArguments
) -> None:
    """Put the map together in the folder of the parts, then move it to its place and remove the folder."""
    made = parts.folder / "map.tif"
    seen = False

    def squares() -> Iterator[Square]:
        nonlocal seen
        for square in parts.squares(blocks):
            values = square.values[: layout.count]
            seen = seen or not bool((np.isnan(values) if np.isnan(layout.nodata) else values == layout.nodata).all())
            yield Square(square.row, square.column, values)

    write_map(made, layout, info, squares(), cog=arguments.cog, final=target)
    if arguments.polygons is not None:
        found = write_polygons(
            Path(arguments.polygons), made, layout, info, parts.squares(blocks), STEPS, arguments.simplify
        )
        logger.info("%s: %d polygons", arguments.polygons, found)
    with parts.writing():
        if sidecar(made).exists():
            os.replace(sidecar(made), sidecar(target))
        else:
            sidecar(target).unlink(missing_ok=True)
        _style(layout, target, arguments.polygons)
        os.replace(made, target)
    parts.remove()
    if not seen:
        logger.warning("%s holds nodata alone: no pixel of %s is a measurement", target, info.path)


def _style(layout: MapLayout, target: Path, polygons: str | None) -> None:
    """Say how QGIS is to paint polygons, and a map with a second band, which it would take for red and green."""
    painted = {style_of(Path(polygons))} if polygons is not None else set()
    own = style_of(target)
    painted |= {own} if layout.categories and layout.count > 1 else set()
    for style in painted:
        write_text(style, qgis_style(layout))
    if own not in painted and own.exists() and is_ours(own):  # of a map that is replaced
        own.unlink()


def together(processes: PartialState | None, work: Callable[[], None], main_only: bool = False) -> None:
    """Do ``work`` in all processes, or in the first alone, and go on in all of them or in none.

    A process that fails alone would leave the others waiting for it.
    """
    if processes is None or processes.num_processes == 1:
        work()
        return
    from accelerate.utils import gather_object

    problem: DeflectError | None = None
    if not main_only or processes.is_main_process:
        try:
            work()
        except DeflectError as error:
            problem = error
    messages = gather_object([None if problem is None else str(problem)])
    if problem is not None:
        raise problem
    for message in messages:
        if message is not None:
            raise DataError(message)
