"""Before a training, without a trace: ``--lr auto`` tests learning rates, ``--dry_run`` tells what the run would do.

Source: L. Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017 (arXiv 1506.01186), with the
exponential steps of fastai's learning rate finder.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from deflect_hf.data.order import grouped, readers
from deflect_hf.errors import ConfigError, DataError
from deflect_hf.figures.colors import Array
from deflect_hf.figures.results import running_mean
from deflect_hf.training import checkpoint
from deflect_hf.training.build import Experiment
from deflect_hf.training.loop import TrainingLoop

logger = logging.getLogger(__name__)

LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 84  # 14 optimizer steps per factor of ten
WINDOW = 7  # steps of the running mean
WARM_UP, TIMED = 2, 5  # optimizer steps of a dry run
FORWARD = 1 / 3  # share of a step that an evaluation of its images takes: the backward pass costs twice the forward
EXPLODED = 4  # a mean of so many times the lowest ends the test


@dataclass(frozen=True)
class RangeTest:
    """(N,) learning rates, (N,) loss before the step with each and its running mean, and the rate they lead to."""

    rates: Array
    losses: Array
    smoothed: Array
    chosen: float

    @classmethod
    def of(cls, losses: Array) -> RangeTest:
        """Choose a tenth of the rate where the smoothed loss is lowest."""
        rates = np.geomspace(LOWEST, HIGHEST, STEPS)[: len(losses)]
        smoothed = running_mean(losses, WINDOW)
        lowest = int(smoothed.argmin())
        if lowest == 0:
            raise ConfigError("--lr auto: the loss fell at no learning rate. Fix: look at the labels, or give a rate.")
        return cls(rates, losses, smoothed, float(f"{rates[lowest] / 10:.2g}"))

    def text(self) -> str:
        """The curve in lines of text, and the chosen rate."""
        lines = [
            f"  {rate:8.1e}  {loss:8.4f}  {'#' * round(40 * loss / self.smoothed.max())}"
            for rate, loss in zip(self.rates[::WINDOW], self.smoothed[::WINDOW], strict=True)
        ]
        return "\n".join(["learning rate test: rate, loss", *lines, f"  chosen: --lr {self.chosen:g}"])


def choose_rate(experiment: Experiment, accelerator: Accelerator, source: Path | None) -> RangeTest | None:
    """Put a number in place of ``auto`` in the experiment's configuration; None where no test was needed.

    Args:
        source: the checkpoint that the run goes on from, whose rate it keeps.
    """
    segmentor = experiment.config.segmentor
    if segmentor.optimizer.lr != "auto":
        return None
    if source is None:
        test = range_test(experiment, accelerator)
        rate = test.chosen
        logger.info("%s", test.text())
    else:
        test, rate = None, checkpoint.read_progress(source)["fixed"]["segmentor.optimizer.lr"]
    optimizer = segmentor.optimizer.replace(lr=rate)
    experiment.config = experiment.config.replace(segmentor=segmentor.replace(optimizer=optimizer))
    return test


def range_test(experiment: Experiment, accelerator: Accelerator) -> RangeTest:
    """Train some steps at rising rates and forget them: parameters, buffers and loss scaling are as before.

    Random states are the caller's to set anew, and the order of the images is a function of seed and epoch.
    """
    if accelerator.num_processes > 1 or accelerator.is_fsdp2:
        raise ConfigError(
            "--lr auto tests in one process without FSDP. Fix: run it in one process with as large a batch "
            "(--accumulate), and give the rate that it logs: --lr RATE"
        )
    model = experiment.model
    changed = [*(parameter for parameter in model.parameters() if parameter.requires_grad), *model.buffers()]
    before = [tensor.detach().clone() for tensor in changed]
    scaling = None if accelerator.scaler is None else accelerator.scaler.state_dict()
    with tempfile.TemporaryDirectory() as scratch:
        config = experiment.config.replace(cache_prefix=False)
        loop = TrainingLoop(dataclasses.replace(experiment, config=config), accelerator, Path(scratch))
        losses = _losses(loop)
    with torch.no_grad():
        for tensor, value in zip(changed, before, strict=True):
            tensor.copy_(value)
    if accelerator.scaler is not None and scaling is not None:
        accelerator.scaler.load_state_dict(scaling)
    accelerator.unwrap_model(loop.model, keep_fp32_wrapper=False)
    accelerator.free_memory()
    return RangeTest.of(losses)


def _losses(loop: TrainingLoop) -> Array:
    """(N,) the loss before each step, until it is far above the lowest so far."""
    losses: list[float] = []
    lowest = float("inf")
    loop.model.train()
    for rate, group in zip(np.geomspace(LOWEST, HIGHEST, STEPS), _batches(loop), strict=False):
        for parameters in loop.optimizer.param_groups:
            parameters["lr"] = float(rate)
        loop.loss_sum.zero_()
        loop.step(group)
        losses.append(loop.loss_sum.item())
        mean = float(np.mean(losses[-WINDOW:]))
        lowest = min(lowest, mean)
        if not mean <= EXPLODED * lowest:  # NaN, too
            break
    losses = [loss for loss in losses if np.isfinite(loss)]
    if not losses:
        raise DataError("--lr auto: the loss of the first step is not finite: look at the images and labels.")
    return np.array(losses)


def _batches(loop: TrainingLoop) -> Iterator[list[dict[str, Any]]]:
    """Those of the training, epoch after epoch."""
    for epoch in itertools.count():
        yield from grouped(loop.loader(epoch, loop.config.num_workers), loop.config.accumulate)


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
    rounds = loop.total_steps / loop.epoch_steps
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
        f"{rounds:.3g} epoch{'s' * (rounds != 1)}: {loop.total_steps} steps"
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
    started = time.perf_counter()
    group = next(grouped(loop.loader(0, 0), config.accumulate))
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
