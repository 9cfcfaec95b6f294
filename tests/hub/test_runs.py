"""`train.py --push_to_hub`: what is wrong is said before training, what fails at the end loses nothing."""

import json
import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

import deflect_hf
from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.run import RunArguments
from deflect_hf.errors import CheckpointError, ConfigError, HubError
from deflect_hf.hub import __main__ as command
from deflect_hf.hub.push import Publication, push
from deflect_hf.inference.predictor import Predictor
from deflect_hf.training.run import run
from tests.hub.conftest import CONF, environment
from tests.hub.server import Hub

REPOSITORY = CONF.parents[1]
PUSH = ("--push_to_hub", "true", "--hub_model_id", "alice/land", "--hub_picture", "false")
FEW = ("--config", str(CONF / "segmentation.yaml"), "--epochs", "1", "--dataset.num_samples", "16")
IMAGES = torch.full((1, 7, 16, 16), 900.0)


def parsed(*words: str) -> RunArguments:
    return parse_arguments(RunArguments, "test", [*FEW, *words])


def train(folder: Path, *words: str) -> str | None:
    """What train.py does, in this process; returns the commit's address."""
    config = parsed("--work_dir", str(folder), *words)
    publication = Publication.of(config)
    run(config, publication.publish)
    return publication.finish(folder)


def test_a_run_ends_on_the_hub_and_each_checkpoint_on_a_branch_of_its_own(hub: Hub, tmp_path: Path) -> None:
    where = ("--hub_private", "true", "--hub_revision", "v1", "--hub_strategy", "every_checkpoint")
    url = train(tmp_path / "run", *PUSH, *where, "--ckpt_steps", "1", "--batch_size", "4")
    repository = hub.repositories["alice/land"]
    assert url == f"{hub.url}/alice/land/commit/{repository.branches['v1']}" and repository.private
    assert repository.branches.keys() == {"main", "v1", "step-1", "step-2", "step-3"}
    assert hub.files("alice/land") == {}  # main is as it was made
    assert "This checkpoint was not evaluated." in hub.files("alice/land", "step-1")["README.md"].decode()
    first, last, best = (deflect_hf.load_predictor("alice/land", revision=name) for name in ("step-1", "step-3", "v1"))
    assert torch.equal(best(IMAGES), Predictor.from_folder(tmp_path / "run")(IMAGES))
    assert torch.equal(last(IMAGES), best(IMAGES)) and not torch.equal(first(IMAGES), last(IMAGES))


def test_what_cannot_be_pushed_stops_no_run_and_is_pushed_later(
    hub: Hub, runs: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publication = Publication.of(parsed(*PUSH, "--hub_strategy", "every_checkpoint"))
    best = runs("frozen") / "best"
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert publication.publish is not None
    with caplog.at_level(logging.WARNING):
        publication.publish(best, 3)
    assert "the checkpoint of step 3 is not on the Hub, training goes on: alice/land: the Hub does not" in caplog.text
    later = f"python -m deflect_hf.hub push {best} alice/land --picture false"
    with pytest.raises(HubError, match=re.escape(f"its model is in {best}. Push it later: {later}")):
        publication.finish(best.parent)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    command.main(shlex.split(later)[3:])
    assert torch.equal(deflect_hf.load_predictor("alice/land")(IMAGES), Predictor.from_folder(best)(IMAGES))


@pytest.mark.parametrize(
    ("words", "token", "error", "message"),
    [
        (("--hub_model_id", "a/b"), "hf_alice", ConfigError, "hub_model_id is for --push_to_hub true, which is not"),
        (("--push_to_hub", "true"), "hf_alice", ConfigError, "push_to_hub needs hub_model_id, the name on the Hub"),
        ((*PUSH, "--hub_model_id", "a b"), "hf_alice", HubError, "'a b' is no name of a repository on the Hub: give"),
        (PUSH, "hf_wrong", HubError, "alice/land: the Hub does not know this token"),
        (PUSH, "", HubError, "alice/land: no token of the Hub was found"),
        (PUSH, "hf_bob", HubError, "'bob' may not write to alice/land with this token"),
        (
            (*PUSH, "--hub_base_model_id", "alice/vit"),
            "hf_alice",
            ConfigError,
            "hub_base_model_id 'alice/vit' is for an encoder that was loaded from a folder; this one is a random one",
        ),
        (
            (*PUSH, "--encoder.random", "null", "--encoder.name_or_path", str(CONF)),
            "hf_alice",
            HubError,
            f"the encoder {CONF} is a folder on this machine: nobody else could load what is pushed.",
        ),
        (
            (*PUSH, "--encoder.random", "null", "--encoder.name_or_path", "bob/vit"),
            "hf_alice",
            HubError,
            "bob/vit: there is no such model on",
        ),
    ],
)
def test_what_would_fail_at_the_end_fails_before_training(
    words: tuple[str, ...], token: str, error: type[Exception], message: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(error) as caught:
        Publication.of(parsed(*words))
    assert message in str(caught.value)


VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16}
LORA = {"target_modules": r"encoder\.(?!x).*q_proj", "r": 40, "bias": "lora_only", "init_lora_weights": "pissa"}
LORA |= {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 5}}
IA3 = {"target_modules": ["q_proj", "fc2"], "feedforward_modules": ["fc2"]}


