"""What an adapter knows of its input: the unit, the indices and their bounds, and the bands it can do without."""

import dataclasses
import itertools
import json
import math

import pytest
import torch
from peft import PeftModel, get_peft_model

from deflect_hf import DeflectConfig
from deflect_hf.errors import ConfigError
from tests.tuners.tiny import BANDS, adapted, make_encoder, randomise, run, spectral_config

OTHERS = ["N", "S1", "S2"]  # not seen by the frozen patch embedding
FORMULAS = {"NDVI": "(N - R) / (N + R)", "high": "1000 * N"}


def spectral_input(model: PeftModel) -> torch.nn.Module:
    return model.base_model.model.embeddings.deflect_input["default"]


def without(pixel_values: torch.Tensor, *bands: str) -> torch.Tensor:
    changed = pixel_values.clone()
    changed[:, [BANDS.index(band) for band in bands]] = math.nan
    return changed


def test_8bit_adapters_get_no_index_with_additive_constants():
    reflectance, eight_bit = DeflectConfig(bands=BANDS), DeflectConfig(bands=BANDS, unit="8bit")
    left_out = set(reflectance.formulas) - set(eight_bit.formulas)
    assert {"EVI", "SAVI"} <= left_out and "NDVI" in eight_bit.formulas
    with pytest.raises(ConfigError, match=r"unit='reflectence' is unknown; choose from .* Did you mean 'reflectance'"):
        DeflectConfig(bands=BANDS, unit="reflectence")


@pytest.mark.parametrize(
    "changed",
    [{"indices": None}, {"indices": ["NDVI"]}, {"bands": [*BANDS, "RE1"]}, {"bands": ["red", "green", "blue"]}],
)
def test_a_configuration_may_be_changed_before_it_is_used(changed):
    """By `dataclasses.replace` or as attributes, as for one training of each choice: its indices follow."""
    expected = spectral_config(**changed)
    config = spectral_config()
    replaced = dataclasses.replace(config, **changed)
    for name, value in changed.items():
        setattr(config, name, value)
    for one in (replaced, config):
        used = get_peft_model(make_encoder(), one).peft_config["default"]
        for name in ("bands", "formulas", "index_bounds"):
            assert getattr(used, name) == getattr(expected, name)
    given = spectral_config(formulas={"x": "N - R"})
    assert dataclasses.replace(given, rank=2).formulas == given.formulas


def test_the_bounds_of_the_indices_are_those_of_the_file(tmp_path, reflectance, monkeypatch, caplog):
    """Loading uses the bounds in the file: what this version of the package would choose does not matter."""
    model = adapted("vit", formulas=FORMULAS)
    expected = run(model, reflectance)
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert stored["index_bounds"] == {"NDVI": 1.0, "high": 10000.0}
    for module in ("deflect_hf.tuners.deflect.config", "deflect_hf.spectral.features"):
        monkeypatch.setattr(f"{module}.bound_of", None)
    monkeypatch.setattr("deflect_hf.tuners.deflect.config.select_indices", None)  # nor what the catalogue has
    assert torch.equal(run(PeftModel.from_pretrained(make_encoder(), tmp_path).eval(), reflectance), expected)
    stored["index_bounds"]["high"] = 0.5
    (tmp_path / "adapter_config.json").write_text(json.dumps(stored))
    edited = PeftModel.from_pretrained(make_encoder(), tmp_path).eval()
    assert caplog.messages == ["the weights bring their own index_bounds, which replace those of the configuration"]
    assert torch.equal(run(edited, reflectance), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"index_bounds": {"NDVI": 1.0}}, "must name the same indices; they differ in 'high'"),
        ({"index_bounds": {"NDVI": 0.0, "high": 1.0}}, "index_bounds must lie above 0 and be at most 1e"),
        ({"index_bounds": {"NDVI": 1.0, "high": 1e30}}, "index_bounds must lie above 0 and be at most 1e"),
        ({"index_bounds": {"NDVI": math.nan, "high": 1.0}}, "index_bounds must be finite"),
        ({"index_bounds": {"NDVI": "much", "high": 1.0}}, "index_bounds must be a list of 2 numbers"),
        ({"index_bounds": [1.0, 2.0]}, "index_bounds must map index names to values"),
        ({"bands": None, "formulas": None, "index_bounds": {}}, r"index_bounds need\(s\) bands="),
        ({"bands": None, "formulas": None, "band_dropout": 0.1}, r"band_dropout need\(s\) bands="),
        ({"bands": None, "formulas": None, "indices": ["NDVI"]}, r"indices need\(s\) bands="),
        ({"band_dropout": 1.0}, "band_dropout must be a number from 0 to below 1, got 1.0"),
        ({"band_dropout": True}, "band_dropout must be a number from 0 to below 1, got True"),
        ({"bands": ["R", "G", "B"], "formulas": {}, "band_dropout": 0.1}, "has no band to drop: all are base bands"),
        (
            {"bands": ["R", "N2"], "base_bands": ["N", "R"], "formulas": {}, "band_dropout": 0.1},
            "has no band to drop: all are base bands",  # the one near-infrared band stands for the other
        ),
    ],
)
def test_files_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        DeflectConfig(**{"bands": BANDS, "formulas": FORMULAS, **fields})


