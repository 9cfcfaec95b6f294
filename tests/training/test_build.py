"""What is fitted or read before training."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from deflect_hf.config.run import EncoderArguments, RunArguments
from deflect_hf.data.adapt import adapt_dataset
from deflect_hf.errors import ConfigError, DataError
from deflect_hf.evaluation.task_metrics import evaluation_window
from deflect_hf.models.encoders import random_encoder, stored_normalisation
from deflect_hf.spectral.features import RunningMoments
from deflect_hf.training.build import base_statistics, build, load_splits
from deflect_hf.training.statistics import Statistics
from deflect_hf.tuners.deflect.spectral_input import SpectralInput
from tests.tiny_runs import tiny_run

configured = partial(tiny_run, "segmentation")


def test_statistics_of_the_configuration_and_of_the_encoder_come_first(tmp_path: Path) -> None:
    stored = {"bands": ["B", "G", "R"], "unit": "reflectance", "mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]}
    (tmp_path / "normalisation.json").write_text(json.dumps(stored))
    arguments = EncoderArguments(name_or_path=str(tmp_path))
    assert stored_normalisation(arguments) == ([0.3, 0.2, 0.1], [3.0, 2.0, 1.0])
    assert stored_normalisation(EncoderArguments(name_or_path="some/hub-id")) is None
    config = configured("--encoder.mean", "1", "2", "3", "--encoder.std", "4", "5", "6")
    nothing = Statistics([], {}, RunningMoments(0), None, [], {})
    assert base_statistics(config, nothing, "here") == ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    (tmp_path / "normalisation.json").write_text('{"bands": ["R"]}')
    with pytest.raises(ConfigError, match=r"normalisation\.json: cannot be read: .*; give encoder\.mean"):
        stored_normalisation(arguments)


def test_a_split_without_any_label_is_refused() -> None:
    images = adapt_dataset([{"image": torch.rand(3, 8, 8), "label": float("nan")}], ["R", "G", "B"], task="regression")
    config = RunArguments(dataset={"name": "python"}, encoder={"name_or_path": "none"})
    with pytest.raises(DataError, match=r"no image of the val split has a label \('000000'\): give some images labels"):
        load_splits(config, (), {"val": images})


def test_pixel_sets_of_zoomed_tokens_are_standardised_with_their_own_statistics(tmp_path: Path) -> None:
    config = configured("--segmentor.zoom", "2", "--augmentation.random_crop", "null")
    made = build(config, tmp_path, Accelerator())
    inside = next(module for module in made.model.modules() if isinstance(module, SpectralInput))
    images = torch.stack([row["pixel_values"] for row in made.splits["train"]])
    given: list[torch.Tensor] = []
    hook = inside.register_forward_hook(lambda _module, _inputs, output: given.append(output))
    made.model.eval()(pixel_values=images)
    hook.remove()
    sets = given[0].flatten(0, 1)
    assert len(sets) == len(images) * 6 * 6  # of 24 x 24 pixels, by tokens of 4 x 4
    torch.testing.assert_close(sets.mean(0), torch.zeros(sets.shape[1]), rtol=0, atol=1e-3)
    torch.testing.assert_close(sets.std(0), torch.ones(sets.shape[1]), rtol=0, atol=1e-3)


def test_random_encoders_depend_on_their_seed_alone() -> None:
    def weight(seed: int) -> torch.Tensor:
        torch.rand(3)
        fields = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        return (
            random_encoder(EncoderArguments(random=fields, random_seed=seed)).get_input_embeddings().projection.weight
        )

    assert torch.equal(weight(0), weight(0)) and not torch.equal(weight(0), weight(1))


def test_evaluation_sees_the_scale_of_training() -> None:
    assert evaluation_window(configured(), "segmentation") == 16  # the training crop
    assert evaluation_window(configured("--augmentation.random_crop", "null"), "segmentation") is None
    assert evaluation_window(configured("--segmentor.window", "8"), "segmentation") == 8
    assert evaluation_window(configured("--augmentation.center_crop", "16", "16"), "segmentation") is None