@pytest.mark.parametrize(
    ("finetune", "method", "encoder", "message"),
    [
        ("peft:LoraConfig", LORA, "vit", "is a pattern that may take for ever|r is 40; a whole number up to"),
        ("peft:IA3Config", IA3, "vit", "feedforward_modules is \\['fc2'\\]; adapters from elsewhere are loaded"),
        ("peft:VeraConfig", {"target": "qv", "projection_prng_key": 123456}, "vit", "projection_prng_key is 123456"),
        ("frozen", {}, "aimv2_vision_model", "model_type is 'aimv2_vision_model', which is none of the encoders that"),
        ("full", {}, "aimv2_vision_model", "model_type is 'aimv2_vision_model', which is none of the encoders that"),
    ],
)
def test_what_is_not_loaded_from_elsewhere_is_loaded_where_it_was_trained_and_not_pushed(
    finetune: str, method: dict[str, Any], encoder: str, message: str, hub: Hub, tmp_path: Path
) -> None:
    made = json.dumps({"model_type": encoder, "patch_size": 8, **VIT})
    words = ["--finetune", finetune, "--method", json.dumps(method), "--encoder.random", made]
    message = f"Nobody else could load this model from the Hub, only this machine from its folder: .*({message})"
    with pytest.raises(HubError, match=message):
        Publication.of(parsed(*PUSH, *words))
    assert not hub.repositories
    train(tmp_path / "run", *words)
    trained = Predictor.from_folder(tmp_path / "run")
    assert torch.equal(deflect_hf.load_predictor(tmp_path / "run")(IMAGES), trained(IMAGES))
    with pytest.raises(HubError, match=message):
        push(tmp_path / "run", "alice/land", picture=False)
    assert not hub.files("alice/land")


def test_an_encoder_of_the_hub_is_loaded_as_it_was_for_training(hub: Hub, tmp_path: Path) -> None:
    source = tmp_path / "clip"
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config={"patch_size": 8, **VIT})).save_pretrained(source)
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    hub.put("bob/clip", {name: (source / name).read_bytes() for name in ("config.json", "pytorch_model.bin")})
    words = ["--encoder.random", "null", "--encoder.name_or_path", "bob/clip"]
    train(tmp_path / "run", *words)
    predict = deflect_hf.load_predictor(tmp_path / "run", cache_dir=tmp_path / "other")
    assert torch.equal(predict(IMAGES), Predictor.from_folder(tmp_path / "run")(IMAGES))
    offline = deflect_hf.load_predictor(tmp_path / "run", cache_dir=tmp_path / "other", local_files_only=True)
    assert torch.equal(predict(IMAGES), offline(IMAGES))
    hub.put("bob/both", {"config.json": (source / "config.json").read_bytes(), "model.safetensors": b""})
    with pytest.raises(HubError, match="model_type is 'clip', which is none of the encoders that are loaded from"):
        Publication.of(parsed(*PUSH, *words[:3], "bob/both"))


