"""Several tasks on one encoder: as alone, in the memory of one, from several threads, and only on the same encoder."""

import copy
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import inject_adapter_in_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from deflect_hf.errors import ArchitectureError, BandError, CheckpointError, ConfigError, UnsupportedOperationError
from deflect_hf.inference.activations import ActivationCache
from deflect_hf.inference.multi import MultiAdapterPredictor
from deflect_hf.inference.predictor import Predictor
from deflect_hf.models import load_encoder
from tests.inference.folders import ALL_BANDS, encoder_folder, images, result_folder
from tests.tuners.tiny import ENCODERS, spectral_config

WATER: dict[str, Any] = {"rank": 4, "layers_to_transform": [1, 2]}
BURN: dict[str, Any] = {"bands": ["B", "G", "R", "N"], "classes": ("a", "b", "c"), "seed": 2, "indices": None}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_folder(tmp_path_factory.mktemp("encoder") / "vit")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> dict[str, Path]:
    """Two segmentation tasks with other bands, ranks, layers and classes, and two of other methods and heads."""
    runs = tmp_path_factory.mktemp("runs")
    return {
        "water": result_folder(runs / "water", encoder, **WATER),
        "burn": result_folder(runs / "burn", encoder, **BURN),
        "scene": result_folder(runs / "scene", encoder, "lora", task="classification", seed=3),
        "linear": result_folder(
            runs / "linear", encoder, "frozen", model_options={"head": "upernet", "head_channels": 8}
        ),
    }


@pytest.fixture(scope="module")
def tasks(folders: dict[str, Path]) -> MultiAdapterPredictor:
    return MultiAdapterPredictor.from_folders(folders)


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path]) -> dict[str, torch.Tensor]:
    """What a model with an encoder of its own gives for each task."""
    return {name: Predictor.from_folder(folder)(images()) for name, folder in folders.items()}


def stored_bytes(*modules: nn.Module) -> int:
    storages = [parameter.untyped_storage() for module in modules for parameter in module.parameters()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, probabilities in expected.items():
        assert torch.equal(found[name], probabilities), name


def test_each_task_gives_bit_for_bit_what_it_gives_alone(tasks: MultiAdapterPredictor, alone: dict) -> None:
    assert tasks.tasks == ("water", "burn", "scene", "linear")
    assert_equal({name: tasks(name, images()) for name in tasks.tasks}, alone)
    assert_equal(tasks.predict_all(images()), alone)
    stored = {"scale": 1e-4, "offset": -0.1}
    assert_equal(
        tasks.predict_all((images() + 0.1) * 1e4, **stored),
        {name: tasks(name, (images() + 0.1) * 1e4, **stored) for name in tasks.tasks},
    )
    (found,) = tasks(["water"], (images()[:1] + 0.1) * 1e4, **stored)
    torch.testing.assert_close(found, alone["water"][0], rtol=1e-3, atol=1e-4)
    assert_equal(
        tasks.predict_all(images(), tasks=["burn", "water"]), {name: alone[name] for name in ("burn", "water")}
    )


@pytest.mark.parametrize("family", [name for name in ENCODERS if name != "vit"])
def test_every_family_of_encoders(family: str, tmp_path: Path) -> None:
    encoder = encoder_folder(tmp_path / "encoder", family)
    runs = {
        "late": result_folder(tmp_path / "late", encoder, layers_to_transform=[2]),
        "linear": result_folder(tmp_path / "linear", encoder, "frozen", model_options={"output_layers": [0, 2]}),
    }
    tasks = MultiAdapterPredictor.from_folders(runs)
    wide = images(side=48)
    assert_equal(tasks.predict_all(wide), {name: Predictor.from_folder(run)(wide) for name, run in runs.items()})


def test_the_encoder_is_in_memory_once(tasks: MultiAdapterPredictor, folders: dict[str, Path]) -> None:
    separate = [Predictor.from_folder(folder).model for folder in folders.values()]
    together = stored_bytes(tasks.encoder, *(tasks[name].model for name in tasks.tasks))
    encoder = stored_bytes(tasks.encoder)
    assert together == sum(map(stored_bytes, separate)) - (len(folders) - 1) * encoder


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "slr": ("slr", {}),
    "norm": ("norm", {}),
    "bitfit": ("bitfit", {}),
    "wide lora": ("lora", {"patch_embed": "repeat"}),
    "wide frozen": ("frozen", {"patch_embed": "rgb+random"}),
    # its initialisation takes a part out of the base weights
    "pissa": ("peft:LoraConfig", {"target": "qv", "init_lora_weights": "pissa"}),
}


