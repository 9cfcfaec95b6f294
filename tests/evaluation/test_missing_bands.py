"""Missing bands from training to evaluation: what a run accepts, what it refuses, and what each band is worth."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deflect_hf.config.data import DatasetArguments
from deflect_hf.config.run import EvaluateArguments
from deflect_hf.data.load import load_dataset_splits
from deflect_hf.data.sets.synthetic import MEASURED
from deflect_hf.errors import BandError, CheckpointError, ConfigError
from deflect_hf.evaluation.report import report
from deflect_hf.evaluation.tables import drop_table
from deflect_hf.raster.write import write_raster
from tests.training.test_run import ONE_EPOCH, losses, train

OTHERS = ["A", "N", "S1", "S2"]
MEANS = ("accuracy", "miou", "f1_macro")
FAST = ("--segmentor.optimizer.lr", "0.1")  # in two epochs, predictions come to depend on the bands


@pytest.fixture(scope="module")
def robust_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("robust") / "run"
    return folder, train(folder, "--method.band_dropout", "0.4", "--ckpt_steps", "5", *FAST)


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("plain") / "run"
    return folder, train(folder, *ONE_EPOCH)


def stored(folder: Path, bands: Sequence[str]) -> dict[str, Any]:
    """Write the test scenes of the runs as GeoTIFFs with ``bands``; returns what tells evaluation of them."""
    split = load_dataset_splits(DatasetArguments(num_samples=48, image_size=[16, 16]))["test"]
    for row in split.table:
        scene = split.reader.read(row)
        values = scene.values[[MEASURED.index(band) for band in bands]]
        path = folder / "test" / split.classes[row["label"]] / f"{row['name']}.tif"
        write_raster(path, values, descriptions=bands)
    return {"name": "folder", "root": str(folder), "classes": split.classes, "scale": 1e-4, "image_size": None}


def evaluated(run: Path, output: Path, **options: Any) -> dict[str, Any]:
    return report(EvaluateArguments(eval_dir=str(run), output_dir=str(output), panels=0, **options))[0]


def means(scores: dict[str, Any]) -> dict[str, float]:
    return {name: scores[name] for name in MEANS}


def test_the_scores_without_a_band_are_those_of_images_that_lack_it(robust_run, tmp_path: Path) -> None:
    run, results = robust_run
    dropped = evaluated(run, tmp_path / "all", drop_bands=True)["drop_bands"]
    assert list(dropped["scores"]) == ["", *OTHERS] and dropped["band_dropout"] == 0.4
    assert dropped["scores"][""] == means(results["test"])
    assert json.loads((tmp_path / "all" / "results_test.json").read_text())["drop_bands"] == dropped
    assert len({tuple(row.values()) for row in dropped["scores"].values()}) > 1
    for missing in ("N", "S2"):
        bands = [band for band in reversed(MEASURED) if band != missing]
        again = evaluated(run, tmp_path / "out", dataset=stored(tmp_path / missing, bands))
        assert means(again) == dropped["scores"][missing]


def test_bands_in_another_order_give_the_scores_of_training(plain_run, tmp_path: Path) -> None:
    run, results = plain_run
    again = evaluated(run, tmp_path / "out", dataset=stored(tmp_path / "reversed", MEASURED[::-1]))
    assert means(again) == means(results["test"])


def test_without_band_dropout_a_missing_band_is_refused(plain_run, tmp_path: Path) -> None:
    dataset = stored(tmp_path / "images", [band for band in MEASURED if band != "S2"])
    with pytest.raises(BandError, match=r"\.tif: the images lack the band\(s\) 'S2'; .*trained with band_dropout"):
        evaluated(plain_run[0], tmp_path / "out", dataset=dataset)


def test_without_band_dropout_the_report_is_a_diagnosis_and_says_so(plain_run, tmp_path: Path, caplog) -> None:
    dropped = evaluated(plain_run[0], tmp_path, drop_bands=True)["drop_bands"]
    assert list(dropped["scores"]) == ["", *OTHERS] and dropped["band_dropout"] == 0
    assert any(
        "trained without band dropout" in message and "'A', 'N', 'S1', 'S2'" in message for message in caplog.messages
    )


def test_the_pixel_head_takes_images_that_lack_a_band(tmp_path: Path) -> None:
    words = ("--method.band_dropout", "0.4", "--segmentor.head", "pixel", *FAST)
    results = train(tmp_path / "run", *words, *ONE_EPOCH, task="segmentation")
    dropped = evaluated(tmp_path / "run", tmp_path / "out", drop_bands=True)["drop_bands"]
    assert dropped["scores"][""] == means(results["test"])
    assert len({tuple(row.values()) for row in dropped["scores"].values()}) > 1


def test_a_model_that_sees_its_base_bands_alone_needs_no_others(tmp_path: Path) -> None:
    results = train(tmp_path / "run", "--finetune", "lora", "--method", "{}", *ONE_EPOCH)
    again = evaluated(tmp_path / "run", tmp_path / "out", dataset=stored(tmp_path / "images", ["R", "G", "B"]))
    assert means(again) == means(results["test"])
    with pytest.raises(ConfigError, match="--drop_bands: this model sees its base bands alone"):
        evaluated(tmp_path / "run", tmp_path / "out", drop_bands=True)


def test_a_resumed_run_drops_the_same_bands(robust_run, tmp_path: Path) -> None:
    folder, results = robust_run
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    state = str(again / "checkpoints" / "step-15")
    resumed = train(again, "--method.band_dropout", "0.4", "--resume_from", state, *FAST)
    assert losses(again) == losses(folder)
    assert resumed["test"] == results["test"]


@pytest.mark.parametrize(
    "change",
    [{"bands": ["B", "A", "G", "R", "N", "S1", "S2"]}, {"unit": "8bit"}, {"needed_bands": ["R", "G", "B"]}],
)
def test_a_processor_of_another_model_is_refused(plain_run, tmp_path: Path, change: dict) -> None:
    run = tmp_path / "run"
    shutil.copytree(plain_run[0], run)
    path = run / "best" / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match="put the file back that was saved with it"):
        evaluated(run, tmp_path / "out")


def test_evaluation_does_not_choose_the_bands(plain_run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--dataset.bands: the trained model says which bands it takes"):
        evaluated(plain_run[0], tmp_path, dataset={"bands": ["R", "G", "B"]})


def test_the_table_names_what_is_missing() -> None:
    row = {"accuracy": 0.5, "miou": 0.25, "f1_macro": 0.4}
    text = drop_table({"band_dropout": 0.2, "metric": "miou", "scores": {"": row, "RE1": {**row, "miou": 0.125}}})
    assert text.splitlines() == [
        "missing  accuracy      miou  f1_macro    change",
        "no band    0.5000    0.2500    0.4000   +0.0000",
        "RE1        0.5000    0.1250    0.4000   -0.1250",
        "change: of miou; trained with band_dropout 0.2",
    ]
