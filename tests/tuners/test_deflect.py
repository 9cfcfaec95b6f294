"""The properties every implementation of DEFLECT must have."""

import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model

from deflect_hf import DeflectConfig
from deflect_hf.errors import ArchitectureError, BandError, ConfigError, DataError, UnitError, UnsupportedOperationError
from deflect_hf.tuners.deflect.deflection import deflect_displacement
from tests.tuners.tiny import (
    BANDS,
    DEPTH,
    ENCODERS,
    FURTHER,
    HEADS,
    PATCH,
    WIDTH,
    adapted,
    base_pixels,
    make_encoder,
    randomise,
    run,
    spectral_config,
    weighed,
)


@pytest.mark.parametrize("name", [*ENCODERS, *FURTHER])
def test_every_architecture_starts_as_the_frozen_model_and_can_learn(name, attention, reflectance, tmp_path):
    base = make_encoder(name, attention).requires_grad_(False)  # a bias that needs a gradient chooses the kernel
    expected = run(base, base_pixels(reflectance))
    before = {part: type(module) for part, module in base.named_modules()}
    model = get_peft_model(base, spectral_config()).eval()
    assert torch.equal(run(model, reflectance), expected)
    randomise(model)
    weighed(run(model.train(), reflectance)).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)
    trained = run(model.eval(), reflectance)
    assert not torch.allclose(trained, expected)
    holes = reflectance.clone()
    holes[:, BANDS.index("N") :] = math.nan
    with model.disable_adapter():
        assert torch.equal(run(model, holes), expected)  # whatever the other bands hold
    assert not torch.equal(run(model, holes), expected)
    model.save_pretrained(tmp_path)
    assert torch.equal(run(PeftModel.from_pretrained(make_encoder(name, attention), tmp_path), reflectance), trained)
    restored = model.unload()
    assert {part: type(module) for part, module in restored.named_modules()} == before
    assert all("forward" not in module.__dict__ for module in restored.modules())
    assert torch.equal(run(restored, base_pixels(reflectance)), expected)


@pytest.mark.parametrize(
    ("config", "model", "reason"),
    [
        ("Siglip2VisionConfig", "Siglip2VisionModel", "Siglip2 is refused, since its images arrive cut into patches"),
        ("SwinConfig", "SwinModel", "Swin is refused, since it attends within windows"),
        ("HieraConfig", "HieraModel", "Hiera is refused, since it pools its tokens"),
        ("SamVisionConfig", "SamVisionModel", "Sam is refused, since it attends within windows"),
        ("ResNetConfig", "ResNetModel", "it has no attention whose displacement"),
        ("YolosConfig", "YolosModel", "it lacks "),
    ],
)
def test_encoders_of_another_kind_are_refused_by_name(config, model, reason):
    with torch.device("meta"):
        encoder = getattr(transformers, model)(getattr(transformers, config)())
    with pytest.raises(ArchitectureError, match=f"no vision transformer that it knows in {model}: {reason}"):
        get_peft_model(encoder, DeflectConfig())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_default_config_leaves_rgb_models_unchanged(architecture, attention, dtype):
    pixels = torch.randn(2, 3, 32, 32, dtype=dtype)
    base = make_encoder(architecture, attention).to(dtype)
    expected = run(base, pixels)
    model = get_peft_model(make_encoder(architecture, attention).to(dtype), DeflectConfig(aux_dim=16))
    assert torch.equal(run(model.eval(), pixels), expected)
    randomise(model)
    assert not torch.allclose(run(model, pixels), expected)


def test_kernels_agree_in_answers_and_gradients(architecture, reflectance):
    """The fused kernel gets both kinds of values at once, whatever way that takes; eager multiplies one by one."""
    answers, gradients = [], []
    for attention in ("eager", "sdpa"):
        model = adapted(architecture, attention)
        answers.append(run(model, reflectance))
        weighed(run(model.train(), reflectance)).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)


