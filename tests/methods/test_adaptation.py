"""`--finetune NAME`: what is trained, what the encoder sees, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from deflect_hf.errors import ArchitectureError, BandError, ConfigError, UnitError
from deflect_hf.methods import adapt, deflect_config, encoder_parameters, further_bands, needed_bands
from deflect_hf.methods.inspect import norms
from deflect_hf.models import EncoderForImageClassification
from tests.methods.models import BASE, EVERY, WIDE, adapted, task_model, trainable
from tests.models.geovit.conftest import make_encoder
from tests.tuners.fused import fused_encoder, vit
from tests.tuners.tiny import BANDS, base_pixels


@pytest.mark.parametrize("method", EVERY)
def test_every_method_starts_at_the_frozen_rgb_model(method, reflectance):
    expected = task_model()(base_pixels(reflectance)).logits
    assert torch.equal(adapted(method).eval()(reflectance).logits, expected)


@pytest.mark.parametrize("method", WIDE)
def test_only_deflect_sees_the_other_bands(method, reflectance):
    model = adapted(method).eval()
    expected = model(reflectance).logits
    reflectance[:, BANDS.index("N") :] = math.nan
    assert torch.equal(model(reflectance).logits, expected)


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("deflect", ("deflect_",)),
        ("lora", ("lora_",)),
        ("slr", ("slr_", "layernorm")),
        ("norm", ("ln_tuning_layers",)),
        ("bitfit", ("bitfit_delta",)),
        ("frozen", ()),
        ("peft:VeraConfig", ("vera_lambda",)),
    ],
)
def test_what_is_trained(method, parts):
    names = trainable(adapted(method))
    head = {name for name in names if ".head." in f".{name}"}
    assert head
    assert all(any(part in name for part in parts) for name in names - head)
    assert all(any(part in name for name in names) for part in parts)


def test_full_trains_everything():
    model = adapted("full")
    assert trainable(model) == {name for name, _ in model.named_parameters()}


def test_norms_and_biases_of_the_head_are_its_own():
    torch.manual_seed(0)
    model = EncoderForImageClassification.from_encoder(task_model().encoder, num_labels=3, head="mlp")
    bitfit = adapt(model, "bitfit", bands=BANDS, **BASE)
    assert not any(".head." in name and "bitfit" in name for name in trainable(bitfit))
    assert all(name.startswith("encoder.") for name in norms(task_model()))


@pytest.mark.parametrize(("target", "layers"), [("qv", 2), ("qkvo", 4), ("all-linear", 6)])
def test_lora_parameters(target, layers):
    model = adapted("lora", rank=2, target=target)
    square = min(layers, 4) * 2 * (32 + 32)
    expected = 3 * (square + (2 * 2 * (32 + 64) if layers == 6 else 0))
    assert encoder_parameters(model)[0] == expected


def sized(size: str, method: str, **options: Any) -> int:
    """Trainable parameters of the encoder of a published size."""
    with torch.device("meta"):
        model = EncoderForImageClassification.from_encoder(vit(size), num_labels=2)
    return encoder_parameters(adapt(model, method, bands=["R", "G", "B"], **options))[0]


@pytest.mark.parametrize(
    ("size", "lora", "slr", "norm", "bitfit"),
    [
        ("S", 147_456, 788_544, 19_200, 51_456),
        ("B", 294_912, 1_576_512, 38_400, 102_912),
        ("L", 786_432, 4_203_648, 100_352, 272_384),
    ],
)
def test_parameters_at_the_published_sizes(size, lora, slr, norm, bitfit):
    """Norm tuning and BitFit as published.

    SLR's count is that of separate q, k and v, see `ScaledLoraConfig`. LoRA's, of rank 8 on our q and v, is also the
    published one on a fused `qkv`, whose one A serves all three (next test): 2 (in + out) = in + 3 out.
    """
    assert sized(size, "norm") == norm
    assert sized(size, "bitfit") == bitfit
    assert sized(size, "slr", train_norms=False) == slr
    assert sized(size, "slr") == slr + norm
    assert sized(size, "lora") == lora


def test_parameters_of_the_published_lora_on_fused_layers():
    for size, qkv in (("S", 147_456), ("B", 294_912), ("L", 786_432)):
        model = get_peft_model(fused_encoder(size), LoraConfig(r=8, target_modules=["qkv"]))
        assert model.get_nb_trainable_parameters()[0] == qkv
    everything = LoraConfig(r=16, target_modules=["qkv", "proj", "fc1", "fc2"])
    assert get_peft_model(fused_encoder("L"), everything).get_nb_trainable_parameters()[0] == 6_291_456
    assert sized("L", "lora", rank=16, target="all-linear") == 7_077_888  # separate q, k and v have an A each


def test_the_subset_of_bitfit():
    names = [name for name in trainable(adapted("bitfit", target="query+mlp")) if "bitfit" in name]
    assert {name.split(".bitfit_delta")[0].rpartition(".")[2] for name in names} == {"q_proj", "fc1"}
    assert sized("S", "bitfit", target="query+mlp") == 12 * (384 + 4 * 384)


def test_bands_that_a_model_cannot_do_without():
    assert needed_bands(adapted("deflect")) == BANDS
    assert needed_bands(adapted("deflect", band_dropout=0.2)) == ["R", "G", "B"]
    assert needed_bands(adapted("lora")) == needed_bands(adapted("full")) == ["R", "G", "B"]
    assert needed_bands(adapted("slr", patch_embed="repeat")) == ["R", "G", "B", "N", "S1", "S2"]
    assert (
        further_bands(adapted("deflect")) == further_bands(adapted("full", patch_embed="repeat")) == ["N", "S1", "S2"]
    )
    assert further_bands(adapted("bitfit")) == []


SEVEN = [*BANDS, "A"]
PRITHVI = ["B", "G", "R", "N2", "S1", "S2"]


@pytest.mark.parametrize(
    ("method", "options", "needed", "further"),
    [
        ("lora", {}, ["B", "G", "R", "N", "S1", "S2"], []),
        ("deflect", {"aux_dim": 8}, SEVEN, ["A"]),
        ("deflect", {"aux_dim": 8, "band_dropout": 0.1}, ["B", "G", "R", "N", "S1", "S2"], ["A"]),
    ],
)
def test_bands_are_called_as_in_the_images(method: str, options: dict, needed: list[str], further: list[str]) -> None:
    """Where the images' only near-infrared band is not the encoder's."""
    torch.manual_seed(0)
    model = EncoderForImageClassification.from_encoder(make_encoder("sincos_3d"), num_labels=2)
    model = adapt(model, method, bands=SEVEN, base_bands=PRITHVI, base_mean=[0.1] * 6, base_std=[0.1] * 6, **options)
    assert (needed_bands(model), further_bands(model)) == (needed, further)


def test_the_unit_reaches_the_adapter():
    formulas = deflect_config(adapted("deflect", unit="8bit")).formulas
    assert "NDVI" in formulas and "EVI" not in formulas
    assert deflect_config(adapted("frozen")) is None


def test_the_adapter_names_its_base_and_revision():
    model = task_model()
    model.encoder.name_or_path = "user/encoder"
    config = adapt(model, "slr", bands=BANDS, revision="abc", **BASE).peft_config["default"]
    assert (config.base_model_name_or_path, config.revision) == ("user/encoder", "abc")


def test_encoder_parameters_leave_the_head_out():
    model = adapted("frozen")
    assert encoder_parameters(model) == (0, sum(p.numel() for p in model.encoder.parameters()))


def test_only_an_encoder_with_a_head_is_adapted_and_only_once():
    for model in (make_encoder("learned"), adapted("lora"), adapted("deflect")):
        with pytest.raises(ArchitectureError, match=f"takes an encoder with its head, .* not a {type(model).__name__}"):
            adapt(model, "deflect", bands=BANDS, **BASE)


def test_a_missing_base_band():
    with pytest.raises(BandError, match="'B'"):
        adapt(task_model(), "bitfit", bands=["R", "G", "N"], **BASE)


@pytest.mark.parametrize(
    ("model", "fields", "error", "message"),
    [
        (lambda: adapted("lora").get_base_model(), {}, ArchitectureError, "another model or has an adapter"),
        (task_model, {"bands": "RGB"}, BandError, "not the single string 'RGB'"),
        (task_model, {"base_mean": [900.0] * 3, "base_std": [300.0] * 3}, UnitError, r"mean \* scale \+ offset"),
    ],
)
@pytest.mark.parametrize("method", ["deflect", "lora", "full"])
def test_what_cannot_be_adapted_is_refused(method, model, fields, error, message):
    with pytest.raises(error, match=message):
        adapt(model(), method, **{"bands": BANDS, **BASE, **fields})


def test_deflect_follows_a_method_that_failed_and_numbers_of_numpy_are_saved(reflectance, tmp_path):
    model = task_model()
    statistics = {name: np.array(values, dtype=np.float32) for name, values in BASE.items()}
    with pytest.raises(ConfigError, match="PEFT cannot adapt this encoder"):
        adapt(model, "peft:LoraConfig", bands=BANDS, target_modules=["nothing"], **statistics)
    model.config.save_pretrained(tmp_path)
    expected = task_model()(base_pixels(reflectance)).logits
    assert torch.equal(adapt(model, "deflect", bands=BANDS, **BASE).eval()(reflectance).logits, expected)
