"""What ``--dry_run`` tells: what a run would read, train and write, and how long that takes on this machine."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from deflect_hf.data.order import grouped, readers, training_loader
from deflect_hf.training.build import Experiment
from deflect_hf.training.learning_rate import STEPS
from deflect_hf.training.loop import TrainingLoop

WARM_UP, TIMED = 2, 5  # optimizer steps
FORWARD = 1 / 3  # share of a step that an evaluation of its images takes: the backward pass costs twice the forward


def preview(
    experiment: Experiment, accelerator: Accelerator, work_dir: Path, source: Path | None, counts: Mapping[str, Any]
) -> str:
    """The text of a dry run, in which some steps are trained and forgotten.

    Args:
        source: the checkpoint that the run would go on from.
        counts: of parameters, as in ``results.json``.
    """
    config, train = experiment.config, experiment.train
    with tempfile.TemporaryDirectory() as scratch:
        loop = TrainingLoop(experiment, accelerator, Path(scratch))
        if source is not None:
            loop.resume(source)
        done, processes = loop.progress.step, loop.rank.count
        step, reading = step_seconds(loop)
        seconds = whole_seconds(loop, loop.total_steps - done, step, reading)
    sizes = (train.processor.trained_size or (), train[0]["pixel_values"].shape[-2:])
    stored, seen = (" x ".join(map(str, size)) for size in sizes)
    images = ", ".join(f"{name} {len(split)}" for name, split in experiment.splits.items())
    there = "replacing the run that is there" if config.overwrite and work_dir.exists() else "nothing is written yet"
    given = config.segmentor.optimizer.lr
    rate = f"auto: a test of at most {STEPS} steps before these" if given == "auto" else str(given)
    name = config.encoder.name_or_path or "random " + (config.encoder.random or {})["model_type"]
    lines = {
        "data": f"{config.dataset.root or config.dataset.name} ({train.task}): {images} images; {stored} pixels, "
        f"{seen} in training; {len(train.bands)} bands: {', '.join(train.bands)}",
        "labels": f"of the train split: {labels_text(experiment)}",
        "model": f"{name}, --finetune {config.finetune} on {accelerator.device}: {counts['encoder_trainable']:,} of "
        f"{counts['encoder_total']:,} encoder parameters are trained ({counts['encoder_trainable_percent']:.2f} %), "
        f"and {counts['head_trainable']:,} of the {config.segmentor.head} head",
        "steps": f"{loop.epoch_steps} per epoch, each of {config.accumulate} x {config.batch_size} images"
        f"{f' in each of {processes} processes' if processes > 1 else ''}; "
        f"{loop.total_steps / loop.epoch_steps:.3g} epochs: {loop.total_steps} steps"
        f"{f', {done} of them done' if done else ''}; learning rate {rate}",
        "time": f"{step:.3g} s per step (median of {TIMED}) and {reading:.3g} s to read its images, by "
        f"{readers(config.num_workers)} workers: about {timedelta(seconds=round(seconds))} "
        "(h:min:s) in all, evaluations included",
        "folder": f"{work_dir}: {there}",
    }
    if accelerator.device.type == "cuda":
        lines["memory"] = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most on the GPU in these steps"
    return "\n".join(["Dry run:", *(f"  {name:<7} {text}" for name, text in lines.items())])


def labels_text(experiment: Experiment) -> str:
    """How often each class is labelled in the training split, or mean and deviation of a regression's values."""
    found = experiment.statistics
    if found.targets is not None:
        return f"{int(found.targets.count):,} values, {float(found.targets.mean):.4g} +- {float(found.targets.std):.4g}"
    total = max(1, sum(found.labels))
    pairs = zip(experiment.train.classes, found.labels, strict=True)
    return ", ".join(f"{name} {count:,} ({100 * count / total:.1f} %)" for name, count in pairs)


def step_seconds(loop: TrainingLoop) -> tuple[float, float]:
    """Seconds of an optimizer step on a real batch, and of reading that batch in one process."""
    config, device = loop.config, loop.accelerator.device
    loader = training_loader(
        loop.splits["train"], config.batch_size, 0, config.seed, 0, loop.rank, weights=loop.image_weights
    )
    started = time.perf_counter()
    group = next(grouped(loader, config.accumulate))
    reading = time.perf_counter() - started
    loop.model.train()
    taken = []
    for _ in range(WARM_UP + TIMED):
        started = time.perf_counter()
        loop.step(group)
        if device.type != "cpu":
            torch.get_device_module(device).synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[WARM_UP:]), reading


def whole_seconds(loop: TrainingLoop, left: int, step: float, reading: float) -> float:
    """Seconds to the end of the run: its steps, its evaluations, and the scores of the best model.

    Args:
        left: optimizer steps that the run still has to do.
        step: seconds of an optimizer step.
        reading: seconds of reading its images in one process; workers read while others are computed.
    """
    config = loop.config
    evaluations = -(-left // loop.eval_steps)
    images = (evaluations + 1) * len(loop.splits["val"]) + len(loop.splits.get("test", ()))
    in_steps = images / (config.batch_size * config.accumulate * loop.rank.count)

    workers = readers(config.num_workers)

    def together(computing: float) -> float:
        return max(computing, reading / workers) if workers else computing + reading

    steps = left + (STEPS if config.segmentor.optimizer.lr == "auto" else 0)
    return steps * together(step) + in_steps * together(step * FORWARD)
