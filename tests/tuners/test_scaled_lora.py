"""Scaled low-rank adapters: the published equations and sizes."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from deflect_hf import ScaledLoraConfig
from deflect_hf.errors import ArchitectureError, ConfigError, UnsupportedOperationError
from tests.tuners.fused import fused_encoder, vit
from tests.tuners.tiny import make_encoder, randomise, run

LINEAR = ["qkv", "proj", "fc1", "fc2"]


@pytest.mark.parametrize(
    ("size", "rank", "published", "separate"),
    [
        ("S", 8, 705_408, 788_544),
        ("S", 16, 1_295_616, 1_452_672),
        ("B", 8, 1_410_432, 1_576_512),
        ("B", 16, 2_590_464, 2_904_192),
        ("L", 8, 3_760_896, 4_203_648),
        ("L", 16, 6_907_392, 7_743_744),
    ],
)
def test_parameters_of_the_published_encoders_and_of_ours(size, rank, published, separate):
    model = get_peft_model(fused_encoder(size), ScaledLoraConfig(r=rank, target_modules=LINEAR))
    assert model.get_nb_trainable_parameters()[0] == published
    assert get_peft_model(vit(size), ScaledLoraConfig(r=rank)).get_nb_trainable_parameters()[0] == separate
    assert all(parameter.is_meta for parameter in model.parameters())
    shown = f"{published:,}", f"{separate:,}"
    assert all(number in (ScaledLoraConfig.__doc__ or "") for number in shown)


def layer() -> nn.Module:
    """A trained adapter on one linear layer, 5 -> 3."""
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(5, 3)), ScaledLoraConfig(r=2, target_modules=["0"]))
    randomise(model)
    return model.base_model.model[0]


def test_the_published_equation():
    adapted = layer()
    x = torch.randn(4, 7, 5)
    base, down, up = adapted.base_layer, adapted.slr_down["default"], adapted.slr_up["default"]
    scaled = x * adapted.slr_scale_in["default"]
    low = (scaled @ down.weight.T + down.bias) @ up.weight.T + up.bias
    expected = adapted.slr_scale_out["default"] * (scaled @ base.weight.T + base.bias + low)
    torch.testing.assert_close(adapted(x), expected)


def test_the_published_initialisation():
    model = get_peft_model(nn.Sequential(nn.Linear(4096, 64)), ScaledLoraConfig(r=64, target_modules=["0"]))
    adapted = model.base_model.model[0]
    down, up = adapted.slr_down["default"], adapted.slr_up["default"]
    assert down.weight.std().item() == pytest.approx(1.0, abs=0.01)  # not scaled by the width
    assert 0 < down.bias.abs().max() <= 4096**-0.5
    assert not up.weight.any() and not up.bias.any()
    assert (adapted.slr_scale_in["default"] == 1).all() and (adapted.slr_scale_out["default"] == 1).all()


def test_by_default_all_linear_layers_of_the_blocks_are_adapted(architecture):
    model = get_peft_model(make_encoder(architecture), ScaledLoraConfig())
    adapted = {name.rpartition(".")[0] for name, _ in model.named_modules() if name.endswith("slr_scale_in")}
    linear = {
        f"base_model.model.{name}"
        for name, module in make_encoder(architecture).named_modules()
        if isinstance(module, nn.Linear) and "pooler" not in name
    }
    assert adapted == linear


def test_chosen_blocks():
    config = ScaledLoraConfig(target_modules=["q_proj"], layers_to_transform=[0, 2], layers_pattern="layers")
    model = get_peft_model(nn.ModuleDict({"encoder": make_encoder()}), config)
    assert model.base_model.targeted_module_names == [f"encoder.layers.{k}.attention.q_proj" for k in (0, 2)]


def test_without_a_bias_it_works_but_cannot_be_merged(reflectance):
    model = randomise(get_peft_model(make_encoder("dinov3_vit"), ScaledLoraConfig())).eval()
    pixels = reflectance[:, :3]
    expected = run(model, pixels)
    message = r"'model.layer.0.attention.k_proj' cannot take it, since it has no bias. Fix: .*\(exclude_modules\)"
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(UnsupportedOperationError, match=message):
            merge()
    assert torch.equal(run(model, pixels), expected)
    model = get_peft_model(make_encoder("dinov3_vit"), ScaledLoraConfig(exclude_modules=["k_proj"])).eval()
    expected = run(randomise(model, scale=0.1), pixels)
    torch.testing.assert_close(run(model.merge_and_unload(), pixels), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, "r must be a whole number above 0, got 0"),
        ({"r": True}, "r must be a whole number above 0, got True"),
        ({"layers_to_transform": [0]}, "but target_modules is None"),
        ({"layers_to_transform": [0], "target_modules": ".*q_proj"}, "but target_modules is '.*q_proj'"),
        ({"layers_pattern": "layers"}, "layers_pattern='layers' is for layers_to_transform"),
    ],
)
def test_bad_configurations(fields, message):
    with pytest.raises(ConfigError, match=message):
        ScaledLoraConfig(**fields)
    config = ScaledLoraConfig()
    for name, value in fields.items():
        setattr(config, name, value)
    with pytest.raises(ConfigError, match=message):
        get_peft_model(make_encoder(), config)


def test_modules_that_it_cannot_adapt():
    with pytest.raises(ArchitectureError, match=r"also names 'layers\.0\.layernorm_before', which is a LayerNorm"):
        get_peft_model(make_encoder(), ScaledLoraConfig(target_modules=["layernorm_before"]))
    with pytest.raises(ConfigError, match="Or name the layers: target_modules="):
        get_peft_model(nn.Sequential(nn.Linear(2, 2)), ScaledLoraConfig())
