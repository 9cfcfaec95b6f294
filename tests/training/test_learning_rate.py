"""The test of learning rates: what it chooses, and that a run does not notice that there was one."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from deflect_hf.artifacts.processes import make_accelerator
from deflect_hf.config.compose import load_config
from deflect_hf.config.run import RunArguments
from deflect_hf.errors import ConfigError, DataError
from deflect_hf.training import rehearsal
from deflect_hf.training.build import build
from deflect_hf.training.loop import TrainingLoop
from deflect_hf.training.rehearsal import RangeTest, range_test
from tests.tiny_runs import tiny_run
from tests.training.test_resume import best_weights, lines_without_time
from tests.training.test_run import ONE_EPOCH, train

RATES = np.geomspace(1e-6, 1, 84)


def losses_of(values: list[float]) -> Callable[..., Tensor]:
    """In place of the loop's loss: these values, by step, with the gradient of the real one."""
    loss = TrainingLoop._loss

    def replaced(self: TrainingLoop, batch: dict) -> Tensor:
        real = loss(self, batch)
        return real - real.detach() + values[self.progress.step]

    return replaced


def test_the_rate_is_a_tenth_of_that_of_the_lowest_smoothed_loss() -> None:
    losses = (np.log10(RATES) + 2) ** 2 + 0.05 * np.random.default_rng(0).normal(size=84)
    losses[20] -= 6  # one easy batch
    assert RangeTest.of(losses[:70]).chosen == pytest.approx(1e-3, rel=0.3)
    with pytest.raises(ConfigError, match="the loss fell at no learning rate"):
        RangeTest.of(np.linspace(1, 2, 30))


def test_a_run_does_not_notice_the_test_and_a_resumed_one_keeps_its_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "deflect_hf")
    found = train(tmp_path / "auto", "--lr", "auto", *ONE_EPOCH)
    rate = found["learning_rate"]
    assert f"chosen: --lr {rate:g}" in caplog.text and 1e-5 < rate < 1
    assert load_config(RunArguments, tmp_path / "auto" / "config.yaml").segmentor.optimizer.lr == rate
    assert Image.open(tmp_path / "auto" / "learning_rate.png").size[0] > 300
    given = train(tmp_path / "given", "--lr", str(rate), *ONE_EPOCH)
    assert not (tmp_path / "given" / "learning_rate.png").exists()
    assert lines_without_time(tmp_path / "auto") == lines_without_time(tmp_path / "given")
    assert best_weights(tmp_path / "auto") == best_weights(tmp_path / "given") and given["test"] == found["test"]
    monkeypatch.setattr(rehearsal, "range_test", None)
    again = train(tmp_path / "auto", "--lr", "auto", *ONE_EPOCH, "--resume_from", "last")
    assert again["test"] == found["test"] and again["learning_rate"] == rate


def test_the_test_leaves_parameters_and_buffers_and_ends_where_the_loss_explodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--segmentor.head", "upernet", "--segmentor.output_layers", "null", "--lr", "auto")
    config = tiny_run("segmentation", *words, "--finetune", "full", "--method", "{}")
    accelerator = make_accelerator(config)
    experiment = build(config, tmp_path, accelerator)
    before = {name: tensor.clone() for name, tensor in experiment.model.state_dict().items()}
    assert any("running_mean" in name for name in before)
    monkeypatch.setattr(TrainingLoop, "_loss", losses_of([2.0] * 10 + [1.0] * 5 + [50.0]))
    assert len(range_test(experiment, accelerator).rates) == 16
    after = experiment.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    monkeypatch.setattr(TrainingLoop, "_loss", losses_of([float("nan")]))
    with pytest.raises(DataError, match="the loss of the first step is not finite"):
        range_test(experiment, accelerator)
    with pytest.raises(ConfigError, match="tests in one process without FSDP"):
        range_test(experiment, SimpleNamespace(num_processes=2, is_fsdp2=False))
    assert not list(tmp_path.iterdir())
