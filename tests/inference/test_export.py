"""Trained models as files for other programs: what they compute, what is refused, what is written beside them."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from deflect_hf.config.tasks import TASKS
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.errors import CheckpointError
from deflect_hf.inference import export as exporting
from deflect_hf.inference.cli import main as predict
from deflect_hf.inference.export import main
from deflect_hf.inference.exported import ExportedModel, card_of, checksum, open_onnx, open_pt2
from deflect_hf.inference.predictor import Predictor
from deflect_hf.methods import adapt
from deflect_hf.models import EncoderForImageClassification, EncoderForSemanticSegmentation
from deflect_hf.models.geovit import GeoViTConfig, GeoViTModel
from tests.inference.folders import ALL_BANDS, encoder_folder, images, result_folder
from tests.inference.scenes_and_models import write_scene
from tests.tuners.tiny import SIZES, make_encoder, randomise

REPOSITORY = Path(__file__).resolve().parents[2]
# `deflect-predict` where neither is installed, nor what they and training alone need
WITHOUT_PEFT = """
import sys
missing = "accelerate datasets huggingface_hub peft safetensors spyndex tokenizers torchmetrics transformers"
sys.modules |= dict.fromkeys(missing.split())
from deflect_hf.inference.cli import main
main()
import deflect_hf
try:
    deflect_hf.DeflectConfig
except ImportError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    encoder = encoder_folder(folder / "encoder", num_hidden_layers=1)
    options = {"aux_dim": 8, "rank": 2, "indices": None, "layers_to_transform": None}
    return result_folder(folder / "run" / "best", encoder, crop=16, **options).parent


def partly_measured(count: int) -> torch.Tensor:
    pixel_values = images(count, 16)
    pixel_values[0, :, :5, :5] = torch.nan
    return pixel_values