def test_a_run_that_is_not_published_asks_nothing_of_the_hub_and_gets_a_card(
    hub: Hub, runs: Callable[[str], Path]
) -> None:
    assert Publication.of(parsed()).finish(runs("deflect")) is None
    card = (runs("deflect") / "best" / "README.md").read_text()
    assert "## Use" in card and "Model Card for Model ID" not in card
    assert hub.requests == []


def plain_vit() -> ViTModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes)).eval()


def test_pefts_own_push_and_pull_work(hub: Hub) -> None:
    config = deflect_hf.DeflectConfig(bands=["R", "G", "B", "N"], indices=["NDVI"], init_weights=False, aux_dim=4)
    model = get_peft_model(plain_vit(), config).eval()
    model.push_to_hub("alice/plain", private=True)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= hub.files("alice/plain").keys()
    again = PeftModel.from_pretrained(plain_vit(), "alice/plain").eval()
    assert torch.equal(*(each(pixel_values=IMAGES[:, :4] / 1e4).last_hidden_state for each in (model, again)))
    with pytest.raises(CheckpointError, match=r"alice/plain lacks 'config.json', 'config.yaml', 'preprocessor_config"):
        deflect_hf.load_predictor("alice/plain")


WITH_PEFT = """
from peft import PeftModel
from deflect_hf import EncoderForSemanticSegmentation
from deflect_hf.models.configuration import EncoderForSemanticSegmentationConfig

config = EncoderForSemanticSegmentationConfig.from_pretrained("alice/land")
model = PeftModel.from_pretrained(EncoderForSemanticSegmentation(config), "alice/land")
print(sorted(model.peft_config), model.peft_config["default"].bands)
"""


def test_the_program_on_the_card_runs_as_it_stands_in_a_new_process(
    hub: Hub, runs: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = runs("deflect")
    command.main(["push", str(folder), "alice/land", "--private", "false", "--message", "First"])
    files = hub.files("alice/land")
    assert files["prediction.png"].startswith(b"\x89PNG") and hub.repositories["alice/land"].messages[-1] == "First"
    program = files["README.md"].decode().partition("```python\n")[2].partition("```")[0]
    assert program.startswith("import deflect_hf\n") and str(tmp_path) not in program
    done = subprocess.run(
        [sys.executable, "-c", program + WITH_PEFT],
        env=environment(hub, tmp_path / "home"),
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    shares, adapters = done.stdout.splitlines()
    values = yaml.safe_load(shares)
    expected = Predictor.from_folder(folder)(torch.full((1, 7, 16, 16), 1000.0)).mean(dim=(0, 2, 3))
    assert list(values) == ["water", "vegetation", "bare", "wetland"]
    assert torch.allclose(torch.tensor(list(values.values())), expected, atol=1e-6)
    assert adapters == "['default'] ['A', 'B', 'G', 'R', 'N', 'S1', 'S2']"


def test_the_command_line_checks_and_refuses(
    hub: Hub, runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command.main(["check", str(runs("frozen"))])
    assert "best: whole and safe to load. --finetune frozen, encoder its own, random one" in capsys.readouterr().out
    command.main(["push", str(runs("frozen")), "alice/land", "--picture", "false"])
    command.main(["check", "alice/land", "--revision", "main"])
    assert "whole and safe to load" in capsys.readouterr().out
    hub.put("alice/land", {"config.json": json.dumps({"auto_map": {}}).encode()})
    for words, message in {
        ("check", "alice/land"): "error: ",
        ("check", str(runs("frozen")), "--revision", "main"): "error: --revision is for a model on the Hub, but ",
        ("push", str(runs("frozen"))): "error: 'repo_id' is missing: USER/NAME on the Hub",
    }.items():
        with pytest.raises(SystemExit) as caught:
            command.main(words)
        assert caught.value.code == 2
        assert capsys.readouterr().err.startswith(message)
