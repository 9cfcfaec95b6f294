"""Files that anybody may have written: which are accepted, how large, how deep, before anything is made of them.

Weights come as safetensors only, which hold numbers and nothing else; configurations are read with limits that real
ones stay far below. What the entries mean is checked in :mod:`deflect_hf.hub.check`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub.utils import filter_repo_objects
from safetensors import SafetensorError, safe_open

from deflect_hf.artifacts.saved_model import RESULTS
from deflect_hf.errors import CheckpointError, listing, nearest

CONFIGS = ("config.json", "config.yaml", "adapter_config.json", "preprocessor_config.json")
ENCODER = "encoder"
TRAINED = ("adapter_model.safetensors", "head.safetensors", "model.safetensors")
MODEL_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
# What is fetched of a trained model, and of an encoder.
ENCODER_FILES = ("config.json", *MODEL_WEIGHTS)
TRAINED_FILES = (*CONFIGS, RESULTS, *TRAINED, *MODEL_WEIGHTS, *(f"{ENCODER}/{name}" for name in ENCODER_FILES))
# Entries through which a configuration makes transformers import or download something.
CODE_KEYS = ("auto_map", "custom_pipelines", "quantization_config", "trust_remote_code")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")

# The largest adapter_config.json of the catalogue (all indices of 13 bands) has 60 kB, a config.yaml 4 kB.
MAX_CONFIG_BYTES = 1_000_000
MAX_YAML_BYTES = 100_000
MAX_RESULTS_BYTES = 64_000_000  # two confusion matrices of 1000 classes have 30 MB
MAX_DEPTH = 12
MAX_VALUES = 100_000
MAX_CHARACTERS = 4_000
MAX_INTEGER = 2**53

PATH = re.compile(r"\s*(?:/|\\|~|[A-Za-z]:[\\/]|file:)|(?:.*[\\/])?\.\.(?:[\\/]|$)", re.DOTALL)


def check_trained_listing(where: str, sizes: Mapping[str, int]) -> None:
    """Refuse a repository or folder that is no trained model, holds it as pickles, or has huge configurations.

    ``sizes``: names of its files, and how many bytes they have. A CheckpointError names what is missing or too large.
    """
    _check_sizes(where, sizes)
    if not any(name in sizes for name in (*TRAINED, MODEL_WEIGHTS[1])):
        raise CheckpointError(f"{where} holds no {' or '.join(TRAINED)}{_pickles(sizes)}")
    missing = [name for name in ("config.json", "config.yaml", "preprocessor_config.json") if name not in sizes]
    if missing:
        raise CheckpointError(
            f"{where} lacks {listing(missing)}: it was not pushed as a trained run, and does not say how images are to "
            "be read for it. If it is an adapter alone, make its base model and use PeftModel.from_pretrained(base, "
            "...)."
        )


def check_encoder_listing(where: str, sizes: Mapping[str, int]) -> None:
    """The same for an encoder in safetensors."""
    _check_sizes(where, sizes)
    if "config.json" not in sizes:
        raise CheckpointError(f"{where} is no encoder of transformers: it has no config.json.")
    if not any(name in sizes for name in MODEL_WEIGHTS[:2]):
        raise CheckpointError(f"{where} holds no {' or '.join(MODEL_WEIGHTS[:2])}{_pickles(sizes)}")


def _check_sizes(where: str, sizes: Mapping[str, int]) -> None:
    """Of the configurations alone: weights are as large as they are, and are not read into memory to be looked at."""
    if sizes.get(RESULTS, 0) > MAX_RESULTS_BYTES:
        raise CheckpointError(
            f"{where}: {RESULTS} has {sizes[RESULTS]:,} bytes; scores have at most {MAX_RESULTS_BYTES:,}."
        )
    for name in filter_repo_objects(sizes, allow_patterns=["*.json", "*.yaml"]):
        if PurePosixPath(name).name in (*CONFIGS, MODEL_WEIGHTS[1]) and sizes[name] > MAX_CONFIG_BYTES:
            raise CheckpointError(
                f"{where}: {name} has {sizes[name]:,} bytes; a configuration has at most {MAX_CONFIG_BYTES:,}."
            )


def _pickles(sizes: Mapping[str, int]) -> str:
    """The end of a sentence about missing weights: whether they are there in a form that is not opened."""
    found = sorted(name for name in sizes if PurePosixPath(name).suffix in PICKLES)
    if not found:
        return ": there is nothing to load."
    return (
        f", only {listing(found[:4])}: such a file may run any program when it is opened, so it is not. Ask its author "
        "for safetensors."
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, within the limits (CheckpointError)."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key is given twice")
        return dict(pairs)

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no number of JSON")

    content = _read(
        path, MAX_CONFIG_BYTES, lambda text: json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    )
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected an object, found {type(content).__name__}.")
    for number, (key, value, depth) in enumerate(walk(content)):
        if number > MAX_VALUES or depth > MAX_DEPTH:
            raise CheckpointError(f"{path} holds more than {MAX_VALUES:,} values or {MAX_DEPTH} levels.")
        texts = [text for text in (value if isinstance(value, dict) else [value]) if isinstance(text, str)]
        if any(len(text) > MAX_CHARACTERS for text in texts):
            raise CheckpointError(f"{path}: {key[:80]!r} is longer than {MAX_CHARACTERS} characters.")
        if (isinstance(value, int) and abs(value) > MAX_INTEGER) or value in (math.inf, -math.inf):
            raise CheckpointError(f"{path}: {key[:80]!r} is a number that no setting is.")
    return content


def check_yaml(path: Path) -> None:
    """Refuse a YAML file that is too large, or has aliases, which unfold to any size as it is read (CheckpointError).

    All else is looked at when it is read as a configuration.
    """

    def parsed(text: str) -> None:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ValueError("it holds an alias (*name); write the value out")

    _read(path, MAX_YAML_BYTES, parsed)


def _read(path: Path, limit: int, parse: Callable[[str], Any]) -> Any:
    try:
        size = path.stat().st_size
        if size > limit:
            raise CheckpointError(f"{path} has {size:,} bytes; a configuration has at most {limit:,}.")
        return parse(path.read_text(encoding="utf-8"))
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}.") from error


def walk(content: Any) -> Iterator[tuple[str, Any, int]]:
    """Dotted key, value and depth of everything in a nested mapping, without recursion."""
    waiting = [("", content, 0)]
    while waiting:
        name, value, depth = waiting.pop()
        yield name, value, depth
        if isinstance(value, dict):
            waiting += [(f"{name}.{inner}".lstrip("."), item, depth + 1) for inner, item in value.items()]
        elif isinstance(value, list):
            waiting += [(name, item, depth + 1) for item in value]


def is_path(value: Any) -> bool:
    """Whether a text is a path on some machine: absolute, below a home, or climbing out of its folder."""
    return isinstance(value, str) and PATH.match(value) is not None


def check_keys(path: Path, entries: Mapping[str, Any], known: set[str], kind: str) -> None:
    """Refuse entries that ``kind`` does not have, above all those that ask for code (CheckpointError)."""
    for key in entries:
        if key in CODE_KEYS:
            raise CheckpointError(needs_code(path, key))
        if key not in known:
            raise CheckpointError(f"{path}: unknown entry {key!r:.80} for {kind}.{nearest(key, known)}")


def needs_code(path: Path, key: str) -> str:
    """The sentence about an entry that asks for foreign code."""
    return (
        f"{path}: {key!r} asks for code that is not part of transformers, PEFT or deflect_hf (trust_remote_code): it "
        "is not run. Use a model that transformers builds by itself."
    )


def tensor_shapes(paths: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in safetensors files, from their headers alone (CheckpointError)."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                shapes.update({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: is no whole safetensors file: {error}.") from error
    return shapes
