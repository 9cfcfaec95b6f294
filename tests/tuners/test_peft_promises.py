"""What PEFT promises of every method beyond its tests: model card, refusals, compiled switching, printed summaries."""

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftConfig, PeftMixedModel, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from torch import nn
from transformers import AutoModel

from deflect_hf import BitFitConfig, EncoderForImageClassification, ScaledLoraConfig
from deflect_hf.errors import ArchitectureError, UnsupportedOperationError
from tests.tuners.tiny import (
    BANDS,
    adapted,
    base_pixels,
    make_encoder,
    native_adapters,
    randomise,
    run,
    spectral_config,
)

FOLDERS = {"default": ".", "water": "water"}


def saved_encoder(tmp_path) -> str:
    make_encoder().save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.mark.parametrize("name", list(FOLDERS))
def test_the_card_says_how_to_load(name, tmp_path):
    base = saved_encoder(tmp_path)
    model = get_peft_model(AutoModel.from_pretrained(base), spectral_config(), adapter_name=name)
    for _ in range(2):  # saved again, it says so once
        model.save_pretrained(tmp_path / "adapter")
        card = ModelCard.load(tmp_path / "adapter" / "README.md")
        # the Hub refuses a card whose base is a folder
        assert (card.data["library_name"], card.data.get("base_model")) == ("peft", None)
        assert set(card.data["tags"]) == {"deflect", "transformers"}
        assert card.text.count("import deflect_hf") == 1
        assert "### Framework versions" in card.text
    assert model.get_base_model().model_tags is None


def test_a_readme_of_another_kind_is_left_alone(tmp_path):
    for text in ("my notes", "---\nlibrary_name: timm\n---\nmine\n"):
        (tmp_path / "README.md").write_text(text)
        spectral_config().save_pretrained(tmp_path)
        assert (tmp_path / "README.md").read_text() == text


