"""transformers' Auto classes and pipelines given a Hub id alone, where transformers has a head for the encoder."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    ViTConfig,
    ViTForImageClassification,
    pipeline,
)

import deflect_hf
from deflect_hf.errors import ConfigError
from deflect_hf.hub.push import push
from tests.hub.server import Hub
from tests.inference.folders import ALL_BANDS, encoder_folder, images, result_folder
from tests.tuners.tiny import SIZES

AUTO = {"classification": AutoModelForImageClassification, "segmentation": AutoModelForSemanticSegmentation}


def publish(hub: Hub, home: Path, family: str, task: str, method: str = "deflect") -> str:
    """A trained model on the Hub, and beside it the encoder that it names; its id."""
    encoder = encoder_folder(home / "encoder", family)
    hub.put("alice/encoder", {path.name: path.read_bytes() for path in encoder.iterdir()})
    bands = ALL_BANDS if method == "deflect" else ["R", "G", "B"]
    path = result_folder(home / "model", encoder, method, task=task, bands=bands) / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["encoder"]["name_or_path"] = "alice/encoder"
    path.write_text(yaml.safe_dump(config))
    push(path.parent, "alice/model", picture=False)
    return "alice/model"


@pytest.mark.parametrize(
    ("family", "task", "method"),
    [
        ("vit", "classification", "deflect"),
        ("vit", "classification", "lora"),
        ("deit", "classification", "deflect"),  # transformers has two heads for it
        ("beit", "segmentation", "deflect"),
    ],
)
def test_an_id_alone_is_the_trained_model(family: str, task: str, method: str, hub: Hub, tmp_path: Path) -> None:
    name = publish(hub, tmp_path, family, task, method)
    predictor = deflect_hf.load_predictor(name, device="cpu")
    pixels = predictor.processor(images())["pixel_values"]
    with torch.no_grad():
        assert torch.equal(AUTO[task].from_pretrained(name)(pixels).logits, predictor.logits(pixels))
    stored = images(1).numpy()
    found = pipeline(f"image-{task}", model=name, device="cpu")(stored[0])
    probabilities = predictor(stored)[0]
    if task == "classification":
        scores = {row["label"]: row["score"] for row in found}
        assert scores == dict(zip(predictor.classes, probabilities.tolist(), strict=True))
    else:
        shown = [predictor.classes[number] for number in probabilities.argmax(dim=0).unique().tolist()]
        assert [row["label"] for row in found] == shown


def test_what_an_id_cannot_be_is_refused(hub: Hub, tmp_path: Path) -> None:
    name = publish(hub, tmp_path, "beit", "classification")
    with pytest.raises(ConfigError, match=r"of type 'deflect_image_classification', not 'deflect_semantic_segm"):
        AutoModelForSemanticSegmentation.from_pretrained(name)
    with pytest.raises(ConfigError, match="loaded as it was trained: leave out 'num_labels'"):
        AutoModelForImageClassification.from_pretrained(name, num_labels=7)
    hub.put(name, {f"sub/{path}": data for path, data in hub.files(name).items()})
    with pytest.raises(ConfigError, match="at the top of its repository: leave out 'subfolder'"):
        AutoModelForImageClassification.from_pretrained(name, adapter_kwargs={"subfolder": "sub"})


OTHERS: dict[str, Callable[..., Any]] = {
    "plain": lambda auto: auto.from_pretrained("bob/plain"),
    "other head": lambda auto: auto.from_pretrained("bob/plain", num_labels=7, ignore_mismatched_sizes=True),
    "wrong head": lambda auto: auto.from_pretrained("bob/plain", num_labels=7),
    "LoRA": lambda auto: auto.from_pretrained("bob/lora"),
    "none": lambda auto: auto.from_pretrained("bob/nothing"),
    "configuration": lambda auto: auto.from_config(ViTConfig(**SIZES), dtype=torch.bfloat16),
    "class": lambda auto: auto._model_mapping[ViTConfig](ViTConfig(**SIZES)),
}


@pytest.mark.parametrize("what", OTHERS)
def test_models_of_others_are_as_without_this_package(
    what: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = AutoModelForImageClassification
    torch.manual_seed(0)
    plain = ViTForImageClassification(ViTConfig(**SIZES, num_labels=3))
    plain.save_pretrained(tmp_path / "plain")
    options: dict[str, Any] = {"target_modules": ["q_proj"], "modules_to_save": ["classifier"]}
    lora = get_peft_model(plain, LoraConfig(**options, init_lora_weights=False))
    lora.peft_config["default"].base_model_name_or_path = "bob/plain"
    lora.save_pretrained(tmp_path / "lora")
    for name in ("plain", "lora"):
        hub.put(f"bob/{name}", {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})

    def outcome() -> tuple[Any, ...]:
        shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
        torch.manual_seed(1)
        hub.requests.clear()
        try:
            model = OTHERS[what](auto)
        except (OSError, RuntimeError) as error:
            return type(error), str(error), [request for request in hub.requests if "/bob/" in request]
        pixels = images()[:, :3].to(model.dtype)
        return (
            type(model),
            model.eval()(pixels).logits.tolist(),
            [request for request in hub.requests if "/bob/" in request],
        )

    kind, result, requests = outcome()
    monkeypatch.setattr(auto, "from_pretrained", partial(auto.from_pretrained.__wrapped__, auto))
    own_kind, own_result, own_requests = outcome()
    assert (kind, result) == (own_kind, own_result)
    # one look at whether it has a configuration of ours
    assert len(requests) <= len(own_requests) + 1
