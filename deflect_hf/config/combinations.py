"""Keys that do nothing beside others: set, they would look as if they did, so they are refused. One table.

Readers of data sets have such a table of their own, in ``config/readers.py``; the options of a method are its own.
Importing this file needs neither torch nor PEFT.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deflect_hf.config.readers import dataset_spec
from deflect_hf.config.run import RunArguments
from deflect_hf.errors import ConfigError


@dataclass(frozen=True)
class Setting:
    """A configuration, and the task of its data set, None where only the opened data set tells it."""

    config: RunArguments
    task: str | None


@dataclass(frozen=True)
class Rule:
    """Keys that are looked at only where ``used`` holds; ``why`` ends the complaint about one that was set."""

    keys: tuple[str, ...]
    used: Callable[[Setting], bool]
    why: Callable[[Setting], str]


def _of_task(task: str, *keys: str) -> Rule:
    return Rule(keys, lambda s: s.task in (None, task), lambda s: f"is for {task}, but the data set's task is {s.task}")


def _of_head(heads: tuple[str, ...], *keys: str) -> Rule:
    return Rule(
        keys,
        lambda s: s.config.segmentor.head in heads,
        lambda s: f"is for segmentor.head {', '.join(heads)}, but that is {s.config.segmentor.head}",
    )


RULES = (
    _of_task("classification", "segmentor.pooling"),
    _of_task("segmentation", "segmentor.auxiliary_loss", "segmentor.window", "augmentation.focus_crop"),
    _of_head(("mlp", "conv", "upernet", "pixel"), "segmentor.channels"),
    _of_head(("upernet",), "segmentor.auxiliary_loss"),
    Rule(
        ("segmentor.loss.class_weights", "segmentor.loss.label_smoothing", "segmentor.auxiliary_loss"),
        lambda s: s.config.segmentor.loss.cross_entropy > 0,
        lambda s: "belongs to the cross-entropy, but segmentor.loss.cross_entropy is 0",
    ),
    Rule(
        ("segmentor.scheduler.milestones", "segmentor.scheduler.gamma"),
        lambda s: s.config.segmentor.scheduler.name == "multistep",
        lambda s: f"is for segmentor.scheduler.name multistep, but that is {s.config.segmentor.scheduler.name}",
    ),
    Rule(
        ("segmentor.optimizer.decay_vectors",),
        lambda s: s.config.segmentor.optimizer.weight_decay > 0,
        lambda s: "says what decays, but segmentor.optimizer.weight_decay is 0",
    ),
    Rule(
        ("encoder.random_seed",),
        lambda s: s.config.encoder.random is not None,
        lambda s: "is for encoder.random, but the encoder is loaded from encoder.name_or_path",
    ),
    Rule(
        ("dataset.fold",),
        lambda s: s.config.dataset.num_folds is not None,
        lambda s: "chooses one of dataset.num_folds, but that is null",
    ),
    Rule(
        ("cache_prefix",),
        lambda s: s.config.finetune == "deflect",
        lambda s: f"keeps what enters the first deflected block, but finetune is {s.config.finetune}",
    ),
    Rule(
        ("overwrite",),
        lambda s: s.config.resume_from is None,
        lambda s: "replaces the run that resume_from continues",
    ),
)


def refuse_idle_keys(config: RunArguments, task: str | None = None) -> None:
    """Refuse a key that was set to something else than its default and that this configuration would not look at.

    Args:
        task: that of the data set, once it is open.

    Raises:
        ConfigError: naming the key and why it does nothing.
    """
    setting = Setting(config, task or _told_task(config))
    for rule in RULES:
        for key in () if rule.used(setting) else rule.keys:
            default = _default(key)
            if _value(config, key) != default:
                shown = "null" if default is None else str(default).lower()
                raise ConfigError(f"{key} {rule.why(setting)}: leave it at its default, {shown}")


def _told_task(config: RunArguments) -> str | None:
    return config.dataset.task or dataset_spec(config.dataset.name).task


def _value(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def _default(key: str) -> Any:
    schema: Any = RunArguments
    *groups, last = key.split(".")
    for group in groups:
        schema = {item.name: item for item in dataclasses.fields(schema)}[group].default_factory
    return {item.name: item for item in dataclasses.fields(schema)}[last].default
