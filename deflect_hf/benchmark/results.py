"""The file of one finished run of a benchmark: by which configuration it was made, and what it took."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import itertools
import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deflect_hf import __version__
from deflect_hf.artifacts.saved_model import CONFIG, result_folder, write_json
from deflect_hf.benchmark.rows import RGB, Row
from deflect_hf.config.compose import plain
from deflect_hf.config.run import RunArguments
from deflect_hf.config.schema import leaves
from deflect_hf.config.yaml import read_yaml, yaml_text
from deflect_hf.errors import CheckpointError, ConfigError
from deflect_hf.training.trackers import LOG


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """Where a benchmark keeps one of its runs."""

    output: Path
    name: str

    @property
    def result(self) -> Path:
        """The file that says that the run is finished."""
        return self.output / "rows" / f"{self.name}.json"

    @property
    def folder(self) -> Path:
        """As train.py leaves it."""
        return self.output / "runs" / self.name

    @property
    def lock(self) -> Path:
        """Held by the process that trains it."""
        return self.output / "runs" / f"{self.name}.lock"


def digest(settings: Mapping[str, Any]) -> str:
    """Of a configuration as nested keys and values, with the version of this package."""
    return hashlib.sha256(f"{__version__}\n{yaml_text(settings)}".encode()).hexdigest()


def read(files: RunFiles, row: Row, config: RunArguments) -> dict[str, Any] | None:
    """The results of a finished run, None where there are none; what older files lack is told from the run's folder.

    Raises:
        ConfigError: they were made by another configuration.
    """
    if not files.result.is_file():
        return None
    stored: dict[str, Any] = json.loads(files.result.read_text(encoding="utf-8"))
    if not made_by(stored, files, config):
        raise ConfigError(
            f"{files.result} was made by another configuration: give another --output, or remove the file."
        )
    now = plain(config)
    return {**facts(files, row, stored), **stored, "config": now, "config_sha256": digest(now)}


def write(files: RunFiles, row: Row, config: RunArguments, results: dict[str, Any]) -> dict[str, Any]:
    """Say that a run is finished, and with what; returns what was written."""
    told = {
        **results,
        "row": row.text,
        "lr": config.segmentor.optimizer.lr,
        "config_sha256": digest(plain(config)),
        "config": plain(config),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "bytes": sum(file.stat().st_size for file in result_folder(files.folder).glob("*.safetensors")),
    }
    told |= facts(files, row, told)
    store(files, told)
    return told


def store(files: RunFiles, results: Mapping[str, Any]) -> None:
    """Write the file of a finished run."""
    files.result.parent.mkdir(parents=True, exist_ok=True)
    write_json(files.result, results)


def made_by(stored: Mapping[str, Any], files: RunFiles, config: RunArguments) -> bool:
    """Whether a run had this configuration. A key that did not exist then must have its default now.

    Which keys there were then is told by the file, or by the configuration in the run's folder.
    """
    now = plain(config)
    if stored["config_sha256"] == digest(now):
        return True
    then = stored.get("config")
    if then is None:
        then = read_yaml(files.folder / CONFIG) if (files.folder / CONFIG).is_file() else now
    defaults = {leaf.key: leaf.default for leaf in leaves(RunArguments)}
    known = dict(_flat(then, defaults))
    added = {key: value for key, value in _flat(now, defaults) if key not in known}
    unchanged = all(value == defaults[key] for key, value in added.items())
    return unchanged and stored["config_sha256"] == digest(_like(then, now, defaults))


def _flat(settings: Mapping[str, Any], keys: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        key = prefix + name
        if isinstance(value, Mapping) and key not in keys:
            yield from _flat(value, keys, f"{key}.")
        else:
            yield key, value


def _like(then: Mapping[str, Any], now: Mapping[str, Any], keys: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of ``now`` under the keys of ``then``, in their order."""
    found: dict[str, Any] = {}
    for name, value in then.items():
        if name in now:
            nested = isinstance(value, Mapping) and prefix + name not in keys
            found[name] = _like(value, now[name], keys, f"{prefix}{name}.") if nested else now[name]
    return found


def facts(files: RunFiles, row: Row, results: Mapping[str, Any]) -> dict[str, Any]:
    """What the run's folder tells, as far as it is there; memory and energy are unknown unless they were measured."""
    return {
        "seconds_per_step": step_seconds(files.folder / LOG) or results["seconds"] / results["steps"],
        "bands": seen_bands(files.folder, row),
        "memory": None,
        "energy_joules": None,
        **{key: results[key] for key in ("memory", "energy_joules") if key in results},
    }


def step_seconds(log: Path) -> float | None:
    """Median time of a step between two lines of a run's log, without validations; None for fewer than three."""
    if not log.is_file():
        return None
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    times = [
        (after["seconds"] - before["seconds"]) / (after["step"] - before["step"])
        for before, after in itertools.pairwise(lines)
        if "lr" in before and "lr" in after
    ]
    return statistics.median(times) if len(times) >= 3 else None


def seen_bands(folder: Path, row: Row) -> str:
    """Which bands the method looks at: `RGB`, `all 7`, or `2 of 7`; without the run's folder, `all` or `base`."""
    everything = row.method == "deflect" or row.options.get("patch_embed", "frozen") != "frozen"
    try:
        described = json.loads((result_folder(folder) / "preprocessor_config.json").read_text(encoding="utf-8"))
    except (CheckpointError, OSError):
        return "all" if everything else "base"
    base = read_yaml(folder / CONFIG)["encoder"]["base_bands"]
    count = len(described["bands"])
    if everything or len(base) == count:
        return f"all {count}"
    return "RGB" if tuple(base) == RGB else f"{len(base)} of {count}"