def test_methods_that_change_the_encoder_in_other_ways_leave_the_shared_one_alone(
    tmp_path: Path, encoder: Path, folders: dict[str, Path], alone: dict
) -> None:
    tasks = MultiAdapterPredictor.from_folders({"water": folders["water"]})
    expected = {"water": alone["water"]}
    for number, (name, (method, options)) in enumerate(METHODS.items()):
        run = result_folder(tmp_path / name, encoder, method, **options)
        separate = Predictor.from_folder(run)
        expected[name] = separate(images())
        if name == "pissa":
            with pytest.raises(CheckpointError, match=r"6 settings or weights"):
                tasks.add(name, separate)
        tasks.add(name, separate if number % 2 == 0 else run)
    assert_equal(tasks.predict_all(images()), expected)
    assert_equal({name: tasks(name, images()) for name in tasks.tasks}, expected)
    before = load_encoder(encoder).state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in tasks.encoder.state_dict().items())


def flops(tasks: MultiAdapterPredictor, *names: str) -> dict[str, int]:
    with FlopCounterMode(display=False) as counter:
        tasks.predict_all(images(), tasks=names)
    counts = counter.get_flop_counts()["Global"]
    return {str(operator): count for operator, count in counts.items()}


def test_what_is_frozen_is_computed_once(tasks: MultiAdapterPredictor) -> None:
    convolution = "aten.convolution"
    one, two = flops(tasks, "burn"), flops(tasks, "burn", "water")
    assert one[convolution] > 0
    assert two[convolution] == one[convolution]  # the patch embedding; no other convolution is in these models
    # block 0 of the water adapter is frozen, and the linear head's model has seen the same tokens in it
    linear, water = sum(flops(tasks, "linear").values()), sum(flops(tasks, "water").values())
    both = sum(flops(tasks, "linear", "water").values())
    tokens, width = 2 * 17, 32
    block = 2 * tokens * width * (4 * width + 2 * 64)
    assert linear + water - both >= block + one[convolution]


def test_images_larger_than_the_training_crops_go_through_shared_windows(encoder: Path, tmp_path: Path) -> None:
    runs = {
        "water": result_folder(tmp_path / "water", encoder, crop=16, **WATER),
        "burn": result_folder(tmp_path / "burn", encoder, crop=16, **BURN),
        "other": result_folder(tmp_path / "other", encoder, crop=24, **BURN),
    }
    tasks = MultiAdapterPredictor.from_folders(runs)
    wide = images(count=3, side=40)
    assert_equal(tasks.predict_all(wide), {name: Predictor.from_folder(run)(wide) for name, run in runs.items()})
    assert flops(tasks, "water", "burn")["aten.convolution"] == flops(tasks, "burn")["aten.convolution"]


