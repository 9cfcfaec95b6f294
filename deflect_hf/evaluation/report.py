"""Evaluation of a trained folder: scores, also with each band missing, confusion matrix and prediction panels."""

from __future__ import annotations

import dataclasses
import logging
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from deflect_hf.artifacts import saved_model as checkpoints
from deflect_hf.artifacts.environment import environment
from deflect_hf.artifacts.processes import make_accelerator
from deflect_hf.config.readers import keys_of_reader
from deflect_hf.config.run import DatasetArguments, EvaluateArguments, RunArguments
from deflect_hf.config.tasks import TASKS, TITLES, Task, task_of
from deflect_hf.data import ImageDataset, load_dataset_splits
from deflect_hf.data.dataset import Example
from deflect_hf.data.order import Rank, evaluation_loader
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.data.transforms import for_evaluation
from deflect_hf.errors import ConfigError, DataError, counted, listing
from deflect_hf.evaluation.bootstrap import REPLICATES
from deflect_hf.evaluation.calibration import known_temperature
from deflect_hf.evaluation.evaluate import at_labels, evaluate, predict_logits
from deflect_hf.evaluation.task_metrics import Protocol
from deflect_hf.figures import FIGURES, prediction_panel, scores_figure
from deflect_hf.figures.dataset import spread
from deflect_hf.files import refuse_foreign
from deflect_hf.methods import deflect_config, further_bands, task_model

logger = logging.getLogger(__name__)


def overlay(config: RunArguments, arguments: EvaluateArguments) -> RunArguments:
    """The run's configuration with what evaluation was told to do differently."""
    if "bands" in arguments.dataset:
        raise ConfigError(
            "--dataset.bands: the trained model says which bands it takes; they are found by name in any order. Name "
            "those of the files with --dataset.source_bands or --dataset.sensor where the files do not."
        )
    reader = str(arguments.dataset.get("name", config.dataset.name))  # another one has no use for some of the keys
    if arguments.dataset.get("image_size") is not None and reader != "synthetic":
        raise ConfigError("--dataset.image_size: images are resized as they were in training: leave it out.")
    values = {**keys_of_reader(dict(config.dataset), reader), **arguments.dataset}
    origins = dict.fromkeys(arguments.dataset, "the command line, --dataset")
    changed: dict[str, Any] = {"dataset": DatasetArguments.from_values(values, origins)}
    for name in ("batch_size", "num_workers", "metrics"):
        if getattr(arguments, name) is not None:
            changed[name] = getattr(arguments, name)
    return config.model_copy(update=changed)


def report(
    arguments: EvaluateArguments, given: Mapping[str, Any] | None = None, *, write: bool = True
) -> tuple[dict[str, Any], Path | None]:
    """Evaluate ``eval_dir`` on a split; write ``results_SPLIT.json``, a picture of the scores and panels.

    Images are read by the saved processor, so that units, bands and size are those of training.

    Args:
        given: data sets of a program by split, in place of the one that the configuration names.
        write: False returns the results alone.

    Returns:
        The results, and where they were written (None in all processes but the first).
    """
    folder = checkpoints.result_folder(Path(arguments.eval_dir))
    output = Path(arguments.output_dir) if arguments.output_dir is not None else folder
    scored = output / f"results_{arguments.split}.json"
    if write:
        there = next(place for place in (output, *output.parents) if place.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):  # before all is scored
            raise ConfigError(f"nothing can be written to {output}: give another folder, --output_dir.")
        refuse_foreign(scored, *(output / name for name in FIGURES.values()), *output.glob("predictions_??.png"))

    def load(found: Path) -> tuple[RunArguments, nn.Module, MultispectralImageProcessor]:
        config = overlay(checkpoints.read_config(found), arguments)
        model = checkpoints.load_model(found, config, arguments.encoder)
        return config, model, checkpoints.load_processor(found, model)

    config, model, processor = checkpoints.while_whole(Path(arguments.eval_dir), load)
    accelerator = make_accelerator(config)
    model.to(accelerator.device)
    splits = load_dataset_splits(config.dataset, processor, given)
    if arguments.split not in splits:
        raise DataError(f"the data set has no split {arguments.split!r}, only {listing(splits)}: give --split.")
    images = for_evaluation(splits[arguments.split], config.augmentation)
    check_classes(model, images, folder)
    # one that is not known is 1, as in maps: fitted to these images, it would flatter them
    temperature = known_temperature(checkpoints.read_results(folder), folder) or 1.0
    protocol = dataclasses.replace(Protocol.of(config, images, model), temperature=temperature)
    loader = evaluation_loader(images, config.batch_size, config.num_workers, Rank.of(accelerator))
    scores = evaluate(model, loader, accelerator, protocol, REPLICATES)
    if arguments.drop_bands:
        scores["drop_bands"] = scores_without_bands(model, loader, accelerator, protocol, scores)
    results = {
        "eval_dir": str(folder),
        "split": arguments.split,
        "images": len(images),
        "task": images.task,
        **scores,
        "environment": environment(accelerator.device, accelerator.num_processes),
    }
    if write and accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        checkpoints.write_json(scored, results)
        draw(model, images, accelerator, protocol, results, output, arguments.panels)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return results, output if write and accelerator.is_main_process else None


