"""The road from a program: data sets of its own train and score as files do; models of any loop are saved."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel

import deflect_hf
from deflect_hf.errors import ConfigError, DataError, UnitError
from deflect_hf.inference.predictor import Predictor
from deflect_hf.models import GeoViTConfig, GeoViTModel
from tests.benchmarks.resume import finish, start
from tests.inference.folders import encoder_folder
from tests.tuners.tiny import SIZES

CHANNELS = ["B", "G", "R", "N"]
READING = {"bands": CHANNELS, "classes": ["land", "water"], "scale": 1e-4}


def chips(count: int, side: int = 16) -> list[dict[str, Any]]:
    """Bright land and, in N, dark water."""
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 2, (count, side // 8, side // 8)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    images = rng.integers(800, 1200, (count, 4, side, side)).astype(np.int16)
    images[:, 3] += (1 - masks.astype(np.int16)) * 2000
    return [{"image": image, "mask": mask} for image, mask in zip(images, masks, strict=True)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> deflect_hf.Run:
    conf = Path(__file__).parent / "conf"
    return deflect_hf.train(
        {"segmentor": {"head": "pixel", "optimizer": {"lr": 1e-2}}, "dataset": READING},
        train=chips(12), encoder_config=conf / "tiny_vit.yaml", work_dir=tmp_path_factory.mktemp("api") / "run",
        epochs=2, eval_interval=1, batch_size=4, num_workers=0, dataset={"val_fraction": 0.25},
    )  # fmt: skip


def test_examples_of_a_program_train_on_the_road_of_files(trained: deflect_hf.Run) -> None:
    assert {path.name for path in trained.folder.iterdir()} >= {"best", "results.json", "config.yaml", "log.jsonl"}
    assert trained.results["images"] == {"train": 7, "val": 3, "test": 2}
    assert trained.evaluate()["confusion_matrix"] == trained.results["test"]["confusion_matrix"]
    darker = trained.evaluate(dataset={"scale": 5e-5})  # keys, no examples
    assert darker["images"] == 2 and darker["loss"] != trained.results["test"]["loss"]
    others = trained.evaluate(chips(3))
    assert others["images"] == 3 and others["intervals"]
    again = deflect_hf.Run(trained.folder)
    adapted = deflect_hf.adapt_dataset(chips(3), CHANNELS, task="segmentation", classes=["land", "water"], scale=1e-4)
    assert again.evaluate(adapted)["confusion_matrix"] == others["confusion_matrix"]
    with pytest.raises(ConfigError, match="root"):
        trained.evaluate(dataset={"root": "elsewhere"})
    with pytest.raises(ConfigError, match=r"whose examples a program hands over: .*Run\(FOLDER\)\.evaluate\(dataset"):
        again.evaluate()


def launched(folder: Sequence[str], log: Path | None) -> None:
    """One of two processes of a program, as `accelerate launch` starts it."""
    from deflect_hf.training.distributed_exit import distributed_exit

    with distributed_exit():
        run = deflect_hf.train(
            {"segmentor": {"head": "pixel"}, "dataset": READING},
            train=chips(12), encoder_config=Path(__file__).parent / "conf" / "tiny_vit.yaml", work_dir=folder[0],
            epochs=1, eval_interval=1, batch_size=2, num_workers=0, dataset={"val_fraction": 0.25},
        )  # fmt: skip
        found = {
            "test": run.results["test"],
            "again": run.evaluate(),
            "map": run.predictor(chips(1)[0]["image"]).tolist(),
        }
        (run.folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


def test_a_program_trains_in_two_processes(tmp_path: Path) -> None:
    finish(start([str(tmp_path / "run")], 2, None, launched))
    first, second = (json.loads((tmp_path / "run" / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and first["again"]["confusion_matrix"] == first["test"]["confusion_matrix"]


@pytest.mark.parametrize(("status", "error"), [(130, KeyboardInterrupt), (143, SystemExit)])
def test_ctrl_c_ends_a_training_but_not_the_session_around_it(status: int, error: type, monkeypatch) -> None:
    def stopped(*_: Any) -> None:
        raise SystemExit(status)

    monkeypatch.setattr("deflect_hf.api.run", stopped)
    with pytest.raises(error):
        deflect_hf.train("configs/run/embedded.yaml")


@pytest.mark.parametrize("task", ["multi_label", "regression", "pixel_regression"])
def test_examples_with_vectors_and_numbers_train_and_are_scored(task: str, tmp_path: Path) -> None:
    examples = []
    for chip in chips(12):
        water = chip["mask"]
        label = {"multi_label": [1.0, float(water.any())], "regression": water.mean(), "pixel_regression": water * 0.5}
        examples.append({"image": chip["image"], "label": label[task]})
    named = {"classes": ["land", "water"]} if task == "multi_label" else {"target": "water", "target_unit": "%"}
    reading = {"bands": CHANNELS, "scale": 1e-4, "val_fraction": 0.25, **named}
    run = deflect_hf.train(
        train=examples, dataset={**reading, **({} if task == "multi_label" else {"task": task})},
        encoder_config=Path(__file__).parent / "conf" / "tiny_vit.yaml", work_dir=tmp_path / "run",
        epochs=1, batch_size=4, num_workers=0, method={"aux_dim": 8},
    )  # fmt: skip
    score = "map" if task == "multi_label" else "rmse"
    assert run.results["task"] == task and run.evaluate()[score] == run.results["test"][score]
    assert run.evaluate(examples[:3])["intervals"]["images"] == 3
    assert run.predictor.classes == (("land", "water") if task == "multi_label" else ("water",))
    assert run.predictor.unit == (None if task == "multi_label" else "%")


def test_predictions_are_of_stored_values_or_of_reflectance_as_is_said(trained: deflect_hf.Run) -> None:
    predict, image = trained.predictor, chips(1)[0]["image"]
    torch.testing.assert_close(predict(image), predict(image * np.float32(1e-4), scale=1.0))
    torch.testing.assert_close(predict(image), predict(image + 1000.0, scale=1e-4, offset=-0.1))
    with pytest.raises(UnitError, match=r"are reflectance already need scale 1, offset 0 \(predictor\(images, scale=1"):
        predict(image * 1e-4)
    with pytest.raises(ConfigError, match="offset goes with scale"):
        predict(image, offset=-0.1)


def vectors(*labels: list[int]) -> list[dict[str, Any]]:
    return [{"image": chip["image"], "label": label} for chip, label in zip(chips(len(labels)), labels, strict=True)]


def adapted(bands: list[str]) -> Any:
    return deflect_hf.adapt_dataset(chips(2), bands, task="segmentation", classes=["land", "water"], scale=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epohcs": 3}, ConfigError, "deflect_hf.train: unknown key 'epohcs'. Did you mean 'epochs'"),
        ({"dataset": {"classes": ["a", "b"]}}, ConfigError, "channels of the images have no names: give dataset.bands"),
        ({"dataset": {"bands": CHANNELS}}, ConfigError, "the classes have no names: give dataset.classes"),
        ({"dataset": {**READING, "root": "x"}}, ConfigError, "`root` does nothing for the data set 'python'"),
        (
            {"dataset": {**READING, "name": "folder", "root": "x"}},
            ConfigError,
            "does nothing for|dataset.name is 'folder'",
        ),
        (
            {"dataset": READING, "train": [{"image": np.ones((4, 8, 8)), "lable": 2}]},
            DataError,
            "has 'image', 'lable': give exactly one",
        ),
        ({"train": None, "validation": []}, ConfigError, "validation and test go with train"),
        (
            {"dataset": {**READING, "val_fraction": 0.3}, "validation": chips(2)},
            ConfigError,
            "val_fraction=0.3 does no",
        ),
        ({"dataset": READING, "train": {"train": []}}, DataError, "a mapping of splits, choose one of them"),
        ({"dataset": READING, "train": []}, DataError, r"dataset \(list\) has no examples"),
        ({"dataset": READING, "train": "chips"}, DataError, "dataset is str: give something with a length"),
        (
            {"config": chips(2)},
            ConfigError,
            "the configuration, is a list: .* examples by name, train=",
        ),
        (
            {"dataset": READING, "train": vectors([1, 0], [0, 1])},
            DataError,
            "a single 1 among 2.*task='multi_label",
        ),
        (
            {"dataset": READING, "validation": [{"image": chips(1)[0]["image"], "label": 1}]},
            DataError,
            "the task of train and val differ: segmentation, and classification",
        ),
        (
            {"train": adapted(CHANNELS), "validation": adapted([*reversed(CHANNELS)])},
            DataError,
            "the bands of train and val differ: 'B', 'G', 'R', 'N', and 'N', 'R', 'G', 'B'",
        ),
    ],
)
def test_what_does_not_fit_is_said(options: dict, error: type[Exception], message: str, tmp_path: Path) -> None:
    conf = Path(__file__).parent / "conf" / "tiny_vit.yaml"
    given = {"train": chips(4), "encoder_config": conf, "num_workers": 0, "work_dir": tmp_path / "run", **options}
    with pytest.raises(error, match=message):
        deflect_hf.train(**given)


@pytest.mark.parametrize("method", ["deflect", "lora", "full"])
def test_a_model_of_any_loop_is_saved_like_a_run(method: str, tmp_path: Path) -> None:
    model = deflect_hf.EncoderForSemanticSegmentation.from_encoder(
        encoder_folder(tmp_path / "encoder"), id2label={0: "land", 1: "water"}
    )
    model = deflect_hf.adapt(model, method, bands=CHANNELS, base_mean=[0.1] * 3, base_std=[0.1] * 3)
    processor = deflect_hf.MultispectralImageProcessor(CHANNELS, scale=1e-4)
    for parameter in model.parameters():
        parameter.data.add_(0.01 * parameter.requires_grad)
    predictor = Predictor(model, processor)
    predictor.save(tmp_path / "saved")
    predictor.save(tmp_path / "saved")  # a better one of the same loop
    image = chips(1, side=32)[0]["image"]
    again = deflect_hf.load_predictor(tmp_path / "saved")
    assert torch.equal(again(image), predictor(image)) and again.classes == ("land", "water")
    assert deflect_hf.Run(tmp_path / "saved").evaluate(chips(2, side=32))["images"] == 2
    again.save(tmp_path / "copy")
    assert (tmp_path / "copy" / "config.yaml").read_text() == (tmp_path / "saved" / "config.yaml").read_text()
    (tmp_path / "copy" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds 'mine\.txt', which no save wrote"):
        again.save(tmp_path / "copy")


def test_a_model_on_a_random_encoder_is_saved_elsewhere(trained: deflect_hf.Run, tmp_path: Path) -> None:
    trained.predictor.save(tmp_path / "copy")
    image = chips(1)[0]["image"]
    assert torch.equal(deflect_hf.load_predictor(tmp_path / "copy")(image), trained.predictor(image))


def test_positions_of_another_sampling_distance_and_bands_of_the_model_around_come_back(tmp_path: Path) -> None:
    GeoViTModel(GeoViTConfig(**SIZES, position_embedding="sincos_gsd")).save_pretrained(tmp_path / "encoder")
    encoder = AutoModel.from_pretrained(tmp_path / "encoder")
    encoder.config.gsd = 10.0
    options = {"num_labels": 2, "bands": CHANNELS, "base_mean": [0.1] * 3, "base_std": [0.1] * 3}
    model = deflect_hf.EncoderForImageClassification.from_encoder(encoder, **options)
    model = get_peft_model(model, deflect_hf.DeflectConfig(modules_to_save=["head"]))
    predictor = Predictor(model, deflect_hf.MultispectralImageProcessor(CHANNELS, scale=1e-4))
    predictor.save(tmp_path / "saved")
    image = chips(1, side=32)[0]["image"]
    assert torch.equal(deflect_hf.load_predictor(tmp_path / "saved")(image), predictor(image))


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path: Path) -> None:
    processor = deflect_hf.MultispectralImageProcessor(CHANNELS)

    def model() -> Any:
        found = deflect_hf.EncoderForImageClassification.from_encoder(encoder_folder(tmp_path / "vit"), num_labels=2)
        found.set_bands(CHANNELS)
        return found

    without_head = get_peft_model(model(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match="head is not saved with the adapter"):
        Predictor(without_head, processor).save(tmp_path / "saved")
    nameless = deflect_hf.adapt(model(), "deflect", bands=CHANNELS)
    nameless.base_model.model.encoder.name_or_path = ""
    with pytest.raises(ConfigError, match="The encoder has no name"):
        Predictor(nameless, processor).save(tmp_path / "saved")
    silent = get_peft_model(model(), deflect_hf.DeflectConfig(modules_to_save=["head"]))
    silent.base_model.model.config.bands = None
    with pytest.raises(ConfigError, match="does not say which bands it takes"):
        Predictor(silent, processor).save(tmp_path / "saved")
    with pytest.raises(ConfigError, match=r"gives the bands .N., .R., .G., .B. .* the model takes 'B', 'G', 'R', 'N'"):
        Predictor(nameless, deflect_hf.MultispectralImageProcessor(CHANNELS[::-1]))
    foreign = torch.nn.Conv2d(4, 2, 1)
    with pytest.raises(ConfigError, match=r"Predictor takes a model and .*, not Conv2d and NoneType; of"):
        Predictor(foreign, None, task="segmentation", classes=["a", "b"])
    with pytest.raises(ConfigError, match="A Conv2d cannot be saved as a result folder"):
        Predictor(foreign, processor, task="segmentation", classes=["a", "b"]).save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