def test_text_of_the_user_stays_on_the_card(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nTrained on lakes.\n")
    adapted().save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "mit"
    assert "Trained on lakes." in card.text
    assert "import deflect_hf" in card.text


def test_hotswap_is_refused_and_changes_nothing(tmp_path, reflectance):
    model = adapted()
    randomise(adapted(), seed=3).save_pretrained(tmp_path)
    expected = run(model, reflectance)
    with pytest.raises(ValueError, match="Hotswapping only supports LORA but DEFLECT was passed"):
        hotswap_adapter(model, str(tmp_path), adapter_name="default")
    encoder = make_encoder()
    encoder.load_adapter(tmp_path)
    with pytest.raises(ValueError, match="only supported for LoRA, please set `hotswap=False`"):
        encoder.load_adapter(tmp_path, adapter_name="default", hotswap=True)
    assert torch.equal(run(model, reflectance), expected)
    model.load_adapter(tmp_path, adapter_name="other")  # what to do instead
    model.set_adapter("other")
    assert not torch.equal(run(model, reflectance), expected)


def test_mixed_models_are_refused_and_leave_the_base_alone(tmp_path, reflectance):
    adapted().save_pretrained(tmp_path)
    encoder = make_encoder()
    expected = run(encoder, base_pixels(reflectance))
    with pytest.raises(ValueError, match="'DEFLECT' is not compatible with the `PeftMixedModel`"):
        get_peft_model(encoder, spectral_config(), mixed=True)
    with pytest.raises(ValueError, match=r"DEFLECT is not supported for mixed models"):
        PeftMixedModel.from_pretrained(encoder, tmp_path)
    assert torch.equal(run(encoder, base_pixels(reflectance)), expected)


def test_compiled_model_follows_the_switches(reflectance):
    torch.compiler.reset()
    model = get_peft_model(make_encoder(num_hidden_layers=2), spectral_config(indices=None)).eval()
    randomise(model)
    bands = ["R", "G", "B", "N"]
    model.add_adapter("other", spectral_config(bands=bands, indices=None, aux_dim=8, rank=2, layers_to_transform=[1]))
    model.set_adapter("other")
    randomise(model, seed=1)
    model.set_adapter("default")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    inputs = {"default": reflectance, "other": reflectance[:, [BANDS.index(band) for band in bands]]}
    for name in ("default", "other", "default"):
        model.set_adapter(name)
        output = compiled(pixel_values=inputs[name]).last_hidden_state
        torch.testing.assert_close(output, run(model, inputs[name]), rtol=1e-5, atol=1e-5)
    with model.disable_adapter():
        output = compiled(pixel_values=reflectance).last_hidden_state
        torch.testing.assert_close(output, run(model, reflectance), rtol=1e-5, atol=1e-5)
    output = compiled(pixel_values=reflectance).last_hidden_state
    torch.testing.assert_close(output, run(model, reflectance), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [spectral_config, BitFitConfig, ScaledLoraConfig])
def test_an_adapter_of_a_task_model_is_for_task_models(config, tmp_path, caplog):
    base = saved_encoder(tmp_path)
    task = EncoderForImageClassification.from_encoder(AutoModel.from_pretrained(base), num_labels=2)
    get_peft_model(task, config()).save_pretrained(tmp_path / "adapter")
    told = "saved for a EncoderForImageClassification, and this is a ViTModel: its weights may"
    with pytest.raises(ArchitectureError, match=told):
        PeftModel.from_pretrained(AutoModel.from_pretrained(base), tmp_path / "adapter")
    if config is spectral_config:
        options = PeftConfig.from_pretrained(tmp_path / "adapter")
        options.inference_mode = False  # they are for a new adapter
        get_peft_model(AutoModel.from_pretrained(base), options)
        assert told in caplog.text
    caplog.clear()
    task = EncoderForImageClassification.from_encoder(AutoModel.from_pretrained(base), num_labels=2)
    PeftModel.from_pretrained(task, tmp_path / "adapter")
    assert "saved for" not in caplog.text


def test_an_adapter_of_another_encoder_is_warned_about(tmp_path, caplog):
    get_peft_model(make_encoder("vit"), BitFitConfig()).save_pretrained(tmp_path)
    PeftModel.from_pretrained(make_encoder("dinov2"), tmp_path)  # whose last norm has the same name
    assert "saved for a ViTModel, and this is a Dinov2Model: its weights may have other names" in caplog.text


@native_adapters
def test_lora_and_deflect_on_one_model(reflectance):
    """LoRA first: PEFT puts no adapter on what lies inside another one's layers."""
    encoder = make_encoder()
    encoder.add_adapter(LoraConfig(target_modules=["q_proj"], init_lora_weights=False), adapter_name="lora")
    expected = run(encoder.eval(), base_pixels(reflectance))
    encoder.add_adapter(spectral_config(), adapter_name="deflect")
    encoder.set_adapter(["lora", "deflect"])
    assert torch.equal(run(encoder, reflectance), expected)
    assert not torch.equal(run(randomise(encoder), reflectance), expected)
    encoder.add_adapter(spectral_config(), adapter_name="other")
    encoder.set_adapter(["lora", "deflect", "other"])
    with pytest.raises(UnsupportedOperationError, match="The DEFLECT adapters 'deflect', 'other' are active at once"):
        run(encoder, reflectance)


def test_weights_that_accelerate_offloads_come_back(reflectance):
    model = adapted()
    expected = run(model, reflectance)
    cpu_offload(model, execution_device="cpu")
    assert torch.equal(run(model, reflectance), expected)
    remove_hook_from_submodules(model)
    assert torch.equal(run(model, reflectance), expected)


@pytest.mark.parametrize("config", [spectral_config, BitFitConfig, ScaledLoraConfig])
@pytest.mark.parametrize("task", ["TOKEN_CLS", "QUESTION_ANS"])
def test_classes_of_tasks_add_heads_to_the_configuration(config, task):
    head = {"TOKEN_CLS": "classifier", "QUESTION_ANS": "qa_outputs"}[task]
    model = make_encoder()
    setattr(model, head, nn.Linear(2, 2, bias=False))  # PEFT adds it after BitFit has looked for biases
    model = get_peft_model(model, config(task_type=task))
    assert head in model.peft_config["default"].modules_to_save
    assert getattr(model, head).modules_to_save["default"].weight.requires_grad
