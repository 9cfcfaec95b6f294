"""Whole runs on tiny models and the embedded data: what they write, reload, resume and refuse."""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DynamoBackend
from transformers import AutoImageProcessor, AutoModelForImageClassification

from deflect_hf.artifacts import saved_model as checkpoints
from deflect_hf.artifacts.processes import make_accelerator
from deflect_hf.config.run import EncoderArguments, EvaluateArguments, RunArguments
from deflect_hf.errors import CheckpointError, ConfigError, DataError
from deflect_hf.evaluation import evaluate as evaluation
from deflect_hf.evaluation.evaluate import predict_logits
from deflect_hf.evaluation.report import overlay, report
from deflect_hf.training import sharding
from deflect_hf.training.checkpoint import TRAINING
from deflect_hf.training.run import run, warn_of_changes
from deflect_hf.training.sharding import prepared
from tests.tiny_runs import tiny_run

ONE_EPOCH = ("--epochs", "1")


def train(folder: Path, *words: str, task: str = "classification") -> dict:
    results, work_dir, first = run(tiny_run(task, "--work_dir", str(folder), *words))
    assert first and work_dir == folder
    assert json.loads((folder / "results.json").read_text()) == results
    return results


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in lines(folder) if "loss" in line}


def torch_file(folder: Path, step: str) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / step / TRAINING, weights_only=True)["model"]
    return tensors


def test_settings_that_a_continued_run_did_not_have_are_named(tmp_path: Path, caplog) -> None:
    tiny = partial(tiny_run, "classification", "--work_dir", str(tmp_path))
    before = tiny()
    source = tmp_path / "checkpoints" / "step-3"
    warn_of_changes(before, tmp_path, source)  # its configuration was not copied with it
    (tmp_path / "config.yaml").write_text(checkpoints.to_yaml(before))
    warn_of_changes(tiny("--resume_from", "last"), tmp_path, source)
    assert not caplog.messages
    after = tiny("--epochs", "77", "--segmentor.loss.dice", "0.5")
    changes = f"goes on with other settings: epochs {before.epochs} -> 77, segmentor.loss.dice 0.0 -> 0.5"
    for folder in (tmp_path, tmp_path / "another"):  # in its own folder, and in a new one
        warn_of_changes(after, folder, source)
        assert caplog.messages[-1] == f"{folder} {changes}"
    (tmp_path / "config.yaml").write_text("epohcs: 3")
    warn_of_changes(after, tmp_path, source)
    assert "unknown key 'epohcs'" in caplog.messages[-1] and caplog.messages[-1].startswith("settings are not compared")


