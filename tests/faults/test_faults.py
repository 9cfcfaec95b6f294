"""Each broken input is told in one sentence that names it, with exit status 2; undamaged ones work."""

import json
import math
from pathlib import Path

import pytest

from deflect_hf.data.order import Rank, epoch_batches
from deflect_hf.errors import DataError, DeflectError
from deflect_hf.raster.write import write_raster
from tests.faults import checkpoints, encoder_files, rasters, results, settings, silent, yaml_files
from tests.faults.fault import Fault, complaints
from tests.faults.inputs import BANDS, PROGRAMS, Place, Valid, cut, digital_numbers, main_of

KINDS: dict[str, list[Fault]] = {
    "configuration files": yaml_files.FILES,
    "values": yaml_files.VALUES,
    "data set": settings.DATASET,
    "encoder": settings.ENCODER,
    "method": settings.METHOD,
    "command line": settings.WORDS,
    "image": rasters.IMAGES,
    "mask": rasters.MASKS,
    "folder": rasters.FOLDERS,
    "split file": rasters.SPLIT_FILES,
    "encoder's files": encoder_files.ENCODERS,
    "adapter": results.ADAPTERS,
    "result": results.RESULTS,
    "checkpoint": checkpoints.STATES,
    "scene": checkpoints.SCENES,
    "figures": checkpoints.FIGURES,
    "pretraining": checkpoints.PRETRAINING,
    "conversion": checkpoints.CONVERSION,
    "hub": checkpoints.HUB,
    "benchmark": checkpoints.BENCHMARK,
    "silent, data set": silent.SILENT_DATA,
    "silent, checkpoint": silent.SILENT_STATES,
    "silent, scene": silent.SILENT_MAPS,
    "silent, result": silent.SILENT_RESULTS,
}
FAULTS = {f"{kind}: {fault.name}": fault for kind, faults in KINDS.items() for fault in faults}


@pytest.fixture(scope="session")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Valid:
    """Data, and runs trained on it."""
    return Valid.make(tmp_path_factory.mktemp("valid"))


@pytest.fixture
def place(valid: Valid, tmp_path: Path) -> Place:
    """Room for copies."""
    return Place(tmp_path, valid)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_each_fault_is_one_sentence(fault: Fault, valid: Valid, tmp_path: Path) -> None:
    assert complaints(fault, valid, tmp_path / "damaged") == []


def test_each_program_has_some_and_no_two_have_one_name() -> None:
    assert len(FAULTS) == sum(map(len, KINDS.values())) and {one.program for one in FAULTS.values()} == {*PROGRAMS}


def test_undamaged_inputs_work(place: Place) -> None:
    main_of("evaluate.py")(place.evaluate())
    main_of("deflect-predict")(place.predict())
    main_of("train.py")(place.resume("--overwrite", "false", "--work_dir", str(place.folder / "resumed")))
    assert (place.folder / "resumed" / "results.json").exists() and (place.folder / "map.tif").exists()


def test_debug_raises_what_would_be_told(place: Place, valid: Valid) -> None:
    cut(place.data / "images" / "a0.tif", 0.5)
    words = place.train("--debug")
    with pytest.raises(DataError, match=r"a0\.tif"):
        main_of("train.py")(words)
    with pytest.raises(DeflectError):
        main_of("evaluate.py")(["--eval_dir", "/nonexistent", "--debug"])
    with pytest.raises(DeflectError):
        main_of("deflect-predict")([*place.predict(), "--adapter", "/nonexistent", "--debug"])
    for program, words in {
        "hub": ["--debug", "check", "/nonexistent"],
        "figures": ["curves", "/nonexistent", "--debug"],
        "benchmark": ["nothing", "--debug"],
        "pretrain": ["--images", "/nonexistent", "--output", "x", "--debug"],
        "conversion": ["--source", "none", "--output", "x", "--debug"],
    }.items():
        with pytest.raises(DeflectError):
            main_of(program)(words)


def test_what_the_file_system_refuses_is_told_in_a_sentence(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main_of("train.py")([*place.train(), "--work_dir", str(place.folder / ("n" * 300))])
    told = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and told.startswith("error: /") and "File name too long. Correct the path" in told


def test_a_loss_of_nan_names_the_images_and_the_checkpoint_before_goes_on(place: Place) -> None:
    _, second = epoch_batches(4, 2, seed=0, epoch=0, rank=Rank())
    name = f"a{second[0]}"
    path = place.data / "images" / f"{name}.tif"
    write_raster(path, digital_numbers(second[0]).astype("float32") * 1e34, descriptions=BANDS)
    statistics = ("--encoder.mean", "0.2", "0.2", "0.2", "--encoder.std", "0.1", "0.1", "0.1")
    frozen = ("--finetune", "frozen", "--method", "{}", "--ckpt_steps", "1", *statistics)
    words = place.train(*frozen, unit_check=False)
    with pytest.raises(DataError) as caught:
        main_of("train.py")([*words, "--debug"])
    state = place.folder / "out" / "checkpoints" / "step-1"
    message = str(caught.value)
    assert message.startswith("the loss is nan in step 2 (epoch 1), on the images ") and name in message
    assert f"Last good checkpoint: {state}." in message
    write_raster(path, digital_numbers(second[0]), descriptions=BANDS)
    main_of("train.py")([*words, "--resume_from", "last"])
    results = json.loads((place.folder / "out" / "results.json").read_text())
    assert results["steps"] == 2 and math.isfinite(results["val"]["loss"])