def bend(displacement, push):
    """With U the identity, so that u is the push."""
    identity = torch.eye(push.shape[-1], dtype=push.dtype)
    return deflect_displacement(displacement, push, identity, torch.zeros(push.shape[-1], dtype=push.dtype))


@settings(max_examples=50, deadline=None)
@given(scale=st.floats(0, 1e4), seed=st.integers(0, 1000), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_deflection_keeps_the_length(scale, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    displacement = torch.randn(2, 5, WIDTH, generator=generator, dtype=dtype)
    push = scale * torch.randn(2, 5, WIDTH, generator=generator, dtype=dtype)
    bent = bend(displacement, push)
    torch.testing.assert_close(bent.norm(dim=-1), displacement.norm(dim=-1), rtol=1e-6, atol=0)


@given(factor=st.floats(1e-3, 1e3), seed=st.integers(0, 1000))
def test_the_angle_does_not_depend_on_the_length(factor, seed):
    displacement, push = torch.randn(2, 3, 5, WIDTH, generator=torch.Generator().manual_seed(seed)).unbind()
    bent = bend(displacement, push)
    scaled = bend(factor * displacement, push) / factor
    torch.testing.assert_close(scaled, bent, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", ["zero displacement", "exact cancellation", "both zero"])
def test_deflection_is_finite_at_its_singular_points(case):
    displacement = torch.zeros(1, 1, 4) if case != "exact cancellation" else torch.ones(1, 1, 4)
    push = torch.zeros(1, 1, 4) if case == "both zero" else torch.full((1, 1, 4), -0.5)  # ones have the length 2
    displacement.requires_grad_()
    push.requires_grad_()
    bent = bend(displacement, push)
    bent.sum().backward()
    assert all(torch.isfinite(tensor).all() for tensor in (bent, displacement.grad, push.grad))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 0.02)]
)
def test_the_gradient_of_the_deflection_is_that_of_its_formula_and_keeps_the_inputs_alone(dtype, tolerance):
    torch.manual_seed(0)
    shapes = ((2, 5, WIDTH), (2, 5, 3), (WIDTH, 3), (WIDTH,))
    inputs = [(0.3 * torch.randn(shape)).to(dtype).requires_grad_() for shape in shapes]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        bent = deflect_displacement(*inputs)
    assert [tensor.data_ptr() for tensor in kept] == [tensor.data_ptr() for tensor in inputs]
    step, inner, weight, bias = exact = [part.detach().double().requires_grad_() for part in inputs]
    summed = step + step.norm(dim=-1, keepdim=True) * (inner @ weight.T + bias)
    formula = summed * (step.norm(dim=-1, keepdim=True) / summed.norm(dim=-1, keepdim=True))
    found, expected = (
        torch.autograd.grad(answer.double().pow(3).sum(), given, create_graph=True)
        for answer, given in ((bent, inputs), (formula, exact))
    )
    second = [
        torch.autograd.grad(sum(one.double().pow(2).sum() for one in first), given)
        for first, given in ((found, inputs), (expected, exact))
    ]
    for one, other in zip((*found, *second[0]), (*expected, *second[1]), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance * other.abs().max().item())


def test_attention_displacement_keeps_its_length_in_the_block(architecture, attention, reflectance):
    """Seen from outside: a hook on the first deflected attention, frozen against adapted."""
    lengths = []
    for trained in (False, True):
        model = adapted(architecture, attention, trained=trained, layers_to_transform=[0])
        first = next(module for module in model.modules() if type(module).__name__.endswith("Attention"))
        first.register_forward_hook(lambda module, args, output: lengths.append(output[0].norm(dim=-1)))
        run(model, reflectance)
    torch.testing.assert_close(lengths[0], lengths[1], rtol=2e-6, atol=0)


