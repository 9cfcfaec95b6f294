"""What a run needs to go on exactly where it stopped: its state folders, ``checkpoints/step-N``.

A state folder holds the tensors that training changes, optimizer, schedule, gradient scaler, the random states of every
process, the position in the epoch, and a checksum of each of these files. The first process writes it alone, whole or
not at all. Workers of data loaders have no state: what they draw is a function of seed, epoch and image.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deflect_hf.data.order import Rank, steps_of
from deflect_hf.errors import CheckpointError
from deflect_hf.files import PARTIAL, REPLACED, atomic_dir, recover, remove_folder, write_json
from deflect_hf.training.sharding import placed

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
NAME = re.compile(r"step-(\d+)")
PROGRESS = "progress.json"
TRAINED = "trained.safetensors"
TRAINING = "training.pt"  # optimizer, schedule, scaler, random states
LAST = "last"
# what reading a damaged state raises
BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RuntimeError, pickle.PickleError)


@dataclass
class Progress:
    """How far a run is: ``batch`` batches of ``epoch`` and ``step`` optimizer steps are done.

    Attributes:
        waited: Evaluations since the best one.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_score: float | None = None
    best_epoch: int | None = None
    waited: int = 0
    seconds: float = 0.0


def states(work_dir: Path) -> list[Path]:
    """The state folders of a run, oldest first; not the copies that somebody may have made under other names."""
    folder = work_dir / FOLDER
    found = [path for path in folder.glob("step-*") if NAME.fullmatch(path.name) and (path / PROGRESS).is_file()]
    return sorted(found, key=_named_step)


def _named_step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def write_state(
    work_dir: Path, step: int, told: Mapping[str, Any], trained: Mapping[str, Tensor], training: Mapping[str, Any]
) -> Path:
    """Write ``checkpoints/step-N``: ``told`` for ``progress.json``, tensors, and what ``torch.save`` takes.

    Raises:
        OSError: the disk is full, or not writable; what was there before is untouched.
    """
    target = work_dir / FOLDER / f"step-{step}"
    with atomic_dir(target) as folder:
        try:
            save_file({name: tensor.contiguous() for name, tensor in trained.items()}, folder / TRAINED)
            torch.save(dict(training), folder / TRAINING)
        except OSError:
            raise
        except Exception as error:  # both libraries report a full disk as an error of their own
            raise OSError(str(error)) from error
        files = {name: _fingerprint(folder / name) for name in (TRAINED, TRAINING)}
        write_json(folder / PROGRESS, {**told, "files": files})
    return target


def keep_newest(work_dir: Path, count: int) -> None:
    """Remove all but the newest ``count`` state folders."""
    for old in states(work_dir)[:-count]:
        remove_folder(old)


def settle_states(work_dir: Path) -> None:
    """End what a killed run left half written."""
    for path in list((work_dir / FOLDER).glob("step-*")):
        if path.suffix in (PARTIAL, REPLACED):
            recover(path.with_suffix(""))


def drop_states_after(work_dir: Path, step: int) -> None:
    """Remove states of later steps, from which this run does not go on.

    They are named in a warning: from here on, ``last`` has to mean what this run writes.
    """
    later = [path for path in states(work_dir) if _named_step(path) > step]
    if later:
        named = ", ".join(path.name for path in later)
        logger.warning("the run goes on from step %d: its later checkpoints are removed (%s)", step, named)
    for path in later:
        remove_folder(path)


def damage(folder: Path) -> str | None:
    """What is wrong with a state folder, None if every file is as it was written."""
    try:
        told = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        for name in ("epoch", "batch", "step"):
            if type(told[name]) is not int or told[name] < 0:
                return f"{name} is {told[name]!r:.80} in {PROGRESS}"
        for name, expected in told["files"].items():
            if (folder / name).stat().st_size != expected["bytes"]:
                return f"{name} has {(folder / name).stat().st_size} bytes instead of {expected['bytes']}"
            if _fingerprint(folder / name) != expected:
                return f"{name} is not as it was written"
        return _contradiction(folder, told)
    except BROKEN as error:
        return f"{type(error).__name__}: {error}"


