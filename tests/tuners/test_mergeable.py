"""What SLR and BitFit share: the life of an adapter that can be merged."""

from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import (
    PeftModel,
    get_peft_model,
)
from safetensors import safe_open
from torch import nn

from deflect_hf import BitFitConfig, ScaledLoraConfig
from deflect_hf.errors import CheckpointError, UnsupportedOperationError
from tests.tuners.tiny import make_encoder, native_adapters, randomise, run

CONFIGS: dict[str, type] = {"slr": ScaledLoraConfig, "bitfit": BitFitConfig}


@pytest.fixture(params=list(CONFIGS))
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def pixels() -> torch.Tensor:
    """(2, 3, 32, 32) normalised images of the base bands."""
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def adapted(method: str, architecture: str = "vit", trained: bool = True, **fields: Any) -> PeftModel:
    model = get_peft_model(make_encoder(architecture), CONFIGS[method](**fields)).eval()
    return randomise(model, scale=0.1) if trained else model


def test_it_starts_as_the_frozen_model_and_becomes_it_again_disabled_or_unloaded(method, architecture, pixels):
    expected = run(make_encoder(architecture), pixels)
    model = adapted(method, architecture, trained=False)
    assert torch.equal(run(model, pixels), expected)
    output = run(randomise(model, scale=0.1), pixels)
    assert not torch.allclose(output, expected)
    with model.disable_adapter():
        assert torch.equal(run(model, pixels), expected)
    assert torch.equal(run(model, pixels), output)
    assert torch.equal(run(model.unload(), pixels), expected)


def test_merging_keeps_the_output_and_unmerging_restores_every_bit(method, pixels):
    model, pixels = adapted(method).double(), pixels.double()
    output = run(model, pixels)
    base = {name: p.clone() for name, p in model.named_parameters() if f".{method}_" not in name}
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(run(model, pixels), output, rtol=1e-5, atol=1e-5)
    assert any(not torch.equal(p, base[name]) for name, p in model.named_parameters() if name in base)
    model.unmerge_adapter()
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters() if name in base)
    assert torch.equal(run(model, pixels), output)
    model.merge_adapter()
    with model.disable_adapter():
        run(model, pixels)
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters() if name in base)
    torch.testing.assert_close(run(model.merge_and_unload(), pixels), output, rtol=1e-5, atol=1e-5)


def test_a_merged_model_may_move_before_it_is_unmerged(method, pixels):
    model = adapted(method)
    model.merge_adapter()
    model.double()
    model.unmerge_adapter()
    base = model.unload()
    assert {parameter.dtype for parameter in base.parameters()} == {torch.float64}
    assert all(torch.equal(p.float(), q) for p, q in zip(base.parameters(), make_encoder().parameters(), strict=True))


def test_weights_too_large_for_halves_are_not_merged_safely(method, pixels):
    model = get_peft_model(make_encoder().half(), CONFIGS[method]()).eval()
    before = {name: p.clone() for name, p in model.named_parameters() if f".{method}_" not in name}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("delta" in name or "up" in name):
            parameter.data.fill_(1e5)
    with pytest.raises(CheckpointError, match="NaNs detected"):
        model.merge_adapter(safe_merge=True)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)


def test_several_adapters(method, pixels):
    """Switched, deleted, and both at once: as if the first had been merged before the second was added."""
    model = adapted(method)
    first = run(model, pixels)
    model.add_adapter("second", CONFIGS[method]())
    assert torch.equal(run(model, pixels), first)
    model.set_adapter("second")
    randomise(model, scale=0.1, seed=1)
    second = run(model, pixels)
    model.base_model.set_adapter(["default", "second"])
    both = run(model, pixels)
    assert not torch.allclose(both, first) and not torch.allclose(both, second)
    model.merge_adapter(adapter_names=["default", "second"])
    torch.testing.assert_close(run(model, pixels), both, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    model.set_adapter("second")
    assert torch.equal(run(model, pixels), second)
    model.delete_adapter("second")
    assert not any("second" in name for name, _ in model.named_parameters())
    model.set_adapter("default")
    assert torch.equal(run(model, pixels), first)


def test_the_file_holds_the_adapter_alone_and_the_card_says_how_to_load_it(method, tmp_path):
    model = adapted(method, modules_to_save=["pooler"])
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        keys = list(file.keys())
        total = sum(file.get_tensor(key).numel() for key in keys)
    assert all(f".{method}_" in key or ".pooler." in key for key in keys)
    assert total == model.get_nb_trainable_parameters()[0]
    card = ModelCard.load(tmp_path / "README.md")
    assert method in card.data["tags"] and f"KeyError: '{method.upper()}'" in card.text


@native_adapters
def test_adapters_of_transformers_itself(method, architecture, tmp_path, pixels):
    model = adapted(method, architecture)
    expected = run(model, pixels)
    model.save_pretrained(tmp_path / "peft")
    native = make_encoder(architecture)
    native.load_adapter(tmp_path / "peft")
    assert torch.equal(run(native, pixels), expected)
    native.save_pretrained(tmp_path / "native")
    again = make_encoder(architecture)
    again.load_adapter(tmp_path / "native")
    assert torch.equal(run(again, pixels), expected)


def test_a_quantised_layer_is_not_merged(method):
    model = adapted(method, target_modules=["fc1"])
    layer = model.base_model.model.layers[0].mlp.fc1.base_layer
    layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedOperationError, match=r"'layers\.0\.mlp\.fc1' cannot .* its base weight is quant"):
        model.merge_adapter()
