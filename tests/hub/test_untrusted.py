"""Repositories of strangers: what is fetched of them, what is refused, and what never happens."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import deflect_hf
from deflect_hf.errors import DeflectError
from deflect_hf.hub.client import Hub as Client
from deflect_hf.hub.load import pull_encoder
from tests.hub.server import Hub

Runs = Callable[[str], Path]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auto_map": {"AutoModel": "modeling_evil.Model"}}, r"asks for code that is .* \(trust_remote_code\): it is"),
        ({"model_type": "evil"}, "model_type is 'evil', which is none of the encoders that are loaded from the Hub"),
        ({"num_hidden_layers": 120}, r"the configuration describes [\d,]+ weights, but only [\d,]+ are stored"),
        ({"hidden_size": None}, "hidden_size and num_hidden_layers must be whole numbers"),
    ],
)
def test_hostile_encoders(changes: dict[str, Any], message: str, hub: Hub, runs: Runs) -> None:
    encoder = runs("deflect") / "encoder"
    config = json.loads((encoder / "config.json").read_text())
    weights = (encoder / "model.safetensors").read_bytes()
    hub.put("mallory/encoder", {"config.json": json.dumps(config | changes).encode(), "model.safetensors": weights})
    with pytest.raises(DeflectError, match=message):
        pull_encoder(Client(), "mallory/encoder", None)


def test_an_encoder_of_pickles_is_refused(hub: Hub) -> None:
    hub.put("mallory/encoder", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    with pytest.raises(DeflectError, match=r"only 'pytorch_model\.bin': such a file may run any program"):
        pull_encoder(Client(), "mallory/encoder", None)
    assert not [request for request in hub.requests if "/resolve/" in request]


def test_a_name_from_the_hub_never_becomes_a_folder_of_this_machine(
    hub: Hub, published: Path, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in published.iterdir()}
    hub.put("alice/land", files)
    shutil.copytree(runs("deflect") / "encoder", tmp_path / "alice" / "encoder")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DeflectError, match="alice/encoder: there is no such model"):
        deflect_hf.load_predictor("alice/land")


def test_programs_in_a_repository_are_not_even_fetched(hub: Hub, runs: Runs, published: Path) -> None:
    encoder = {path.name: path.read_bytes() for path in (runs("deflect") / "encoder").iterdir()}
    hub.put("alice/encoder", {**encoder, "modeling_evil.py": b"raise SystemExit", "pytorch_model.bin": b"pickle"})
    files = {path.name: path.read_bytes() for path in published.iterdir()}
    hub.put("alice/land", {**files, "setup.py": b"raise SystemExit", "optimizer.pt": b"pickle"})
    assert deflect_hf.load_predictor("alice/land")(torch.full((1, 7, 16, 16), 900.0)).shape == (1, 4, 16, 16)
    fetched = {request.rpartition("/")[2] for request in hub.requests if "/resolve/" in request}
    assert not [name for name in fetched if name.endswith((".py", ".bin", ".pt"))]
