"""No hidden state: checkpointing, interleaving, compiling and output capture see what a plain run sees."""

import pickle
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch._dynamo.testing import CompileCounter

from deflect_hf.models.checkpointing import enable_checkpointing
from deflect_hf.tuners.deflect import DeflectBlock
from tests.tuners.tiny import (
    DEPTH,
    HEADS,
    adapted,
    base_pixels,
    make_encoder,
    randomise,
    run,
    spectral_config,
    weighed,
)

REENTRANT = [{"use_reentrant": True}, {"use_reentrant": False}]


def gradients(model: nn.Module, pixel_values: torch.Tensor, **kwargs: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    weighed(run(model, pixel_values, **kwargs)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, two[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("layers", [None, [-1]])
@pytest.mark.parametrize("options", REENTRANT)
def test_gradient_checkpointing_gives_the_plain_gradients(options, layers, architecture, attention, reflectance):
    model = adapted(architecture, attention, layers_to_transform=layers).train()
    expected = gradients(model, reflectance)
    assert expected
    model.base_model.model.gradient_checkpointing_enable(options)
    assert_same(gradients(model, reflectance), expected)
    model.base_model.model.gradient_checkpointing_disable()
    assert_same(gradients(model, reflectance), expected)


def test_selective_checkpointing_gives_the_plain_gradients_to_the_bit(architecture, attention, reflectance):
    model = adapted(architecture, attention).train()
    expected = gradients(model, reflectance)
    enable_checkpointing(model.base_model.model, selective=True)
    found = gradients(model, reflectance)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("checkpointing", [None, *REENTRANT])
def test_two_interleaved_forwards(checkpointing, architecture, reflectance):
    model = adapted(architecture).train()
    images = [reflectance, reflectance.flip(-1) * 0.7]
    alone = [gradients(model, image) for image in images]
    if checkpointing:
        model.base_model.model.gradient_checkpointing_enable(checkpointing)
    model.zero_grad()
    outputs = [run(model, image) for image in images]
    for output in outputs:
        weighed(output).backward()
    together = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_same(together, {name: alone[0][name] + alone[1][name] for name in alone[0]})


def saved_bytes(model: nn.Module, pixel_values: torch.Tensor) -> int:
    total = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(model, pixel_values)
    return total


def test_checkpointing_saves_activations(architecture, reflectance):
    model = adapted(architecture).train()
    plain = saved_bytes(model, reflectance)
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    assert saved_bytes(model, reflectance) < 0.4 * plain


def test_an_error_inside_a_block_leaves_nothing_behind(architecture, reflectance):
    model = adapted(architecture)
    expected, frozen = run(model, reflectance), run(make_encoder(architecture), base_pixels(reflectance))
    attention = next(module for module in model.modules() if type(module).__name__.endswith("Attention"))

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    handle = attention.o_proj.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(model, reflectance)
    handle.remove()
    assert torch.equal(run(model, reflectance), expected)
    with model.disable_adapter():
        assert torch.equal(run(model, reflectance), frozen)


def test_hidden_states_and_attentions(architecture, reflectance):
    model = adapted(architecture, "eager")
    kwargs = {"noise": torch.rand(2, 16)} if architecture == "vit_mae" else {}
    output = model(pixel_values=reflectance, output_hidden_states=True, output_attentions=True, **kwargs)
    assert len(output.attentions) == DEPTH
    tokens = output.last_hidden_state.shape[1]
    assert all(map_.shape == (2, HEADS, tokens, tokens) for map_ in output.attentions)
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, tokens, 32)] * (DEPTH + 1)
    seen: list[torch.Tensor] = []
    for block in [module for module in model.modules() if type(module).__name__.endswith("Layer")]:
        block.register_forward_hook(lambda module, args, result: seen.append(result))
    run(model, reflectance, **kwargs)
    for state, block_output in zip(output.hidden_states[1:-1], seen[:-1], strict=True):
        assert torch.equal(state, block_output)
    with model.disable_adapter():
        frozen = model(pixel_values=reflectance, output_hidden_states=True, **kwargs)
    assert torch.equal(output.hidden_states[0], frozen.hidden_states[0])
    assert not torch.allclose(output.hidden_states[1], frozen.hidden_states[1])
    plain = model(pixel_values=reflectance, return_dict=False, **kwargs)
    assert isinstance(plain, tuple)
    assert torch.equal(plain[0], output.last_hidden_state)


@pytest.mark.parametrize("options", [None, *REENTRANT])
def test_captured_hidden_states_carry_gradients(options, reflectance):
    """A head on intermediate layers must train the adapter, with checkpointing too."""
    model = adapted("vit").train()
    if options:
        model.base_model.model.gradient_checkpointing_enable(options)
    model(pixel_values=reflectance, output_hidden_states=True).hidden_states[1].square().sum().backward()
    first = model.base_model.model.layers[0]
    assert first.deflect_up["default"].weight.grad.abs().sum() > 0
    assert first.deflect_spectral["default"].weight.grad.abs().sum() > 0


BACKBONES = {
    "dinov2": "Dinov2Backbone",
    "dinov2_with_registers": "Dinov2WithRegistersBackbone",
    "dinov3_vit": "DINOv3ViTBackbone",
}
CLASSIFIERS = {
    "vit": "ViTForImageClassification",
    "dinov2": "Dinov2ForImageClassification",
    "dinov2_with_registers": "Dinov2WithRegistersForImageClassification",
}


@pytest.mark.parametrize("name", list(BACKBONES))
def test_feature_maps_are_deflected(name, reflectance):
    base = make_encoder(name, model=BACKBONES[name], out_indices=[1, 2, 3])
    frozen = base(base_pixels(reflectance)).feature_maps
    model = get_peft_model(base, spectral_config()).eval()
    started = model(reflectance).feature_maps
    assert all(torch.equal(one, two) for one, two in zip(started, frozen, strict=True))
    randomise(model)
    trained = model(reflectance).feature_maps
    assert [tuple(one.shape) for one in trained] == [tuple(one.shape) for one in frozen]
    assert not any(torch.allclose(one, two) for one, two in zip(trained, frozen, strict=True))


@pytest.mark.parametrize("name", list(CLASSIFIERS))
def test_classifiers_of_transformers(name, reflectance, tmp_path):
    from peft import PeftModel

    base = make_encoder(name, model=CLASSIFIERS[name], num_labels=4)
    frozen = base(base_pixels(reflectance)).logits
    model = get_peft_model(base, spectral_config(modules_to_save=["classifier"])).eval()
    assert torch.equal(model(reflectance).logits, frozen)
    expected = randomise(model)(reflectance).logits
    model.save_pretrained(tmp_path)
    again = make_encoder(name, model=CLASSIFIERS[name], num_labels=4)
    assert torch.equal(PeftModel.from_pretrained(again, tmp_path).eval()(reflectance).logits, expected)


def test_masked_autoencoder_for_pretraining(reflectance):
    base = make_encoder("vit_mae", model="ViTMAEForPreTraining", decoder_hidden_size=32, decoder_num_hidden_layers=2,
                        decoder_num_attention_heads=4, decoder_intermediate_size=64)  # fmt: skip
    model = get_peft_model(base, spectral_config()).eval()
    blocks = [name for name, module in model.named_modules() if isinstance(module, DeflectBlock)]
    assert len(blocks) == DEPTH
    assert not any("decoder" in name for name in blocks)


@pytest.mark.parametrize(
    ("name", "attention"), [("vit", "sdpa"), ("vit_mae", "eager"), ("dinov3_vit", "sdpa"), ("clip", "sdpa")]
)
def test_compiles_without_graph_breaks(name, attention, reflectance):
    torch.compiler.reset()
    # The formulas make up most of the time that compiling takes; they are the same on every architecture.
    indices = ["NDVI"] if name == "vit" else None
    model = adapted(name, attention, indices=indices, layers_to_transform=[1]).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager" if name == "vit" else "eager")
    expected = gradients(model, reflectance)
    model.zero_grad()
    output = run(compiled, reflectance)
    torch.testing.assert_close(output, run(model, reflectance), rtol=1e-5, atol=1e-5)
    weighed(output).backward()
    assert_same({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, expected)


def test_blocks_that_are_compiled_one_by_one_share_their_graphs(reflectance):
    torch.compiler.reset()
    counted = CompileCounter()
    base = make_encoder("vit", num_hidden_layers=6)
    model = randomise(get_peft_model(base, spectral_config(indices=["NDVI"]))).train()
    expected = gradients(model, reflectance)
    output = run(model, reflectance)
    model.zero_grad()
    for module in model.modules():
        if isinstance(module, DeflectBlock):
            module.compile(backend=counted, dynamic=False)
    compiled = run(model, reflectance)
    assert counted.frame_count == 3  # the first, the last, and what is in between
    assert torch.equal(compiled, output)
    weighed(compiled).backward()
    assert_same({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, expected)
    assert torch.equal(run(pickle.loads(pickle.dumps(model)), reflectance), output)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_each_sample_by_torch_func(training, attention, reflectance):
    model = adapted("vit", attention, indices=None).train(training)
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(chosen: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        return weighed(torch.func.functional_call(model, chosen, (image[None],)).last_hidden_state)

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, reflectance)
    for number in range(len(reflectance)):
        expected = gradients(model, reflectance[number : number + 1])
        assert_same({name: gradient[number] for name, gradient in found.items()}, expected)


def test_a_mask_of_whole_numbers_is_that_of_booleans(reflectance):
    masked = torch.arange(2 * 16).view(2, 16) % 2
    model = adapted("dinov2")
    output = run(model, reflectance, bool_masked_pos=masked)
    assert torch.equal(output, run(model, reflectance, bool_masked_pos=masked.bool()))
    assert not torch.equal(output, run(model, reflectance))


def test_a_traced_model_is_saved_and_computes_the_same(reflectance, tmp_path):
    model = get_peft_model(make_encoder("vit"), spectral_config(init_weights=False)).eval()
    torch.jit.trace(model, reflectance, strict=False).save(tmp_path / "traced.pt")
    traced = torch.jit.load(tmp_path / "traced.pt")(reflectance)["last_hidden_state"]
    torch.testing.assert_close(traced, model(reflectance).last_hidden_state)