def test_every_band_and_every_index_matters(reflectance):
    model = adapted("vit")
    expected = run(model, reflectance)
    for band in BANDS:
        changed = reflectance.clone()
        changed[:, BANDS.index(band), :PATCH, :PATCH] += 0.05
        assert not torch.allclose(run(model, changed), expected, atol=1e-6), band
    spectral = model.base_model.model.embeddings.deflect_input["default"].features
    columns = model.base_model.model.layers[0].deflect_spectral["default"].weight
    assert columns.shape[1] == spectral.num_features == 2 * (len(BANDS) + len(model.peft_config["default"].formulas))
    features = spectral(reflectance)
    assert (features.std(dim=(0, 1)) > 0).all()


def test_parameter_count():
    model = adapted("vit", aux_dim=16, rank=4)
    features = 2 * (len(BANDS) + len(model.peft_config["default"].formulas))
    expected = features * 16 + 16 + DEPTH * (2 * 16 * 4 + 4 + 4 * WIDTH + WIDTH)
    assert model.get_nb_trainable_parameters()[0] == expected


EXTREMES = {
    "constant": lambda x: torch.full_like(x, 0.2),
    "zeros": torch.zeros_like,
    "negative": lambda x: x - 0.5,
    "saturated": lambda x: torch.full_like(x, 2.0),
    "all invalid": lambda x: torch.full_like(x, math.nan),
    "one invalid patch": lambda x: torch.where(torch.arange(x.shape[-1]) < PATCH, math.nan, x),
    "one invalid pixel": lambda x: torch.where(torch.arange(x.shape[-1]) == 3, math.nan, x),
}


@pytest.mark.parametrize("extreme", list(EXTREMES))
@pytest.mark.parametrize("autocast", [False, True])
def test_finite_forward_and_backward(extreme, autocast, attention, reflectance):
    model = adapted("vit", attention).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = run(model, EXTREMES[extreme](reflectance))
    output.float().square().sum().backward()
    assert torch.isfinite(output).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_late_start_leaves_the_prefix_without_autograd(architecture, reflectance):
    model = adapted(architecture, layers_to_transform=[-1]).train()
    seen = []
    blocks = [module for module in model.modules() if type(module).__name__.endswith("Layer")]
    for block in blocks:
        block.register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    run(model, reflectance)
    assert seen == [False] * (DEPTH - 1) + [True]


@pytest.mark.parametrize("layers", [[0], [1], [0, 2], [-1], 1, {0, 2}, range(1, 3)])
def test_any_choice_of_blocks(layers, reflectance, tmp_path):
    model = adapted("vit", layers_to_transform=layers)
    assert run(model, reflectance).shape[-1] == WIDTH
    assert model.peft_config["default"].layers_to_transform == (layers if isinstance(layers, int) else list(layers))
    model.save_pretrained(tmp_path)
    chosen = {int(layer) % DEPTH for layer in ([layers] if isinstance(layers, int) else layers)}
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad and "deflect_up" in name]
    assert {int(name.split(".deflect_up")[0].rpartition(".")[2]) for name in names} == chosen


def test_rectangular_images(reflectance):
    image = torch.cat([reflectance, reflectance], dim=-1)
    for name in ("vit", "dinov2", "dinov3_vit"):
        kwargs = {"interpolate_pos_encoding": True} if name == "vit" else {}
        base = run(make_encoder(name), base_pixels(image), **kwargs)
        assert torch.equal(run(adapted(name, trained=False), image, **kwargs), base)


def test_wrong_band_count_names_both_counts_and_the_bands(reflectance):
    with pytest.raises(BandError, match=r"has 5 channels, but the adapter takes 6: 'B', 'G', 'R', 'N', 'S1', 'S2'"):
        run(adapted("vit"), reflectance[:, :5])
    with pytest.raises(
        BandError, match=r"has the shape \(6, 32, 32\), but the adapter takes 6: .*Fix: give \(B, C, H, W\)"
    ):
        run(adapted("vit"), reflectance[0])