@pytest.fixture
def new_accelerator() -> Iterator[None]:
    """The precision is a choice for a whole process: forget the one of the tests before."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("new_accelerator")
def test_blocks_are_compiled_where_accelerate_was_told_to(deflect_run, tmp_path: Path, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr("torch.nn.Module.compile", lambda self, **given: seen.append((type(self).__name__, given)))
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", "true")
    train(tmp_path / "first", *ONE_EPOCH)
    assert {name for name, _ in seen} == {"DeflectBlock"} and seen[0][1]["backend"] == "eager"
    first = len(seen)
    train(tmp_path / "second", *ONE_EPOCH)  # in the same process
    assert len(seen) == 2 * first


@pytest.mark.usefixtures("new_accelerator")
@pytest.mark.parametrize("sharded", [False, True])
def test_compiling_blocks_leaves_accelerate_its_backend(deflect_run, sharded: bool, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", "true")
    monkeypatch.setattr(sharding, "is_sharded", lambda model: sharded)
    model = AutoModelForImageClassification.from_pretrained(deflect_run[0])
    accelerator = Accelerator(cpu=True)
    prepared(model, torch.optim.SGD(model.parameters()), accelerator)
    assert accelerator.state.dynamo_plugin.backend == DynamoBackend.EAGER


def test_a_run_leaves_a_folder_that_evaluation_needs_nothing_else_of(deflect_run, tmp_path: Path) -> None:
    folder, results = deflect_run
    best = folder / "best"
    files = {path.name for path in best.iterdir()}
    assert files >= {"adapter_config.json", "adapter_model.safetensors", "preprocessor_config.json", "config.json"}
    assert files >= {"config.yaml", "results.json"} and "model.safetensors" not in files
    assert {path.name for path in folder.iterdir()} >= {"curves.png", "environment.json", "log.jsonl", "results.json"}
    model, expected = (AutoModelForImageClassification.from_pretrained(path).state_dict() for path in (folder, best))
    used = [name for name in expected if "original_module" not in name]  # the head before training
    assert all(torch.equal(model[name], expected[name]) for name in used)
    assert AutoImageProcessor.from_pretrained(folder).to_dict() == AutoImageProcessor.from_pretrained(best).to_dict()
    assert (best / "adapter_model.safetensors").stat().st_size < 50_000
    base = json.loads((best / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(folder / "encoder")
    shutil.copytree(best, tmp_path / "moved" / "best")
    shutil.copytree(folder / "encoder", tmp_path / "moved" / "encoder")
    arguments = EvaluateArguments(eval_dir=str(tmp_path / "moved"), output_dir=str(tmp_path / "out"), panels=2)
    again, output = report(arguments)
    assert {name: again[name] for name in results["test"]} == results["test"]
    assert output == tmp_path / "out"
    drawn = {path.name for path in output.iterdir()}
    assert drawn == {"confusion_matrix.png", "predictions_00.png", "predictions_01.png", "results_test.json"}
    (tmp_path / "out" / "confusion_matrix.png").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"out/confusion_matrix\.png': not written by deflect_hf, and not replaced"):
        report(arguments)
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(tmp_path / "moved" / "encoder")
    with pytest.raises(CheckpointError, match="give --encoder FOLDER"):
        report(arguments)
    arguments.encoder = str(folder / "encoder")
    assert report(arguments)[0]["confusion_matrix"] == results["test"]["confusion_matrix"]
    told = results["environment"]
    assert told["packages"]["torch"] == torch.__version__ and told["device"].startswith("cpu: ")
    assert told["git_revision"] is None or len(told["git_revision"].removesuffix("-dirty")) == 40
    assert json.loads((folder / "environment.json").read_text()) == told
    counts = results["parameters"]
    assert 0 < counts["encoder_trainable"] < counts["encoder_total"] and counts["head_trainable"] > 0
    assert results["steps"] == max(losses(folder))


@pytest.mark.parametrize(("method", "file"), [("lora", "adapter_model"), ("frozen", "head"), ("full", "model")])
def test_reloaded_scores_equal_those_of_training(method: str, file: str, tmp_path: Path) -> None:
    results = train(tmp_path, "--finetune", method, *ONE_EPOCH, "--method", "{}", task="segmentation")
    (logged,) = (line["val"] for line in lines(tmp_path) if "val" in line)
    assert {name: results["val"][name] for name in logged} == logged
    assert {path.name for path in (tmp_path / "best").glob("*.safetensors")} == {f"{file}.safetensors"}
    again, _ = report(EvaluateArguments(eval_dir=str(tmp_path), split="val", panels=0))
    assert again["confusion_matrix"] == results["val"]["confusion_matrix"]
    assert results["val"]["convention"] == "pangaea"


def test_the_ground_sampling_distance_of_training_is_that_of_evaluation(tmp_path: Path) -> None:
    fields = {"model_type": "geovit", "position_embedding": "sincos_gsd", "image_size": 16, "patch_size": 8}
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    words = ("--encoder.random", json.dumps({**fields, **sizes}), "--encoder.gsd", "data", *ONE_EPOCH)
    results = train(tmp_path, *words)
    config = checkpoints.read_config(tmp_path / "best")
    assert config.encoder.gsd == 30.0
    model = checkpoints.load_model(tmp_path / "best", config)
    assert model.get_base_model().encoder.config.gsd == 30.0
    again, _ = report(EvaluateArguments(eval_dir=str(tmp_path), panels=0))
    assert again["confusion_matrix"] == results["test"]["confusion_matrix"]
    with pytest.raises(ConfigError, match=r"encoder\.gsd: the positions of this 'vit' encoder do not depend"):
        train(tmp_path / "vit", "--encoder.gsd", "10", *ONE_EPOCH)


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    options = (*ONE_EPOCH, "--segmentor.dropout", "0", "--segmentor.loss.dice", "0")
    train(tmp_path / "large", "--batch_size", "8", *options, task="segmentation")
    train(tmp_path / "small", "--batch_size", "4", "--accumulate", "2", *options, task="segmentation")
    one, many = losses(tmp_path / "large"), losses(tmp_path / "small")
    assert one[1] == pytest.approx(many[1], abs=1e-5) and one[3] == pytest.approx(many[3], abs=1e-4)


def test_a_line_of_the_log_is_the_mean_since_the_one_before_also_of_a_resumed_run(deflect_run, tmp_path: Path) -> None:
    words = ("--log_interval", "3", "--ckpt_steps", "5", "--ckpt_keep", "4")
    train(tmp_path, *words)
    every, seen = losses(deflect_run[0]), losses(tmp_path)
    expected = {last: sum(every[step] for step in range(last - 2, last + 1)) / 3 for last in (3, 6, 9, 12, 15)}
    assert seen == pytest.approx({**expected, 16: every[16]}, rel=1e-6)
    train(tmp_path, *words, "--resume_from", str(tmp_path / "checkpoints" / "step-10"))
    assert losses(tmp_path) == seen


def test_half_precision_trains_and_evaluates(tmp_path: Path, new_accelerator: None) -> None:
    results = train(tmp_path, *ONE_EPOCH, "--bf16")
    again, _ = report(EvaluateArguments(eval_dir=str(tmp_path), panels=0))
    assert again["confusion_matrix"] == results["test"]["confusion_matrix"]
    stored = torch_file(tmp_path, "step-8").values()
    assert all(tensor.dtype == torch.float32 for tensor in stored if tensor.is_floating_point())


def test_float16_on_a_cpu_is_said_to_be_none(new_accelerator: None, caplog: pytest.LogCaptureFixture) -> None:
    make_accelerator(RunArguments(encoder=EncoderArguments(name_or_path="x"), fp16=True))
    assert "--fp16: on a CPU this computes in float32; --bf16 works there" in caplog.text


def test_evaluation_refuses_outputs_that_are_no_numbers(
    deflect_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflown(*arguments: Any) -> list[torch.Tensor]:
        return [logits * torch.inf for logits in predict_logits(*arguments)]

    monkeypatch.setattr(evaluation, "predict_logits", overflown)
    with pytest.raises(DataError, match=r"the model's outputs are not finite on the images .+: one of them holds"):
        report(EvaluateArguments(eval_dir=str(deflect_run[0]), split="val", output_dir=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_evaluation_says_before_it_reads_an_image_that_it_cannot_write(
    deflect_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("deflect_hf.evaluation.report.load_dataset_splits", None)
    with pytest.raises(ConfigError, match=r"nothing can be written to .*file/out: give another folder, --output_dir"):
        report(EvaluateArguments(eval_dir=str(deflect_run[0]), output_dir=str(tmp_path / "file" / "out")))
    monkeypatch.setattr("os.access", lambda *arguments: False)  # of a disk that is read only
    with pytest.raises(ConfigError, match="nothing can be written to"):
        report(EvaluateArguments(eval_dir=str(deflect_run[0])))


def test_evaluation_refuses_a_size_and_leaves_out_the_random_crops_of_training(tmp_path: Path) -> None:
    folder = EvaluateArguments(eval_dir="x", dataset={"name": "folder", "root": "x", "image_size": [8, 8]})
    with pytest.raises(ConfigError, match=r"--dataset\.image_size: images are resized as they were in training"):
        overlay(tiny_run("segmentation"), folder)
    train(tmp_path, *ONE_EPOCH, task="segmentation")
    twice = [report(EvaluateArguments(eval_dir=str(tmp_path), split="train", panels=0))[0] for _ in range(2)]
    assert twice[0]["confusion_matrix"] == twice[1]["confusion_matrix"]
    pixels = sum(row["support"] for row in twice[0]["per_class"].values())
    assert pixels == twice[0]["images"] * 24 * 24  # windows over whole images, no crops of 16
