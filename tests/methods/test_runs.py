"""Competing methods in whole runs on the embedded data: trained, counted, told, evaluated from their folder."""

import logging
from pathlib import Path

import pytest
import yaml

from deflect_hf.config.run import EvaluateArguments
from deflect_hf.evaluation.report import report
from deflect_hf.training.checkpoint import list_checkpoints
from tests.training.test_run import ONE_EPOCH, losses, train

WIDTH, PATCH, BANDS = 16, 8, 7
NO_OPTIONS = ("--method", "{}")  # instead of those of DEFLECT in the file


def evaluated(folder: Path, output: Path, **options: bool) -> dict:
    return report(EvaluateArguments(eval_dir=str(folder), output_dir=str(output), panels=0, **options))[0]


def test_a_run_with_a_wider_patch_embedding(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"
    words = (*NO_OPTIONS, "--finetune", "bitfit", "--method.patch_embed", "repeat", "--epochs", "2")
    with caplog.at_level(logging.INFO, "deflect_hf"):
        results = train(folder, *words)
    counts = results["parameters"]
    assert counts["patch_embedding_trainable"] == BANDS * WIDTH * PATCH**2 + WIDTH < counts["encoder_trainable"]
    assert f"bitfit (patch_embed repeat, target all) on cpu: {counts['encoder_trainable']} of" in caplog.text
    assert f"{counts['patch_embedding_trainable']} of them in the patch embedding" in caplog.text
    scores = evaluated(folder, tmp_path / "again", drop_bands=True)
    assert {name: scores[name] for name in results["test"]} == results["test"]
    assert set(scores["drop_bands"]["scores"]) == {"", "A", "N", "S1", "S2"}
    expected = losses(folder)
    first, _ = list_checkpoints(folder)
    train(folder, *words, "--resume_from", str(first))
    assert losses(folder) == expected


def test_a_run_with_another_method_of_peft(tmp_path: Path) -> None:
    words = ("--finetune", "peft:IA3Config", "--method.target", "all-linear", "--method.feedforward_modules", "[fc2]")
    results = train(tmp_path / "run", *NO_OPTIONS, *words, *ONE_EPOCH)
    method = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["method"]
    assert method == {"patch_embed": "frozen", "target": "all-linear", "feedforward_modules": ["fc2"]}
    scores = evaluated(tmp_path / "run", tmp_path / "again")
    assert {name: scores[name] for name in results["test"]} == results["test"]
