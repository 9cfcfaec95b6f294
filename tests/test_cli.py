"""The two scripts as a user runs them: in one process, in another, in two that are launched together."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deflect_hf.artifacts.saved_model import read_config
from deflect_hf.cli import train
from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.methods import METHODS, method_class
from deflect_hf.config.run import EvaluateArguments, RunArguments
from deflect_hf.evaluation.report import report
from deflect_hf.evaluation.task_metrics import evaluation_window
from deflect_hf.models.geovit.conversion import convert
from deflect_hf.training.run import run
from tests.data.replicas import write_burn_scars, write_mados
from tests.models.geovit.published import PUBLISHED

REPOSITORY = Path(__file__).resolve().parents[1]
CONF = REPOSITORY / "tests" / "conf"


def command(*words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done


def test_two_launched_processes_train_and_another_evaluates(tmp_path: Path) -> None:
    folder, output = tmp_path / "run", tmp_path / "figures"
    launcher = ("-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu.yaml")
    words = ("--config", str(CONF / "segmentation.yaml"), "--work_dir", str(folder), "--epochs", "1")
    done = command(*launcher, "train.py", *words)
    results = json.loads((folder / "results.json").read_text())
    assert results["environment"]["processes"] == 2
    assert done.stdout.count(f"accuracy {results['test']['accuracy']:.4f}") == 1  # of the first process alone
    assert (folder / "curves.png").stat().st_size > 10_000
    # as the official script does; it hands over to evaluate.py
    done = command("train.py", "--eval_dir", str(folder), "--output_dir", str(output), "--panels", "2")
    again = json.loads((output / "results_test.json").read_text())
    assert again["loss"] == pytest.approx(results["test"]["loss"])
    for name in results["test"].keys() - {"loss", "ece", "ece_calibrated"}:  # sums of all logits, in two processes
        assert again[name] == results["test"][name], name
    assert f"accuracy {results['test']['accuracy']:.4f}" in done.stdout
    drawn = {"confusion_matrix.png", "predictions_00.png", "predictions_01.png"}
    assert {path.name for path in output.glob("*.png")} == drawn


@pytest.fixture(scope="module")
def prithvi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prithvi in small, converted as the published file is: six base bands, pretrained at 32 pixels."""
    folder = tmp_path_factory.mktemp("prithvi")
    published = PUBLISHED["prithvi-eo-1"]
    convert(published.tiny_source(), published.save(folder / "published.pth"), folder / "encoder")
    return folder / "encoder"


@pytest.mark.parametrize(
    ("data", "augmentation", "write", "finetune"),
    [
        ("mados", "segmentation_focus_crop", lambda root: write_mados(root, size=48), "deflect"),
        # its near-infrared band is N, Prithvi's N2
        ("hlsburnscars", "segmentation_default", lambda root: write_burn_scars(root, size=48), "lora"),
    ],
)
def test_the_official_commands_train_and_evaluate_on_the_published_layouts(
    data: str,
    augmentation: str,
    write: Callable[[Path], Path],
    finetune: str,
    prithvi: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(REPOSITORY)
    official = (
        "--config configs/run/default.yaml --encoder_config configs/foundation_models/prithvi.yaml "
        f"--dataset_config configs/datasets/{data}.yaml --segmentor_config configs/segmentors/upernet.yaml "
        f"--augmentation_config configs/augmentations/{augmentation}.yaml --eval_interval 1 --finetune {finetune}"
    )
    small = "--num_workers 0 --epochs 1 --batch_size 2 --segmentor.channels 8 --segmentor.output_layers 0 0 1 1"
    places = ("--dataset.root", str(write(tmp_path / "data")), "--encoder.name_or_path", str(prithvi))
    argv = [*official.split(), *small.split(), *places, "--work_dir", str(tmp_path / "run")]
    results, folder, _ = run(parse_arguments(RunArguments, "test", argv))
    config = read_config(folder)
    assert (config.augmentation.random_crop, config.augmentation.keep_smaller) == ([32, 32], True)
    assert evaluation_window(config, "segmentation") == 32  # slid over images of 48 pixels
    assert len(results["test"]["per_class"]) == {"mados": 15, "hlsburnscars": 2}[data]
    evaluated = parse_arguments(EvaluateArguments, "test", ["--batch_size", "1", "--eval_dir", str(folder)])
    again, _ = report(evaluated)
    assert again["confusion_matrix"] == results["test"]["confusion_matrix"]


def test_help_names_the_methods_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        train(["--help"])
    told = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    for name in METHODS:
        assert [name, ", ".join(method_class(name).model_fields)] in told, name
