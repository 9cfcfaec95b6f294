"""The data sets by name, and which keys of the configuration each looks at.

Nothing lists them: each is a file of ``deflect_hf/data/sets``, which is looked up by its name when it is asked for.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from deflect_hf.errors import ConfigError, listing, nearest

SETS = "deflect_hf.data.sets"
SPLIT_FILES = ("train_split", "val_split", "test_split")
EVERY = frozenset({"name", "bands", "unit_check", "image_size", "limited_label", "seed"})  # what all data sets look at


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """What is known of a data set before it is opened.

    Attributes:
        name: What ``dataset.name`` calls it.
        title: What messages call it.
        task: ``"classification"`` or ``"segmentation"``; None where only the opened data set or ``dataset.task`` tells.
        keys: Keys of the configuration that it looks at, besides :data:`EVERY`.
    """

    name: str
    title: str
    task: str | None
    keys: frozenset[str] = frozenset()
    public = False


def dataset_names() -> list[str]:
    """What ``dataset.name`` can be."""
    files = pkgutil.iter_modules(importlib.import_module(SETS).__path__)
    return sorted(file.name.replace("_", "-") for file in files)


def dataset_module(name: str) -> ModuleType:
    """The file of a data set: its ``DATASET``, a :class:`DatasetSpec`, and its ``load(args, processor)``."""
    names = dataset_names()
    if name not in names:
        raise ConfigError(f"Unknown data set {name!r}: choose one of {listing(names)}.{nearest(name, names)}")
    return importlib.import_module(f"{SETS}.{name.replace('-', '_')}")


def dataset_spec(name: str) -> DatasetSpec:
    """What is known of a data set before it is opened."""
    spec: DatasetSpec = dataset_module(name).DATASET
    return spec


def keys_of_reader(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Those of the ``DatasetArguments`` in ``values`` that the data set ``name`` looks at."""
    used = EVERY | dataset_spec(name).keys
    return {key: value for key, value in values.items() if key in used}


def refuse_unused(args: Any) -> None:
    """Refuse a key of ``DatasetArguments`` that was set and that the chosen data set would not look at."""
    used = EVERY | dataset_spec(args.name).keys
    for key, field in type(args).model_fields.items():
        if key not in used and getattr(args, key) != field.default:
            raise ConfigError(
                f"`{key}` does nothing for the data set {args.name!r}: remove it. It is for {_users(key)}."
            )


def _users(key: str) -> str:
    """The data sets that look at a key, in words."""
    specs = [dataset_spec(name) for name in dataset_names()]
    users = [spec for spec in specs if key in spec.keys]
    if all(spec in users for spec in specs if spec.public):
        return ", ".join([*(repr(spec.name) for spec in users if not spec.public), "the public data sets"])
    return listing([spec.name for spec in users])
