"""All bands through a trained patch embedding: how it starts, what it counts, and that it is saved."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deflect_hf.artifacts import saved_model as checkpoints
from deflect_hf.config.run import EncoderArguments, RunArguments
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.errors import CheckpointError, ConfigError
from deflect_hf.methods import (
    adapt,
    as_values,
    encoder_parameters,
    method_options,
    patch_embedding_parameters,
    trained_projection,
)
from deflect_hf.methods.bands import starting_kernel
from tests.methods.models import BASE, EXTRA, WIDE, adapted, task_model, trainable
from tests.tuners.tiny import BANDS, ENCODERS, base_pixels, make_encoder, randomise

KINDS = ("repeat", "rgb+random")


@pytest.mark.parametrize("channels", [3, 4, 6, 7, 13])
def test_repeat_shares_each_kernel_among_its_channels(channels):
    pretrained = torch.randn(5, 3, 2, 2)
    kernel = starting_kernel(pretrained, channels, "repeat")
    assert kernel.shape == (5, channels, 2, 2)
    for base in range(3):
        sharing = kernel[:, base::3]
        torch.testing.assert_close(sharing.sum(1), pretrained[:, base])
        assert all(torch.equal(sharing[:, 0], sharing[:, k]) for k in range(sharing.shape[1]))
    pixels = torch.randn(2, 3, 4, 4)
    wide = pixels[:, [channel % 3 for channel in range(channels)]]
    torch.testing.assert_close(
        nn.functional.conv2d(wide, kernel), nn.functional.conv2d(pixels, pretrained), rtol=1e-4, atol=1e-5
    )


def test_rgb_random_keeps_the_pretrained_kernel_and_draws_the_rest_alike():
    pretrained = 0.02 * torch.randn(64, 3, 16, 16)
    torch.manual_seed(3)
    kernel = starting_kernel(pretrained, 13, "rgb+random")
    assert torch.equal(kernel[:, :3], pretrained)
    assert kernel[:, 3:].std().item() == pytest.approx(0.02, rel=0.01)
    torch.manual_seed(3)
    assert torch.equal(starting_kernel(pretrained, 13, "rgb+random"), kernel)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", WIDE)
def test_it_is_trained_and_counted_with_every_method(method, kind, reflectance):
    model = adapted(method, patch_embed=kind)
    projection = trained_projection(model)
    assert projection.weight.shape == (32, 6, 8, 8)
    base = adapted(method)
    before = 0 if method == "full" else patch_embedding_parameters(base)
    wide = 6 * 32 * 64 + 32
    assert patch_embedding_parameters(model) == wide
    if method == "full":
        assert encoder_parameters(model)[0] == encoder_parameters(base)[0] + 3 * 32 * 64
    else:
        assert encoder_parameters(model)[0] == encoder_parameters(base)[0] - before + wide
    pretrained = task_model().encoder.embeddings.patch_embeddings.projection.weight
    if kind == "repeat":
        assert torch.equal(projection.weight, pretrained.repeat(1, 2, 1, 1) / 2)
    else:
        assert torch.equal(projection.weight[:, :3], pretrained)
    model(reflectance, labels=torch.tensor([0, 1])).loss.backward()
    assert projection.weight.grad[:, 3:].abs().sum() > 0
    silent = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent and trainable(model)


@pytest.mark.parametrize("kind", KINDS)
def test_all_bands_are_seen(kind, reflectance):
    model = adapted("frozen", patch_embed=kind).eval()
    expected = model(reflectance).logits
    other = reflectance.clone()
    other[:, BANDS.index("S2")] += 0.1
    assert not torch.allclose(model(other).logits, expected)


@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_without_the_adapter_it_is_the_rgb_model(encoder, reflectance):
    expected = task_model(encoder).eval()(base_pixels(reflectance)).logits
    model = randomise(adapted("lora", encoder, patch_embed="repeat")).eval()
    assert not torch.allclose(model(reflectance).logits, expected, atol=1e-2)
    reflectance[:, BANDS.index("N") :] = math.nan
    with model.disable_adapter():
        torch.testing.assert_close(model(reflectance).logits, expected, rtol=1e-5, atol=1e-5)


# Not norm: PEFT's LN tuning leaves modules that were trained in full in their wrappers when it is merged.
@pytest.mark.parametrize("method", ["lora", "slr", "bitfit"])
def test_merged_it_is_a_plain_model_that_saves_and_loads(method, tmp_path, reflectance):
    model = randomise(adapted(method, patch_embed="rgb+random"), scale=0.05).eval()
    expected = model(reflectance).logits
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(reflectance).logits, expected, rtol=1e-3, atol=1e-3)
    merged.save_pretrained(tmp_path)
    assert torch.equal(type(merged).from_pretrained(tmp_path)(reflectance).logits, merged(reflectance).logits)


def saved(folder: Path, model: nn.Module, method: str, options: dict[str, Any]) -> RunArguments:
    """A result folder as training writes it."""
    encoder = EncoderArguments(
        name_or_path=str(folder.parent / "encoder"), mean=BASE["base_mean"], std=BASE["base_std"]
    )
    config = RunArguments(finetune=method, method=as_values(method_options(method, options)), encoder=encoder)
    checkpoints.save_model(folder, model, config, MultispectralImageProcessor(bands=BANDS))
    return config


@pytest.mark.parametrize(
    ("method", "kind"), [*((method, "repeat") for method in WIDE), ("frozen", "frozen"), ("full", "rgb+random")]
)
def test_save_then_load(method, kind, tmp_path, reflectance):
    make_encoder().save_pretrained(tmp_path / "encoder")
    options = {"patch_embed": kind, **({"target": "qv"} if ":" in method else {})}
    model = randomise(adapted(method, **options), scale=0.05).eval()
    config = saved(tmp_path / "run", model, method, options)
    assert checkpoints.read_config(tmp_path / "run") == config
    again = checkpoints.load_model(tmp_path / "run", config)
    checkpoints.load_processor(tmp_path / "run", again)
    assert torch.equal(again(reflectance).logits, model(reflectance).logits)


def test_a_frozen_model_whose_patch_embedding_is_missing_is_refused(tmp_path):
    make_encoder().save_pretrained(tmp_path / "encoder")
    config = saved(tmp_path / "narrow", adapted("frozen"), "frozen", {})
    wide = saved(tmp_path / "wide", adapted("frozen", patch_embed="repeat"), "frozen", {"patch_embed": "repeat"})
    with pytest.raises(CheckpointError, match=r"head\.safetensors lacks 2 tensors.*patch_embedding\.bias"):
        checkpoints.load_model(tmp_path / "narrow", wide)
    with pytest.raises(CheckpointError, match=r"head\.safetensors holds .patch_embedding\.bias."):
        checkpoints.load_model(tmp_path / "wide", config)


def test_images_of_base_bands_alone(reflectance):
    """`repeat` then trains the pretrained patch embedding as it is; there is nothing to draw at random."""
    bands = ["B", "G", "R"]
    model = adapt(task_model(), "lora", bands=bands, patch_embed="repeat", **BASE).eval()
    expected = adapted("frozen").eval()(reflectance).logits
    torch.testing.assert_close(model(reflectance[:, :3]).logits, expected)
    assert patch_embedding_parameters(model) == 3 * 32 * 64 + 32
    with pytest.raises(ConfigError, match=r"rgb\+random has no band to start at random: 'B', 'G', 'R' are all base"):
        adapt(task_model(), "lora", bands=bands, patch_embed="rgb+random", **BASE)


def test_statistics_that_are_missing_or_do_nothing():
    with pytest.raises(ConfigError, match="all bands are normalised, or none is"):
        adapt(task_model(), "norm", bands=BANDS, patch_embed="repeat", **BASE)
    for method in ("norm", "deflect"):
        with pytest.raises(ConfigError, match="extra_mean and extra_std are for a patch embedding that takes all"):
            adapt(task_model(), method, bands=BANDS, **BASE, **EXTRA)
