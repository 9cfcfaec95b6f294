"""The encoder's own size, for crops and images, and its ground sampling distance."""

from pathlib import Path

import pytest
import torch
from transformers import Dinov2Config, PreTrainedConfig, ViTConfig

from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.run import AugmentationArguments, DatasetArguments, EncoderArguments, RunArguments
from deflect_hf.data import build_transform
from deflect_hf.errors import CheckpointError, ConfigError
from deflect_hf.evaluation.evaluate import sliding_logits, window_offsets
from deflect_hf.evaluation.task_metrics import evaluation_window
from deflect_hf.models.encoders import chosen_gsd, pretraining_size, set_gsd, with_encoder_size
from deflect_hf.models.geovit import GeoViTConfig, GeoViTModel
from deflect_hf.training.build import load_splits
from tests.tiny_runs import tiny_run

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def encoder(folder: Path, config: PreTrainedConfig) -> EncoderArguments:
    """An encoder of which only the configuration was saved: its weights are not needed for its size."""
    config.save_pretrained(folder)
    return EncoderArguments(name_or_path=str(folder))


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (ViTConfig(image_size=224, patch_size=16), [224, 224]),
        (Dinov2Config(image_size=518, patch_size=14), [518, 518]),
        (ViTConfig(image_size=30, patch_size=8), [24, 24]),
        (GeoViTConfig(image_size=(32, 64), patch_size=8), [32, 64]),
    ],
)
def test_the_encoders_size_is_that_of_its_pretraining_in_whole_patches(
    config: PreTrainedConfig, size: list[int], tmp_path: Path
) -> None:
    assert pretraining_size(encoder(tmp_path, config)) == size


def test_a_random_encoder_has_a_size_too_and_one_without_is_refused(tmp_path: Path) -> None:
    assert pretraining_size(EncoderArguments(random={"model_type": "vit", "image_size": 48, **SMALL})) == [48, 48]
    with pytest.raises(ConfigError, match="the size 'encoder' is not known: the configuration of this 'bert' has no"):
        pretraining_size(EncoderArguments(random={"model_type": "bert"}))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        pretraining_size(EncoderArguments(name_or_path=str(tmp_path)))


def protocol(folder: Path, side: int, *words: str) -> RunArguments:
    """The published protocol for an encoder pretrained at ``side`` pixels."""
    arguments = encoder(folder, ViTConfig(image_size=side, patch_size=16, **SMALL))
    files = ("--config", str(CONFIGS / "run" / "default.yaml"), "--encoder.name_or_path", str(arguments.name_or_path))
    augmentation = str(CONFIGS / "augmentations" / "segmentation_default.yaml")
    argv = [*files, "--augmentation_config", augmentation, "--dataset.task", "segmentation", *words]
    return with_encoder_size(parse_arguments(RunArguments, "test", argv))


@pytest.mark.parametrize(
    ("image", "side", "seen", "windows"),
    [
        (128, 224, 128, None),  # water with most encoders: whole
        (128, 128, 128, None),
        (240, 224, 224, [0, 16]),  # MADOS
        (512, 224, 224, [0, 144, 288]),  # HLS Burn Scars
    ],
)
def test_training_crops_and_evaluation_slides_windows_of_the_encoders_size(
    image: int, side: int, seen: int, windows: list[int] | None, tmp_path: Path
) -> None:
    config = protocol(tmp_path, side)
    assert (config.augmentation.random_crop, config.augmentation.keep_smaller) == ([side, side], True)
    example = {"pixel_values": torch.zeros(3, image, image), "labels": torch.zeros(image, image).long(), "name": "x"}
    transform = build_transform(config.augmentation, "train")
    cut = transform(example, torch.Generator().manual_seed(0))
    assert cut["pixel_values"].shape == (3, seen, seen) and cut["labels"].shape == (seen, seen)
    assert build_transform(config.augmentation, "val") is None
    window = evaluation_window(config, "segmentation")
    assert window == side and evaluation_window(config, "classification") is None
    if windows is None:
        assert image <= window
        return
    assert window_offsets(image, window) == windows
    calls: list[int] = []

    def predict(crops: torch.Tensor) -> torch.Tensor:
        calls.append(len(crops))
        assert crops.shape[-2:] == (side, side)
        return crops[:, :1]

    ramp = torch.arange(float(image * image)).reshape(1, 1, image, image)
    torch.testing.assert_close(sliding_logits(predict, ramp, window)[0], ramp[0])
    assert sum(calls) == len(windows) ** 2


def test_images_come_in_the_encoders_size() -> None:
    config = with_encoder_size(
        tiny_run("classification", "--encoder.random.image_size", "32", "--dataset.image_size", "encoder")
    )
    assert config.dataset.image_size == [32, 32]
    train = load_splits(config, ("train",))["train"]
    assert train[0]["pixel_values"].shape[-2:] == (32, 32)


def test_the_encoders_size_needs_an_encoder() -> None:
    with pytest.raises(ConfigError, match=r"^image_size=encoder: the encoder is not known here, give"):
        _ = DatasetArguments(image_size="encoder").size
    with pytest.raises(ConfigError, match=r"^random_crop=encoder: the encoder is not known here"):
        build_transform(AugmentationArguments(random_crop="encoder"), "train")
    with pytest.raises(ConfigError, match=r"keep_smaller needs random_crop"):
        AugmentationArguments(keep_smaller=True)


def test_gsd_is_a_number_the_datas_or_the_checkpoints() -> None:
    assert chosen_gsd(EncoderArguments(name_or_path="x"), 10.0) is None
    assert chosen_gsd(EncoderArguments(name_or_path="x", gsd=2.5), 10.0) == 2.5
    assert chosen_gsd(EncoderArguments(name_or_path="x", gsd="data"), 10.0) == 10.0
    with pytest.raises(ConfigError, match=r"encoder\.gsd: data, but the size .* give dataset\.gsd_m in metres"):
        chosen_gsd(EncoderArguments(name_or_path="x", gsd="data"), None)


def test_gsd_changes_the_positions_and_is_refused_where_there_are_none() -> None:
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def tokens(kind: str, gsd: float | None) -> torch.Tensor:
        torch.manual_seed(0)
        fields = {"position_embedding": kind, "image_size": 32, "patch_size": 8, **SMALL}
        model = GeoViTModel(GeoViTConfig(**fields)).eval()
        set_gsd(model, gsd)
        with torch.no_grad():
            return model(pixels).last_hidden_state

    published = tokens("sincos_gsd", None)
    assert torch.equal(tokens("sincos_gsd", 1.0), published)
    assert not torch.allclose(tokens("sincos_gsd", 10.0), published, atol=1e-3)
    with pytest.raises(ConfigError, match=r"encoder\.gsd: the positions of this 'geovit' encoder do not depend on"):
        tokens("sincos", 10.0)


def test_data_sets_know_their_pixels_on_the_ground() -> None:
    train = load_splits(tiny_run("classification"), ("train",))["train"]
    assert chosen_gsd(EncoderArguments(name_or_path="x", gsd="data"), train.gsd_m) == 30.0
