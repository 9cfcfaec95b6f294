"""transformers' own Auto classes and pipelines open result folders, and give what `load_predictor` gives."""

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    ImageClassificationPipeline,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    pipeline,
)
from transformers.image_processing_utils import BaseImageProcessor

import deflect_hf
from deflect_hf.errors import ArchitectureError, ConfigError, DataError, UnsupportedOperationError
from deflect_hf.models.geovit import GeoViTConfig, GeoViTModel
from deflect_hf.raster import write_raster
from tests.inference.folders import ALL_BANDS, encoder_folder, images, result_folder
from tests.tuners.tiny import SIZES

AUTO = {"segmentation": AutoModelForSemanticSegmentation, "classification": AutoModelForImageClassification}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A result folder of each task, and one of a model without an adapter."""
    home = tmp_path_factory.mktemp("auto")
    encoder = encoder_folder(home / "encoder")
    found = {task: result_folder(home / task, encoder, task=task) for task in AUTO}
    return found | {"frozen": result_folder(home / "frozen", encoder, "frozen", bands=["R", "G", "B"])}


@pytest.mark.parametrize("name", ["segmentation", "classification", "frozen"])
def test_auto_models_are_the_trained_models(name: str, folders: dict[str, Path]) -> None:
    predictor = deflect_hf.load_predictor(folders[name], device="cpu")
    pixels = predictor.processor(images())["pixel_values"]
    model = AUTO.get(name, AutoModelForSemanticSegmentation).from_pretrained(folders[name])
    with torch.no_grad():
        assert not model.training and torch.equal(model(pixels).logits, predictor.logits(pixels))


def test_the_image_processor_is_that_of_the_folder(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        processor, stored = AutoImageProcessor.from_pretrained(folder), deflect_hf.load_predictor(folder).processor
        assert type(processor) is deflect_hf.MultispectralImageProcessor
        assert processor.to_dict() == stored.to_dict()


def test_a_new_process_knows_the_classes(folders: dict[str, Path], tmp_path: Path) -> None:
    predictor = deflect_hf.load_predictor(folders["segmentation"], device="cpu")
    pixels = predictor.processor(images())["pixel_values"]
    torch.save(pixels, tmp_path / "pixels.pt")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    GeoViTModel(GeoViTConfig(**sizes)).save_pretrained(tmp_path / "geovit")
    code = (
        "import sys, torch, deflect_hf; from transformers import AutoModel, AutoModelForSemanticSegmentation as Auto\n"
        "model = Auto.from_pretrained(sys.argv[1])\n"
        "torch.save(model(torch.load(sys.argv[2])).logits.detach(), sys.argv[3])\n"
        "assert type(AutoModel.from_pretrained(sys.argv[4])).__name__ == 'GeoViTModel'"
    )
    files = (tmp_path / name for name in ("pixels.pt", "logits.pt", "geovit"))
    words = [str(path) for path in (folders["segmentation"], *files)]
    subprocess.run([sys.executable, "-c", code, *words], check=True, env=os.environ)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), predictor.logits(pixels))


def test_options_are_heard_or_refused(folders: dict[str, Path]) -> None:
    kind, folder = AutoModelForSemanticSegmentation, folders["segmentation"]
    half = kind.from_pretrained(folder.parent, subfolder=folder.name, config=kind.from_pretrained(folder).config)
    assert kind.from_pretrained(folder, dtype=torch.bfloat16).dtype == torch.bfloat16 and half.dtype == torch.float32
    eager = kind.from_pretrained(folder, attn_implementation="eager")
    assert eager.encoder.config._attn_implementation == "eager" != half.encoder.config._attn_implementation
    with pytest.raises(ConfigError, match="loaded as it was trained: leave out 'ignore_index'"):
        kind.from_pretrained(folder, ignore_index=3)
    for name in ("segmentation", "frozen"):
        with pytest.raises(ConfigError, match=r"of type 'deflect_semantic_segmentation', not .*_predictor takes both"):
            AutoModelForImageClassification.from_pretrained(folders[name])
    with pytest.raises(ConfigError, match="leave out 'quantization_config'"):
        kind.from_pretrained(folder, quantization_config={"quant_method": "x"})


def test_pipelines_take_rasters_and_arrays(folders: dict[str, Path], tmp_path: Path) -> None:
    stored = images().numpy()
    stored[0, :, :9] = np.nan
    write_raster(tmp_path / "chip.tif", stored[0], descriptions=ALL_BANDS)
    chips = [stored[0], stored[1], tmp_path / "chip.tif"]

    predictor = deflect_hf.load_predictor(folders["classification"], device="cpu")
    classify = pipeline("image-classification", model=str(folders["classification"]), device="cpu")
    for found, expected in zip(classify(chips[:2], batch_size=2), predictor(stored), strict=True):
        assert {row["label"]: row["score"] for row in found} == pytest.approx(
            dict(zip(predictor.classes, expected.tolist(), strict=True)), abs=1e-6
        )
    assert classify(chips[2]) == classify(chips[0]) and len(classify(chips[0], top_k=1)) == 1

    predictor = deflect_hf.load_predictor(folders["segmentation"], device="cpu")
    segment = pipeline("image-segmentation", model=str(folders["segmentation"]), device="cpu")
    probabilities = predictor(stored[:1])[0].numpy()
    found = segment(chips[2])
    assert found == segment(chips)[0] and {row["label"] for row in found} <= {"land", "water"}
    masks = np.stack([np.asarray(row["mask"]) == 255 for row in found])
    assert np.array_equal(masks.any(axis=0), np.isfinite(probabilities[0]))  # what was not measured is in none
    for mask, row in zip(masks, found, strict=True):
        own = probabilities[["land", "water"].index(row["label"])]
        assert (own[mask] >= 0.5).all() and row["score"] == pytest.approx(own[mask].mean(), abs=1e-5)


def test_what_pipelines_cannot_do_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    segment, chip = pipeline("image-segmentation", model=str(folders["segmentation"])), images()[0]
    with pytest.raises(DataError, match="int: give a GeoTIFF's path, an array"):
        segment(3)
    with pytest.raises(ConfigError, match="'threshold' would do nothing"):
        segment(chip, threshold=0.5)
    with pytest.raises(ConfigError, match="'subtask' would do nothing"):
        segment(chip, subtask="panoptic")
    with pytest.raises(ConfigError, match=r"for 'classification'.* trained for segmentation"):
        pipeline("image-classification", model=segment.model, image_processor=segment.image_processor)
    with pytest.raises(ConfigError, match="takes the images of a MultispectralImageProcessor"):
        pipeline("image-segmentation", model=segment.model, image_processor=BaseImageProcessor())
    with pytest.raises(UnsupportedOperationError, match=r"load_predictor\(FOLDER\)\.save\(ANOTHER\)"):
        segment.save_pretrained(tmp_path / "saved")


def test_models_of_others_get_transformers_pipeline(tmp_path: Path) -> None:
    ViTForImageClassification(ViTConfig(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(OSError, match="preprocessor_config"):
        pipeline("image-classification", model=str(tmp_path))
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    classify = pipeline("image-classification", model=str(tmp_path), device="cpu")
    assert type(classify) is ImageClassificationPipeline
    assert classify(Image.new("RGB", (20, 20)), top_k=1) == copy.copy(classify)(Image.new("RGB", (20, 20)), top_k=1)


def test_a_pipeline_of_a_model_without_adapter_is_saved(folders: dict[str, Path], tmp_path: Path) -> None:
    before = pipeline("image-segmentation", model=str(folders["frozen"]), device="cpu")
    before.save_pretrained(tmp_path)
    after = pipeline("image-segmentation", model=str(tmp_path), device="cpu")
    assert after(images()[0]) == before(images()[0])


def test_an_adapter_without_the_models_configuration_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """transformers reads adapter_config.json alone, and adapts what it names with its own class."""
    shutil.copytree(folders["classification"], tmp_path / "id", ignore=shutil.ignore_patterns("config.json"))
    hint = r"saved for a EncoderForImage.* a ViTFor.* where its config.json lies beside it"
    with pytest.raises(ArchitectureError, match=hint):
        AutoModelForImageClassification.from_pretrained(tmp_path / "id")


@pytest.mark.parametrize("method", ["lora", "slr", "norm", "bitfit"])
def test_of_other_adapters_no_weights_go_missing_in_transformers_class(
    method: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    encoder = folders["frozen"].parent / "encoder"
    result_folder(tmp_path / "id", encoder, method, bands=["R", "G", "B"], task="classification")
    (tmp_path / "id" / "config.json").unlink()
    refused = r"not found in the base model|saved for a EncoderForImage.* a ViTFor"
    with pytest.raises((ValueError, ArchitectureError), match=refused):
        AutoModelForImageClassification.from_pretrained(tmp_path / "id")
