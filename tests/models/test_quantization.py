"""Quantised encoders: DEFLECT on top of them against full precision; what does not go is refused."""

import json
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModel, BitsAndBytesConfig

import deflect_hf
from deflect_hf.config.run import EncoderArguments, EvaluateArguments
from deflect_hf.errors import ConfigError, MissingPackageError, UnsupportedOperationError
from deflect_hf.evaluation.report import report
from deflect_hf.methods import adapt
from deflect_hf.methods.inspect import encoder_parameters
from deflect_hf.models import EncoderForImageClassification, load_encoder
from deflect_hf.models.quantization import PACKAGES, is_quantised, quantization_config
from tests.training.test_run import train
from tests.tuners import tiny

# relative difference of the features of a tiny random ViT; measured 0.0004, 0.0005 and 0.006
BOUNDS = {"int8": 0.005, "bnb_8bit": 0.005, "bnb_4bit": 0.05}


def available(kind: str) -> str:
    package = PACKAGES.get(kind, "bitsandbytes")
    pytest.importorskip(package, reason=f"{package} is not here: pip install 'deflect_hf[quantization]'")
    return kind


@pytest.fixture(params=PACKAGES)
def kind(request: pytest.FixtureRequest) -> str:
    """What a run may ask for."""
    return available(request.param)


@pytest.fixture(params=BOUNDS)
def any_kind(request: pytest.FixtureRequest) -> str:
    """What transformers loads."""
    return available(request.param)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with an encoder of which bitsandbytes takes the sizes: it packs 64 numbers."""
    tiny.make_encoder(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def losses(model: nn.Module, reflectance: torch.Tensor) -> list[float]:
    """Those of a few steps of an adapter that starts from the same values on any base."""
    for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
        torch.manual_seed(number)
        nn.init.normal_(parameter, std=0.1)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, seen = torch.optim.AdamW(trained, 1e-2), []
    for _ in range(5):
        loss = (tiny.weighed(model(reflectance).last_hidden_state) - 3).square()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    model.eval()
    return seen


def quantised(source: Path, kind: str) -> nn.Module:
    """By `from_pretrained` of transformers."""
    config = BitsAndBytesConfig(load_in_8bit=True) if kind == "bnb_8bit" else quantization_config(kind)
    return AutoModel.from_pretrained(source, quantization_config=config, add_pooling_layer=False).eval()


def test_an_adapter_learns_on_it_as_on_full_precision(any_kind: str, source: Path, tmp_path: Path, reflectance) -> None:
    full, base = load_encoder(source), quantised(source, any_kind)
    layers = [module for module in base.modules() if isinstance(module, nn.Linear)]
    assert layers and all(map(is_quantised, layers)) and not is_quantised(base.embeddings)
    pixels = tiny.base_pixels(reflectance)
    exact, frozen = full(pixels).last_hidden_state, base(pixels).last_hidden_state
    assert 0 < (frozen - exact).norm() / exact.norm() < BOUNDS[any_kind]

    model = get_peft_model(base, tiny.spectral_config()).eval()
    deflect_hf.check(model, reflectance)
    assert torch.equal(model(reflectance).last_hidden_state, frozen)
    assert encoder_parameters(model)[1] == sum(
        p.numel() for p in get_peft_model(full, tiny.spectral_config()).parameters()
    )
    learned = losses(model, reflectance)
    assert learned[-1] < learned[0]
    torch.testing.assert_close(learned, losses(full, reflectance), rtol=max(0.02, 2 * BOUNDS[any_kind]), atol=0)
    expected = model(reflectance).last_hidden_state
    with model.disable_adapter():
        assert torch.equal(model(reflectance).last_hidden_state, frozen)
    with pytest.raises(UnsupportedOperationError, match="cannot be merged"):
        model.merge_adapter()

    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(quantised(source, any_kind), tmp_path / "adapter").eval()
    assert torch.equal(again(reflectance).last_hidden_state, expected)
    unloaded = model.unload()
    assert torch.equal(unloaded(pixels).last_hidden_state, frozen)
    unloaded.save_pretrained(tmp_path / "quantised")
    assert torch.equal(load_encoder(tmp_path / "quantised")(pixels).last_hidden_state, frozen)


@pytest.mark.parametrize("method", ["deflect", "lora"])
def test_a_run_has_it_by_a_key(method: str, kind: str, source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["--encoder.random", "null", "--encoder.name_or_path", str(source), "--encoder.quantization", kind]
    words += ["--dataset.num_samples", "24", "--epochs", "1", "--finetune", method, "--method", "{}"]
    results = train(folder, *words)
    assert "quantization_config" not in json.loads((folder / "best" / "config.json").read_text())["encoder_config"]
    again, _ = report(EvaluateArguments(eval_dir=str(folder), panels=0))
    assert again["confusion_matrix"] == results["test"]["confusion_matrix"]
    predictor = deflect_hf.load_predictor(str(folder))
    assert any(is_quantised(module) for module in predictor.model.modules() if isinstance(module, nn.Linear))
    deflect_hf.MultiAdapterPredictor.from_folders({"a": folder, "b": folder})


def test_a_run_refuses_an_encoder_in_8_bits_of_bitsandbytes(source: Path, tmp_path: Path) -> None:
    quantised(source, available("bnb_8bit")).save_pretrained(tmp_path / "small")
    words = ["--encoder.random", "null", "--encoder.name_or_path", str(tmp_path / "small")]
    with pytest.raises(ConfigError, match=r"small: torch can make no checkpoint .* encoder\.quantization: int8"):
        train(tmp_path / "run", *words)


def test_a_quantised_model_is_neither_merged_nor_saved_whole(kind: str, source: Path, tmp_path: Path) -> None:
    model = EncoderForImageClassification.from_encoder(load_encoder(source, quantization=kind), num_labels=2)
    with pytest.raises(UnsupportedOperationError, match=r"quantised encoder cannot be saved whole"):
        model.save_pretrained(tmp_path / "whole")
    adapted = adapt(model, "slr", bands=["B", "G", "R"])
    with pytest.raises(UnsupportedOperationError, match="its base weight is quantised"):
        adapted.merge_adapter()


def test_what_cannot_be_quantised_is_refused(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="goes with encoder"):
        EncoderArguments(random={"model_type": "vit"}, quantization="int8")
    words = ["--encoder.random", "null", "--encoder.name_or_path", str(source), "--encoder.quantization", "int8"]
    with pytest.raises(ConfigError, match=r"encoder\.quantization keeps frozen layers .* which finetune full"):
        train(tmp_path / "run", *words, "--finetune", "full", "--method", "{}")
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(MissingPackageError, match=r"needs torchao, .* pip install 'deflect_hf\[quantization\]'"):
        load_encoder(source, quantization="int8")
