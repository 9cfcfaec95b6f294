"""A trained folder predicts what evaluation scores."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel

from deflect_hf import MultiAdapterPredictor, load_predictor
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.errors import ArchitectureError, BandError, ConfigError, DataError, UnitError
from deflect_hf.evaluation.evaluate import predict_logits
from deflect_hf.inference.predictor import Predictor
from tests.inference.folders import ALL_BANDS, SIDE, encoder_folder, images, result_folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_folder(tmp_path_factory.mktemp("encoder") / "encoder")


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_probabilities_are_those_of_the_logits_that_evaluation_sees(task: str, encoder: Path, tmp_path: Path) -> None:
    classes = ("bare", "trees", "water")
    predictor = Predictor.from_folder(
        result_folder(tmp_path / "best", encoder, task=task, classes=classes, aux_dim=8, rank=2), device="cpu"
    )
    assert (predictor.task, predictor.classes, predictor.model.training) == (task, classes, False)
    pixels = images()
    expected = torch.stack(predict_logits(predictor.model, pixels, None)).softmax(dim=1)
    found = predictor(pixels.numpy(), source_bands=ALL_BANDS)
    torch.testing.assert_close(found, expected)
    assert found.shape == ((2, 3, SIDE, SIDE) if task == "segmentation" else (2, 3))
    torch.testing.assert_close(predictor(pixels[0]), found[:1])  # one image, and the bands of training


def test_an_adapter_whose_weights_say_what_they_assume_as_they_did_before_is_loaded(
    encoder: Path, tmp_path: Path
) -> None:
    folder = result_folder(tmp_path / "best", encoder, aux_dim=8, rank=2)
    expected = Predictor.from_folder(folder, device="cpu")(images())
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    (name,) = [name for name in tensors if name.endswith("_extra_state")]
    assumed = json.loads(bytes(tensors[name].to(torch.uint8).tolist()))
    del assumed["checksum"]
    tensors[name] = torch.tensor([*json.dumps(assumed).encode()], dtype=torch.uint8)
    save_file(tensors, file)
    assert torch.equal(Predictor.from_folder(folder, device="cpu")(images()), expected)


@pytest.mark.parametrize(
    "wrap", [lambda model: torch.compile(model, backend="eager"), torch.nn.DataParallel, AveragedModel]
)
def test_a_compiled_a_parallel_or_an_averaged_model_is_the_model_inside(wrap, encoder: Path, tmp_path: Path) -> None:
    alone = Predictor.from_folder(result_folder(tmp_path / "best", encoder, aux_dim=8, rank=2), device="cpu")
    other = MultispectralImageProcessor(alone.processor.bands[::-1])
    wrapped = wrap(alone.model)
    with pytest.raises(ConfigError, match="the processor gives the bands"):
        Predictor(wrapped, other)
    predictor, pixels = Predictor(wrapped, alone.processor), images()
    assert (predictor.digest(), predictor.origin()) == (alone.digest(), alone.origin())
    assert torch.equal(predictor(pixels), alone(pixels))
    assert torch.equal(predictor.embeddings(pixels), alone.embeddings(pixels))
    predictor.save(tmp_path / "copy")
    assert torch.equal(Predictor.from_folder(tmp_path / "copy", device="cpu")(pixels), alone(pixels))


def test_larger_images_go_through_the_windows_of_evaluation(encoder: Path, tmp_path: Path) -> None:
    folder = result_folder(tmp_path / "best", encoder, crop=16, aux_dim=8, rank=2)
    predictor = Predictor.from_folder(folder, device="cpu")
    assert predictor.window == 16
    pixels = images(side=40)
    expected = torch.stack(predict_logits(predictor.model, pixels, 16)).softmax(dim=1)
    torch.testing.assert_close(predictor(pixels), expected)
    assert not torch.allclose(torch.stack(predict_logits(predictor.model, pixels, None)).softmax(dim=1), expected)


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_what_was_not_measured_has_no_probabilities(task: str, encoder: Path, tmp_path: Path) -> None:
    folder = result_folder(tmp_path / "best", encoder, task=task, aux_dim=8, rank=2)
    predictor = Predictor.from_folder(folder, device="cpu")
    valid = np.ones((2, SIDE, SIDE), dtype=bool)
    valid[0], valid[1, :8] = False, False
    found = predictor(images(), valid=valid)
    assert found[0].isnan().all()
    if task == "segmentation":
        assert found[1, :, :8].isnan().all() and found[1, :, 8:].isfinite().all()
    else:
        assert found[1].isfinite().all()


def test_values_on_which_the_model_overflows_do_not_pass_for_pixels_without_a_measurement(
    encoder: Path, tmp_path: Path
) -> None:
    predictor = Predictor.from_folder(result_folder(tmp_path / "best", encoder, aux_dim=8, rank=2), device="cpu")
    pixels = images()
    pixels[1, :, 5, 5] = -3e38
    with pytest.raises(DataError, match=r"^the images: .* overflows on values from -3\.00000001e\+38 to 0\.\d+"):
        predictor(pixels)
    pixels[1, :, 5, 5] = torch.nan
    assert int(predictor(pixels).isnan().sum()) == len(predictor.classes)


def test_devices_and_encoders_that_are_none_are_told(encoder: Path, tmp_path: Path) -> None:
    folder = result_folder(tmp_path / "run", encoder)
    for load in (load_predictor, Predictor.from_folder):
        with pytest.raises(ConfigError, match="device='gpu': torch cannot compute there; on this machine it is 'cpu'"):
            load(folder, device="gpu")
        with pytest.raises(ArchitectureError, match=r"is a trained model with its head\. Give the bare enc"):
            load(folder, encoder=folder)
    with pytest.raises(ConfigError, match="device='gpu'"):
        MultiAdapterPredictor.from_folders({"water": folder}, device="gpu")


def test_a_list_of_scales_goes_by_the_channels_of_the_images(encoder: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_folder(result_folder(tmp_path / "best", encoder, aux_dim=8, rank=2), device="cpu")
    pixels, scale, offset = images(), 2.0 ** -torch.arange(3, 10), [0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0]
    channels = ["A", *ALL_BANDS[::-1]]
    turned = torch.cat([pixels[:, :1], pixels.flip(1)], dim=1)
    stored = (turned - torch.tensor(offset).view(-1, 1, 1)) / scale.view(-1, 1, 1)
    torch.testing.assert_close(predictor(stored, channels, scale=scale.tolist(), offset=offset), predictor(pixels))
    with pytest.raises(ConfigError, match=r"scale has 6 values for the 7 channels 'A', 'S2', .* one per channel"):
        predictor(stored, channels, scale=scale[1:])


def test_images_that_do_not_fit_are_refused(encoder: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_folder(result_folder(tmp_path / "best", encoder, aux_dim=8, rank=2), device="cpu")
    with pytest.raises(BandError, match=r"image 0: the images lack the band\(s\) 'S2'"):
        predictor(images()[:, :5], source_bands=ALL_BANDS[:5])
    with pytest.raises(UnitError, match=r"image 0: band 'B', channel 0 is not reflectance .* digital numbers"):
        predictor((images() * 1e4).round())


@pytest.mark.parametrize(
    ("flag", "device", "expected"),
    [(None, "cpu", None), ("bf16", "cpu", torch.bfloat16), ("fp16", "cpu", None), ("fp16", "meta", torch.float16)],
)
def test_the_precision_is_that_of_training_where_the_device_has_it(
    flag: str | None, device: str, expected: torch.dtype | None, encoder: Path, tmp_path: Path
) -> None:
    folder = result_folder(tmp_path / "best", encoder, aux_dim=8, rank=2)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(f"{flag}: false", f"{flag}: true"))
    assert Predictor.from_folder(folder, device=device).precision == expected
