"""The rows of a benchmark, and the file of each of their finished runs: what was trained, and what it took."""

from __future__ import annotations

import datetime
import itertools
import json
import re
import statistics
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import nn

from deflect_hf import __version__
from deflect_hf.artifacts.saved_model import CONFIG, result_folder
from deflect_hf.config.compose import plain
from deflect_hf.config.run import EncoderArguments, RunArguments, SegmentorArguments
from deflect_hf.config.yaml import read_yaml, yaml_value
from deflect_hf.data import load_dataset_splits
from deflect_hf.errors import ConfigError, listing, nearest
from deflect_hf.files import LOG, write_json
from deflect_hf.methods import adapt, extra_bands, method_options
from deflect_hf.models.base import EncoderWithHead
from deflect_hf.models.encoders import with_encoder_size

# name of the row -> type of the model, and its options with the fields that they set
RIVALS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "pixel": ("deflect_pixel_mlp", {"width": "hidden_size", "layers": "hidden_layers"}),
    "unet": ("deflect_unet", {"width": "hidden_size", "levels": "levels"}),
}


def rival_options(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the rival's configuration (ConfigError)."""
    _, known = RIVALS[method]
    for name, value in options.items():
        if name not in known:
            raise ConfigError(
                f"{name} is no option of the row {method!r}; it has {listing(known)}.{nearest(name, known)}"
            )
        if type(value) is not int or value < 1:
            raise ConfigError(f"the row {method!r}: {name}={value!r} must be a whole number from 1 on.")
    return {known[name]: value for name, value in options.items()}


def rival_config(config: RunArguments, method: str, options: Mapping[str, Any]) -> RunArguments:
    """The configuration of a run that trains the rival in place of encoder, adapter and head, with the same images.

    Args:
        config: of the other rows, with their encoder, whose size crops and windows may have.
    """
    config = with_encoder_size(config)
    images = next(iter(load_dataset_splits(config.dataset).values()))
    fields = {"model_type": RIVALS[method][0], "num_channels": len(images.bands), **rival_options(method, options)}
    encoder = EncoderArguments(random=fields, random_seed=config.seed, base_bands=list(images.bands))
    former = config.segmentor
    segmentor = SegmentorArguments(
        pooling="mean" if images.task == "classification" else None,
        window=former.window,
        loss=former.loss,
        optimizer=former.optimizer,
        scheduler=former.scheduler,
    )
    return config.replace(finetune="full", method={}, encoder=encoder, segmentor=segmentor)


RGB = ("R", "G", "B")
SEGMENTOR = ("head", "channels", "zoom")  # what a row may say in place of the benchmark's segmentor
INTERVAL_SECONDS = 0.2


@dataclass(frozen=True)
class Row:
    """`deflect`, `lora:rank=8,target=qv` or `peft:VeraConfig:r=64,target=qv`: a method's name, then its options.

    `head=unet`, `channels=24` or `zoom=2` among the options of any method replaces that of the benchmark's segmentor.
    `pixel` and `unet` are networks without a pretrained encoder, see :mod:`deflect_hf.benchmark.runs`.
    """

    text: str
    method: str
    options: Mapping[str, Any] = field(hash=False)
    segmentor: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def parse(cls, text: str) -> Row:
        """Read a row (ConfigError: the method or an option is unknown, or an option has no value)."""
        method, _, rest = text.partition(":")
        if method == "peft":
            name, _, rest = rest.partition(":")
            method = f"peft:{name}"
        options: dict[str, Any] = {}
        # Commas inside brackets belong to a list: layers_to_transform=[4,5].
        for item in filter(None, re.split(r",(?![^\[]*\])", rest)):
            name, equals, value = item.partition("=")
            if not equals:
                raise ConfigError(f"the row {text!r}: {item!r} has no value; write {name}=VALUE.")
            options[name.strip()] = yaml_value(value, "--rows")
        segmentor = {name: options.pop(name) for name in SEGMENTOR if name in options and method not in RIVALS}
        (rival_options if method in RIVALS else method_options)(method, options)
        return cls(text, method, options, segmentor)

    @property
    def sees_all_bands(self) -> bool:
        """Whether the method looks at more than the encoder's own bands."""
        return self.method in ("deflect", *RIVALS) or self.options.get("patch_embed", "frozen") != "frozen"

    def adapt(self, model: EncoderWithHead, bands: Sequence[str]) -> nn.Module:
        """Adapt a model of R, G, B whose speed is all that matters: the statistics of its bands are made up."""
        if self.segmentor:
            name = next(iter(self.segmentor))
            raise ConfigError(f"the row {self.text!r}: here the encoder alone is measured: leave {name} out.")
        base: dict[str, Any] = {"base_mean": [0.1] * 3, "base_std": [0.1] * 3}
        if self.options.get("patch_embed", "frozen") != "frozen":
            base |= dict.fromkeys(("extra_mean", "extra_std"), [0.1] * len(extra_bands(bands, RGB)))
        return adapt(model, self.method, bands=bands, base_bands=RGB, **base, **self.options)


def file_name(row: str) -> str:
    """A row as the name of a file."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", row).strip("_")


class RunFiles(NamedTuple):
    """Where a benchmark keeps one of its runs."""

    result: Path  # says that the run is finished
    folder: Path  # as train.py leaves it
    lock: Path  # held by the process that trains it

    @classmethod
    def of(cls, output: Path, name: str) -> RunFiles:
        """Those of a run in an output."""
        runs = output / "runs"
        return cls(output / "rows" / f"{name}.json", runs / name, runs / f"{name}.lock")


def read(files: RunFiles, config: RunArguments) -> dict[str, Any] | None:
    """The results of a finished run, None where there are none (ConfigError)."""
    if not files.result.is_file():
        return None
    stored: dict[str, Any] = json.loads(files.result.read_text(encoding="utf-8"))
    try:  # keys that came later had their defaults then
        same = settings(RunArguments.from_values(stored["config"], {})) == settings(config)
    except ConfigError:  # a key of then that is gone
        same = False
    if stored["version"] != __version__ or not same:
        raise ConfigError(
            f"{files.result} was made by another configuration: give another --output, or remove the file."
        )
    return stored


def write(files: RunFiles, row: Row, config: RunArguments, results: Mapping[str, Any]) -> dict[str, Any]:
    """Say that a run is finished, and with what; returns what was written."""
    best = result_folder(files.folder)
    record = {
        **results,
        "row": row.text,
        "lr": config.segmentor.optimizer.lr,
        "version": __version__,
        "config": settings(config),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "bytes": sum(file.stat().st_size for file in best.glob("*.safetensors")),
        "bands": seen_bands(best, row),
        "seconds_per_step": step_seconds(files.folder / LOG) or results["seconds"] / results["steps"],
    }
    store(files, record)
    return record


def store(files: RunFiles, record: Mapping[str, Any]) -> None:
    """Write the file of a finished run."""
    files.result.parent.mkdir(parents=True, exist_ok=True)
    write_json(files.result, record)


def settings(config: RunArguments) -> Any:
    """A configuration as it is in a JSON file, without the folders that a machine keeps its data and encoders in."""
    values = json.loads(json.dumps(plain(config)))
    for group, key in (("dataset", "root"), ("encoder", "name_or_path")):
        path = values[group][key]
        if path is not None and Path(path).is_absolute():
            values[group][key] = Path(path).name
    return values


def step_seconds(log: Path) -> float | None:
    """Median time of a step between two lines of a run's log, without validations; None for fewer than three."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    times = [
        (after["seconds"] - before["seconds"]) / (after["step"] - before["step"])
        for before, after in itertools.pairwise(lines)
        if "lr" in before and "lr" in after
    ]
    return statistics.median(times) if len(times) >= 3 else None


