"""What is pushed comes back: every kind of model, from each place an encoder may be."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

import deflect_hf
from deflect_hf.errors import CheckpointError, ConfigError, HubError
from deflect_hf.hub.push import push
from deflect_hf.inference.predictor import Predictor
from tests.hub.server import Hub
from tests.hub.store import Repository

Runs = Callable[[str], Path]
IMAGES = torch.rand(2, 7, 24, 24, generator=torch.Generator().manual_seed(0)) * 3000


def test_a_model_comes_back_from_its_name_alone(hub: Hub, runs: Runs) -> None:
    folder = runs("deflect")
    url = push(folder, "alice/land", picture=False)
    files = hub.files("alice/land")
    assert url == f"{hub.url}/alice/land/commit/{hub.repositories['alice/land'].branches['main']}"
    assert files.keys() == {
        *("README.md", "adapter_config.json", "adapter_model.safetensors", "config.json", "config.yaml"),
        *("preprocessor_config.json", "results.json", "encoder/config.json", "encoder/model.safetensors"),
    }
    predict, local = deflect_hf.load_predictor("alice/land"), Predictor.from_folder(folder)
    assert torch.equal(predict(IMAGES), local(IMAGES))
    assert predict.temperature is not None and predict.confusion is not None
    assert (predict.temperature, predict.confusion) == (local.temperature, local.confusion)
    assert predict.classes == ("water", "vegetation", "bare", "wetland") and predict.task == "segmentation"


@pytest.mark.parametrize("method", ["lora", "bitfit", "frozen", "full"])
def test_every_method_comes_back(method: str, hub: Hub, runs: Runs) -> None:
    push(runs(method), "alice/land", picture=False)
    weights = {"frozen": "head", "full": "model"}.get(method, "adapter_model") + ".safetensors"
    beside = set() if method == "full" else {"encoder/model.safetensors"}
    assert {name for name in hub.files("alice/land") if name.endswith(".safetensors")} == {weights, *beside}
    predict = deflect_hf.load_predictor("alice/land", device="cpu")
    assert torch.equal(predict(IMAGES), Predictor.from_folder(runs(method))(IMAGES))


def test_nothing_about_this_machine_is_published(hub: Hub, runs: Runs) -> None:
    folder = runs("deflect")
    push(folder, "alice/land", picture=False)
    files = hub.files("alice/land")
    for name, content in files.items():
        assert str(folder.parents[1]).encode() not in content and str(Path.home()).encode() not in content, name
    config = yaml.safe_load(files["config.yaml"])
    assert (config["work_dir"], config["push_to_hub"], config["dataset"]["root"]) == (None, False, None)
    adapter = json.loads(files["adapter_config.json"])
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == (None, None)


def test_paths_of_the_data_become_a_placeholder(hub: Hub, runs: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs("full"), folder)
    config = yaml.safe_load((folder / "best" / "config.yaml").read_text())
    data = {"name": "folder", "task": "segmentation", "root": str(tmp_path / "secret")}
    config["dataset"] = {**data, "classes": ["land", "water"], "val_split": str(tmp_path / "mine.txt")}
    (folder / "best" / "config.yaml").write_text(yaml.safe_dump(config))
    push(folder, "alice/land", picture=False)
    published = yaml.safe_load(hub.files("alice/land")["config.yaml"])["dataset"]
    assert (published["root"], published["val_split"]) == ("FOLDER", "FOLDER")
    results = folder / "best" / "results.json"
    results.write_text(json.dumps({**json.loads(results.read_text()), "note": f"see {tmp_path / 'secret'}/x.tif"}))
    with pytest.raises(HubError, match=rf"results.json would tell everybody of {tmp_path / 'secret'} on this machine"):
        push(folder, "alice/land", picture=False)


def encoder_on_the_hub(hub: Hub, folder: Path, name: str = "alice/encoder") -> str:
    return hub.put(name, {path.name: path.read_bytes() for path in folder.iterdir()})


def with_encoder(run: Path, folder: Path, name: str) -> Path:
    """A copy of a run, as if its encoder had been loaded from ``name``."""
    path = shutil.copytree(run, folder) / "best" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["encoder"] |= {"random": None, "name_or_path": name}
    path.write_text(yaml.safe_dump(config))
    return folder


def test_an_encoder_of_the_hub_is_pinned_to_its_commit(hub: Hub, runs: Runs, tmp_path: Path) -> None:
    encoder = runs("deflect") / "encoder"
    commit = encoder_on_the_hub(hub, encoder)
    push(with_encoder(runs("deflect"), tmp_path / "run", "alice/encoder"), "alice/land", picture=False)
    files = hub.files("alice/land")
    adapter, config = json.loads(files["adapter_config.json"]), yaml.safe_load(files["config.yaml"])
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("alice/encoder", commit)
    assert (config["encoder"]["name_or_path"], config["encoder"]["revision"]) == ("alice/encoder", commit)
    assert "encoder/model.safetensors" not in files
    expected = Predictor.from_folder(tmp_path / "run")(IMAGES)
    # the encoder's page goes on, this adapter keeps to the commit it was made for
    hub.put("alice/encoder", {"model.safetensors": b"another one"})
    shutil.rmtree(constants.HF_HUB_CACHE)
    assert torch.equal(deflect_hf.load_predictor("alice/land")(IMAGES), expected)
    assert torch.equal(deflect_hf.load_predictor("alice/land", encoder=encoder)(IMAGES), expected)

    # the program on the card that does without load_predictor
    names: dict[str, Any] = {}
    exec(files["README.md"].decode().split("```python\n")[2].partition("```")[0], names)
    predict = deflect_hf.load_predictor("alice/land")
    pixels = torch.stack([predict.processor.convert(image) for image in IMAGES])
    with torch.no_grad():
        logits = [model.eval()(pixel_values=pixels).logits for model in (names["model"], predict.model)]
    assert torch.equal(*logits)


def test_transformers_classes_open_an_id(hub: Hub, runs: Runs, tmp_path: Path) -> None:
    """Also where they take the encoder that was adapted for the model, and look beside it for the processor."""
    auto, image = AutoModelForSemanticSegmentation, IMAGES[0, :, :16, :16]
    encoder_on_the_hub(hub, runs("deflect") / "encoder")
    for method in ("deflect", "frozen"):
        name = f"alice/{method}"
        folder = with_encoder(runs(method), tmp_path / method, "alice/encoder")
        push(folder, name, picture=False)
        pixels = AutoImageProcessor.from_pretrained(name)(image)["pixel_values"]
        described = {"config": AutoConfig.from_pretrained(name), "revision": hub.repositories[name].branches["main"]}
        models = [auto.from_pretrained(name), auto.from_pretrained(name, **described)]
        for model in models:
            assert torch.equal(model(pixels).logits, Predictor.from_folder(folder).logits(pixels))
        segment = pipeline("image-segmentation", model=models[1], image_processor=name)
        assert segment(image) == pipeline("image-segmentation", model=name)(image) != []
    with pytest.raises(ConfigError, match="loaded as it was trained: leave out 'hidden_act'"):
        auto.from_pretrained("alice/deflect", hidden_act="relu")
    for load in (auto.from_pretrained, lambda name: auto.from_config(AutoConfig.from_pretrained(name))):
        with pytest.raises(ValueError, match="Unrecognized configuration class"):
            load("alice/encoder")


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("deflect", {"id2label": {0: "land", 1: "water"}}),
        ("full", {"id2label": {0: "land", 1: "water"}}),
        ("lora", {"id2label": {0: "age"}, "problem_type": "regression", "target_unit": "a"}),
    ],
)
def test_a_model_of_any_loop_comes_back(method: str, settings: dict, hub: Hub, runs: Runs, tmp_path: Path) -> None:
    commit = encoder_on_the_hub(hub, runs("deflect") / "encoder")
    model = deflect_hf.EncoderForImageClassification.from_encoder("alice/encoder", **settings)
    bands = ["B", "G", "R", "N"]
    model = deflect_hf.adapt(model, method, bands=bands, base_mean=[0.1] * 3, base_std=[0.1] * 3)
    for parameter in model.parameters():
        parameter.data.add_(0.01 * parameter.requires_grad)
    known: dict[str, Any] = {"confusion": ("val", [[3, 1], [0, 4]]), "temperature": 1.5} if method == "full" else {}
    predictor = Predictor(model, deflect_hf.MultispectralImageProcessor(bands, scale=1e-4), **known)
    for _ in range(2):  # the second replaces the first
        predictor.save(tmp_path / "saved")
    push(tmp_path / "saved", "alice/mine")
    files = hub.files("alice/mine")
    if method != "full":
        adapter = json.loads(files["adapter_config.json"])
        assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("alice/encoder", commit)
    assert "encoder/model.safetensors" not in files and "not evaluated" in files["README.md"].decode()
    again = deflect_hf.load_predictor("alice/mine")
    assert torch.equal(again(IMAGES[:, :4]), predictor(IMAGES[:, :4]))
    assert (again.classes, again.unit) == (tuple(settings["id2label"].values()), settings.get("target_unit"))
    assert (again.confusion, again.temperature) == (known.get("confusion"), known.get("temperature"))


def test_an_encoder_in_a_folder_must_be_on_the_hub(hub: Hub, runs: Runs, tmp_path: Path) -> None:
    encoder = runs("deflect") / "encoder"
    folder = with_encoder(runs("deflect"), tmp_path / "run", str(encoder))
    with pytest.raises(HubError) as caught:
        push(folder, "alice/land", picture=False)
    assert str(caught.value) == (
        f"the encoder {encoder} is a folder on this machine: nobody else could load what is pushed. Upload it, if its "
        f"license allows that (hf upload USER/ENCODER {encoder}), and say where it is: --hub_base_model_id "
        "USER/ENCODER, or --base_model_id where a folder is pushed."
    )
    assert "alice/land" not in hub.repositories
    weights = (encoder / "model.safetensors").read_bytes()
    hub.put("alice/encoder", {"config.json": b"{}", "model.safetensors": weights[:-1] + b"\1"})
    with pytest.raises(HubError, match=r"alice/encoder holds other weights than .*, the encoder that was adapted"):
        push(folder, "alice/land", base_model_id="alice/encoder", picture=False)
    commit = encoder_on_the_hub(hub, encoder)
    push(folder, "alice/land", base_model_id="alice/encoder", picture=False)
    assert json.loads(hub.files("alice/land")["adapter_config.json"])["revision"] == commit
    predict = deflect_hf.load_predictor("alice/land")
    assert torch.equal(predict(IMAGES), Predictor.from_folder(folder)(IMAGES))
    with pytest.raises(ConfigError, match="is for an encoder that was loaded from a folder; this one is a random one"):
        push(runs("deflect"), "alice/land", base_model_id="alice/encoder", picture=False)


def test_a_second_push_replaces_the_first_and_leaves_other_files(
    hub: Hub, runs: Runs, pushed: Callable[[str], Repository]
) -> None:
    hub.repositories["alice/land"] = pushed("deflect")
    hub.put("alice/land", {**hub.files("alice/land"), "notes.txt": b"mine"})
    push(runs("frozen"), "alice/land", picture=False, commit_message="Head alone")
    files = hub.files("alice/land")
    assert "adapter_model.safetensors" not in files and "adapter_config.json" not in files
    assert files["notes.txt"] == b"mine" and "head.safetensors" in files
    assert hub.repositories["alice/land"].messages[-1] == "Head alone"
    deflect_hf.load_predictor("alice/land")


def test_branches_and_commits_are_loaded_by_name(hub: Hub, runs: Runs, pushed: Callable[[str], Repository]) -> None:
    hub.repositories["alice/land"] = pushed("deflect")
    push(runs("frozen"), "alice/land", revision="step-7", picture=False)
    repository = hub.repositories["alice/land"]
    assert repository.branches.keys() == {"main", "step-7"}
    assert "revision='step-7'" in hub.files("alice/land", "step-7")["README.md"].decode()
    for revision, method in {None: "deflect", "step-7": "frozen", repository.branches["step-7"]: "frozen"}.items():
        predict = deflect_hf.load_predictor("alice/land", revision=revision)
        assert torch.equal(predict(IMAGES), Predictor.from_folder(runs(method))(IMAGES))


def test_a_private_model_needs_its_owners_token(hub: Hub, runs: Runs) -> None:
    push(runs("frozen"), "alice/secret", private=True, picture=False)
    assert hub.repositories["alice/secret"].private
    deflect_hf.load_predictor("alice/secret")
    with pytest.raises(HubError, match=r"alice/secret: there is no such model on .*, or this token may not read it"):
        deflect_hf.load_predictor("alice/secret", token="hf_bob", cache_dir=Path(constants.HF_HUB_CACHE) / "bob")


def test_the_cache_is_enough_offline(
    hub: Hub, pushed: Callable[[str], Repository], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["alice/land"] = pushed("deflect")
    with pytest.raises(HubError, match="alice/land is not complete in the cache, and only the cache may be read"):
        deflect_hf.load_predictor("alice/land", local_files_only=True)
    expected = deflect_hf.load_predictor("alice/land")(IMAGES)
    hub.requests.clear()
    assert torch.equal(deflect_hf.load_predictor("alice/land", local_files_only=True)(IMAGES), expected)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(deflect_hf.load_predictor("alice/land")(IMAGES), expected)
    assert hub.requests == []


def test_a_folder_is_loaded_like_a_name(runs: Runs, hub: Hub) -> None:
    predict = deflect_hf.load_predictor(runs("deflect"))
    assert torch.equal(predict(IMAGES), Predictor.from_folder(runs("deflect"))(IMAGES))
    assert hub.requests == []
    with pytest.raises(ConfigError, match=r"revision='main' is for the Hub, but .* is a folder on this machine"):
        deflect_hf.load_predictor(runs("deflect"), revision="main")
    with pytest.raises(ConfigError, match="was trained with --finetune full, it holds its own"):
        deflect_hf.load_predictor(runs("full"), encoder=runs("deflect") / "encoder")
    with pytest.raises(CheckpointError, match="is no finished run"):
        deflect_hf.load_predictor(runs("deflect").parent)
