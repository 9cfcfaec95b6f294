"""Batches whose samples ask for different adapters: each row as after `set_adapter`, and PEFT's errors."""

from collections.abc import Iterator

import pytest
import torch
from peft import PeftModel, get_peft_model

from deflect_hf import BitFitConfig, ScaledLoraConfig
from deflect_hf.errors import BandError, UnsupportedOperationError
from tests.tuners.tiny import BANDS, base_pixels, make_encoder, randomise, run, spectral_config

NAMES = ["a", "b", "a", "__base__", "b"]
CONFIGS = {"deflect": spectral_config, "slr": ScaledLoraConfig, "bitfit": BitFitConfig}


def adapted(method: str = "deflect", name: str = "vit", **second: object) -> PeftModel:
    model = get_peft_model(make_encoder(name), CONFIGS[method](), "a")
    randomise(model, scale=0.1, seed=1)
    model.add_adapter("b", CONFIGS[method](**second))
    model.set_adapter("b")
    randomise(model, scale=0.1, seed=2)
    model.set_adapter("a")
    return model.eval()


def images(method: str = "deflect", count: int = len(NAMES)) -> torch.Tensor:
    """(count, C, 32, 32) in the bands of the method."""
    channels = len(BANDS) if method == "deflect" else 3
    return torch.rand(count, channels, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.4


def switched(model: PeftModel, pixels: torch.Tensor) -> Iterator[torch.Tensor]:
    for row, name in enumerate(NAMES):
        if name == "__base__":
            with model.disable_adapter():
                yield run(model, pixels)[row]
        else:
            model.set_adapter(name)
            yield run(model, pixels)[row]
    model.set_adapter("a")


@pytest.mark.parametrize(
    ("method", "name", "second"),
    [
        ("deflect", "vit", {"indices": None, "rank": 2, "layers_to_transform": [1]}),
        ("deflect", "vit_mae", {"bands": ["R", "G", "B", "N", "S1", "S2"]}),
        ("deflect", "dinov3_vit", {"aux_dim": 8}),
        ("slr", "vit", {}),
        ("bitfit", "vit", {}),
    ],
)
def test_each_row_is_what_switching_gives(method: str, name: str, second: dict) -> None:
    model, pixels = adapted(method, name, **second), images(method)
    trainable = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        found, expected = run(model, pixels, adapter_names=NAMES), torch.stack(list(switched(model, pixels)))
        base = run(make_encoder(name), base_pixels(pixels) if method == "deflect" else pixels)
        torch.testing.assert_close(found[3], base[3])
        assert (found[3] - run(model, pixels)[3]).abs().max() > 1e-3  # the adapters do something
    torch.testing.assert_close(found, expected)
    assert {key for key, parameter in model.named_parameters() if parameter.requires_grad} == trainable
    assert model.active_adapters == ["a"] and "forward" not in model.get_base_model().__dict__


def test_all_parts_of_the_output_come_in_the_order_of_the_batch() -> None:
    model, pixels = adapted(), images()
    names = ["b", "a", "b", "a", "a"]
    with torch.no_grad():
        output = model(pixels, adapter_names=names, output_hidden_states=True)
        model.set_adapter("b")
        expected = model(pixels, output_hidden_states=True)
    assert type(output) is type(expected) and output.keys() == expected.keys()
    for found, other in zip(output.hidden_states[-1:], expected.hidden_states[-1:], strict=True):
        torch.testing.assert_close(found[[0, 2]], other[[0, 2]])


def test_what_lora_refuses_is_refused_in_its_words() -> None:
    model, pixels = adapted("slr"), images("slr")
    with pytest.raises(ValueError, match="should be the same as the number of inputs, but got 2 and 5 respectively"):
        model(pixel_values=pixels, adapter_names=["a", "b"])
    with pytest.raises(ValueError, match=r"non-existing adapter\(s\): c, d"):
        model(pixel_values=pixels, adapter_names=["d", "a", "c", "a", "a"])
    with pytest.raises(ValueError, match="in training mode"):
        model.train()(pixel_values=pixels, adapter_names=NAMES)
    model.eval().merge_adapter(["a"])
    with pytest.raises(ValueError, match="there are merged adapters"):
        model(pixel_values=pixels, adapter_names=NAMES)


def test_an_error_names_the_adapter_and_leaves_the_active_one() -> None:
    model, pixels = adapted(bands=["R", "G", "B", "N"]), images()
    with pytest.raises(BandError, match="adapter 'b': "):
        model(pixel_values=pixels, adapter_names=NAMES)
    assert model.base_model.model.embeddings.active_adapters == ["a"]
    run(model, pixels)


def test_a_loss_of_a_mixed_batch_is_refused() -> None:
    classifier = make_encoder(model="ViTForImageClassification")
    model = get_peft_model(classifier, spectral_config(modules_to_save=["classifier"]), "a").eval()
    model.add_adapter("b", spectral_config(modules_to_save=["classifier"]))
    pixels, labels = images(count=2), torch.tensor([0, 1])
    model.set_adapter("b")
    randomise(model)
    expected = model(pixels).logits[1]
    model.set_adapter("a")
    torch.testing.assert_close(model(pixels, adapter_names=["a", "b"]).logits[1], expected)  # with its own head
    with pytest.raises(UnsupportedOperationError, match="leave the labels out"):
        model(pixels, labels=labels, adapter_names=["a", "b"])
