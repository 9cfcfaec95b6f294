"""The maintainers' benchmarks on something tiny, end to end; no time is looked at."""

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.run import RunArguments
from deflect_hf.errors import ConfigError, DeflectError
from deflect_hf.raster.write import write_raster
from tests import benchmarks
from tests.benchmarks import adapters, encoders, loader, peers, processes, resume, scenes, startup, step


def numbers_of(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


def test_adapters_memory_of_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--tasks", "3", "--size", "tiny", "--image_size", "16", "--rounds", "1"]
    adapters.main(["--output", str(tmp_path), *words])
    numbers = numbers_of(tmp_path, "adapters")
    separate, shared = numbers["bytes"]
    assert 0.333 < shared / separate < 0.42  # three encoders against one, and small adapters
    assert [len(way) for name in ("load", "mixed") for way in numbers[f"{name}_seconds"].values()] == [1] * 4
    table = capsys.readouterr().out
    assert (tmp_path / "adapters.md").read_text() in table
    assert f"| parameters in memory | {separate / 1e6:.1f} MB | {shared / 1e6:.1f} MB | " in table


def test_encoders_of_full_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoders.main(["--output", str(tmp_path), "--encoders", "dino-mc", "--image_size", "16", "--rounds", "1"])
    (one,) = numbers_of(tmp_path, "encoders")
    assert (one["total"], one["encoder"]) == (21_670_272, "dino-mc")
    assert 0 < one["trainable"] < 0.004 * one["total"]
    assert "| dino-mc | 21,670,272 |" in capsys.readouterr().out


def test_loader_of_a_users_data_with_and_without_workers(tmp_path: Path) -> None:
    for kind in ("dark", "bright"):
        for number in range(6):
            write_raster(tmp_path / kind / f"{number}.tif", np.full((3, 20, 40), 0.2, np.float32), descriptions="BGR")
    words = ["--dataset.name", "folder", "--dataset.root", str(tmp_path), "--augmentation.random_crop", "18", "33"]
    words += ["--size", "tiny", "--batch_size", "2", "--images", "4", "--rounds", "2", "--workers", "0", "1"]
    loader.main(["--output", str(tmp_path / "out"), *words])
    found = numbers_of(tmp_path / "out", "loader")
    kept = f"{tmp_path}, --cache_images"
    assert [(one["data"], one["workers"]) for one in found] == [
        (str(tmp_path), 0),
        (str(tmp_path), 1),
        (kept, 0),
        (kept, 1),
    ]
    for one in found:
        assert (one["bands"], one["height"], one["width"]) == (3, 18, 33)
        first, second = (a / b for a, b in zip(one["loader"], one["forward"], strict=True))
        assert one["ratio"] == pytest.approx((first + second) / 2) and min(first, second) > 0


def test_loader_generates_images(tmp_path: Path) -> None:
    own = argparse.Namespace(size="tiny", batch_size=1, images=1, rounds=1, workers=[0])
    for (name, data), shape in zip(loader.generated(tmp_path).items(), ((7, 128), (6, 224), (6, 224)), strict=True):
        images = loader.load_dataset_splits(data.dataset)["train"]
        (one,) = loader.measure(images.with_transform(loader.build_transform(data.augmentation, "train")), own)
        assert (one["bands"], one["height"]) == shape, name


def test_peers_of_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.txt").write_text("\n".join(["scene"] * 17))
    asked: list[list[str]] = []

    def measured(words: list[str]) -> dict[str, Any]:
        asked.append(words)
        return {"epoch_seconds": [1.0 + len(asked)], "peak_bytes": 2**20 * len(asked)}

    monkeypatch.setattr(peers, "measure", measured)
    words = ["--data", str(tmp_path), "--encoder", "encoder", "--epochs", "3", "--rounds", "1"]
    peers.main(["--output", str(tmp_path), *words])
    assert [words[:3] for words in asked[:2]] == [["3", "2", "train"]] * 2
    methods = [parse_arguments(RunArguments, "", words[3:]).finetune for words in asked[:2]]
    assert methods == ["deflect", "lora"]
    assert all(importlib.util.find_spec(words[2]) for words in asked[2:])
    table = capsys.readouterr().out
    assert "| deflect-train, LoRA | 3.00 | 0.60 | 2 | 0 |" in table and "loop, LoRA | 5.00 | 1.00 | 4 | 6" in table


def test_processes_are_measured_together(tmp_path: Path) -> None:
    words = ["--processes", "2", "--images", "8", "--batch_size", "2", "--width", "16", "--blocks", "1"]
    processes.main(["--output", str(tmp_path), *words, "--rounds", "1"])
    (found,) = numbers_of(tmp_path, "processes")
    assert (found["processes"], found["efficiency"]) == (2, 1.0)
    assert min(found["rounds"][0].values()) > 0


def test_resume_finds_a_killed_run_equal_and_a_changed_one_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resume.main(["--output", str(tmp_path), "--kills", "1"])
    assert capsys.readouterr().out.startswith("1/1 resumed runs of 1 process(es) equal the uninterrupted one; ")
    assert [kill["differs"] for kill in numbers_of(tmp_path, "resume")] == [None]
    log = tmp_path / "killed" / "log.jsonl"
    lines = log.read_text().splitlines()
    changed = {**json.loads(lines[3]), "loss": 0.5}
    log.write_text("\n".join([*lines[:3], json.dumps(changed), *lines[4:]]) + "\n")
    told = resume.difference(tmp_path / "uninterrupted", tmp_path / "killed")
    assert told is not None and told.startswith("log: {") and "'loss': 0.5" in told


def test_scenes_are_predicted_in_a_process_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    words = ["--sides", "300", "--window", "32", "--scratch", str(tmp_path / "scratch")]
    scenes.main(["--output", str(tmp_path / "out"), *words])
    (found,) = numbers_of(tmp_path / "out", "scenes")
    assert found["side"] == 300 and found["peak_bytes"] > 2**26
    assert found["processor_seconds"] > found["forward_seconds"] > 0
    table = (tmp_path / "out" / "scenes.md").read_text()
    assert f"| 300 x 300 x 7 | {found['peak_bytes'] / 2**20:.0f} MiB | 1.00 |" in table
    assert list((tmp_path / "scratch").iterdir()) == []
    tiled = "import sys; open(sys.argv[2], 'w'); print(int(sys.argv[4]) * 2**30, int(sys.argv[5]), 7.0, 9)"
    monkeypatch.setattr(scenes, "TERRATORCH", tiled)  # stands in for it: 32 GiB, and 28 s with its 7 of the forward
    scenes.main(["--output", str(tmp_path / "out"), *words, "--terratorch"])
    (found,) = numbers_of(tmp_path / "out", "scenes")
    ratios = (2**35 / found["peak_bytes"], 28 / found["processor_seconds"], 4)
    assert " | ".join(f"{ratio:.2f}" for ratio in ratios) in (tmp_path / "out" / "scenes.md").read_text()
    monkeypatch.setattr(scenes, "CHILD", "import os; os.kill(os.getpid(), 9)")
    own = argparse.Namespace(map="classes", window=32, cog=False)
    with pytest.raises(DeflectError, match=r"a\.tif could not be predicted, status -9: it said nothing"):
        scenes.measure(tmp_path / "a.tif", tmp_path, own)


def test_a_training_on_a_scene_is_measured_with_all_its_windows(tmp_path: Path) -> None:
    scenes.main(["--output", str(tmp_path), "--sides", "700", "--window", "32", "--train"])
    (found,) = numbers_of(tmp_path, "scenes")
    assert min(found["windows"].values()) > 10 and sum(found["windows"].values()) == 132
    assert found["peak_bytes"] > 2**26 and found["processor_seconds"] > 0


def test_startup_ratio_and_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"-c raise SystemExit\(3\) ends with status 3"):
        startup.run(["-c", "raise SystemExit(3)"])
    times = iter([9.0] * 4 + [2.0, 2.2, 0.5, 0.5, 4.0, 4.2, 0.3, 0.3])  # the first four warm up
    monkeypatch.setattr(benchmarks, "timed", lambda *_: next(times))
    startup.main(["--output", str(tmp_path), "--rounds", "2"])
    assert numbers_of(tmp_path, "startup")["ratio"] == pytest.approx(2.2 / 2.0)
    printed = capsys.readouterr().out
    assert "| `train.py --help` | 0.40 | 0.30 |" in printed and "fastest of 2 rounds: 1.100." in printed


