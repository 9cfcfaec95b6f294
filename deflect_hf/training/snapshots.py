"""The state of a training in memory, to and from state folders, for any number of processes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from deflect_hf.errors import CheckpointError, DataError
from deflect_hf.training import states
from deflect_hf.training.sharding import load_optimizer_state, whole
from deflect_hf.training.states import Progress

logger = logging.getLogger(__name__)


@dataclass
class Snapshots:
    """Takes snapshots of what a training changes, and goes back to them.

    Attributes:
        model: the model itself, not its distributed wrapper.
        fixed: what must not change when a run goes on, or its batches would be others.
        keep: how many of the newest state folders are kept.
    """

    accelerator: Accelerator
    work_dir: Path
    model: nn.Module
    optimizer: AcceleratedOptimizer
    scheduler: LRScheduler
    fixed: Mapping[str, Any]
    keep: int

    def save(self, progress: Progress) -> None:
        """Write ``checkpoints/step-N`` and remove older ones; every process has to call it, the first one writes.

        If the disk is full, this is said, the checkpoints before stay, and the training goes on.

        Raises:
            DataError: the weights are not finite.
        """
        trained = whole(states.trained_state(self.model))
        if not all(bool(tensor.isfinite().all()) for tensor in trained.values()):
            raise DataError(f"the weights are not finite after step {progress.step}: lower the learning rate.")
        scaler = self.accelerator.scaler
        training = {
            "optimizer": whole(self.optimizer.state_dict()),
            "schedule": self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "random": gather_object([states.random_state(self.accelerator.device)]),
        }
        if not self.accelerator.is_main_process:
            return
        told = {**dataclasses.asdict(progress), **self.fixed}
        try:
            states.write_state(self.work_dir, progress.step, told, trained, training)
        except OSError as error:
            kept = states.states(self.work_dir)
            logger.warning(
                "the checkpoint of step %d could not be written (%s); the last one is %s",
                *(progress.step, error, kept[-1] if kept else "none"),
            )
        else:
            states.keep_newest(self.work_dir, self.keep)

    def load(self, folder: Path) -> Progress:
        """Go back to a state folder, of this run or of another with the same settings.

        Raises:
            CheckpointError: it is broken, or belongs to a run with other settings.
        """
        told, trained, training = states.read_state(folder)
        try:
            differing = {name: value for name, value in self.fixed.items() if told.pop(name) != value}
            progress = Progress(**told)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{folder}: {states.PROGRESS} is of another version: {error}; start anew") from error
        if differing:
            listed = ", ".join(f"{name} {value}" for name, value in differing.items())
            raise CheckpointError(f"{folder} belongs to a run with other settings than this one's {listed}")
        states.load_trained_state(self.model, trained, folder)
        self._refuse_other_settings(training["optimizer"], folder)
        load_optimizer_state(self.optimizer, training["optimizer"])
        self.scheduler.load_state_dict(training["schedule"])
        if self.accelerator.scaler is not None and training["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(training["scaler"])
        drawn, device = training["random"][self.accelerator.process_index], self.accelerator.device
        if ("device" in drawn) != (device.type != "cpu"):
            logger.warning("%s was written on another kind of device than this %s: rounding differs", folder, device)
        states.set_random_state(drawn, device)
        return progress

    def _refuse_other_settings(self, stored: Mapping[str, Any], folder: Path) -> None:
        """The optimizer goes on with its own settings: those of this run would do nothing (CheckpointError)."""
        then, now = (_settings(groups) for groups in (stored["param_groups"], self.optimizer.param_groups))
        differing = [name for name in now if then[name] != now[name]]
        if differing:
            named = ", ".join(f"{name} {then[name]}, not {now[name]}" for name in differing)
            raise CheckpointError(
                f"{folder}: the run's segmentor.optimizer was {named}: resume with the same, or start anew"
            )


def _settings(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the optimizer was told, by the names of the configuration."""
    decayed, last = groups[0], groups[-1]
    return {
        "lr": decayed["initial_lr"],
        "betas": list(decayed["betas"]),
        "weight_decay": decayed["weight_decay"],
        "decay_vectors": decayed is last,
    }