def seen_bands(best: Path, row: Row) -> str:
    """Which bands the method looks at: `RGB`, `all 7`, or `2 of 7`."""
    base = read_yaml(best / CONFIG)["encoder"]["base_bands"]
    count = len(json.loads((best / "preprocessor_config.json").read_text(encoding="utf-8"))["bands"])
    if row.sees_all_bands or len(base) == count:
        return f"all {count}"
    return "RGB" if tuple(base) == RGB else f"{len(base)} of {count}"


class MemoryMonitor:
    """Watches the memory of this process from its ``with`` to the end of the block, in a thread of its own.

    On a GPU, it is what torch holds there; otherwise it is the resident memory of this process, Python and its
    libraries and what runs before it left behind included, processes of the data loader not.
    """

    def __init__(self) -> None:
        self._samples: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryMonitor:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        over = False
        while not over:
            self._samples.append(held_bytes())
            over = self._stop.wait(INTERVAL_SECONDS)

    def result(self) -> dict[str, Any]:
        """``of`` (gpu or process), ``peak_bytes``, ``mean_bytes``."""
        gpu = torch.cuda.is_available()
        peak = torch.cuda.max_memory_allocated() if gpu else max(self._samples)
        mean = round(statistics.fmean(self._samples))
        return {"of": "gpu" if gpu else "process", "peak_bytes": peak, "mean_bytes": mean}


def held_bytes() -> int:
    """Memory held now: of the GPU by torch, or by this process."""
    return int(torch.cuda.memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss)
