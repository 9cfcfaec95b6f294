"""Two processes on CPU (gloo): Accelerate's DDP, FSDP1 and FSDP2 train as one process does, and save the same adapter.

FSDP is sharded by the policies that PEFT and Accelerate make of the model (`_no_split_modules`), but wrapped by torch
itself: Accelerate prepares FSDP for accelerators alone.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from deflect_hf.tuners.statistics import fit_statistics
from tests.benchmarks.resume import start, stop
from tests.tuners.distributed_run import KINDS, batch, launched, make_model, train
from tests.tuners.test_statistics import INDICES, images
from tests.tuners.tiny import adapted, make_encoder, spectral_config


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what two processes made of each kind of training."""
    folder = tmp_path_factory.mktemp("distributed")
    processes = start([str(folder)], 2, folder / "log", launched)
    for process in processes:
        process.join(240)
    codes = [process.exitcode for process in processes]
    stop(processes)
    assert codes == [0, 0], (folder / "log").read_text()[-4000:]
    return folder


@pytest.fixture(scope="module")
def one_process() -> tuple[PeftModel, list[float], dict[str, torch.Tensor]]:
    model = make_model()
    return model, *train(model, Accelerator(cpu=True))


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_one_process(kind, two_processes, one_process):
    _, losses, gradients = one_process
    result = torch.load(two_processes / f"{kind}.pt")
    assert result["losses"] == pytest.approx(losses, rel=1e-5)
    assert result["gradients"].keys() == gradients.keys()
    assert len(gradients) > 10
    for name, gradient in gradients.items():
        torch.testing.assert_close(result["gradients"][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_adapter_is_the_trained_one(kind, two_processes, one_process):
    model = one_process[0]
    saved = load_file(two_processes / kind / "adapter_model.safetensors")
    expected = get_peft_model_state_dict(model).keys()
    # FSDP1's full parameters are read one by one: what is no parameter, such as the contract of the weights, is not
    parameters = {name for name in expected if not name.endswith("_extra_state")}
    assert saved.keys() == (parameters if kind.startswith("fsdp1") else expected)
    base = make_encoder("vit", model="ViTForImageClassification", num_labels=4)
    loaded = PeftModel.from_pretrained(base, two_processes / kind).eval()
    images = batch(0)[0]
    torch.testing.assert_close(loaded(images).logits, model.eval()(images).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_fit_what_one_fits(rank, two_processes):
    model = adapted("vit", indices=INDICES)
    moments = fit_statistics(model, [images()])
    config = model.peft_config["default"]
    found = json.loads((two_processes / f"{rank}.json").read_text())
    assert found["count"] == moments.count.tolist()
    np.testing.assert_allclose(found["mean"], config.feature_mean, rtol=1e-12)
    np.testing.assert_allclose(found["std"], config.feature_std, rtol=1e-9)


def test_the_units_to_keep_in_one_piece_are_the_wrappers(architecture):
    encoder = make_encoder(architecture)
    parts = {name: set(module._no_split_modules) for name, module in named_models(encoder)}
    model = get_peft_model(encoder, spectral_config())
    kept = model._no_split_modules
    assert {"DeflectBlock", "DeflectEmbeddings"} <= kept
    assert {type(model.get_submodule(name)).__name__ for name in wrapped(model)} <= kept
    restored = model.unload()
    assert {name: set(module._no_split_modules) for name, module in named_models(restored)} == parts


def named_models(model: nn.Module) -> list[tuple[str, PreTrainedModel]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, PreTrainedModel)]


def wrapped(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
