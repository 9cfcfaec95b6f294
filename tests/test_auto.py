"""transformers' own Auto classes and pipelines open result folders, and give what `load_predictor` gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForSemanticSegmentation

import deflect_hf
from deflect_hf.errors import ConfigError
from tests.inference.folders import encoder_folder, images, result_folder

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
    code = (
        "import sys, torch, deflect_hf; from transformers import AutoModelForSemanticSegmentation as Auto\n"
        "model = Auto.from_pretrained(sys.argv[1])\n"
        "torch.save(model(torch.load(sys.argv[2])).logits.detach(), sys.argv[3])"
    )
    words = [str(path) for path in (folders["segmentation"], tmp_path / "pixels.pt", tmp_path / "logits.pt")]
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
    with pytest.raises(ConfigError, match="leave out 'quantization_config'"):
        kind.from_pretrained(folder, quantization_config={"quant_method": "x"})
