"""Save, load, switch, add, delete, copy: what a PEFT user does with an adapter."""

import copy
import json
import pickle
import threading
import warnings

import pytest
import torch
from peft import (
    AutoPeftModel,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from deflect_hf import DeflectConfig, fit_statistics
from deflect_hf.errors import ArchitectureError, CheckpointError, ConfigError, DataError, UnitError
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


def test_the_file_holds_the_adapter_alone(tmp_path):
    model = adapted("vit")
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        keys = list(file.keys())
        total = sum(file.get_tensor(key).numel() for key in keys if not key.endswith("_extra_state"))
        text = file.get_tensor("base_model.model.embeddings.deflect_input._extra_state").byte()
    assumed = json.loads(bytes(text.tolist()))
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


def test_auto_classes_find_the_base(tmp_path, reflectance):
    make_encoder().save_pretrained(tmp_path / "base")
    base = AutoModel.from_pretrained(tmp_path / "base")
    model = randomise(get_peft_model(base, spectral_config())).eval()
    expected = run(model, reflectance)
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(run(AutoPeftModel.from_pretrained(tmp_path / "adapter").eval(), reflectance), expected)
    assert torch.equal(run(AutoModel.from_pretrained(tmp_path / "adapter").eval(), reflectance), expected)


@native_adapters
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


@pytest.mark.parametrize("load", ["load_adapter", "set_peft_model_state_dict"])
def test_weights_loaded_over_an_adapter_bring_what_they_assume(load, tmp_path, reflectance):
    """Bands in another order, other formulas, statistics and normalisation: of the same shapes all the same."""
    other = adapted("vit", bands=BANDS[::-1], base_mean=[0.3, 0.2, 0.1], formulas={"x": "N - R"}, index_bounds={"x": 1})
    fit_statistics(other, [reflectance], unit_check=False)
    expected = run(other, reflectance)
    other.save_pretrained(tmp_path)
    model = adapted("vit", formulas={"y": "N + G"})
    if load == "load_adapter":
        model.load_adapter(tmp_path, adapter_name="default")
    else:
        set_peft_model_state_dict(model, get_peft_model_state_dict(other))
    assert torch.equal(run(model, reflectance), expected)
    model.save_pretrained(tmp_path / "again")
    again = PeftModel.from_pretrained(make_encoder(), tmp_path / "again").eval()
    assert torch.equal(run(again, reflectance), expected)
    assert again.peft_config["default"].feature_mean == other.peft_config["default"].feature_mean


@pytest.mark.parametrize(
    ("fields", "differing"),
    [({"rank": 2}, "rank"), ({"bands": ["R", "G", "B"], "indices": None}, "bands"), ({"formulas": {}}, "indices"),
     ({"layers_to_transform": [0]}, "layers_to_transform")],
)  # fmt: skip
def test_weights_of_another_shape_are_refused_and_change_nothing(fields, differing, reflectance):
    model = adapted("vit")
    expected = run(model, reflectance)
    with pytest.raises(CheckpointError, match=rf"of an adapter with other .*'{differing}'"):
        set_peft_model_state_dict(model, get_peft_model_state_dict(adapted("vit", **fields)))
    assert torch.equal(run(model, reflectance), expected)


def test_weights_of_earlier_versions_load_and_are_warned_about_where_they_may_not_fit(tmp_path, reflectance, caplog):
    model = adapted("vit")
    expected = run(model, reflectance)
    state = {k: v for k, v in get_peft_model_state_dict(model).items() if not k.endswith("_extra_state")}
    model.save_pretrained(tmp_path)
    save_file(state, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT's, of missing keys
        loaded = PeftModel.from_pretrained(make_encoder(), tmp_path).eval()
    assert torch.equal(run(loaded, reflectance), expected) and not [
        record for record in caplog.records if record.levelname == "WARNING"
    ]
    adapted("vit", formulas={}).save_pretrained(tmp_path / "other")
    loaded.load_adapter(tmp_path / "other", adapter_name="other")
    assert "the weights do not say" not in caplog.text
    loaded.load_adapter(tmp_path, adapter_name="default")
    assert "the weights do not say what they assume" in caplog.text


def test_a_base_with_other_weights_is_warned_about(tmp_path, reflectance, caplog):
    model = adapted("vit")
    model.save_pretrained(tmp_path)
    PeftModel.from_pretrained(make_encoder().to(torch.bfloat16), tmp_path)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    other = make_encoder()
    other.layers[2].mlp.fc1.weight.data += 0.1
    loaded = PeftModel.from_pretrained(other, tmp_path)
    assert "trained on a base model with other weights than this one" in caplog.text
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert loaded.peft_config["default"].base_fingerprint == config["base_fingerprint"] is not None


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"num_attention_heads": 2}, "num_heads 4 (here 2)"),
        ({"patch_size": 4}, "patch_size [8, 8] (here [4, 4])"),
        ({"layer_norm_eps": 0.1}, "(here 0.1)"),
        ({"num_hidden_layers": 2}, "(here 2)"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_encoder_of_other_sizes_is_named(tmp_path, caplog, overrides, said, dtype):
    adapted("vit").save_pretrained(tmp_path)
    PeftModel.from_pretrained(make_encoder().to(dtype), tmp_path)
    assert "other sizes" not in caplog.text
    PeftModel.from_pretrained(make_encoder(**overrides).to(dtype), tmp_path)
    assert "the adapter was made for an encoder of other sizes: " in caplog.text and said in caplog.text


def test_an_encoder_of_another_width_is_refused(tmp_path):
    adapted("vit").save_pretrained(tmp_path)
    with pytest.raises(ArchitectureError, match=r"hidden_size 32 \(here 64\).* Load it onto its base"):
        PeftModel.from_pretrained(make_encoder(hidden_size=64), tmp_path)


def test_a_stored_adapter_is_not_put_into_an_adapted_model(tmp_path):
    adapted("vit").save_pretrained(tmp_path)
    with pytest.raises(ArchitectureError, match=r"a PeftModel already, .*model.load_adapter\(FOLDER"):
        PeftModel.from_pretrained(PeftModel.from_pretrained(make_encoder(), tmp_path), tmp_path)


@pytest.mark.parametrize("part", ["deflect_down", "deflect_spectral", "deflect_up"])
def test_a_file_with_weights_that_are_no_numbers_is_refused(part, tmp_path):
    adapted("vit").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors[next(name for name in tensors if part in name)].flatten()[0] = torch.nan
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{part}\..* holds NaN or infinity: copy the adapter's file"):
        PeftModel.from_pretrained(make_encoder("vit"), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_file_cast_to_halves_is_loaded(dtype, tmp_path, reflectance):
    """As tools do that make checkpoints smaller: also what the weights assume of their input, text in bytes."""
    model = adapted("vit")
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    again = PeftModel.from_pretrained(make_encoder(), tmp_path).eval()
    assert torch.allclose(run(again, reflectance), run(model, reflectance), atol=0.05)


@pytest.mark.parametrize(
    "mean",
    [
        lambda states: 0.997 * states[0] + states[1] * 0.003,  # of one training: bytes lie between whole numbers
        lambda states: torch.stack(states).mean(0),
        lambda states: sum(states) / len(states),
        lambda states: torch.lerp(*states, 0.3),
    ],
)
def test_adapters_that_assume_the_same_are_averaged_and_others_are_refused(mean, reflectance):
    models = [adapted("vit"), randomise(adapted("vit"), seed=1), adapted("vit", base_mean=[0.3, 0.32, 0.34])]
    for model, images in zip(models, (reflectance, reflectance.flip(0), reflectance), strict=True):
        fit_statistics(model, images.split(1), unit_check=False)
    again = adapted("vit", trained=False)
    states = [get_peft_model_state_dict(model) for model in models]
    of_both = {name: mean([state[name] for state in states[:2]]) for name in states[0]}
    set_peft_model_state_dict(again, of_both)
    assert get_peft_model_state_dict(again)["base_model.model.embeddings.deflect_input._extra_state"].equal(
        states[0]["base_model.model.embeddings.deflect_input._extra_state"]
    )
    assert torch.isfinite(run(again, reflectance)).all()
    other = {name: torch.stack([state[name] for state in states[1:]]).mean(0) for name in states[0]}
    with pytest.raises(CheckpointError, match=r"cannot be read.* Are they a mean of adapters with other"):
        set_peft_model_state_dict(again, other)


def test_what_would_be_trained_wrongly_without_a_word_is_said(reflectance, caplog):
    model = get_peft_model(make_encoder(), spectral_config())
    with pytest.raises(UnitError, match=r"whole numbers \(torch.int32\)"):
        model(pixel_values=(reflectance * 10_000).int())
    with pytest.raises(DataError, match="pixel_values are a ndarray: give one torch tensor"):
        model(pixel_values=reflectance.numpy())
    for wrong, told in ((["layernom"], r"no module 'layernom'\. Did you mean 'layernorm'"), ("head", "list of names")):
        with pytest.raises(ConfigError, match=told):
            get_peft_model(make_encoder(), spectral_config(modules_to_save=wrong))
    for batch, found in (({"image": reflectance}, "keys 'image'"), ((reflectance, 0), "a tuple")):
        with pytest.raises(DataError, match=rf"Batch 0 is neither .* but {found}"):
            fit_statistics(model, [batch])
    run(model.eval(), reflectance)
    assert "fit_statistics" not in caplog.text
    model.train()(pixel_values=reflectance)
    assert "features that are not standardised: call deflect_hf.fit_statistics" in caplog.text


def test_one_configuration_serves_models_of_several_widths():
    config = spectral_config(aux_dim=None)
    before = config.to_dict()
    models = [get_peft_model(make_encoder(name, hidden_size=32 * k), config) for k, name in ((1, "vit"), (2, "dinov2"))]
    assert config.to_dict() == {**before, "base_model_name_or_path": config.base_model_name_or_path}
    assert [model.peft_config["default"].aux_dim for model in models] == [32, 64]


def test_replicas_of_data_parallel_run_their_own_layers(reflectance):
    """What `torch.nn.parallel.replicate` does, without its GPUs: shallow copies with weights of their own."""
    model = adapted("vit")
    expected = run(model, reflectance)
    modules = list(model.modules())
    copies = {id(module): module._replicate_for_data_parallel() for module in modules}
    for module in modules:
        replica = copies[id(module)]
        for name, child in module._modules.items():
            if child is not None:
                setattr(replica, name, copies[id(child)])
        for name, parameter in module._parameters.items():
            if parameter is not None:
                setattr(replica, name, parameter.detach().clone())
    for parameter in model.parameters():
        parameter.data.zero_()
    replica = copies[id(model)]
    assert torch.equal(replica(pixel_values=reflectance).last_hidden_state, expected)


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


def test_a_misspelt_entry_of_the_file_is_refused_and_statistics_that_are_broken_are_the_adapters(tmp_path):
    spectral_config(indices=None, feature_mean=[0.1] * 12, feature_std=[0.1] * 12).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    entries = json.loads(path.read_text())
    path.write_text(json.dumps({**entries, "feature_means": entries["feature_mean"]}))
    with pytest.raises(ConfigError, match=r"'feature_means' is no entry of DeflectConfig\. Did you mean"):
        DeflectConfig.from_pretrained(tmp_path)
    path.write_text(json.dumps({**entries, "feature_std": [-1.0] * 12}))
    with pytest.raises(ConfigError, match="feature_std of the adapter must not be negative"):
        PeftConfig.from_pretrained(tmp_path)
