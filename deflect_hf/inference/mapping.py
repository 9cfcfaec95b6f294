"""From an image file to a map file: what is refused, what is written, who of several processes does what."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from deflect_hf.config.inference import SceneArguments
from deflect_hf.errors import ConfigError, DataError, DeflectError, UnsupportedOperationError
from deflect_hf.figures import class_colours
from deflect_hf.inference.memory import give_back
from deflect_hf.inference.scenes import Scene, cut
from deflect_hf.inference.spool import Part, Spool, plan_parts
from deflect_hf.inference.trained import TrainedModel
from deflect_hf.inference.windows import SceneWindows
from deflect_hf.raster.header import RasterInfo
from deflect_hf.raster.maps import MapLayout, Square, job_of_map, sidecar, write_map
from deflect_hf.raster.read import OpenRaster, open_raster

if TYPE_CHECKING:
    from accelerate import PartialState

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

NODATA = 255  # of uint8 maps
STEPS = 250  # probability 1.0 in uint8: steps of 0.004


def predict_raster(
    predictor: TrainedModel,
    source: Path,
    target: Path,
    arguments: SceneArguments,
    processes: PartialState | None = None,
) -> None:
    """Write the map of one image: a GeoTIFF with its size, CRS and transform.

    Interrupted, the same call goes on where it stopped; ``TARGET.parts`` holds what is finished until the map is there.
    A map that the same call has made before is left as it is. Several processes share the work, and the first of them
    writes the map.

    After each part, memory that is free goes back to the system. `deflect-predict` also begins with
    :func:`deflect_hf.inference.memory.give_large_blocks_back`, so that this happens within a part, too; it holds for
    all that the process does and cannot be taken back, so here it is left to the caller.

    Raises:
        UnsupportedOperationError: the model classifies whole images, or has more classes than a map can hold.
        ConfigError: another map is there, or in the making, under this name, it is the image itself, or the windows do
            not fit.
        DataError: the image is damaged or holds values that no model can compute with, or the map cannot be written.
        BandError: the image lacks a band that the model needs.
        UnitError: the image is not in the model's unit.
    """
    if refuse(predictor, source, target, arguments):
        return
    layout, finish = map_layout(predictor.classes, arguments)
    with ExitStack() as held:
        with open_raster(source) as file:
            windows = windows_of(file, predictor, arguments)
            info, job = windows.scene.info, job_of(windows, arguments)
            parts = plan_parts(windows.rows, len(windows.columns))
            folder = target.with_name(f"{target.name}.parts")
            dtype = np.dtype(layout.dtype)
            spool = Spool(folder, info.width, len(predictor.classes), layout.count, dtype, finish)
            together(processes, lambda: held.enter_context(_begun(spool, job, arguments, parts)), main_only=True)
            together(processes, partial(_predict, spool, windows, parts, processes))
            # what is in the making is not held beside the map's squares
            del windows
        layout = dataclasses.replace(layout, job=digest_of(job, arguments))
        together(processes, lambda: _assemble(spool, parts, layout, info, target, arguments), main_only=True)


def windows_of(file: OpenRaster, predictor: TrainedModel, arguments: SceneArguments) -> SceneWindows:
    """The windows of an open image."""
    scene = Scene.of(file, predictor.processor, arguments)
    rows, columns = cut(predictor, scene.info, arguments)
    return SceneWindows(scene, predictor, rows, columns, arguments.batch_size)


def refuse(predictor: TrainedModel, source: Path, target: Path, arguments: SceneArguments) -> bool:
    """Refuse what cannot become a map; whether the map is there and is what the same command would write again."""
    if predictor.task != "segmentation":
        raise UnsupportedOperationError(
            f"{source}: the model gives one class to a whole image, which makes no map. Give the folder of a "
            "segmentation model, or cut the scene into images and call the model on them."
        )
    if len(predictor.classes) > NODATA:
        raise UnsupportedOperationError(
            f"{source}: {len(predictor.classes)} classes do not fit into a map of 8 bits, which holds {NODATA}."
        )
    if target.exists() and source.exists() and target.samefile(source):
        raise ConfigError(f"{target} is the image itself: give the map another name.")
    if target.is_dir():
        raise ConfigError(f"{target} is a folder: give the map a name.")
    if not target.exists():
        return False
    made = job_of_map(target)
    if not arguments.overwrite:
        if made and source.exists():
            with open_raster(source) as file:
                if made == digest_of(job_of(windows_of(file, predictor, arguments), arguments), arguments):
                    return True
        raise ConfigError(f"{target} is there already: give the map another name, or replace it with --overwrite.")
    if made is None:
        raise ConfigError(
            f"{target} is no map that deflect_hf wrote, and is not replaced: give the map another name. (An unquoted "
            "pattern that fits two images takes the second for the map: give a folder, too.)"
        )
    return False


def map_layout(classes: tuple[str, ...], arguments: SceneArguments) -> tuple[MapLayout, Callable[[Array], Array]]:
    """What the bands of the map are, and what makes stored values (count, h, W) of sums of logits (K, h, W)."""
    if arguments.output == "classes":
        colours = [tuple(round(255 * part) for part in colour) for colour in class_colours(len(classes)).tolist()]
        layout = MapLayout("uint8", NODATA, ("class",), categories=classes, colours=tuple(colours))
        return layout, _classes
    if arguments.dtype == "uint8":
        return MapLayout("uint8", NODATA, classes, scale=1 / STEPS), _stepped_probabilities
    return MapLayout("float32", float("nan"), classes), _probabilities


def _classes(sums: Array) -> Array:
    return np.where(np.isnan(sums[:1]), NODATA, sums.argmax(axis=0, keepdims=True)).astype(np.uint8)


def _probabilities(sums: Array) -> Array:
    return torch.from_numpy(sums).softmax(dim=0).numpy()


def _stepped_probabilities(sums: Array) -> Array:
    return np.nan_to_num(np.rint(_probabilities(sums) * STEPS), nan=NODATA).astype(np.uint8)


@contextmanager
def _begun(spool: Spool, job: dict[str, Any], arguments: SceneArguments, parts: list[Part]) -> Iterator[None]:
    """Make the folder of the parts, or find those of an interrupted run, and keep others from it."""
    spool.prepare(job, overwrite=arguments.overwrite)
    with spool.held():
        finished = sum(spool.is_finished(part) for part in parts)
        if finished:
            logger.info("%s: %d of %d parts are finished and are kept", spool.folder, finished, len(parts))
        yield


def job_of(windows: SceneWindows, arguments: SceneArguments) -> dict[str, Any]:
    """All that the values of the map depend on; parts of another job are of no use."""
    info, predictor = windows.scene.info, windows.predictor
    stat = Path(info.path).stat()
    return {
        "image": [str(Path(info.path).resolve()), stat.st_size, stat.st_mtime_ns],
        "model": weights_digest(predictor.model),
        "classes": predictor.classes,
        "precision": str(predictor.precision),
        "reading": {
            **windows.scene.processor.to_dict(),
            "resized to": predictor.processor.size,
            "quality layer": str(windows.scene.reader.quality),
        },
        "windows": [windows.rows.size, windows.columns.size, arguments.overlap, windows.batch_size],
        "output": [arguments.output, arguments.dtype],
        "version": 2,  # of the files in the folder
    }


def digest_of(job: dict[str, Any], arguments: SceneArguments) -> str:
    """By what a finished map is known again."""
    told = json.dumps([job, arguments.cog], sort_keys=True)
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


def weights_digest(model: nn.Module) -> str:
    """Checksum of all that predicts; not of the head with random weights that PEFT keeps beside the trained one."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        if ".original_module." in f".{name}":
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _predict(spool: Spool, windows: SceneWindows, parts: list[Part], processes: PartialState | None) -> None:
    """This process's share of the parts that are not there yet."""
    index, count = (0, 1) if processes is None else (processes.process_index, processes.num_processes)
    mine = [part for part in parts[index::count] if not spool.is_finished(part)]
    total = sum(part.stop - part.first for part in mine) * len(windows.columns)
    # one bar is enough, and none in a log file
    with tqdm(total=total, unit="window", disable=None if index == 0 else True) as bar:
        for part in mine:
            with spool.open(part) as write, closing(windows.sums(part, bar.update, spool.folder)) as pieces:
                for sums in pieces:
                    write(sums.row, sums.column, sums.values.numpy())
            give_back()


def _assemble(
    spool: Spool, parts: list[Part], layout: MapLayout, info: RasterInfo, target: Path, arguments: SceneArguments
) -> None:
    """Put the map together in the folder of the parts, then move it to its place and remove the folder."""
    made = spool.folder / "map.tif"
    seen = False

    def squares() -> Iterator[Square]:
        nonlocal seen
        for square in spool.squares(parts):
            values = square.values
            seen = seen or not bool((np.isnan(values) if np.isnan(layout.nodata) else values == layout.nodata).all())
            yield square

    write_map(made, layout, info, squares(), cog=arguments.cog, final=target)
    with spool.writing():
        if sidecar(made).exists():
            os.replace(sidecar(made), sidecar(target))
        else:
            sidecar(target).unlink(missing_ok=True)
        os.replace(made, target)
    spool.remove()
    if not seen:
        logger.warning("%s holds nodata alone: no pixel of %s is a measurement", target, info.path)


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
