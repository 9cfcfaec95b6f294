"""``--lr auto``: a short test of learning rates before the training, which leaves model and data as they were.

Source: L. Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017 (arXiv 1506.01186), with the
exponential steps of fastai's learning rate finder.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from deflect_hf.data.order import grouped, training_loader
from deflect_hf.errors import ConfigError, DataError
from deflect_hf.figures.colors import Array
from deflect_hf.figures.curves import running_mean
from deflect_hf.training import checkpoint
from deflect_hf.training.build import Experiment
from deflect_hf.training.loop import TrainingLoop

logger = logging.getLogger(__name__)

LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 84  # 14 optimizer steps per factor of ten
WINDOW = 7  # steps of the running mean
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
    config = loop.config
    for epoch in itertools.count():
        loader = training_loader(
            *(loop.splits["train"], config.batch_size, config.num_workers, config.seed, epoch, loop.rank),
            weights=loop.image_weights,
        )
        yield from grouped(loader, config.accumulate)