def test_image_that_is_no_multiple_of_the_patch_size(reflectance):
    with pytest.raises(DataError, match=r"30 x 32 pixels is not a whole number of 8 x 8 patches"):
        run(adapted("vit"), reflectance[..., :30, :], interpolate_pos_encoding=True)


def test_unknown_architecture_is_refused_and_left_alone():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3))
    with pytest.raises(ArchitectureError, match="'ViTLayer', 'ViTMAELayer'"):
        get_peft_model(model, DeflectConfig())
    assert type(model[0]) is torch.nn.Linear


@pytest.mark.parametrize(("width", "heads", "expected"), [(64, 4, 64), (96, 6, 66), (96, 12, 72), (32, 4, 32)])
def test_the_default_width_fits_any_number_of_heads(width, heads, expected):
    model = get_peft_model(make_encoder(hidden_size=width, num_attention_heads=heads), DeflectConfig())
    assert model.peft_config["default"].aux_dim == expected


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"aux_dim": 18}, ConfigError, f"aux_dim=18 must be a multiple of the {HEADS} attention heads"),
        ({"aux_dim": 64}, ConfigError, "at most the hidden size 32"),
        ({"layers_to_transform": [3]}, ConfigError, "blocks 0 to 2"),
        ({"layers_to_transform": [0, -3]}, ConfigError, "at most once"),
        ({"layers_to_transform": []}, ConfigError, "at least one"),
        ({"target_modules": ["layers.0"]}, ConfigError, "layers_to_transform"),
        (
            {"modules_to_save": ["layernorm_before"]},
            ConfigError,
            "'layers.0.layernorm_before', at the edge of what DEF",
        ),
        ({"modules_to_save": ["layers.1.attention.o_proj"]}, ConfigError, "name what lies deeper in a block"),
        ({"modules_to_save": ["embeddings"]}, ConfigError, "stands for 'embeddings', at the edge"),
        ({"base_bands": ["N", "R"], "base_mean": None, "base_std": None}, BandError, "takes 3 channels"),
    ],
)
def test_config_that_does_not_fit_leaves_the_model_untouched(fields, error, message):
    base = make_encoder()
    before = {name: type(module) for name, module in base.named_modules()}
    with pytest.raises(error, match=message):
        get_peft_model(base, spectral_config(**fields))
    assert {name: type(module) for name, module in base.named_modules()} == before


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"bands": ["G", "B", "N"]}, BandError, "R"),
        ({"bands": None, "base_mean": [1, 2, 3]}, ConfigError, "bands="),
        ({"bands": BANDS, "base_mean": [0.1] * 3}, ConfigError, "base_mean and base_std come together"),
        ({"bands": BANDS, "base_mean": [0.1] * 3, "base_std": [0.1, 0, 0.1]}, ConfigError, "positive"),
        (
            {"bands": BANDS, "base_mean": [1100.0, 1000, 900], "base_std": [300.0] * 3},
            UnitError,
            "mean . scale . offset",
        ),
        ({"init_weights": "gaussian"}, ConfigError, "init_weights must be True or False"),
        ({"bands": BANDS, "feature_mean": [math.nan] * 12, "indices": None}, ConfigError, "finite"),
    ],
)
def test_bad_configs(fields, error, message):
    with pytest.raises(error, match=message):
        DeflectConfig(**fields)


def test_what_deflect_cannot_do_is_refused(reflectance):
    model = adapted("vit")
    for call in (
        model.merge_and_unload,
        model.merge_adapter,
        model.unmerge_adapter,
        lambda: model.add_weighted_adapter(["default"], [1.0], "mean"),
    ):
        with pytest.raises(UnsupportedOperationError, match="Fix:"):
            call()
    model.add_adapter("other", spectral_config())
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(UnsupportedOperationError, match="'default', 'other'"):
        run(model, reflectance)
