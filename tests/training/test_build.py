"""What is fitted or read before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.run import EncoderArguments, RunArguments
from deflect_hf.errors import ConfigError, DataError
from deflect_hf.evaluation.evaluate import evaluation_window
from deflect_hf.models.encoders import random_encoder, stored_normalisation
from deflect_hf.training import build
from deflect_hf.training.build import (
    base_statistics,
    count_labels,
    load_splits,
    whole_patches,
)

CONF = Path(__file__).resolve().parents[1] / "conf"


def configured(*words: str) -> RunArguments:
    return parse_arguments(RunArguments, "test", ["--config", str(CONF / "segmentation.yaml"), *words])


def test_base_statistics_and_label_counts_are_those_of_the_whole_training_split() -> None:
    config = configured("--augmentation.random_crop", "null")
    train = load_splits(config, ("train",))["train"]
    images = torch.stack([train[k]["pixel_values"] for k in range(len(train))]).double()
    labels = torch.stack([train[k]["labels"] for k in range(len(train))])
    mean, std = base_statistics(config, train, Accelerator())
    rgb = images[:, [train.bands.index(band) for band in "RGB"]].movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(torch.tensor(mean).double(), rgb.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.tensor(std).double(), rgb.std(0), rtol=1e-3, atol=0)
    assert count_labels(config, train, Accelerator()) == torch.bincount(labels.flatten(), minlength=4).tolist()


def test_a_band_of_one_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def flat(split: Any, size: int, workers: int, rank: Any) -> list[dict[str, torch.Tensor]]:
        values = torch.rand(2, len(split.bands), 4, 4)
        values[:, [split.bands.index(band) for band in ("G", "N")]] = 0.25
        return [{"pixel_values": values}]

    monkeypatch.setattr(build, "evaluation_loader", flat)
    config = configured("--finetune", "lora", "--method", "{patch_embed: repeat}")
    train = load_splits(config, ("train",))["train"]
    told = r"^synthetic: the band\(s\) '{}' have one value in all of the training images: {}"
    with pytest.raises(
        DataError, match=told.format("G", "the files are broken, or give encoder.mean and encoder.std$")
    ):
        base_statistics(config, train, Accelerator())
    with pytest.raises(
        DataError, match=told.format("N", r"leave them out \(dataset\.bands\), or keep --method\.patch_")
    ):
        build.extra_statistics(config, train, Accelerator())


def test_statistics_of_the_configuration_and_of_the_encoder_come_first(tmp_path: Path) -> None:
    stored = {"bands": ["B", "G", "R"], "unit": "reflectance", "mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]}
    (tmp_path / "normalisation.json").write_text(json.dumps(stored))
    arguments = EncoderArguments(name_or_path=str(tmp_path))
    assert stored_normalisation(arguments) == ([0.3, 0.2, 0.1], [3.0, 2.0, 1.0])
    assert stored_normalisation(EncoderArguments(name_or_path="some/hub-id")) is None
    config = configured("--encoder.mean", "1", "2", "3", "--encoder.std", "4", "5", "6")
    train = load_splits(config, ("train",))["train"]
    assert base_statistics(config, train, Accelerator()) == ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    (tmp_path / "normalisation.json").write_text('{"bands": ["R"]}')
    with pytest.raises(
        ConfigError, match=r"normalisation\.json: cannot be read: .*; give encoder\.mean and encoder\.std"
    ):
        stored_normalisation(arguments)


def test_random_encoders_depend_on_their_seed_alone() -> None:
    def weight(seed: int) -> torch.Tensor:
        torch.rand(3)
        fields = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        return (
            random_encoder(EncoderArguments(random=fields, random_seed=seed)).get_input_embeddings().projection.weight
        )

    assert torch.equal(weight(0), weight(0)) and not torch.equal(weight(0), weight(1))


def test_statistics_are_those_of_whole_patches() -> None:
    images = torch.arange(2.0 * 3 * 10 * 13).reshape(2, 3, 10, 13)
    (batch,) = whole_patches([{"pixel_values": images, "name": ["a", "b"]}], (4, 6))
    assert torch.equal(batch["pixel_values"], images[..., :8, :12]) and batch["name"] == ["a", "b"]
    with pytest.raises(DataError, match=r"a has 10 x 13 pixels, less than one patch of the encoder \(16 x 16\)"):
        next(whole_patches([{"pixel_values": images, "name": ["a", "b"]}], (16, 16)))


def test_evaluation_sees_the_scale_of_training() -> None:
    assert evaluation_window(configured(), "segmentation") == 16  # the training crop
    assert evaluation_window(configured("--augmentation.random_crop", "null"), "segmentation") is None
    assert evaluation_window(configured("--segmentor.window", "8"), "segmentation") == 8
    assert evaluation_window(configured("--augmentation.center_crop", "16", "16"), "segmentation") is None
