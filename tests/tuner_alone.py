"""What `pip install deflect_hf` without extras must do; .ci/run runs this where nothing else is installed.

No test module: in the environment of the tests all extras are there.
"""

import importlib.util
import subprocess
import sys
import tempfile

import torch
from peft import PeftModel, get_peft_model
from transformers import ViTConfig, ViTModel

import deflect_hf
from deflect_hf.errors import EXTRAS, MissingPackageError

BANDS = ["B", "G", "R", "N", "S1"]


def encoder() -> ViTModel:
    """A frozen encoder, always the same."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
    )
    return ViTModel(config, add_pooling_layer=False).eval()


def main() -> None:
    there = [module for modules in EXTRAS.values() for module in modules if importlib.util.find_spec(module)]
    assert not there, f"not the tuner alone: {there}"
    pixels = 0.02 + 0.4 * torch.rand(4, len(BANDS), 32, 32)
    model = get_peft_model(encoder(), deflect_hf.DeflectConfig(bands=BANDS))
    deflect_hf.fit_statistics(model, [{"pixel_values": pixels}])
    deflect_hf.check(model, pixels)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    before = model(pixels).last_hidden_state.detach()
    for _ in range(2):
        model(pixels).last_hidden_state.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = model.eval()(pixels).last_hidden_state
    assert not torch.equal(trained, before)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        assert torch.equal(PeftModel.from_pretrained(encoder(), folder)(pixels).last_hidden_state, trained)
    try:
        _ = deflect_hf.load_predictor
    except MissingPackageError as error:
        assert "pip install 'deflect_hf[train]'" in str(error), error
    else:
        raise AssertionError("load_predictor did not ask for what it needs")
    code = "from deflect_hf.cli import train; train(['--config', 'configs/run/embedded.yaml'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: this needs "), done.stderr
    print("the tuner alone: trained, saved, loaded; what needs an extra names it")


if __name__ == "__main__":
    main()
