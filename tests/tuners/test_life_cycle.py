"""Save, load, switch, add, delete, copy: what a PEFT user does with an adapter."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from peft import (
    AutoPeftModel,
    PeftConfig,
    PeftModel,
    get_model_status,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors import safe_open
from transformers import AutoModel

from deflect_hf import DeflectConfig
from tests.tuners.tiny import BANDS, ENCODERS, adapted, base_pixels, make_encoder, randomise, run, spectral_config

LOAD = """
import sys, torch, deflect_hf
from pathlib import Path
from peft import PeftModel
from transformers import AutoModel
for folder in map(Path, sys.argv[1:]):
    base = AutoModel.from_pretrained(folder / "base", attn_implementation="sdpa")
    model = PeftModel.from_pretrained(base, folder / "adapter").eval()
    pixel_values, kwargs = torch.load(folder / "input.pt")
    torch.save(model(pixel_values=pixel_values, **kwargs).last_hidden_state, folder / "output.pt")
"""


def test_save_then_load_in_a_new_process(tmp_path, reflectance):
    expected = {}
    for architecture in ENCODERS:
        model, folder = adapted(architecture), tmp_path / architecture
        kwargs = {"noise": torch.rand(2, 16)} if architecture == "vit_mae" else {}
        expected[architecture] = run(model, reflectance, **kwargs)
        make_encoder(architecture).save_pretrained(folder / "base")
        model.save_pretrained(folder / "adapter")
        torch.save((reflectance, kwargs), folder / "input.pt")
    folders = [str(tmp_path / architecture) for architecture in ENCODERS]
    subprocess.run([sys.executable, "-c", LOAD, *folders], check=True)
    for architecture in ENCODERS:
        assert torch.equal(torch.load(tmp_path / architecture / "output.pt"), expected[architecture]), architecture


def test_the_file_holds_the_adapter_alone(tmp_path):
    model = adapted("vit")
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        keys = list(file.keys())
        total = sum(file.get_tensor(key).numel() for key in keys if not key.endswith("_extra_state"))
        assumed = json.loads(bytes(file.get_tensor("base_model.model.embeddings.deflect_input._extra_state").tolist()))
    assert all("deflect_" in key and "default" not in key for key in keys)
    assert total == model.get_nb_trainable_parameters()[0]
    assert assumed["bands"] == BANDS and assumed["formulas"] == model.peft_config["default"].formulas
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "DEFLECT"
    assert config["formulas"] == model.peft_config["default"].formulas
    assert PeftConfig.from_pretrained(tmp_path).to_dict() == {
        **model.peft_config["default"].to_dict(),
        "inference_mode": True,
        "auto_mapping": config["auto_mapping"],
    }


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("name", ["default", "water"])
def test_load_under_any_name(name, low_cpu_mem_usage, architecture, tmp_path, reflectance):
    model = adapted(architecture)
    expected = run(model, reflectance)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(
        make_encoder(architecture), tmp_path, adapter_name=name, low_cpu_mem_usage=low_cpu_mem_usage
    ).eval()
    assert torch.equal(run(loaded, reflectance), expected)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    trainable = PeftModel.from_pretrained(make_encoder(architecture), tmp_path, is_trainable=True)
    assert trainable.get_nb_trainable_parameters()[0] == model.get_nb_trainable_parameters()[0]


def test_auto_classes_find_the_base(tmp_path, reflectance):
    make_encoder().save_pretrained(tmp_path / "base")
    base = AutoModel.from_pretrained(tmp_path / "base")
    model = randomise(get_peft_model(base, spectral_config())).eval()
    expected = run(model, reflectance)
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(run(AutoPeftModel.from_pretrained(tmp_path / "adapter").eval(), reflectance), expected)
    assert torch.equal(run(AutoModel.from_pretrained(tmp_path / "adapter").eval(), reflectance), expected)


def test_adapters_of_transformers_itself(architecture, tmp_path, reflectance):
    model = adapted(architecture)
    expected = run(model, reflectance)
    model.save_pretrained(tmp_path / "peft")
    encoder = make_encoder(architecture)
    frozen = run(encoder, base_pixels(reflectance))
    encoder.load_adapter(tmp_path / "peft")
    assert torch.equal(run(encoder, reflectance), expected)
    encoder.disable_adapters()
    assert torch.equal(run(encoder, reflectance), frozen)
    encoder.enable_adapters()
    encoder.save_pretrained(tmp_path / "native")
    again = make_encoder(architecture)
    again.load_adapter(tmp_path / "native")
    assert torch.equal(run(again, reflectance), expected)
    encoder.add_adapter(spectral_config(rank=2), adapter_name="second")
    encoder.set_adapter("second")
    assert torch.equal(run(encoder, reflectance), frozen)
    encoder.delete_adapter("second")
    encoder.set_adapter("default")
    assert torch.equal(run(encoder, reflectance), expected)


def test_inject_and_set_state_dict(architecture, reflectance):
    model = adapted(architecture)
    expected = run(model, reflectance)
    injected = inject_adapter_in_model(spectral_config(), make_encoder(architecture))
    result = set_peft_model_state_dict(injected, get_peft_model_state_dict(model))
    assert not result.unexpected_keys
    assert torch.equal(run(injected.eval(), reflectance), expected)


def test_several_adapters_with_other_bands_ranks_and_blocks(architecture, reflectance):
    model = adapted(architecture)
    expected = run(model, reflectance)
    bands = ["R", "G", "B", "N"]
    other = reflectance[:, [BANDS.index(band) for band in bands]]
    model.add_adapter("other", spectral_config(bands=bands, rank=2, aux_dim=8, layers_to_transform=[1]))
    assert torch.equal(run(model, reflectance), expected)
    model.set_adapter("other")
    randomise(model, seed=1)
    output = run(model, other)
    assert not torch.allclose(output, expected)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert {name.rpartition("deflect_")[2].split(".")[1] for name in trainable} == {"other"}
    model.set_adapter("default")
    assert torch.equal(run(model, reflectance), expected)
    model.delete_adapter("default")
    model.set_adapter("other")
    assert torch.equal(run(model, other), output)
    assert not any("default" in name for name, _ in model.named_parameters())


def test_a_failed_add_leaves_the_model_usable(reflectance):
    model = adapted("vit")
    expected = run(model, reflectance)
    with pytest.raises(ValueError, match="attention heads"):
        model.add_adapter("broken", spectral_config(aux_dim=18))
    assert list(model.peft_config) == ["default"]
    assert torch.equal(run(model, reflectance), expected)
    model.add_adapter("broken", spectral_config(aux_dim=8))
    model.set_adapter("broken")
    run(model, reflectance)


def test_copies_and_pickles(architecture, attention, reflectance):
    model = adapted(architecture, attention)
    expected = run(model, reflectance)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(twin, reflectance), expected)
        randomise(twin, seed=9)
        assert not torch.equal(run(twin, reflectance), expected)
    assert torch.equal(run(model, reflectance), expected)


def test_status_and_counts(architecture, capsys):
    model = adapted(architecture)
    status = get_model_status(model)
    assert (status.enabled, status.active_adapters, status.merged_adapters) == (True, ["default"], [])
    assert status.requires_grad == {"default": True}
    model.print_trainable_parameters()
    assert f"trainable params: {status.trainable_params:,}" in capsys.readouterr().out


def test_unsaved_features_of_the_file_do_not_depend_on_the_catalogue(tmp_path, reflectance, monkeypatch):
    """Loading uses the formulas in the file: the installed spyndex is not asked."""
    model = adapted("vit")
    expected = run(model, reflectance)
    model.save_pretrained(tmp_path)
    monkeypatch.setattr("deflect_hf.tuners.deflect.config.select_indices", None)
    loaded = PeftModel.from_pretrained(make_encoder(), tmp_path).eval()
    assert torch.equal(run(loaded, reflectance), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
def test_dtypes(dtype, autocast_adapter_dtype, reflectance):
    base = make_encoder("vit").to(dtype)
    expected = run(base, base_pixels(reflectance.to(dtype)))
    model = get_peft_model(base, spectral_config(), autocast_adapter_dtype=autocast_adapter_dtype).eval()
    kinds = {parameter.dtype for name, parameter in model.named_parameters() if "deflect_" in name}
    assert kinds == {torch.float32 if autocast_adapter_dtype else dtype}
    output = run(model, reflectance)
    assert output.dtype == dtype
    torch.testing.assert_close(output, expected, rtol=2e-2, atol=2e-2)
    assert torch.isfinite(run(randomise(model), reflectance)).all()


def test_statistics_stay_float32_in_a_half_precision_model():
    model = adapted("vit", feature_mean=[0.123456789] * 12, feature_std=[1.0] * 12, indices=None)
    model.to(torch.bfloat16)
    features = model.base_model.model.embeddings.deflect_input["default"].features
    assert math.isclose(features.feature_mean[0].item(), 0.123456789, rel_tol=1e-7)


def test_two_threads_do_not_see_each_other(reflectance):
    model = adapted("vit")
    images = [reflectance * scale for scale in (0.5, 1.0, 1.5, 2.0)]
    expected = [run(model, image) for image in images]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(20):
            if not torch.equal(run(model, images[index]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_default_config_round_trips(tmp_path):
    config = DeflectConfig()
    config.save_pretrained(tmp_path)
    assert DeflectConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
