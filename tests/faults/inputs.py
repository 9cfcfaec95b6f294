"""Small valid inputs of every kind, and places in which a fault damages copies of them."""

from __future__ import annotations

import functools
import importlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file

from deflect_hf.raster.write import write_raster

BANDS = ("B", "G", "R", "N")
SIDE = 16
SPLITS = {"train": range(4), "val": range(4, 6), "test": range(6, 8)}
ENCODER = {
    "model_type": "vit",
    "image_size": SIDE,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
RUN = {
    "epochs": 1,
    "eval_interval": 1,
    "log_interval": 1,
    "batch_size": 2,
    "num_workers": 0,
    "method": {"aux_dim": 8, "rank": 2},
}

Words = list[str]
Main = Callable[[Sequence[str]], None]
# what a user runs -> the module whose main(argv) it is
PROGRAMS = {
    "train.py": "train",
    "evaluate.py": "evaluate",
    "deflect-predict": "deflect_hf.inference.cli",
    "hub": "deflect_hf.hub.__main__",
    "figures": "deflect_hf.figures.__main__",
    "benchmark": "deflect_hf.benchmark.__main__",
    "pretrain": "deflect_hf.benchmark.pretrain",
    "conversion": "deflect_hf.models.geovit.conversion",
}


def main_of(program: str) -> Main:
    """The entry function of a program."""
    main: Main = importlib.import_module(PROGRAMS[program]).main
    return main


def quiet() -> None:
    """Drop the log handlers that entry functions add to each process."""
    logging.getLogger("deflect_hf").handlers.clear()


def write_segments(root: Path) -> Path:
    """Eight images a0 .. a7 of 16 x 16 pixels and four bands, reflectance x 10000, with masks and split files."""
    for index in range(8):
        write_raster(root / "images" / f"a{index}.tif", digital_numbers(index), descriptions=BANDS)
        write_raster(root / "masks" / f"a{index}.tif", mask_values(index))
    for split, members in SPLITS.items():
        (root / f"{split}.txt").write_text("".join(f"a{index}\n" for index in members))
    return root


def digital_numbers(seed: int, count: int = 4, side: int = SIDE) -> np.ndarray:
    """(count, side, side) int16."""
    return np.random.default_rng(seed).integers(300, 4000, (count, side, side)).astype(np.int16)


def mask_values(seed: int, side: int = SIDE) -> np.ndarray:
    """(1, side, side) uint8 of 0 and 1."""
    return np.random.default_rng([seed, 1]).integers(0, 2, (1, side, side)).astype(np.uint8)


def write_classes(root: Path) -> Path:
    """Six images of each of two classes, without band descriptions."""
    for rank, name in enumerate(("forest", "river")):
        for index in range(6):
            write_raster(root / name / f"{name}_{index}.tif", digital_numbers(10 * rank + index))
    return root


def dataset_keys(folder: Path, /, **changes: Any) -> dict[str, Any]:
    """The group `dataset` for :func:`write_segments`."""
    given = {"name": "folder", "root": str(folder), "scale": 1e-4, "classes": ["land", "water"]}
    return {key: value for key, value in {**given, **changes}.items() if value is not None}


@dataclass(frozen=True)
class Valid:
    """Inputs that work, made once: damaged are copies of them."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Valid:
        """Write data, then train on them once, with a checkpoint of a first and a last step."""
        valid = cls(folder)
        write_segments(folder / "segments")
        write_classes(folder / "classes")
        config = {**RUN, "dataset": dataset_keys(folder / "segments"), "encoder": {"random": ENCODER}}
        for name, method in (("run", "deflect"), ("frozen", "frozen"), ("full", "full")):
            options = {} if method == "deflect" else {"method": {}}
            path = folder / f"{name}.yaml"
            path.write_text(yaml.safe_dump({**config, **options, "finetune": method}))
            main_of("train.py")(["--config", str(path), "--work_dir", str(folder / name), "--ckpt_steps", "1"])
        quiet()
        return valid


@dataclass(frozen=True)
class Place:
    """A folder of its own for one fault, and what is copied into it."""

    folder: Path
    valid: Valid

    def copy(self, name: str) -> Path:
        """A copy of a valid input."""
        target = self.folder / name
        if not target.exists():
            shutil.copytree(self.valid.folder / name, target)
        return target

    @functools.cached_property
    def data(self) -> Path:
        """Images and masks."""
        return self.copy("segments")

    @functools.cached_property
    def run(self) -> Path:
        """A finished run of DEFLECT."""
        return self.copy("run")

    @functools.cached_property
    def encoder(self) -> Path:
        """The folder of an encoder."""
        shutil.copytree(self.valid.folder / "run" / "encoder", self.folder / "encoder")
        return self.folder / "encoder"

    def config(self, changes: dict[str, Any] | None = None, **dataset: Any) -> Path:
        """A run's configuration on `data`; ``changes`` are top-level keys, ``dataset`` those of the data set."""
        values = {
            **RUN,
            "work_dir": str(self.folder / "out"),
            "dataset": dataset_keys(self.data, **dataset),
            "encoder": {"random": ENCODER},
        }
        path = self.folder / "run.yaml"
        path.write_text(yaml.safe_dump({**values, **(changes or {})}))
        return path

    def train(self, *words: str, **dataset: Any) -> Words:
        """The words that train on `data`."""
        return ["--config", str(self.config(**dataset)), *words]

    def evaluate(self, *words: str, run: Path | None = None) -> Words:
        """The words that evaluate `run`."""
        return ["--eval_dir", str(run or self.run), "--panels", "0", *words]

    def predict(self, *words: str, scene: Path | str | None = None) -> Words:
        """The words that map a scene with `run`."""
        image = scene or self.valid.folder / "segments" / "images" / "a0.tif"
        return [str(image), str(self.folder / "map.tif"), "--adapter", str(self.run), *words]

    def resume(self, *words: str) -> Words:
        """The words that go on from the first checkpoint of `run`."""
        state = self.run / "checkpoints" / "step-1"
        config = {**yaml.safe_load((self.valid.folder / "run.yaml").read_text()), "work_dir": str(self.folder / "out")}
        (self.folder / "resumed.yaml").write_text(yaml.safe_dump(config))
        return ["--config", str(self.folder / "resumed.yaml"), "--resume_from", str(state), *words]


def cut(path: Path, share: float) -> None:
    """Keep only this share of a file's bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def junk(seed: int, size: int = 400) -> bytes:
    """Random bytes."""
    return np.random.default_rng(seed).bytes(size)


def change_json(path: Path, **changes: Any) -> None:
    """Set entries of a JSON file; ``...`` removes one."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def change_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Rewrite a safetensors file after ``change`` has worked on its tensors."""
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
