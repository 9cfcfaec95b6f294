"""What a run writes down as it goes: ``log.jsonl``, and the trackers of accelerate that were asked for."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from deflect_hf.config.run import RunArguments
from deflect_hf.errors import ConfigError
from deflect_hf.files import LOG, write_text

FOLDERS = {"tensorboard": "tensorboard", "wandb": "wandb"}  # in that of the run; trackio has one place for all runs
PROJECT = "deflect_hf"


def tracker_options(config: RunArguments, work_dir: Path) -> dict[str, Any]:
    """What an ``Accelerator`` is made with, to be followed by the run's trackers."""
    for name in config.tracker:  # accelerate would leave it out without a word
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"--tracker {name}: the package is not installed: pip install {name}")
    folders = ProjectConfiguration(project_dir=str(work_dir), logging_dir=str(work_dir / FOLDERS["tensorboard"]))
    return {"log_with": list(config.tracker) or None, "project_config": folders}


def start_trackers(accelerator: Accelerator, config: RunArguments, work_dir: Path, step: int) -> None:
    """Open the trackers, and tell them the configuration; what TensorBoard knows of later steps is forgotten."""
    if not config.tracker:
        return
    options: dict[str, dict[str, Any]] = {
        "tensorboard": {"purge_step": step + 1},
        "wandb": {"name": work_dir.name, "dir": str(work_dir)},
        "trackio": {"name": work_dir.name},
    }
    accelerator.init_trackers(PROJECT, config=dict(flat_settings(config)), init_kwargs=options)


def flat_settings(config: RunArguments) -> Iterable[tuple[str, bool | int | float | str]]:
    """Dotted keys and values of everything that is set; lists and mappings as JSON."""

    def walk(values: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, Mapping):
                yield from walk(value, f"{prefix}{key}.")
            elif value is not None:
                yield f"{prefix}{key}", value if isinstance(value, bool | int | float | str) else json.dumps(value)

    return walk(config.model_dump(), "")


class RunLog:
    """Lines of ``log.jsonl`` and the same numbers for the trackers; only the first process writes."""

    def __init__(self, accelerator: Accelerator, work_dir: Path) -> None:
        self.accelerator = accelerator
        self.path = work_dir / LOG

    def write(self, step: int, line: Mapping[str, Any], seconds: float) -> None:
        """Append a line: numbers of the training, or a mapping of numbers for each split that was scored."""
        self.track(step, line)
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **line, "seconds": round(seconds, 3)}) + "\n")

    def track(self, step: int, line: Mapping[str, Any]) -> None:
        """Tell the trackers alone: ``train/NAME`` for the training's numbers, ``SPLIT/NAME`` for those of a split."""
        values: dict[str, float] = {}
        for key, value in line.items():
            if isinstance(value, Mapping):
                values |= {f"{key}/{name}": score for name, score in value.items()}
            else:
                values[f"train/{key}"] = value
        self.accelerator.log(values, step=step)

    def drop_after(self, step: int, evaluated: int) -> None:
        """Forget what a run resumed at ``step``, last evaluated at another, writes again, and half written lines."""
        if self.accelerator.is_main_process and self.path.is_file():
            kept = []
            for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
                with contextlib.suppress(ValueError, KeyError):
                    logged = json.loads(line)
                    kept += [line] if logged["step"] <= (evaluated if "val" in logged else step) else []
            write_text(self.path, "".join(kept))


def finish_trackers(accelerator: Accelerator) -> None:
    """End the trackers alone: after DDP on gloo, `end_training` was seen to wait for ever for the process group."""
    for tracker in accelerator.trackers:
        tracker.finish()