def _contradiction(folder: Path, told: Mapping[str, Any]) -> str | None:
    """What counts other steps than ``told`` says, None if everything agrees or ``told`` is of another version."""
    if not {"images", "batch_size", "accumulate", "processes"} <= told.keys():
        return None
    training = torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
    epoch, batch, accumulate = told["epoch"], told["batch"], told["accumulate"]
    per_epoch = steps_of(told["images"], told["batch_size"], accumulate, Rank(count=told["processes"]))
    counted = {
        f"epoch {epoch} and batch {batch}": epoch * per_epoch + -(-batch // accumulate),
        f"the schedule in {TRAINING}": training["schedule"]["last_epoch"],
        "the folder's name": _named_step(folder) if NAME.fullmatch(folder.name) else told["step"],
    }
    other = next((what for what, step in counted.items() if step != told["step"]), None)
    return None if other is None else f"step is {told['step']} in {PROGRESS}, but {counted[other]} by {other}"


def state_to_resume(work_dir: Path, resume_from: str) -> Path | None:
    """The state folder that ``--resume_from last`` or ``--resume_from PATH`` means.

    ``last`` is the newest one that is whole, None where the run was interrupted before its first.

    Raises:
        CheckpointError: there is no such run, or the folder at PATH is broken, or all of the run's are.
    """
    if resume_from != LAST:
        return _whole_state(Path(resume_from))
    require_run(work_dir, resume_from)
    kept = states(work_dir)
    for folder in reversed(kept):
        found = damage(folder)
        if found is None:
            return folder
        if folder == kept[0]:
            raise CheckpointError(f"{folder} is damaged: {found}; no other is whole. Start anew with --overwrite.")
        logger.warning("%s is damaged (%s): the checkpoint before it is taken", folder, found)
    logger.warning("%s holds no checkpoint to resume from: the run starts from the beginning", work_dir / FOLDER)
    return None


def require_run(work_dir: Path, resume_from: str | None) -> None:
    """Raise CheckpointError if ``last`` is to be resumed and there is no folder with a run."""
    if resume_from == LAST and not work_dir.is_dir():
        raise CheckpointError(f"{work_dir} is not there, so there is nothing to resume; start without --resume_from.")


def _whole_state(folder: Path) -> Path:
    if not (folder / PROGRESS).is_file():
        raise CheckpointError(f"{folder} is no checkpoint to resume from: it has no {PROGRESS}. Give 'last' or PATH.")
    found = damage(folder)
    if found is not None:
        others = [str(path) for path in states(folder.resolve().parent.parent) if damage(path) is None]
        fix = f"resume from {others[-1]}" if others else "no other checkpoint beside it is whole"
        raise CheckpointError(f"{folder} is damaged: {found}; {fix}.")
    return folder


def read_state(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """What ``write_state`` was given, on the CPU.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        told = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        del told["files"]
        training = torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
        return told, load_file(folder / TRAINED), training
    except Exception as error:
        raise CheckpointError(f"{folder}: cannot be read: {error}; resume from an earlier checkpoint") from error


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


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


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: trainable parameters and the buffers beside them (BatchNorm statistics of a head)."""
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    homes = {name.rpartition(".")[0] for name in trainable}
    buffers = {name for name, _ in model.named_buffers() if name.rpartition(".")[0] in homes}
    return {name: tensor for name, tensor in model.state_dict().items() if name in trainable | buffers}


def load_trained_state(model: nn.Module, state: Mapping[str, Tensor], where: Path) -> None:
    """Put back what ``trained_state`` gave; each process takes its share of tensors that are in shards.

    Raises:
        CheckpointError: the model trains other parameters than the checkpoint holds.
    """
    expected = trained_state(model)
    differing = sorted(
        name
        for name in expected.keys() | state.keys()
        if name not in state or name not in expected or state[name].shape != expected[name].shape
    )
    if differing:
        raise CheckpointError(
            f"{where} does not fit this run: {len(differing)} tensors differ, first {differing[0]!r}. "
            "Resume with the configuration that the run was started with."
        )
    model.load_state_dict({name: placed(tensor, expected[name]) for name, tensor in state.items()}, strict=False)