def test_tasks_that_see_other_pixels_are_not_mixed_up(encoder: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    other = {"base_mean": [0.2] * 3, "base_std": [0.3] * 3}
    half = result_folder(tmp_path / "half", encoder, statistics=other, **WATER)
    config = half / "config.yaml"
    config.write_text(config.read_text().replace("bf16: false", "bf16: true"))
    runs = {"water": folders["water"], "half": half, "again": folders["water"]}
    expected = {name: Predictor.from_folder(run)(images()) for name, run in runs.items()}
    assert_equal(MultiAdapterPredictor.from_folders(runs).predict_all(images()), expected)


def test_what_does_not_fit_into_memory_is_computed_again() -> None:
    calls = []

    def forward(values: torch.Tensor) -> torch.Tensor:
        calls.append(values)
        return values * 2

    small, large = torch.ones(4), torch.ones(100)
    replay = ActivationCache(max_bytes=64)
    for _ in range(2):
        replay.next_task()
        assert torch.equal(replay("layer", forward, small), small * 2)
        assert torch.equal(replay("layer", forward, large), large * 2)
    assert [len(values) for values in calls] == [4, 100, 100]
    replay.next_task()
    replay("layer", forward, small).zero_()  # a module further on may write into it
    replay.next_task()
    assert torch.equal(replay("layer", forward, small), small * 2)
    replay.next_task()
    assert torch.equal(replay("layer", forward, small + torch.nan).isnan(), torch.ones(4, dtype=torch.bool))


def test_threads_predict_while_tasks_come_and_go(tasks: MultiAdapterPredictor, alone: dict, folders: dict) -> None:
    start = threading.Barrier(4)

    def ask(name: str) -> list[bool]:
        start.wait()
        return [torch.equal(tasks(name, images()), alone[name]) for _ in range(8)]

    def ask_all() -> list[bool]:
        start.wait()
        return [
            torch.equal(probabilities, alone[name])
            for _ in range(4)
            for name, probabilities in tasks.predict_all(images(), tasks=list(alone)).items()
        ]

    def change() -> list[bool]:
        start.wait()
        found = []
        for number in range(3):
            tasks.add(f"new {number}", folders["burn"])
            found.append(torch.equal(tasks(f"new {number}", images()), alone["burn"]))
            tasks.remove(f"new {number}")
        return found

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(ask, "water"), pool.submit(ask, "burn"), pool.submit(ask_all), pool.submit(change)]
        assert all(all(job.result()) for job in jobs)
    assert tasks.tasks == tuple(alone)
    with pytest.raises(ConfigError, match="There is a task 'water' already: remove it first, or choose another name"):
        tasks.add("water", folders["water"])


def test_a_loaded_predictor_gives_up_its_own_encoder(folders: dict[str, Path], alone: dict) -> None:
    tasks = MultiAdapterPredictor.from_folders({"water": folders["water"]})
    for name in ("burn", "scene", "linear"):
        tasks.add(name, Predictor.from_folder(folders[name]))
    assert_equal(tasks.predict_all(images()), alone)
    own = {parameter.data_ptr() for parameter in tasks.encoder.parameters()}
    for name in tasks.tasks:
        held = {parameter.data_ptr() for parameter in tasks[name].model.parameters()}
        assert own <= held
    assert flops(tasks, "water", "burn")["aten.convolution"] == flops(tasks, "burn")["aten.convolution"]


def test_a_predictor_of_another_encoder_is_refused_and_left_as_it_was(tmp_path: Path, folders: dict) -> None:
    other = encoder_folder(tmp_path / "other", seed=5)
    predictor = Predictor.from_folder(result_folder(tmp_path / "run", other, **WATER))
    before = predictor(images())
    tasks = MultiAdapterPredictor.from_folders(folders)
    with pytest.raises(CheckpointError, match=r"encoder is not the shared one: it differs in 5\d settings or weights"):
        tasks.add("other", predictor)
    assert torch.equal(predictor(images()), before)
    merged = Predictor.from_folder(folders["scene"])
    merged.model.merge_adapter()
    with pytest.raises(CheckpointError, match=r"6 settings or weights, .* neither merged nor fully fine-tuned"):
        tasks.add("merged", merged)
    elsewhere = copy.copy(predictor)
    elsewhere.device = torch.device("meta")
    with pytest.raises(ConfigError, match="The predictor is on meta, the shared encoder on cpu: load both on one"):
        tasks.add("elsewhere", elsewhere)
    assert tasks.tasks == tuple(folders)


def test_an_adapter_is_not_merged_into_weights_that_others_share(folders: dict[str, Path]) -> None:
    tasks = MultiAdapterPredictor.from_folders({"scene": folders["scene"], "water": folders["water"]})
    before = tasks.predict_all(images())
    model: Any = tasks["scene"].model
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(UnsupportedOperationError, match=r"merging would write into them\. Fix: load"):
            merge()
    assert_equal(tasks.predict_all(images()), before)


def test_a_run_on_another_encoder_is_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    other = encoder_folder(tmp_path / "other", seed=5)
    weights = result_folder(tmp_path / "weights", other, **WATER)
    message = rf"trained on '{re.escape(str(other))}', which differs from the shared encoder in 5\d settings or weights"
    with pytest.raises(CheckpointError, match=message):
        MultiAdapterPredictor.from_folders({**folders, "other": weights})
    larger = encoder_folder(tmp_path / "larger", hidden_size=48)
    shapes = result_folder(tmp_path / "shapes", larger, **WATER)
    message = r"shapes: was trained on .* settings or weights, first 'hidden_size'\. Fix"
    with pytest.raises(CheckpointError, match=message):
        MultiAdapterPredictor.from_folders({**folders, "larger": shapes})


