"""What is saved here is the same in another process: one for all of it, as its imports take seconds."""

import pickle
import subprocess
import sys

import torch
from huggingface_hub import ModelCard
from peft import get_peft_model

from deflect_hf import BitFitConfig, DeflectConfig, ScaledLoraConfig
from tests.tuners.tiny import ENCODERS, adapted, make_encoder, randomise, run

SCRIPT = """
import pickle, sys
from pathlib import Path
config = pickle.loads(Path(sys.argv[1]).read_bytes())  # as in a spawned worker: nothing of ours is imported yet
assert (config.rank, config.peft_type.name) == (3, "DEFLECT")
import torch
from transformers import AutoModel
for folder in map(Path, sys.argv[2:]):
    base_model = AutoModel.from_pretrained(folder / "base", attn_implementation="sdpa")
    exec((folder / "card.py").read_text())
    pixel_values, kwargs = torch.load(folder / "input.pt")
    torch.save(model.eval()(pixel_values=pixel_values, **kwargs).last_hidden_state, folder / "output.pt")
"""


def test_adapters_load_in_a_new_process_by_the_code_on_their_card(tmp_path, reflectance):
    models = {name: (name, adapted(name)) for name in ENCODERS}
    for name, config in (("slr", ScaledLoraConfig), ("bitfit", BitFitConfig)):
        models[name] = (
            "vit",
            randomise(get_peft_model(make_encoder(), config(modules_to_save=["pooler"])), 0.1).eval(),
        )
    expected = {}
    for name, (encoder, model) in models.items():
        folder = tmp_path / name
        pixels = reflectance if name in ENCODERS else reflectance[:, :3]
        kwargs = {"noise": torch.rand(2, 16)} if encoder == "vit_mae" else {}
        expected[folder] = run(model, pixels, **kwargs)
        make_encoder(encoder).save_pretrained(folder / "base")
        model.save_pretrained(folder / "adapter")
        torch.save((pixels, kwargs), folder / "input.pt")
        code = ModelCard.load(folder / "adapter" / "README.md").text.split("```python\n")[1].split("```")[0]
        (folder / "card.py").write_text(code.replace("path or name of this adapter", str(folder / "adapter")))
    (tmp_path / "config.pkl").write_bytes(pickle.dumps(DeflectConfig(rank=3)))
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "config.pkl"), *map(str, expected)], check=True)
    for folder, output in expected.items():
        assert torch.equal(torch.load(folder / "output.pt"), output), folder.name