@pytest.fixture(scope="module", params=["pt2", "onnx"])
def exported(request: pytest.FixtureRequest, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    file = tmp_path_factory.mktemp("exported") / f"model.{request.param}"
    main([str(run), str(file)])
    return file


def test_a_file_gives_what_the_predictor_gives_for_any_number_of_images(run: Path, exported: Path) -> None:
    program = (open_pt2 if exported.suffix == ".pt2" else open_onnx)(exported)
    for count in (1, 5):
        pixel_values = partly_measured(count)
        expected = Predictor.from_folder(run, device="cpu").probabilities(pixel_values)
        torch.testing.assert_close(program(pixel_values), expected, rtol=0, atol=1e-5, equal_nan=True)
    card = json.loads(card_of(exported).read_text())["properties"]
    assert card["mlm:input"][0]["bands"] == ALL_BANDS
    assert card["mlm:input"][0]["input"]["shape"] == [-1, 6, 16, 16]
    assert card["mlm:output"][0]["result"]["shape"] == [-1, 2, 16, 16]
    assert [row["name"] for row in card["mlm:output"][0]["classification:classes"]] == ["land", "water"]


def test_a_file_makes_the_map_of_its_run_without_peft_and_transformers(
    run: Path, exported: Path, tmp_path: Path
) -> None:
    values = images(1, 40)[0, :, :, :37].numpy()
    values[:, 5:15, 3:20] = values[2, 25:] = np.nan
    scene = write_scene(tmp_path / "scene.tif", values, nodata=math.nan, descriptions=ALL_BANDS)
    Predictor.from_folder(run, device="cpu").predict_raster(scene, tmp_path / "run.tif", output="probabilities")
    command = [sys.executable, "-c", WITHOUT_PEFT, str(scene), str(tmp_path / "file.tif"), "--model", str(exported)]
    done = subprocess.run([*command, "--output", "probabilities"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "this needs peft, which is not installed" in done.stdout
    maps = []
    for name in ("run", "file"):
        with rasterio.open(tmp_path / f"{name}.tif") as opened:
            maps.append((opened.read(), opened.descriptions, opened.transform))
    np.testing.assert_allclose(maps[1][0], maps[0][0], rtol=0, atol=1e-5)
    assert np.isnan(maps[0][0]).any() and maps[1][1:] == maps[0][1:]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ExportedModel]:
    """A file that computes what is given, with a card of 16 x 16 pixels."""

    def make(
        compute: Callable[[torch.Tensor], torch.Tensor] | None, batch: int = -1, **processor: Any
    ) -> ExportedModel:
        bands = MultispectralImageProcessor(ALL_BANDS, **processor)
        properties = {
            "mlm:input": [{"input": {"shape": [batch, 6, 16, 16]}}], "deflect_hf:processor": bands.to_dict(),
            "deflect_hf:task": "segmentation", "deflect_hf:classes": ["land", "water"],
            "deflect_hf:class_values": None, "deflect_hf:patch_size": [8, 8], "deflect_hf:unit": None,
            "deflect_hf:temperature": None,
        }  # fmt: skip
        file = tmp_path / "model.pt2"
        file.write_text("stands in")
        item = {"properties": properties, "assets": {"model": {"file:checksum": checksum(file)}}}
        card_of(file).write_text(json.dumps(item))
        if compute is not None:
            monkeypatch.setattr("deflect_hf.inference.exported.open_pt2", lambda path: compute)
        return ExportedModel(file)

    return make


def from_first_bands(pixel_values: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, 2, H, W): probabilities of two classes, NaN where nothing was measured."""
    return pixel_values[:, :2].softmax(dim=1)


def test_smaller_images_and_batches_are_filled_up(stand_in: Callable[..., ExportedModel]) -> None:
    shapes = []

    def compute(pixel_values: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(pixel_values.shape))
        return from_first_bands(pixel_values)

    pixel_values = images(3, 16)[..., :10, :]
    found = stand_in(compute, batch=2).forward(pixel_values, None)
    assert shapes == [(2, 6, 16, 16)] * 2
    torch.testing.assert_close(found.softmax(dim=1), from_first_bands(pixel_values))


def test_unmeasured_pixels_leave_no_trace_in_what_is_resized(stand_in: Callable[..., ExportedModel]) -> None:
    pixel_values = torch.full((2, 6, 16, 16), 0.1)
    pixel_values[:, 1] = 0.3
    expected = from_first_bands(pixel_values)
    pixel_values[0, :, :, 3:] = torch.nan
    found = stand_in(from_first_bands, size=16).forward(pixel_values, None)
    torch.testing.assert_close(found.softmax(dim=1), expected)
    pixel_values[:] = torch.nan
    assert stand_in(from_first_bands, size=16).forward(pixel_values, None).eq(0).all()


def test_what_a_file_cannot_do_is_refused(
    stand_in: Callable[..., ExportedModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = stand_in(from_first_bands).file
    scene = write_scene(tmp_path / "scene.tif", images(1, 40)[0].numpy(), descriptions=ALL_BANDS)
    (tmp_path / "alone.onnx").touch()
    for words, message in (
        (["--model", str(file), "--output", "embeddings"], "holds no embeddings"),
        (["--model", str(file), "--window", "32"], "takes images of 16 x 16 pixels alone"),
        (["--model", str(file), "--revision", "main"], "--revision goes with --adapter"),
        (["--model", str(file), "--adapter", "run"], "give one model"),
        (["--model", "work-dir/run"], "is no .pt2 or .onnx of deflect-export: a run goes with --adapter"),
        (["--model", str(tmp_path / "alone.onnx")], "alone.onnx.json is no file"),
    ):
        with pytest.raises(SystemExit):
            predict([str(scene), str(tmp_path / "map.tif"), *words])
        assert message in capsys.readouterr().err
    file.write_text("another")
    with pytest.raises(CheckpointError, match=r"is damaged, or not the file that .*json describes"):
        ExportedModel(file)
    for text in ("{}", "[]", '{"properties": null, "assets": {}}', "\xff"):
        card_of(file).write_bytes(text.encode("latin-1"))
        with pytest.raises(CheckpointError, match="does not describe an exported model"):
            ExportedModel(file)


def test_a_file_that_its_library_cannot_read_is_refused(stand_in: Callable[..., ExportedModel]) -> None:
    with pytest.raises(CheckpointError, match=r"model\.pt2 cannot be read .*: deflect-export RUN model\.pt2 writes"):
        stand_in(None)


# of encoders: one without a class token, one that masks in training, one with rotary positions, one of six bands and
# three frames; of tasks: those that make no map of classes
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "siglip": (
        "multi_label",
        {"id2label": {0: "corn", 1: "rye"}, "problem_type": "multi_label_classification", "pooling": "mean"},
    ),
    "vit_mae": ("regression", {"id2label": {0: "height"}, "problem_type": "regression", "target_unit": "m"}),
    "dinov3_vit": ("classification", {"id2label": {0: "corn", 1: "rye", 2: "oats"}}),
    "prithvi": ("pixel_regression", {"id2label": {0: "height"}, "problem_type": "regression", "target_unit": "m"}),
}


@pytest.mark.parametrize(("family", "suffix"), [("prithvi", "pt2"), *((family, "onnx") for family in FAMILIES)])
def test_encoders_and_tasks_are_exported_as_they_are(family: str, suffix: str, tmp_path: Path) -> None:
    if suffix == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    task, options = FAMILIES[family]
    kind = EncoderForSemanticSegmentation if TASKS[task].dense else EncoderForImageClassification
    frames = {"num_channels": 6, "num_frames": 3, "position_embedding": "sincos_3d"}
    sizes = {**SIZES, "num_hidden_layers": 1}
    encoder = GeoViTModel(GeoViTConfig(**sizes, **frames)) if family == "prithvi" else make_encoder(family, **sizes)
    model = kind.from_encoder(encoder, **options)
    base = ALL_BANDS if family == "prithvi" else ["R", "G", "B"]
    statistics = {"base_bands": base, "base_mean": [0.1] * len(base), "base_std": [0.1] * len(base)}
    adapted = randomise(adapt(model, "deflect", bands=[*ALL_BANDS, "RE1"], indices=["NDVI"], **statistics))
    predictor = Predictor(adapted, MultispectralImageProcessor([*ALL_BANDS, "RE1"]))
    file = tmp_path / f"model.{suffix}"
    exporting.export(predictor, file, window=16, batch_size=2)
    pixel_values = torch.cat([partly_measured(2), images(2, 16)[:, :1]], dim=1)
    found = (open_pt2 if suffix == "pt2" else open_onnx)(file)(pixel_values)
    torch.testing.assert_close(found, predictor.probabilities(pixel_values), rtol=1e-5, atol=1e-5, equal_nan=True)
    card = json.loads(card_of(file).read_text())["properties"]
    assert (card["deflect_hf:task"], card["deflect_hf:unit"]) == (task, options.get("target_unit"))
    assert card["mlm:output"][0]["result"]["shape"] == list(found.shape)
    if suffix == "onnx":
        import onnxruntime

        (output,) = onnxruntime.InferenceSession(file).get_outputs()
        assert output.name == ("values" if options.get("problem_type") == "regression" else "probabilities")


def test_what_is_there_stays_and_what_differs_is_not_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.pt2"
    file.write_text("before")
    for words, said in (([], "is there already"), (["--overwrite", "true"], "is no model that deflect-export wrote")):
        with pytest.raises(SystemExit):
            main([str(run), str(file), *words])
        assert f"{file} {said}" in capsys.readouterr().err
    item = {"properties": {"deflect_hf:task": ""}, "assets": {"model": {"file:checksum": checksum(file)}}}
    card_of(file).write_text(json.dumps(item))

    predictor = Predictor.from_folder(run, device="cpu")
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: None)  # takes seconds, and was seen above
    monkeypatch.setattr(exporting, "write_pt2", lambda *_: lambda images: predictor.probabilities(images) + 1e-4)
    with pytest.raises(SystemExit):
        main([str(run), str(file), "--overwrite", "true"])
    assert "is not written: it would differ from the trained model by 1.0e-04" in capsys.readouterr().err
    assert file.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt2", "model.pt2.json"]


def test_another_ending_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(run), str(tmp_path / "model.pt")])
    assert "must end in .pt2 (torch.export) or in .onnx" in capsys.readouterr().err
