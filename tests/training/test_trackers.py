"""What a run tells the trackers, read back from their files."""

import importlib.util
import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deflect_hf.errors import ConfigError
from deflect_hf.training.run import run
from deflect_hf.training.trackers import flat_settings
from tests.tiny_runs import tiny_run


def train(folder: Path, *words: str) -> dict:
    return run(tiny_run("classification", "--work_dir", str(folder), "--tracker", "tensorboard", *words))[0]


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard" / "deflect_hf")).Reload()


def test_tensorboard_is_told_losses_rates_scores_and_the_configuration(tmp_path: Path) -> None:
    results = train(tmp_path)
    told = events(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for key, name in (("loss", "train/loss"), ("lr", "train/lr")):
        expected = [(line["step"], pytest.approx(line[key])) for line in lines if key in line]
        assert [(event.step, event.value) for event in told.Scalars(name)] == expected
    for score in ("loss", "accuracy", "miou", "f1_macro"):
        expected = [(line["step"], pytest.approx(line["val"][score])) for line in lines if "val" in line]
        assert len(expected) == 2
        assert [(event.step, event.value) for event in told.Scalars(f"val/{score}")] == expected
        (test,) = told.Scalars(f"test/{score}")
        assert (test.step, test.value) == (results["steps"], pytest.approx(results["test"][score]))
    (settings,) = (tmp_path / "tensorboard").glob("*/*/hparams.yml")
    assert "segmentor.optimizer.lr: 0.01" in settings.read_text()

    # a run that goes on from its first epoch tells the second one once more, not twice
    assert train(tmp_path, "--resume_from", str(tmp_path / "checkpoints" / "step-8"))["test"] == results["test"]
    assert [event.step for event in events(tmp_path).Scalars("train/loss")] == list(range(1, 17))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_other_trackers_run_offline_and_their_files_go_with_the_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which it looks at when it is imported
    pytest.importorskip(name)
    words = ("--tracker", name, "--epochs", "1", "--dataset.num_samples", "16")
    train(tmp_path / "run", *words)
    written = tmp_path / "trackio" if name == "trackio" else tmp_path / "run" / "wandb"
    found = [path for ending in ("*.wandb", "*.db") for path in written.rglob(ending) if path.stat().st_size]
    assert found
    train(tmp_path / "run", *words, "--overwrite")
    assert not list((tmp_path / "run").glob("*.former"))
    assert all(path.exists() for path in found) == (name == "trackio")  # which has one place for all runs


def test_settings_are_flat_and_plain() -> None:
    settings = dict(flat_settings(tiny_run("classification", "--method.rank", "4")))
    assert settings["method.rank"] == 4 and settings["encoder.base_bands"] == '["R", "G", "B"]'
    assert settings["segmentor.scheduler.milestones"] == "[0.6, 0.9]"
    assert all(isinstance(value, bool | int | float | str) for value in settings.values())
    assert "resume_from" not in settings  # null


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name))
    with pytest.raises(ConfigError) as caught:
        train(tmp_path / "run", "--tracker", "wandb")
    assert str(caught.value) == "--tracker wandb: the package is not installed: pip install wandb"
    assert not (tmp_path / "run").exists()