def test_an_encoder_that_moved_is_given_by_hand(
    tmp_path: Path, encoder: Path, folders: dict, alone: dict, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = shutil.copytree(encoder, tmp_path / "recorded")
    run = result_folder(tmp_path / "run", recorded, **WATER)
    copied = MultiAdapterPredictor.from_folders({"burn": folders["burn"], "copied": run})
    assert torch.equal(copied("copied", images()), alone["water"])  # a copy of the encoder is the same encoder
    shutil.rmtree(recorded)
    with pytest.raises(CheckpointError, match="recorded' cannot be loaded"):
        MultiAdapterPredictor.from_folders({"water": run})
    for given in (encoder, load_encoder(encoder)):
        caplog.clear()
        tasks = MultiAdapterPredictor.from_folders({"water": run}, encoder=given)
        assert torch.equal(tasks("water", images()), alone["water"])
        assert "run: taken to adapt the encoder that was given, unseen: " in caplog.text


def test_encoders_that_cannot_be_shared(tmp_path: Path, encoder: Path) -> None:
    full = result_folder(tmp_path / "full", encoder, "full")
    with pytest.raises(UnsupportedOperationError, match="full: --finetune full trained the encoder itself"):
        MultiAdapterPredictor.from_folders({"full": full})
    bare = load_encoder(encoder)
    inject_adapter_in_model(spectral_config(), bare)
    with pytest.raises(ArchitectureError, match="The ViTModel is adapted already: give the bare encoder"):
        MultiAdapterPredictor(bare)
    with pytest.raises(ConfigError, match="No folder was given"):
        MultiAdapterPredictor.from_folders({})


def test_a_configuration_that_is_broken_or_of_another_head_is_refused(tmp_path: Path, folders: dict) -> None:
    of_another = (folders["burn"] / "config.json").read_text()
    for text, named in (
        ("{", r"config\.json: "),
        ('{"model_type": "vit"}', r"config\.json: "),
        (of_another, "adapter_mo"),
    ):
        broken = shutil.copytree(folders["water"], tmp_path / "broken", dirs_exist_ok=True)
        (broken / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=rf"broken/{named}"):
            MultiAdapterPredictor.from_folders({"broken": broken})


def test_names_that_are_not_there(tasks: MultiAdapterPredictor) -> None:
    message = re.escape("No task 'watre': there are 'water', 'burn', 'scene', 'linear'. Did you mean 'water'?")
    for ask in (lambda: tasks("watre", images()), lambda: tasks.remove("watre"), lambda: tasks["watre"]):
        with pytest.raises(ConfigError, match=message):
            ask()
    with pytest.raises(ConfigError, match=message):
        tasks.predict_all(images(), tasks=["burn", "watre"])


def test_each_image_may_ask_for_its_own_task(tasks: MultiAdapterPredictor, alone: dict) -> None:
    names = ["burn", "water", "scene", "burn"]
    batch = images()[[0, 1, 1, 1]]
    for given in (batch, list(batch)):
        found = tasks(names, given)
        for probabilities, name, row in zip(found, names, [0, 1, 1, 1], strict=True):
            torch.testing.assert_close(probabilities, alone[name][row])
    for wrong in (images(), images()[0]):
        with pytest.raises(ConfigError, match="6 names of tasks, but not as many images"):
            tasks(["burn"] * 6, wrong)
    with pytest.raises(ConfigError, match="No task 'fire'"):
        tasks(["burn", "fire"], images())
    valid = torch.ones(4, 32, 32, dtype=torch.bool)
    valid[0, :8] = False
    assert tasks(names, batch, None, valid)[0][:, :8].isnan().all()


def test_errors_of_one_task_among_several_name_it(tasks: MultiAdapterPredictor, alone: dict) -> None:
    few = [ALL_BANDS.index(band) for band in ("B", "G", "R", "N")]
    with pytest.raises(BandError, match=r"task 'water': image 0: .*'S1', 'S2'"):
        tasks.predict_all(images()[:, few], ["B", "G", "R", "N"])
    found = tasks.predict_all(images()[:, few], ["B", "G", "R", "N"], tasks=["burn"])
    assert torch.equal(found["burn"], alone["burn"])
