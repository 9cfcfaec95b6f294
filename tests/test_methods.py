"""`--finetune NAME`: what is trained, what the encoder sees, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from deflect_hf.errors import ConfigError
from deflect_hf.methods import METHODS, adapt, deflect_config, encoder_parameters, needed_bands
from deflect_hf.models import EncoderForImageClassification
from tests.tuners.tiny import BANDS, base_pixels, make_encoder

BASE = {"base_mean": [0.1, 0.12, 0.14], "base_std": [0.1, 0.1, 0.1]}
OPTIONS: dict[str, dict[str, Any]] = {"deflect": {"aux_dim": 16}, "lora": {}, "frozen": {}, "full": {}}


def task_model() -> EncoderForImageClassification:
    torch.manual_seed(0)
    return EncoderForImageClassification.from_encoder(make_encoder(add_pooling_layer=False), num_labels=3)


def adapted(method: str, **options: Any) -> nn.Module:
    return adapt(task_model(), method, bands=BANDS, **BASE, **{**OPTIONS[method], **options})


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_starts_at_the_frozen_rgb_model(method, reflectance):
    expected = task_model()(base_pixels(reflectance)).logits
    assert torch.equal(adapted(method).eval()(reflectance).logits, expected)


@pytest.mark.parametrize("method", ["lora", "frozen", "full"])
def test_only_deflect_sees_the_other_bands(method, reflectance):
    model = adapted(method).eval()
    expected = model(reflectance).logits
    reflectance[:, BANDS.index("N") :] = math.nan
    assert torch.equal(model(reflectance).logits, expected)


def test_what_is_trained():
    assert all(".head.modules_to_save.default." in n or "deflect_" in n for n in trainable(adapted("deflect")))
    assert all(".head.modules_to_save.default." in n or "lora_" in n for n in trainable(adapted("lora")))
    assert {name.split(".")[0] for name in trainable(adapted("frozen"))} == {"head"}
    full = adapted("full")
    assert trainable(full) == {name for name, _ in full.named_parameters()}


@pytest.mark.parametrize(("target", "layers"), [("qv", 2), ("qkvo", 4), ("all-linear", 6)])
def test_lora_parameters(target, layers):
    model = adapted("lora", rank=2, target=target)
    assert isinstance(model, PeftModel)
    square = min(layers, 4) * 2 * (32 + 32)
    expected = 3 * (square + (2 * 2 * (32 + 64) if layers == 6 else 0))
    assert encoder_parameters(model)[0] == expected


def test_bands_that_a_model_cannot_do_without():
    assert needed_bands(adapted("deflect")) == BANDS
    assert needed_bands(adapted("deflect", band_dropout=0.2)) == ["R", "G", "B"]
    assert needed_bands(adapted("lora")) == needed_bands(adapted("full")) == ["R", "G", "B"]


def test_the_unit_reaches_the_adapter():
    formulas = deflect_config(adapted("deflect", unit="8bit")).formulas
    assert "NDVI" in formulas and "EVI" not in formulas
    assert deflect_config(adapted("frozen")) is None


def test_encoder_parameters_leave_the_head_out():
    model = adapted("frozen")
    assert encoder_parameters(model) == (0, sum(p.numel() for p in model.encoder.parameters()))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("deflct", {}, "finetune='deflct' is unknown.*Did you mean 'deflect'?"),
        ("deflect", {"rnk": 4}, "method.rnk is no option of 'deflect'.*Did you mean 'rank'?"),
        ("frozen", {"rank": 4}, "method.rank is no option of 'frozen'"),
        ("lora", {"target": "everything"}, "method.target='everything' is unknown"),
    ],
)
def test_unknown_names(method, options, message):
    with pytest.raises(ConfigError, match=message):
        adapt(task_model(), method, bands=BANDS, **BASE, **options)
