"""Keys that do nothing beside others: set, they would look as if they did, so they are refused."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

from deflect_hf.config.readers import dataset_spec
from deflect_hf.config.schema import Arguments, keys_of
from deflect_hf.config.tasks import TASKS, Task
from deflect_hf.errors import ConfigError


class Rule(NamedTuple):
    """Keys that are looked at only where ``used`` holds; ``why`` ends the complaint about one that was set.

    Both get the configuration and the task of its data set, None where only the opened data set has it.
    """

    used: Callable[[Any, Task | None], bool]
    why: str
    keys: tuple[str, ...]


def _tasks(holds: Callable[[Task], bool], *keys: str) -> Rule:
    users = ", ".join(name for name, task in TASKS.items() if holds(task))
    return Rule(
        lambda _, own: own is None or holds(own), f"is for {users}, but the data set's task is {{own.name}}", keys
    )


def _with(other: str, values: tuple[str, ...], *keys: str) -> Rule:
    why = f"is for {other} {', '.join(values)}, but that is {{run.{other}}}"
    return Rule(lambda run, _: attrgetter(other)(run) in values, why, keys)


def _weight(other: str, what: str, *keys: str) -> Rule:
    return Rule(lambda run, _: attrgetter(other)(run) > 0, f"{what}, but {other} is 0", keys)


RULES = (
    _tasks(lambda task: not task.dense, "segmentor.pooling"),
    _tasks(lambda task: task.dense, "segmentor.auxiliary_loss", "segmentor.window", "augmentation.focus_crop"),
    _tasks(
        lambda task: task.output == "class",
        *("segmentor.loss.class_weights", "segmentor.loss.label_smoothing", "metrics"),
        *("dataset.class_values", "dataset.ignore_index"),
    ),
    _tasks(
        lambda task: task.output != "value",
        *("segmentor.loss.focal", "segmentor.loss.dice", "segmentor.loss.tversky", "sampler", "dataset.classes"),
    ),
    _tasks(lambda task: task.output == "value", "dataset.target_unit"),
    _tasks(lambda task: task.output == "value" or task.name == "classification", "dataset.target"),
    _tasks(lambda task: task.dense, "dataset.ignore_values", "dataset.masks"),
    _tasks(lambda task: task.name == "segmentation", "dataset.class_colors"),
    _with("segmentor.head", ("mlp", "conv", "upernet", "pixel", "unet"), "segmentor.channels"),
    _with("segmentor.head", ("upernet", "pixel"), "segmentor.auxiliary_loss"),
    _with("segmentor.scheduler.name", ("multistep",), "segmentor.scheduler.milestones", "segmentor.scheduler.gamma"),
    _with("finetune", ("deflect",), "cache_prefix"),
    _weight(
        *("segmentor.loss.cross_entropy", "belongs to the cross-entropy"),
        *("segmentor.loss.label_smoothing", "segmentor.auxiliary_loss"),
    ),
    _weight("segmentor.loss.focal", "belongs to the focal loss", "segmentor.loss.focal_gamma"),
    _weight("segmentor.loss.tversky", "belongs to the Tversky loss", "segmentor.loss.tversky_alpha"),
    _weight("segmentor.optimizer.weight_decay", "says what decays", "segmentor.optimizer.decay_vectors"),
    Rule(
        lambda run, own: own is None or not own.dense or run.dataset.split_column is not None,
        "holds labels of whole images, or split_column, but the data set's task is {own.name}",
        ("dataset.label_table",),
    ),
    Rule(
        lambda run, _: run.segmentor.loss.cross_entropy > 0 or run.segmentor.loss.focal > 0,
        "belongs to the cross-entropy and the focal loss, but both are 0 in segmentor.loss",
        ("segmentor.loss.class_weights",),
    ),
    Rule(
        lambda run, _: run.encoder.random is not None,
        "is for encoder.random, but the encoder is loaded from encoder.name_or_path",
        ("encoder.random_seed",),
    ),
    Rule(
        lambda run, _: run.finetune != "full",
        "keeps frozen layers in few bits, which finetune full would train",
        ("encoder.quantization",),
    ),
    Rule(
        lambda run, _: run.dataset.num_folds is not None,
        "chooses one of dataset.num_folds, but that is null",
        ("dataset.fold",),
    ),
    Rule(
        lambda run, _: run.dataset.name != "scenes",
        "keeps what images give, but windows of scenes are drawn anew in each epoch",
        ("cache_prefix", "cache_images"),
    ),
    Rule(
        lambda run, _: run.finetune != "frozen" or run.method.get("patch_embed", "frozen") != "frozen",
        "is for blocks that gradients go through, but finetune frozen trains the head alone",
        ("gradient_checkpointing",),
    ),
    Rule(lambda run, _: run.resume_from is None, "replaces the run that resume_from continues", ("overwrite",)),
)


def refuse_unused(config: Any, task: str | None = None) -> None:
    """Refuse a key of ``RunArguments`` that is not at its default and that this configuration would not look at.

    Args:
        task: that of the data set, once it is open.
    """
    schema: type[Arguments] = type(config)
    known = keys_of(schema)
    task = task or config.dataset.task or dataset_spec(config.dataset.name).task
    own = None if task is None else TASKS[task]
    for rule in RULES:
        for key in () if rule.used(config, own) else rule.keys:
            if attrgetter(key)(config) != known[key].default:
                why = rule.why.format(run=config, own=own)
                raise ConfigError(f"{key} {why}: leave it at its default, {known[key].default_text}")
