"""Names of the official command line (early pangaea-bench) that are spelt otherwise here, and what they mean.

Source: run.py and configs/run/default.yaml of pangaea-bench between 20 August and 16 September 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from deflect_hf.errors import ConfigError


@dataclass(frozen=True)
class Alias:
    """Another name for a key: the ``key``, its help, and the key's value for a value of the alias."""

    key: str
    help: str
    value: Callable[[Any], Any]


def _share(value: Any) -> Any:
    return 1.0 if value == -1 else value


def _tracker(value: Any) -> Any:
    return value if not isinstance(value, bool) else ["wandb"] if value else []


ALIASES: Mapping[str, Alias] = MappingProxyType(
    {
        "limited_label": Alias("dataset.limited_label", "short for --dataset.limited_label; -1: all labels", _share),
        "use_wandb": Alias("tracker", "short for --tracker wandb", _tracker),
    }
)
LAUNCHER = ("rank", "local_rank", "world_size", "local_world_size")


def refuse_official_key(key: str, origin: str) -> None:
    """Say of a key of the official code that has no counterpart in a configuration what to do instead.

    Raises:
        ConfigError: ``key`` is one of these.
    """
    if key == "eval_dir":
        raise ConfigError(f"{origin}: 'eval_dir' evaluates a run that is trained: give it alone, without 'config'")
    if key in LAUNCHER:
        rank = " (the rank of an adapter is --method.rank)" if key == "rank" else ""
        raise ConfigError(
            f"{origin}: {key!r} is set by accelerate, leave it out: "
            f"accelerate launch --num_processes N train.py ...{rank}"
        )