def test_band_dropout_loses_each_other_band_per_image_and_never_a_base_band():
    pixel_values = torch.rand(1, 6, 32, 32, generator=torch.Generator().manual_seed(0)).expand(200, -1, -1, -1)
    spectral = spectral_input(adapted("vit", band_dropout=0.3))
    subsets = [s for count in range(4) for s in itertools.combinations(OTHERS, count)]
    possible = torch.cat([spectral(without(pixel_values[:1], *bands)) for bands in subsets])
    torch.manual_seed(0)
    dropped = spectral.train()(pixel_values)
    matches = (dropped[:, None] == possible[None]).flatten(2).all(-1)
    assert (matches.sum(1) == 1).all()
    share = matches.float().mean(0)
    for bands, observed in zip(subsets, share.tolist(), strict=True):
        assert observed == pytest.approx(0.3 ** len(bands) * 0.7 ** (3 - len(bands)), abs=0.1)


def test_an_aliased_base_band_is_never_dropped():
    base = {"base_bands": ["N2", "G", "B"], "base_mean": None, "base_std": None}
    assert spectral_input(adapted("vit", band_dropout=0.5, **base)).droppable == ["R", "S1", "S2"]


def test_band_dropout_is_for_training_alone_and_draws_from_torch(reflectance):
    plain, dropping = adapted("vit"), adapted("vit", band_dropout=0.5)
    assert torch.equal(run(dropping, reflectance), run(plain, reflectance))
    added = adapted("vit")
    added.add_adapter("dropping", spectral_config(band_dropout=0.5))  # to a model in evaluation
    added.set_adapter("dropping")
    assert torch.equal(run(randomise(added), reflectance), run(added, reflectance))
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(run(dropping.train(), reflectance))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    state = torch.get_rng_state()
    run(plain.train(), reflectance)
    assert torch.equal(torch.get_rng_state(), state)  # without band dropout nothing is drawn


def test_band_dropout_compiles_and_can_be_checkpointed(reflectance):
    model = adapted("vit", band_dropout=0.5, indices=None).train()

    def step(call) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        torch.manual_seed(3)
        output = call(pixel_values=reflectance).last_hidden_state
        output.square().sum().backward()
        return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    output, gradients = step(model)
    compiled, _ = step(torch.compile(model, fullgraph=True, backend="eager"))
    torch.testing.assert_close(compiled, output, rtol=1e-5, atol=1e-5)
    for reentrant in (True, False):
        model.base_model.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        again, others = step(model)
        # re-entrant: the first pass has no autograd state, and S a comes out of another call of the fused kernel
        torch.testing.assert_close(again, output, rtol=1e-5, atol=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_a_missing_band_is_a_band_of_nan(reflectance):
    model = adapted("vit", band_dropout=0.5, indices="default")
    output = run(model, without(reflectance, "S2"))
    assert torch.isfinite(output).all()
    assert not torch.allclose(output, run(model, reflectance))
