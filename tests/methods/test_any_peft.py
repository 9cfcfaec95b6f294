"""`--finetune peft:NAME`: every method of PEFT either trains a vision transformer or is refused with a reason."""

from typing import Any

import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from deflect_hf.errors import ConfigError
from deflect_hf.methods import adapt, as_values, encoder_parameters, method_options
from tests.methods.models import BASE, task_model, trainable
from tests.tuners.tiny import BANDS

# Options that the tiny encoder needs where a default does not fit its width of 32.
NEEDED: dict[str, dict[str, Any]] = {
    "C3AConfig": {"block_size": 8},
    "IA3Config": {"feedforward_modules": []},
    "LNTuningConfig": {"target": None, "target_modules": r"encoder\..*layernorm(_before|_after)?"},
    "MissConfig": {"r": 8},
    "RoadConfig": {"group_size": 8},
    "ShiraConfig": {"r": 4},
    "VBLoRAConfig": {"vector_length": 8},
    "WaveFTConfig": {"n_frequency": 8},
}
PROMPTS = {
    "CPTConfig", "CartridgeConfig", "MultitaskPromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig",
    "PromptTuningConfig",
}  # fmt: skip
OTHERS = {"AdaLoraConfig", "AdaptionPromptConfig", "DeflectConfig", "PolyConfig", "TrainableTokensConfig",
          "XLoraConfig"}  # fmt: skip
CLASSES = sorted(cls.__name__ for cls in PEFT_TYPE_TO_CONFIG_MAPPING.values())
USABLE = [name for name in CLASSES if name not in PROMPTS | OTHERS | {"ShadowConfig"}]


@pytest.mark.parametrize("name", USABLE)
def test_it_trains_a_vision_transformer(name, reflectance):
    options = {"target": "qv", **NEEDED.get(name, {})}
    model = adapt(task_model(), f"peft:{name}", bands=BANDS, **BASE, **options)
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(2):
        model(reflectance, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
    changed = [not torch.equal(p, old) for p, old in zip(trained, before, strict=True)]
    assert all(p.grad is not None for p in trained) and sum(changed) > len(changed) // 2
    assert any(".head." in name for name in trainable(model))
    assert encoder_parameters(model)[0] > 0


@pytest.mark.parametrize("name", sorted(PROMPTS | OTHERS))
def test_what_makes_no_sense_for_images_is_refused_with_the_reason(name):
    reason = "vectors that stand before the words" if name in PROMPTS else "cannot adapt a vision transformer: it "
    with pytest.raises(ConfigError, match=reason):
        method_options(f"peft:{name}", {"target": "qv"})


def test_peft_has_no_other():
    assert set(CLASSES) == PROMPTS | OTHERS | {"ShadowConfig"} | set(USABLE)
    message = "finetune='peft:ShadowConfig': PEFT cannot adapt this encoder with these options: Unable to infer"
    with pytest.raises(ConfigError, match=message):
        adapt(task_model(), "peft:ShadowConfig", bands=BANDS, target="qv", **BASE)


def test_options_are_recorded_as_given():
    values = {"target": "qv", "r": 4, "vera_dropout": 0.1}
    recorded = as_values(method_options("peft:VeraConfig", values))
    assert recorded == {"patch_embed": "frozen", **values}
    assert as_values(method_options("peft:VeraConfig", recorded)) == recorded


def test_target_modules_instead_of_a_target():
    model = adapt(task_model(), "peft:LoraConfig", bands=BANDS, r=2, target_modules=["fc1"], **BASE)
    assert encoder_parameters(model)[0] == 3 * 2 * (32 + 64)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("peft:VeraConfig", {}, "needs either method.target, one of .* or method.target_modules, .* of modules."),
        ("peft:VeraConfig", {"target": "qv", "target_modules": ["q_proj"]}, "of modules, not both"),
        ("peft:VeraConfig", {"target": "everything"}, "'method.target' must be one of"),
        ("peft:VeraConfig", {"target": "qv", "r": "x"}, "method.r='x' does not fit: Input should be a valid integer"),
        ("peft:VeraConfig", {"target": "qv", "modules_to_save": ["x"]}, "method.modules_to_save is no option"),
        (
            "peft:LoraConfig",
            {"target": "qv", "layers_to_transform": [0]},
            "PEFT cannot adapt .*: `layers_to",
        ),
    ],
)
def test_mistakes_in_words(method, options, message):
    with pytest.raises(ConfigError, match=message):
        adapt(task_model(), method, bands=BANDS, **BASE, **options)
