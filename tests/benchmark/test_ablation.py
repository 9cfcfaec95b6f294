"""The ablation's variants: each is DEFLECT with one decision changed, and nothing of it outlives its run."""

import pytest
import torch
from peft import get_peft_model
from transformers import ViTConfig, ViTModel

import deflect_hf
from deflect_hf.benchmark.ablation import VARIANTS, absolute, clipped, free, variants
from deflect_hf.benchmark.rows import Row
from deflect_hf.errors import ConfigError
from deflect_hf.tuners.deflect.attention import deflect_displacement

BANDS = ["B", "G", "R", "N", "S1", "S2"]


def adapted() -> torch.nn.Module:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        initializer_range=0.2,
    )
    base = ViTModel(config, add_pooling_layer=False)
    model = get_peft_model(base, deflect_hf.DeflectConfig(bands=BANDS, indices=["NDVI"], init_weights=False)).eval()
    for name, parameter in model.named_parameters():
        if "deflect_up" in name:
            parameter.data *= 0.1  # a push shorter than the step: some steps get longer by it, and some shorter
    return model


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_changes_the_output_trains_all_its_parameters_and_ends(name: str, reflectance: torch.Tensor) -> None:
    usual = adapted()(reflectance).last_hidden_state
    with variants(name):
        model = adapted()
        output = model(reflectance).last_hidden_state
        (output**2).sum().backward()
    assert output.shape == usual.shape
    assert torch.isfinite(output).all()
    assert not torch.allclose(output, usual, atol=1e-4)
    assert all(parameter.grad.any() for parameter in model.parameters() if parameter.requires_grad)
    torch.testing.assert_close(adapted()(reflectance).last_hidden_state, usual, rtol=0, atol=0)


def test_norm_rules(reflectance: torch.Tensor) -> None:
    step, push = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, -1.6]])  # in lengths of the step, 5
    assert deflect_displacement(step, push).tolist() == [[3.0, -4.0]]
    assert absolute(step, 5 * push).tolist() == [[3.0, -4.0]]
    assert free(step, 2 * push).tolist() == [[3.0, -12.0]]
    assert clipped(step, push / 2).tolist() == [[3.0, 0.0]]  # shorter than before: left as it is
    assert clipped(step, -push).norm().item() == pytest.approx(5.0)


def test_rows_name_variants_where_they_are_run() -> None:
    assert Row.parse("deflect@free+g2:rank=4", variants=True).variant == "free+g2"
    with pytest.raises(ConfigError, match=r"deflect@fre: no variant 'fre'.*'free'"):
        Row.parse("deflect@fre", variants=True)
    for text, allowed in (("lora@free", True), ("deflect@free", False)):
        with pytest.raises(ConfigError, match="variants are those of deflect, in the benchmark accuracy alone"):
            Row.parse(text, variants=allowed)
