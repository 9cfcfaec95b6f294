"""What a run needs to go on exactly where it stopped: ``checkpoints/step-N``, and the best model beside them.

A checkpoint holds the tensors that training changes, optimizer, schedule, gradient scaler and the random states of
every process (``training.pt``), the position in the epoch (``progress.json``), and one digest over both. Tensors are
whole, whatever the number of processes, and the first process writes the folder at once or not at all. Workers of data
loaders have no state: what they draw is a function of seed, epoch and image.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from deflect_hf.artifacts.saved_model import RESULTS
from deflect_hf.config.tasks import Task
from deflect_hf.errors import CheckpointError, DataError
from deflect_hf.files import PARTIAL, REPLACED, atomic_dir, recover, remove_folder, write_json, write_text

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
NAME = re.compile(r"step-(\d+)")
PROGRESS = "progress.json"
TRAINING = "training.pt"
DIGEST = "sha256"
LAST = "last"
BEST = "best"
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


@dataclass
class Progress:
    """How far a run is: ``batch`` batches of ``epoch`` and ``step`` optimizer steps are done."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_score: list[float] | None = None
    best_epoch: int | None = None
    best_step: int | None = None
    evaluated: int = 0  # the step of the last evaluation
    waited: int = 0  # evaluations since the best one
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.best_score, int | float):  # of an earlier version: the metric, without the loss
            self.best_score = [float(self.best_score)]


