"""Keys that do nothing in a combination are refused, by name and with the reason."""

import pytest

from deflect_hf.config.run import RunArguments
from deflect_hf.config.schema import keys_of
from deflect_hf.config.unused import RULES, refuse_unused
from deflect_hf.errors import ConfigError
from tests.tiny_runs import CONF, tiny_run

HUB = ("--encoder_config", str(CONF.parents[1] / "configs" / "foundation_models" / "vit_hub.yaml"))


@pytest.mark.parametrize(
    ("task", "words", "message"),
    [
        (
            "classification",
            ("--segmentor.window", "8"),
            "segmentor.window is for segmentation, pixel_regression, but the data set's task is classification: leave "
            "it at its default, null",
        ),
        (
            "classification",
            ("--augmentation.random_crop", "8", "8", "--augmentation.focus_crop"),
            "augmentation.focus_crop is for segmentation, pixel_regression, but the data set's task is classification: "
            "leave it at its default, false",
        ),
        (
            "segmentation",
            ("--segmentor.pooling", "mean"),
            "segmentor.pooling is for classification, multi_label, regression, but the data set's task is segmentation",
        ),
        (
            "segmentation",
            ("--segmentor.auxiliary_loss", "0.4"),
            "segmentor.auxiliary_loss is for segmentor.head upernet, pixel, but that is mlp: leave it at its default, "
            "0.0",
        ),
        (
            "segmentation",
            ("--segmentor.head", "linear"),
            "segmentor.channels is for segmentor.head mlp, conv, upernet, pixel, unet, but that is linear",
        ),
        (
            "segmentation",
            ("--segmentor.scheduler.name", "cosine", "--segmentor.scheduler.milestones", "0.5"),
            "segmentor.scheduler.milestones is for segmentor.scheduler.name multistep, but that is cosine: leave it at "
            "its default, null",
        ),
        (
            "segmentation",
            ("--segmentor.scheduler.name", "constant", "--segmentor.scheduler.gamma", "0.1"),
            "segmentor.scheduler.gamma is for segmentor.scheduler.name multistep, but that is constant",
        ),
        (
            "segmentation",
            ("--segmentor.optimizer.weight_decay", "0", "--segmentor.optimizer.decay_vectors", "false"),
            "segmentor.optimizer.decay_vectors says what decays, but segmentor.optimizer.weight_decay is 0: leave it "
            "at its default, true",
        ),
        (
            "segmentation",
            (*HUB, "--encoder.random", "null", "--encoder.random_seed", "1"),
            "encoder.random_seed is for encoder.random, but the encoder is loaded from encoder.name_or_path",
        ),
        (
            "segmentation",
            ("--segmentor.loss.cross_entropy", "0", "--segmentor.loss.class_weights", "balanced"),
            "segmentor.loss.class_weights belongs to the cross-entropy and the focal loss, but both are 0",
        ),
        ("segmentation", ("--dataset.fold", "1"), "dataset.fold chooses one of dataset.num_folds, but that is null"),
        (
            "segmentation",
            ("--resume_from", "last", "--overwrite"),
            "overwrite replaces the run that resume_from continues: leave it at its default, false",
        ),
    ],
)
def test_an_idle_key_is_refused(task: str, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_run(task, *words)
    assert message in str(caught.value)


def test_a_task_that_only_the_opened_data_set_tells_is_checked_then() -> None:
    folder = ("--dataset.name", "folder", "--dataset.root", "x", "--dataset.num_samples", "640")
    config = tiny_run("classification", *folder, "--dataset.task", "null", "--segmentor.pooling", "mean")
    refuse_unused(config, task="classification")
    with pytest.raises(ConfigError, match=r"segmentor\.pooling is for classification"):
        refuse_unused(config, task="segmentation")


def test_every_rule_is_about_keys_that_exist() -> None:
    known = set(keys_of(RunArguments))
    assert {key for rule in RULES for key in rule.keys} <= known


def test_the_schedules_numbers_are_filled_in_where_they_are_used() -> None:
    multistep = tiny_run("classification").segmentor.scheduler
    assert (multistep.milestones, multistep.gamma) == ([0.6, 0.9], 0.1)
    cosine = tiny_run("classification", "--segmentor.scheduler.name", "cosine").segmentor.scheduler
    assert (cosine.milestones, cosine.gamma) == (None, None)