def test_a_step_waits_for_the_device_when_the_log_is_written_alone(tmp_path: Path) -> None:
    words = ["--images", "60", "--batch_size", "2", "--width", "16", "--blocks", "1", "--rounds", "1"]
    step.main(["--output", str(tmp_path), *words])
    numbers = numbers_of(tmp_path, "step")
    assert numbers["reductions"] == numbers["waits"] == pytest.approx(0.1, abs=0.05) and numbers["log_interval"] == 10


@pytest.mark.parametrize(
    ("benchmark", "words", "message"),
    [
        ("adapters", ["--tasks", "1"], "--tasks 1: give at least 2."),
        ("adapters", ["--image_size", "20"], "--image_size 20: give a multiple of 16."),
        ("encoders", ["--encoders", "dino-mk"], "dino-mc"),
        ("encoders", ["--encoders", "dino-mc", "scale-mae", "--image_size", "24"], "scale-mae has patches of 16"),
        ("loader", ["--workers", "1", "-1"], "--workers -1: give at least 0"),
        ("loader", ["--images", "4", "--batch_size", "8"], "--images 4: give at least 8"),
        ("loader", ["--dataset.nme", "folder"], "unknown option '--dataset.nme'. Did you mean '--dataset.name'?"),
        ("processes", ["--processes", "1", "0"], "--processes 0: give at least 1"),
        ("resume", ["--kills", "0"], "--kills 0: give at least 1"),
        ("scenes", ["--window", "40"], "--window 40: give a multiple of 16."),
        ("scenes", ["--sides", "300", "0"], "--sides 0: give at least 1."),
        ("step", ["--rounds", "0"], "--rounds 0: give at least 1"),
    ],
)
def test_flags_that_make_no_sense_are_refused(benchmark: str, words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        importlib.import_module(f"tests.benchmarks.{benchmark}").main(["--output", str(tmp_path), *words])
    assert message in str(caught.value)
