"""Keys that do nothing beside others: set, they would look as if they did, so they are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from deflect_hf.config.readers import dataset_spec
from deflect_hf.config.schema import Arguments, keys_of
from deflect_hf.config.tasks import TASKS, Task
from deflect_hf.errors import ConfigError


class Rule(NamedTuple):
    """Keys that are looked at only where ``used`` holds; ``why`` ends the complaint about one that was set.

    Both get the configuration and the task of its data set, None where only the opened data set has it.
    """

    keys: tuple[str, ...]
    used: Callable[[Any, str | None], bool]
    why: Callable[[Any, str | None], str]


def _of_tasks(holds: Callable[[Task], bool], *keys: str) -> Rule:
    users = ", ".join(name for name, task in TASKS.items() if holds(task))
    return Rule(
        keys,
        lambda _, own: own is None or holds(TASKS[own]),
        lambda _, own: f"is for {users}, but the data set's task is {own}",
    )


def _of_head(heads: tuple[str, ...], *keys: str) -> Rule:
    return Rule(
        keys,
        lambda run, _: run.segmentor.head in heads,
        lambda run, _: f"is for segmentor.head {', '.join(heads)}, but that is {run.segmentor.head}",
    )


RULES = (
    _of_tasks(lambda task: not task.dense, "segmentor.pooling"),
    _of_tasks(lambda task: task.dense, "segmentor.auxiliary_loss", "segmentor.window", "augmentation.focus_crop"),
    _of_tasks(
        lambda task: task.output == "class",
        *("segmentor.loss.class_weights", "segmentor.loss.label_smoothing", "metrics"),
        *("dataset.class_values", "dataset.ignore_index"),
    ),
    _of_tasks(
        lambda task: task.output != "value",
        *("segmentor.loss.focal", "segmentor.loss.dice", "segmentor.loss.tversky", "sampler"),
    ),
    _of_tasks(lambda task: task.output == "value", "dataset.target_unit"),
    _of_tasks(lambda task: task.output != "value", "dataset.classes"),
    Rule(
        ("dataset.label_table",),
        lambda run, own: own is None or not TASKS[own].dense or run.dataset.split_column is not None,
        lambda _, own: f"holds labels of whole images, or split_column, but the data set's task is {own}",
    ),
    _of_tasks(lambda task: task.output == "value" or task.name == "classification", "dataset.target"),
    _of_tasks(lambda task: task.dense, "dataset.ignore_values", "dataset.masks"),
    _of_tasks(lambda task: task.name == "segmentation", "dataset.class_colors"),
    _of_head(("mlp", "conv", "upernet", "pixel", "unet"), "segmentor.channels"),
    _of_head(("upernet", "pixel"), "segmentor.auxiliary_loss"),
    Rule(
        ("segmentor.loss.label_smoothing", "segmentor.auxiliary_loss"),
        lambda run, _: run.segmentor.loss.cross_entropy > 0,
        lambda run, _: "belongs to the cross-entropy, but segmentor.loss.cross_entropy is 0",
    ),
    Rule(
        ("segmentor.loss.class_weights",),
        lambda run, _: run.segmentor.loss.cross_entropy > 0 or run.segmentor.loss.focal > 0,
        lambda run, _: "belongs to the cross-entropy and the focal loss, but both are 0 in segmentor.loss",
    ),
    Rule(
        ("segmentor.loss.focal_gamma",),
        lambda run, _: run.segmentor.loss.focal > 0,
        lambda run, _: "belongs to the focal loss, but segmentor.loss.focal is 0",
    ),
    Rule(
        ("segmentor.loss.tversky_alpha",),
        lambda run, _: run.segmentor.loss.tversky > 0,
        lambda run, _: "belongs to the Tversky loss, but segmentor.loss.tversky is 0",
    ),
    Rule(
        ("segmentor.scheduler.milestones", "segmentor.scheduler.gamma"),
        lambda run, _: run.segmentor.scheduler.name == "multistep",
        lambda run, _: f"is for segmentor.scheduler.name multistep, but that is {run.segmentor.scheduler.name}",
    ),
    Rule(
        ("segmentor.optimizer.decay_vectors",),
        lambda run, _: run.segmentor.optimizer.weight_decay > 0,
        lambda run, _: "says what decays, but segmentor.optimizer.weight_decay is 0",
    ),
    Rule(
        ("encoder.random_seed",),
        lambda run, _: run.encoder.random is not None,
        lambda run, _: "is for encoder.random, but the encoder is loaded from encoder.name_or_path",
    ),
    Rule(
        ("encoder.quantization",),
        lambda run, _: run.finetune != "full",
        lambda run, _: "keeps frozen layers in few bits, which finetune full would train",
    ),
    Rule(
        ("dataset.fold",),
        lambda run, _: run.dataset.num_folds is not None,
        lambda run, _: "chooses one of dataset.num_folds, but that is null",
    ),
    Rule(
        ("cache_prefix",),
        lambda run, _: run.finetune == "deflect",
        lambda run, _: f"keeps what enters the first deflected block, but finetune is {run.finetune}",
    ),
    Rule(
        ("cache_prefix",),
        lambda run, _: run.dataset.name != "scenes",
        lambda *_: "keeps what images give, but windows of scenes are drawn anew in each epoch",
    ),
    Rule(
        ("gradient_checkpointing",),
        lambda run, _: run.finetune != "frozen" or run.method.get("patch_embed", "frozen") != "frozen",
        lambda *_: "is for blocks that gradients go through, but finetune frozen trains the head alone",
    ),
    Rule(
        ("overwrite",),
        lambda run, _: run.resume_from is None,
        lambda run, _: "replaces the run that resume_from continues",
    ),
)


def refuse_unused(config: Any, task: str | None = None) -> None:
    """Refuse a key of ``RunArguments`` that is not at its default and that this configuration would not look at.

    Args:
        task: that of the data set, once it is open.
    """
    schema: type[Arguments] = type(config)
    known = keys_of(schema)
    task = task or config.dataset.task or dataset_spec(config.dataset.name).task
    for rule in RULES:
        for key in () if rule.used(config, task) else rule.keys:
            value = config
            for name in key.split("."):
                value = getattr(value, name)
            if value != known[key].default:
                default = known[key].default_text
                raise ConfigError(f"{key} {rule.why(config, task)}: leave it at its default, {default}")
