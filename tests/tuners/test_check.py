"""`deflect_hf.check`: what it proves, and what it says where that does not hold."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import deflect_hf
from deflect_hf.errors import ArchitectureError, ConfigError
from tests.tuners.tiny import adapted, make_encoder


def test_a_fresh_adapter_passes_and_stays_as_it_is(architecture):
    model = adapted(architecture, trained=False).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    deflect_hf.check(model)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_methods_of_peft_can_be_checked():
    deflect_hf.check(get_peft_model(make_encoder(), LoraConfig(target_modules=["q_proj"])))


def test_the_first_block_that_differs_is_named():
    model = adapted(trained=False)
    nn.init.ones_(model.base_model.model.layers[1].deflect_up["default"].weight)
    with pytest.raises(ArchitectureError, match=r"layers\.1 is the first block whose output is not that of the frozen"):
        deflect_hf.check(model)


def test_a_tensor_without_gradient_is_named():
    model = adapted(trained=False)
    model.base_model.model.pooler.dense.bias.requires_grad_(True)
    model.base_model.model.extra = nn.Linear(1, 1)
    with pytest.raises(ArchitectureError, match=r"get no gradient.*extra\.weight"):
        deflect_hf.check(model)


def test_a_model_without_adapter_is_refused():
    with pytest.raises(ConfigError, match="for adapted models"):
        deflect_hf.check(make_encoder())


def test_a_model_that_trains_nothing_is_refused(tmp_path):
    model = adapted(trained=False)
    model.save_pretrained(tmp_path)
    model.base_model.disable_adapter_layers()
    for one in (model, PeftModel.from_pretrained(make_encoder(), tmp_path)):
        with pytest.raises(ConfigError, match="Nothing of the model is trained"):
            deflect_hf.check(one)
