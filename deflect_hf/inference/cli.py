"""Maps from scenes: a trained segmentation model on georeferenced images of any size.

    deflect-predict IN.tif OUT.tif --adapter work-dir/RUN --report
    deflect-predict IN.tif OUT.tif --model model.onnx        a file of deflect-export
    deflect-predict A.tif B.tif 'more/*.tif' MAPS/ --adapter work-dir/RUN --output probabilities --dtype uint8 --cog
    python evaluate.py --predict IN.tif OUT.tif --adapter work-dir/RUN
    accelerate launch --multi_gpu evaluate.py --predict IN.tif OUT.tif --adapter work-dir/RUN

A map has the size, CRS and transform of its image: class numbers with colors and names, 255 where nothing was measured
in any band (where only some bands were, those decide), or one band of probabilities per class. Where training masks
stored other numbers than 0, 1, 2 ..., the band's tags say which (CLASS_0_VALUE). A regression per pixel makes one band
of values, NaN where nothing was measured, with its name and unit. --output embeddings writes the features of the
encoder's tokens instead, for a model of any task: one band per feature, one pixel per patch. Windows overlap and are
blended. Interrupted, the same command goes on where it stopped. --report writes OUT.html beside OUT.tif: the image, the
map, and the area of each class.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.inference import PredictArguments
from deflect_hf.config.tasks import TASKS
from deflect_hf.errors import ConfigError, DataError, listing, show_log, user_errors
from deflect_hf.files import refuse_foreign
from deflect_hf.raster.access import is_address
from deflect_hf.raster.header import BAND
from deflect_hf.training.distributed_exit import distributed_exit

if TYPE_CHECKING:
    from accelerate import PartialState

    from deflect_hf.inference.model import MapModel

INTERRUPTED = 130  # as shells say it
# For the others, of a process whose part of a scene is under clouds, say, and while the first puts the map together;
# torch's own 10 or 30 minutes would end the prediction of a large scene.
LONGEST_WAIT = timedelta(days=2)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, with or without ``--predict`` before the files, which may come last, and predict."""
    words = sys.argv[1:] if argv is None else list(argv)
    with distributed_exit(), user_errors(words):
        if "--help" in words or "-h" in words:
            words = ["--help"]
        predict(parse_arguments(PredictArguments, __doc__ or "", words, ("predict",)))


def pairs(files: Sequence[str]) -> list[tuple[str, Path]]:
    """Image and map of each job: the last of ``files`` is the map, or the folder of the maps, the others are images.

    A name without an ending is a folder.
    """
    if len(files) < 2:
        raise ConfigError("--predict needs an image and a map to write: --predict IN.tif OUT.tif")
    *patterns, last = files
    images: list[str] = []
    for pattern in patterns:
        plain = is_address(pattern) or Path(pattern).exists() or BAND in pattern or not glob.has_magic(pattern)
        found = [pattern] if plain else sorted(glob.glob(pattern))
        if not found:
            raise DataError(f"{pattern} fits no file: correct the pattern.")
        found = [name if is_address(name) else str(Path(name)) for name in found]
        images += [name for name in found if name not in images]
    target = Path(last)
    if target.suffix and not target.is_dir() and not last.endswith("/"):
        if target.suffix.lower() not in (".tif", ".tiff"):
            raise ConfigError(f"{target}: maps are GeoTIFFs, call it {target.with_suffix('.tif')}; a folder ends in /.")
        if len(images) == 1:
            return [(images[0], target)]
        raise ConfigError(f"{len(images)} images need a folder for their maps, but {target} is a file; give FOLDER/")
    paths = [Path(urlsplit(image).path if is_address(image) else image) for image in images]
    names = [f"{(path.parent if BAND in path.name else path).stem}.tif" for path in paths]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"several images would become {listing(repeated)} in {target}: predict them one by one.")
    return [(image, target / name) for image, name in zip(images, names, strict=True)]


def predict(arguments: PredictArguments) -> None:
    """Write the maps, and say where they are."""
    from deflect_hf.inference.mapping import predict_raster, refuse, together
    from deflect_hf.inference.memory import give_large_blocks_back

    show_log()
    give_large_blocks_back()
    jobs = pairs(arguments.predict)
    if arguments.polygons is not None and len(jobs) > 1:
        raise ConfigError("--polygons names one file, for the map of one image: predict them one by one.")
    predictor, processes = _load(arguments)
    finished = set()
    for image, target in jobs:  # before hours of work on the first
        page = target.with_suffix(".html")
        if arguments.report and TASKS[predictor.task].output == "value":
            raise ConfigError("--report shows areas of classes, but this model predicts numbers: leave it out")
        if refuse(predictor, image, target, arguments):
            finished.add(target)
        elif arguments.report and not arguments.overwrite and page.exists():
            raise ConfigError(f"{page} is there already: replace it with --overwrite.")
        elif arguments.report:
            refuse_foreign(page)
    try:
        for image, target in jobs:
            if target not in finished:
                predict_raster(predictor, image, target, arguments, processes)
            if processes is None or processes.is_main_process:
                again = ", finished before" if target in finished else ""
                values = TASKS[predictor.task].output == "value" and arguments.output != "embeddings"
                what = predictor.classes[0] if values else arguments.output
                print(f"{target}: {what} of {image}{again}")
            if arguments.report and not (target in finished and target.with_suffix(".html").exists()):
                together(processes, partial(_report, predictor, image, target, arguments), main_only=True)
    except KeyboardInterrupt:
        print("stopped: the same command goes on after the parts that are finished", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    if processes is not None:
        processes.destroy_process_group()


def _load(arguments: PredictArguments) -> tuple[MapModel, PartialState | None]:
    """The model, and the processes that share the work; None for a file in one process, which needs no accelerate."""
    import torch

    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    processes = None
    if several or arguments.model is None:
        from accelerate import PartialState

        # as in training: without being told so, accelerate does not see that it is one of several processes on CPUs
        processes = PartialState(cpu=several and not torch.accelerator.is_available(), timeout=LONGEST_WAIT)
    if arguments.model is not None:
        from deflect_hf.inference.exported import ExportedModel

        return ExportedModel(arguments.model), processes
    from deflect_hf import load_predictor

    assert arguments.adapter is not None and processes is not None
    return (
        load_predictor(
            arguments.adapter, revision=arguments.revision, encoder=arguments.encoder, device=processes.device
        ),
        processes,
    )


def _report(predictor: MapModel, image: str, target: Path, arguments: PredictArguments) -> None:
    from deflect_hf.inference.report import report_prediction

    name = str(arguments.model or arguments.adapter)
    name = name if arguments.revision is None else f"{name}, {arguments.revision}"
    page = report_prediction(target.with_suffix(".html"), target, image, predictor, arguments, name)
    print(f"{page}: picture, map and areas")


if __name__ == "__main__":
    main()