def step_of(folder: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(folder.name.removeprefix("step-"))


def list_checkpoints(work_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; not the copies that somebody may have made under other names."""
    found = [path for path in (work_dir / FOLDER).glob("step-*") if NAME.fullmatch(path.name)]
    return sorted((path for path in found if (path / PROGRESS).is_file()), key=step_of)


def write_checkpoint(work_dir: Path, progress: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    """Write ``checkpoints/step-N`` from what goes to ``progress.json`` and what ``torch.save`` takes."""
    with atomic_dir(work_dir / FOLDER / f"step-{progress['step']}") as folder:
        try:
            torch.save(dict(training), folder / TRAINING)
        except RuntimeError as error:  # torch reports a full disk as an error of its own
            raise OSError(str(error)) from error
        write_json(folder / PROGRESS, progress)
        write_text(folder / DIGEST, digest(folder))


def read_progress(folder: Path) -> Any:
    """What ``progress.json`` of a whole checkpoint holds."""
    return json.loads((folder / PROGRESS).read_text(encoding="utf-8"))


def digest(folder: Path) -> str:
    """One sha256 over the files of a checkpoint, its own name and those of the files included."""
    total = hashlib.sha256()
    for name in (PROGRESS, TRAINING):
        with (folder / name).open("rb") as file:
            total.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, None if every file is as it was written."""
    try:
        if digest(folder) != (folder / DIGEST).read_text(encoding="utf-8"):
            return f"{PROGRESS} and {TRAINING} are not as they were written"
        if NAME.fullmatch(folder.name) and step_of(folder) != read_progress(folder)["step"]:
            return f"it is of step {read_progress(folder)['step']}"
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def find_checkpoint(work_dir: Path, resume_from: str) -> Path | None:
    """The checkpoint that ``--resume_from last`` or ``--resume_from PATH`` means, whole.

    ``last`` is the newest one that is whole, None where the run was interrupted before its first.
    """
    if resume_from != LAST:
        named = Path(resume_from)
        if not (named / PROGRESS).is_file():
            raise CheckpointError(
                f"{named} is no checkpoint to resume from: it has no {PROGRESS}. Give 'last' or PATH."
            )
        found = damage(named)
        if found is not None:
            others = [str(path) for path in list_checkpoints(named.absolute().parent.parent) if damage(path) is None]
            fix = f"resume from {others[-1]}" if others else "no other checkpoint beside it is whole"
            raise CheckpointError(f"{named} is damaged: {found}; {fix}.")
        return named
    kept = list_checkpoints(work_dir)
    for folder in reversed(kept):
        found = damage(folder)
        if found is None:
            return folder
        if folder == kept[0]:
            raise CheckpointError(f"{folder} is damaged: {found}; no other is whole. Start anew with --overwrite.")
        logger.warning("%s is damaged (%s): the checkpoint before it is taken", folder, found)
    if (work_dir / RESULTS).is_file():
        raise CheckpointError(
            f"{work_dir} holds a finished run and no checkpoint to resume from. Fix: give another --work_dir, or "
            "replace the run with --overwrite and without --resume_from."
        )
    logger.warning("%s holds no checkpoint to resume from: the run starts from the beginning", work_dir / FOLDER)
    return None


def recover_checkpoints(work_dir: Path) -> None:
    """End what a killed run left half written, the best model too."""
    recover(work_dir / BEST)
    for path in list((work_dir / FOLDER).glob("step-*")):
        if path.suffix in (PARTIAL, REPLACED):
            recover(path.with_suffix(""))


def drop_checkpoints_after(work_dir: Path, step: int) -> None:
    """Remove checkpoints of later steps: from here on, ``last`` has to mean what this run writes."""
    later = [path for path in list_checkpoints(work_dir) if step_of(path) > step]
    if later:
        named = ", ".join(path.name for path in later)
        logger.warning("the run goes on from step %d: its later checkpoints are removed (%s)", step, named)
    for path in later:
        remove_folder(path)


@dataclass
class Checkpoints:
    """Writes the checkpoints of a training, and goes back to one."""

    accelerator: Accelerator
    work_dir: Path
    model: nn.Module  # the model itself, not its distributed wrapper
    optimizer: Optimizer
    scheduler: LRScheduler
    fixed: Mapping[str, Any]  # what must not change when a run goes on, or its steps would be others
    keep: int  # how many of the newest are kept
    also: Mapping[str, Any] = field(default_factory=dict)  # what each checkpoint keeps besides, JSON-able

    def save(self, progress: Progress, own: Mapping[str, Any]) -> None:
        """Write ``checkpoints/step-N`` and remove older ones; every process has to call it, the first one writes.

        If the disk is full, this is said, the checkpoints before stay, and the training goes on.

        Args:
            own: what this process keeps for itself, numbers and tensors.
        """
        if progress.step == 0:
            return  # nothing has changed
        trained = [parameter.detach() for parameter in self.model.parameters() if parameter.requires_grad]
        local = [parameter.to_local() if hasattr(parameter, "to_local") else parameter for parameter in trained]
        finite = all(bool(tensor.isfinite().all()) for tensor in local)
        device = self.accelerator.device
        processes = gather_object([{"random": random_state(device), "finite": finite, **own}])
        if not all(process["finite"] for process in processes):
            raise DataError(f"the weights are not finite after step {progress.step}: lower the learning rate.")
        model, optimizer = get_state_dict(self.model, self.optimizer, options=WHOLE)
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        training = {
            "model": model,
            "optimizer": optimizer,
            "schedule": self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "processes": processes,
        }
        try:
            write_checkpoint(
                self.work_dir, {**dataclasses.asdict(progress), "fixed": self.fixed, **self.also}, training
            )
        except OSError as error:
            kept = list_checkpoints(self.work_dir)
            logger.warning(
                "the checkpoint of step %d could not be written (%s); the last one is %s",
                *(progress.step, error, kept[-1] if kept else "none"),
            )
        else:
            for old in list_checkpoints(self.work_dir)[: -self.keep]:
                remove_folder(old)

    def load(self, folder: Path) -> tuple[Progress, dict[str, Any]]:
        """Go back to a checkpoint, of this run or of another with the same settings.

        Returns:
            How far it was, and what this process kept for itself.
        """
        stored = read_progress(folder)
        fixed = json.loads(json.dumps(self.fixed))
        differing = [
            f"{name} {stored['fixed'].get(name)}, not {value}"
            for name, value in fixed.items()
            if stored["fixed"].get(name) != value
        ]
        if differing:
            raise CheckpointError(
                f"{folder} is of a run with {', '.join(differing)}: resume with the same, or start anew"
            )
        training = torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
        model, own = training["model"], self.model.state_dict()
        needed = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        unfit = [n for n in needed | model.keys() if not (n in model and n in own and model[n].shape == own[n].shape)]
        if unfit:
            raise CheckpointError(
                f"{folder} does not fit this run: {len(unfit)} tensors differ, first {min(unfit)!r}. "
                "Resume with the configuration that the run was started with."
            )
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=model,
            optim_state_dict=training["optimizer"],
            options=dataclasses.replace(WHOLE, cpu_offload=False, strict=False),
        )
        self.scheduler.load_state_dict(training["schedule"])
        if self.accelerator.scaler is not None and training["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(training["scaler"])
        process, device = training["processes"][self.accelerator.process_index], self.accelerator.device
        if ("device" in process["random"]) != (device.type != "cpu"):
            logger.warning("%s was written on another kind of device than this %s: rounding differs", folder, device)
        set_random_state(process["random"], device)
        known = {item.name for item in dataclasses.fields(Progress)}
        return Progress(**{name: value for name, value in stored.items() if name in known}), process


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every random generator of this process, as plain numbers and tensors."""
    array = np.random.get_state(legacy=False)  # noqa: NPY002 - libraries may draw from the global one
    array["state"]["key"] = array["state"]["key"].tolist()
    state = {"python": random.getstate(), "numpy": array, "torch": torch.get_rng_state()}
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put back what ``random_state`` gave; the device's generator stays as it is if that was on the CPU."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"])


def kept_best(work_dir: Path, checkpoint: Path, progress: Progress, task: Task) -> Path | None:
    """The folder of the model that ``progress``, read from ``checkpoint``, calls the best; None if it is kept nowhere.

    It is in ``work_dir``, or in the run that wrote ``checkpoint``. In ``work_dir`` it may also be one of a step after
    ``checkpoint``: the run comes to that model again, and it has beaten the one of ``progress``.
    """

    def when_and_score(folder: Path) -> tuple[int | None, int, list[float]] | None:
        try:
            results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
            return results.get("best_step"), results["best_epoch"], task.preference(results["val"])
        except (OSError, ValueError, KeyError):
            return None

    own, run = work_dir / BEST, checkpoint.absolute().parent.parent
    found = when_and_score(own)
    if found is not None and ((found[0] or 0) > progress.step or found[1] > progress.epoch):
        return own
    wanted = progress.best_score or []
    for folder in (own, run / BEST, run / (BEST + REPLACED)):
        found = when_and_score(folder)
        when = (progress.best_step, progress.best_epoch)
        if found is not None and found[:2] == when and found[2][: len(wanted)] == wanted:
            return folder
    return None
