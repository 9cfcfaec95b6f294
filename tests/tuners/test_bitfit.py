"""BitFit: which biases are trained, and how many."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.models.convnext.modeling_convnext import ConvNextLayerNorm

from deflect_hf import BitFitConfig
from deflect_hf.errors import ArchitectureError
from tests.tuners.fused import fused_encoder, vit
from tests.tuners.tiny import make_encoder, randomise


@pytest.mark.parametrize(("size", "published"), [("S", 51_456), ("B", 102_912), ("L", 272_384)])
def test_parameters_of_the_published_encoders_and_of_ours(size, published):
    for encoder in (fused_encoder(size), vit(size)):
        assert get_peft_model(encoder, BitFitConfig()).get_nb_trainable_parameters()[0] == published


def test_by_default_every_bias_is_trained(architecture):
    encoder = make_encoder(architecture)
    biases = sum(parameter.numel() for name, parameter in encoder.named_parameters() if name.endswith("bias"))
    assert get_peft_model(encoder, BitFitConfig()).get_nb_trainable_parameters()[0] == biases


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(4, 6), (2, 3, 4)),
        (nn.LayerNorm(4), (2, 3, 4)),
        (nn.LayerNorm((3, 4)), (2, 3, 4)),
        (nn.Conv1d(4, 6, 3), (2, 4, 9)),
        (nn.Conv2d(4, 6, 3), (2, 4, 9, 9)),
        (nn.Conv3d(4, 6, 3), (2, 4, 5, 9, 9)),
        (nn.ConvTranspose2d(4, 6, 3), (2, 4, 9, 9)),
        (ConvNextLayerNorm(4), (2, 4, 4, 4)),
        (ConvNextLayerNorm(4, data_format="channels_first"), (2, 4, 4, 4)),
    ],
)
def test_it_is_the_module_with_another_bias(module, shape):
    x = torch.randn(shape)
    adapted = randomise(get_peft_model(nn.Sequential(module), BitFitConfig()))
    delta = adapted.base_model.model[0].bitfit_delta["default"]
    bias = module.bias + delta
    output = adapted(x)
    with torch.no_grad():
        module.bias.copy_(bias)
    torch.testing.assert_close(output, module(x))


@pytest.mark.parametrize("training", [True, False])
def test_attention_that_reads_the_bias_of_its_projection_takes_the_change(training):
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(1, 4, 8)
    with torch.no_grad():
        before = attention(x, x, x)[0]
        model = get_peft_model(nn.Sequential(attention), BitFitConfig(init_weights=False)).train(training)
        delta = attention.out_proj.bitfit_delta["default"]
        torch.testing.assert_close(attention(x, x, x)[0], before + delta)
        model.merge_adapter()
        torch.testing.assert_close(attention(x, x, x)[0], before + delta)
        model.unmerge_adapter()
    attention(x, x, x)[0].sum().backward()
    assert delta.grad.abs().sum() > 0
    with model.disable_adapter():
        torch.testing.assert_close(attention(x, x, x)[0], before)


def test_all_linear_names_the_layers_that_it_names_for_lora():
    named = [
        get_peft_model(make_encoder(), kind(target_modules="all-linear")).peft_config["default"].target_modules
        for kind in (BitFitConfig, LoraConfig)
    ]
    assert named[0] == named[1] and named[0]


def test_modules_without_a_bias_are_left_alone():
    model = get_peft_model(make_encoder("dinov3_vit"), BitFitConfig(target_modules=["k_proj", "v_proj"]))
    assert {name.split(".")[-1] for name, _ in model.named_modules() if name.endswith("proj")} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj",
    }  # fmt: skip
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all(".v_proj.bitfit_delta" in name for name in trained)
    message = "BitFit finds no bias to train in DINOv3ViTModel: none of the modules .*k_proj.* is a 'Linear'"
    with pytest.raises(ArchitectureError, match=message):
        get_peft_model(make_encoder("dinov3_vit"), BitFitConfig(target_modules=["k_proj"]))


def test_modules_that_are_trained_in_full_keep_their_own_bias():
    """The pattern is taken from the model: an adapter loads on a deeper one of the same kind, too."""
    config = BitFitConfig(modules_to_save=["pooler", "layernorm"])
    model = get_peft_model(make_encoder(), config)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("bitfit_delta" in name for name in names if "pooler" not in name and ".layernorm." not in name)
    assert "base_model.model.pooler.modules_to_save.default.dense.bias" in names
    deeper = make_encoder(num_hidden_layers=5)
    get_peft_model(deeper, BitFitConfig(target_modules=model.peft_config["default"].target_modules))
    assert "layers.4.mlp.fc2.bitfit_delta.default" in dict(deeper.named_parameters())


def test_other_modules_with_a_bias_are_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with pytest.raises(ArchitectureError, match="also names '1', which is a BatchNorm1d"):
        get_peft_model(model, BitFitConfig(target_modules=["0", "1"]))