def without_band(loader: Iterable[dict[str, Any]], channel: int) -> Iterator[dict[str, Any]]:
    """The batches of ``loader`` with one channel of ``pixel_values`` (B, C, H, W) all NaN, as for a missing band."""
    for batch in loader:
        pixel_values = batch["pixel_values"].clone()
        pixel_values[:, channel] = torch.nan
        yield {**batch, "pixel_values": pixel_values}


def scores_without_bands(
    model: nn.Module,
    loader: Iterable[dict[str, Any]],
    accelerator: Accelerator,
    protocol: Protocol,
    scores: Mapping[str, Any],
) -> dict[str, Any]:
    """Scores of a model on ``loader``, read once per band, with each band beyond its base bands missing.

    ``scores`` are those with all bands. A model that was not trained with band dropout is evaluated too, which shows
    what it leans on.

    Returns:
        ``band_dropout`` of the training, and ``scores``: the means for no band missing (``""``) and for each band.
    """
    bands = further_bands(model)
    if not bands:
        raise ConfigError(
            "--drop_bands: this model sees its base bands alone, so there is no band to drop. Give the folder of a "
            "model trained on further bands: with --finetune deflect, or with --method.patch_embed."
        )
    config = deflect_config(model)
    channels = (task_model(model).config if config is None else config).bands or []
    band_dropout = 0.0 if config is None else config.band_dropout
    if not band_dropout:
        logger.warning(
            "trained without band dropout: the scores say what the model leans on, but images that lack %s are refused "
            "(train with --finetune deflect --method.band_dropout)",
            listing(bands),
        )
    means = protocol.task.scores
    table = {"": {name: scores[name] for name in means}}
    for band in bands:
        found = evaluate(model, without_band(loader, channels.index(band)), accelerator, protocol)
        table[band] = {name: found[name] for name in means}
    return {"band_dropout": band_dropout, "metric": protocol.task.metric, "scores": table}


def check_classes(model: nn.Module, images: ImageDataset, folder: Path) -> None:
    """Refuse data of another task, or whose classes are not those the model was trained on, or in another order."""
    config = task_model(model).config
    task = task_of(config.model_type, config.problem_type).name
    if task != images.task:
        raise DataError(f"{folder} was trained for {task}, but the labels are for {images.task}: give dataset.task")
    trained = [config.id2label[k] for k in range(config.num_labels)]
    same = [[unicodedata.normalize("NFC", name) for name in names] for names in (trained, images.classes)]
    if same[0] != same[1]:
        raise DataError(
            f"{folder} was trained on the classes {listing(trained)}, but the data set has {listing(images.classes)}: "
            "give the same dataset.classes in the same order (dataset.target of a regression)"
        )


def draw(
    model: nn.Module,
    images: ImageDataset,
    accelerator: Accelerator,
    protocol: Protocol,
    results: dict[str, Any],
    output: Path,
    panels: int,
) -> None:
    """Write the picture of the scores and panels of ``panels`` images spread over the split."""
    task = protocol.task
    unit = "" if protocol.unit is None else protocol.unit
    score = f"{TITLES[task.metric]} {results[task.metric]:.3g}" + (f" {unit}" if unit and task.lower_is_better else "")
    title = f"{results['split']}: {score}, {counted(results['images'], 'image')}"
    scores_figure(output / FIGURES[task.output], results, images.classes, title)
    for number, index in enumerate(spread(len(images), panels)):
        example = images[index]
        with accelerator.autocast():
            image = example["pixel_values"].to(accelerator.device)
            logits = predict_logits(model, [image], protocol.window, protocol.patch_size)
        draw_panel(output / f"predictions_{number:02d}.png", images, example, torch.stack(logits), protocol.unit)


def draw_panel(
    path: Path, images: ImageDataset, example: Example, logits: torch.Tensor, unit: str | None, title: str | None = None
) -> Path:
    """Write an image of a split beside its labels, where it has some, and what (1, K, ...) logits say of it."""
    labels, logits = example.get("labels"), logits.cpu()
    prediction = shown(TASKS[images.task], logits if labels is None else at_labels(logits, labels[None]))[0].numpy()
    return prediction_panel(
        *(path, example["pixel_values"].numpy(), images.bands, images.classes, prediction),
        *(None if labels is None else labels.numpy(), str(example["name"]) if title is None else title),
        unit=unit or "",
        colors=images.labels.colors,
    )


def shown(task: Task, logits: torch.Tensor) -> torch.Tensor:
    """(B, K, ...) logits or values -> what a panel shows of them: (B, ...) class or value, (B, K) 0 or 1."""
    if task.output == "class":
        return logits.argmax(dim=1)
    return logits.squeeze(1) if task.output == "value" else (logits > 0).float()
