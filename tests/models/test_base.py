"""The encoder inside the task models: loading, input sizes, bands, layers."""

import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Aimv2VisionConfig,
    Aimv2VisionModel,
    AutoConfig,
    PreTrainedModel,
    RadioConfig,
    RadioModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

from deflect_hf.errors import (
    ArchitectureError,
    BandError,
    CheckpointError,
    ConfigError,
    DataError,
    UnsupportedOperationError,
)
from deflect_hf.methods import adapt, patch_embedding_parameters
from deflect_hf.models import EncoderForImageClassification, EncoderForSemanticSegmentation, load_encoder
from tests.models.conftest import SIZES

CONFIG = {**SIZES, "intermediate_size": 64}
NORMED = {"bands": ["R", "G", "B"], "base_mean": [0.1] * 3, "base_std": [0.1] * 3}


def test_encoder_weights_survive_the_new_head(encoder: PreTrainedModel) -> None:
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items() if "pooler" not in name}
    model = EncoderForSemanticSegmentation.from_encoder(encoder, num_labels=3, head="upernet", head_channels=8)
    after = model.encoder.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_at_the_pretraining_size_the_tokens_are_the_encoders_own(vit: ViTModel, images: torch.Tensor) -> None:
    expected = vit(images).last_hidden_state
    model = EncoderForImageClassification.from_encoder(vit, num_labels=3)
    assert torch.equal(model.encode(images).layers[0], expected)


def test_masked_autoencoder_sees_every_patch_in_place(images: torch.Tensor) -> None:
    """The same weights as a plain ViT give the same tokens: nothing is masked and nothing is shuffled."""
    torch.manual_seed(0)
    mae = ViTMAEForPreTraining(ViTMAEConfig(**CONFIG)).vit
    plain = ViTModel(ViTConfig(**CONFIG), add_pooling_layer=False)
    plain.load_state_dict(mae.state_dict())
    model = EncoderForSemanticSegmentation.from_encoder(mae, num_labels=3)
    reference = EncoderForSemanticSegmentation.from_encoder(plain, num_labels=3)
    torch.testing.assert_close(model.encode(images).layers[0], reference.encode(images).layers[0])
    assert torch.equal(model(images).logits, model(images).logits)


def test_masked_autoencoder_loaded_afresh_under_a_saved_task_configuration(
    tmp_path: Path, images: torch.Tensor
) -> None:
    """As when a trained model is loaded: the encoder's own folder still says that it hides patches."""
    ViTMAEModel(ViTMAEConfig(**CONFIG)).save_pretrained(tmp_path / "encoder")
    model = EncoderForSemanticSegmentation.from_encoder(tmp_path / "encoder", num_labels=3)
    model.config.save_pretrained(tmp_path / "task")
    config = AutoConfig.from_pretrained(tmp_path / "task")
    again = EncoderForSemanticSegmentation(config, load_encoder(tmp_path / "encoder"))
    assert torch.equal(again.encode(images).layers[0], model.encode(images).layers[0])


@pytest.mark.parametrize("encoder", ["vit", "vit_mae", "dinov2", "dinov2_with_registers"], indirect=True)
def test_positions_follow_rows_and_columns_of_rectangular_images(encoder: PreTrainedModel) -> None:
    """With positions that hold (row, column), interpolation to any grid keeps rows and columns apart."""
    embeddings = encoder.embeddings
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    positions = torch.zeros(1, 17, 32)
    positions[0, 1:, 0], positions[0, 1:, 1] = rows.flatten(), columns.flatten()
    embeddings.position_embeddings.data.copy_(positions)
    # 16 patches as in pretraining, but 2 x 8 of them
    table = embeddings.interpolate_pos_encoding(torch.zeros(1, 17, 32), 16, 64)[0, 1:].reshape(2, 8, 32)
    assert (table[:, :, 0] - table[:, :1, 0]).abs().max() < 1e-5
    assert (table[:, :, 1] - table[:1, :, 1]).abs().max() < 1e-5
    assert (table[1, :, 0] > table[0, :, 0] + 1).all()
    assert (table[:, 1:, 1] > table[:, :-1, 1]).all()


def test_image_that_is_no_multiple_of_the_patch_size(vit: ViTModel) -> None:
    model = EncoderForImageClassification.from_encoder(vit, num_labels=3)
    message = (
        "The image is 30 x 41 pixels (height x width), no multiple of the encoder's patch size 8 x 8: crop it to "
        "24 x 40 or resize it to 32 x 48."
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        model(torch.zeros(1, 3, 30, 41))
    with pytest.raises(DataError, match=r"must be \(batch, bands, height, width\), not \(3, 32, 32\)"):
        model(torch.zeros(3, 32, 32))


def test_encoder_pretrained_on_rectangles_is_refused() -> None:
    vit = ViTModel(ViTConfig(**{**CONFIG, "image_size": (32, 64)}))
    with pytest.raises(ArchitectureError, match=r"pretrained on rectangular images \(32 x 64\)"):
        EncoderForImageClassification.from_encoder(vit, num_labels=3)


def test_encoder_that_takes_no_other_size() -> None:
    encoder = Aimv2VisionModel(Aimv2VisionConfig(**CONFIG))
    model = EncoderForImageClassification.from_encoder(encoder, num_labels=3, pooling="mean")
    model(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ArchitectureError, match=r"takes no images of 32 x 48 pixels \(.*\): give it 32 x 32,"):
        model(torch.zeros(1, 3, 32, 48))


def test_base_bands_are_selected_by_name_and_normalised(vit: ViTModel, images: torch.Tensor) -> None:
    mean, std = [0.1, 0.2, 0.3], [0.05, 0.1, 0.2]
    model = EncoderForImageClassification.from_encoder(
        vit, num_labels=3, bands=["B", "G", "R", "N"], base_mean=mean, base_std=std
    )
    near_infrared = torch.full_like(images[:, :1], float("nan"))
    four_bands = torch.cat([images.flip(1), near_infrared], dim=1)
    four_bands[0, :3, :8, :8] = float("nan")
    normalised = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    normalised[0, :, :8, :8] = 0
    torch.testing.assert_close(model.encode(four_bands).layers[0], vit(normalised).last_hidden_state)


def test_wrong_number_of_channels_names_counts_and_bands(vit: ViTModel, images: torch.Tensor) -> None:
    model = EncoderForImageClassification.from_encoder(vit, num_labels=3, bands=["B", "G", "R", "N"])
    message = "pixel_values has 3 channels, but the model was configured for 4 bands: 'B', 'G', 'R', 'N'."
    with pytest.raises(BandError, match=f"^{re.escape(message)}$"):
        model(images)
    with pytest.raises(BandError, match="R"):
        EncoderForImageClassification.from_encoder(vit, num_labels=3, bands=["B", "G", "N"])


def test_hidden_layers_are_those_asked_for(encoder: PreTrainedModel, wide_images: torch.Tensor) -> None:
    model = EncoderForSemanticSegmentation.from_encoder(encoder, num_labels=3, output_layers=[0, -2, 3])
    features = model.encode(wide_images)
    everything = model(wide_images, output_hidden_states=True).hidden_states
    assert len(everything) == 5
    assert torch.equal(features.layers[0], everything[1])
    assert torch.equal(features.layers[1], everything[3])
    assert torch.equal(features.layers[2], model.encode(wide_images, output_hidden_states=True).outputs[0])
    assert model(wide_images).hidden_states is None
    assert features.grid == (4, 6)
    assert torch.equal(features.patch_maps()[0][:, 1, 2], features.layers[0][:, -24:][:, 8])


def test_patch_maps_match_the_places_in_the_image(encoder: PreTrainedModel) -> None:
    """A change in one patch changes the map of the first block most at that patch, in a rectangular grid."""
    model = EncoderForSemanticSegmentation.from_encoder(encoder, num_labels=3, output_layers=[0])
    plain = torch.full((1, 3, 24, 40), 0.5)
    changed = plain.clone()
    changed[:, :, 8:16, 24:32] += torch.rand(3, 8, 8)
    change = (model.encode(changed).patch_maps()[0] - model.encode(plain).patch_maps()[0]).norm(dim=-1)
    assert change.shape == (1, 3, 5)
    assert change.flatten().argmax() == 1 * 5 + 3


def test_zoom_shows_the_encoder_each_pixel_several_times(encoder: PreTrainedModel, images: torch.Tensor) -> None:
    plain = EncoderForSemanticSegmentation.from_encoder(encoder, num_labels=3)
    expected = plain.encode(images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    found = EncoderForSemanticSegmentation.from_encoder(encoder, num_labels=3, zoom=2).encode(images)
    assert found.grid == expected.grid == (8, 8)
    assert torch.equal(found.patch_maps()[0], expected.patch_maps()[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_layers": [4]}, "output_layers=[4]: the encoder has 4 blocks, numbered 0 to 3 (or -4 to -1)"),
        ({"output_layers": []}, "name at least one of them"),
        ({"zoom": 3}, "zoom=3 does not divide patches of 8 x 8 pixels: choose from [1, 2, 4, 8]."),
        ({"head": "liner"}, "head='liner' is unknown; choose from 'linear', 'mlp'. Did you mean 'linear'?"),
        ({"pooling": "max"}, "pooling='max' is unknown; choose from 'cls', 'mean'."),
        ({"outputlayers": [1]}, "'outputlayers' is no field of EncoderForImageClassificationConfig. Did you mean"),
        ({"class_weights": [1.0]}, "give one weight >= 0 for each of the 3 classes"),
        ({"base_mean": [0.1, 0.1, 0.1]}, "'base_mean' given without bands"),
        ({"bands": ["R", "G", "B"], "base_mean": [0.1] * 3}, "base_mean and base_std go together"),
        (
            {**NORMED, "base_std": [0.1, 0.0, 0.1]},
            "base_std=[0.1, 0.0, 0.1]: give finite numbers, and deviations above",
        ),
        (
            {**NORMED, "base_mean": [0.1, math.nan, 0.1]},
            "base_mean=[0.1, nan, 0.1], base_std=[0.1, 0.1, 0.1]: give finite",
        ),
        ({"bands": ["R", "G", "B"], "base_bands": ["R"]}, "has 1 entries, but the encoder takes 3 channels"),
        ({"problem_type": "regression"}, "problem_type='regression' predicts one value: num_labels=3"),
        ({"target_unit": "m"}, "'target_unit' belong to problem_type='regression'"),
        ({"label_smoothing": 1.5}, "label_smoothing=1.5 must be in [0, 1)."),
        ({"revision": "main"}, "are for loading an encoder"),
        ({"dtype": torch.bfloat16}, "local_files_only and dtype are for loading an encoder; this one is loaded."),
        ({"head": "mlp", "head_channels": 0}, "head_channels=0 must be at least 1."),
        ({"id2label": {0: "a"}}, "Give either num_labels, the number of classes, or id2label"),
        ({"num_labels": None, "id2label": {1: "a", 2: "b"}}, "name one or more classes, numbered from 0"),
        ({"num_labels": None, "id2label": {}}, "name one or more classes, numbered from 0"),
        ({"num_labels": 0}, "name one or more classes, numbered from 0"),
    ],
)
def test_options_that_do_not_fit(vit: ViTModel, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        EncoderForImageClassification.from_encoder(vit, **{"num_labels": 3, **options})


def test_models_that_are_no_bare_vision_transformer() -> None:
    with pytest.raises(ArchitectureError, match="ResNetConfig has no hidden_size, num_hidden_layers, patch_size"):
        EncoderForImageClassification.from_encoder(ResNetModel(ResNetConfig(embedding_size=4)), num_labels=3)
    with pytest.raises(ArchitectureError, match="ViTForImageClassification is not a bare encoder: pass a ViTModel"):
        EncoderForImageClassification.from_encoder(ViTForImageClassification(ViTConfig(**CONFIG)), num_labels=3)


def test_loading_a_folder_with_and_without_pooler(tmp_path: Path, images: torch.Tensor) -> None:
    vit = ViTModel(ViTConfig(**CONFIG)).eval()
    expected = vit(images).last_hidden_state
    for name, source in {"pooler": vit, "none": ViTModel(vit.config, add_pooling_layer=False)}.items():
        source.load_state_dict(vit.state_dict(), strict=False)
        source.save_pretrained(tmp_path / name)
        model = EncoderForImageClassification.from_encoder(tmp_path / name, num_labels=3, local_files_only=True)
        assert torch.equal(model.encode(images).layers[0], expected)
        assert not [key for key in model.state_dict() if "pooler" in key]


def test_loading_a_masked_autoencoder_from_its_pretraining(tmp_path: Path) -> None:
    pretraining = ViTMAEForPreTraining(ViTMAEConfig(**CONFIG, decoder_num_hidden_layers=1))
    pretraining.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), pretraining.vit.parameters(), strict=True))


def test_checkpoint_that_lacks_encoder_weights_is_refused(tmp_path: Path, encoder: PreTrainedModel) -> None:
    encoder.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    kept = {name: tensor for name, tensor in weights.items() if not (".2." in name and "norm" in name)}
    save_file(kept, file, metadata={"format": "pt"})
    # Files keep the names of older versions of transformers, so the model's own names are what the message gives.
    lost = sorted(name for name in encoder.state_dict() if ".2." in name and "norm" in name)
    assert len(lost) == 4
    message = (
        f"The encoder checkpoint '{tmp_path}' lacks 4 tensors, which would be filled with random numbers: "
        f"{', '.join(map(repr, lost))}. Give a checkpoint that holds them all."
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        EncoderForSemanticSegmentation.from_encoder(tmp_path, num_labels=3)


def test_checkpoint_with_other_shapes_or_none_at_all(tmp_path: Path) -> None:
    ViTModel(ViTConfig(**CONFIG)).save_pretrained(tmp_path)
    ViTConfig(**{**CONFIG, "intermediate_size": 128}).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_encoder(tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot be loaded.*Give a folder with config\.json"):
        load_encoder(tmp_path / "nothing", local_files_only=True)


def test_task_checkpoint_that_lacks_weights_is_refused(tmp_path: Path, vit: ViTModel) -> None:
    EncoderForImageClassification.from_encoder(vit, num_labels=3).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["head.2.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors.*head\.2\.weight"):
        EncoderForImageClassification.from_pretrained(tmp_path)


def test_attention_implementation_is_passed_on(tmp_path: Path) -> None:
    ViTModel(ViTConfig(**CONFIG)).save_pretrained(tmp_path)
    model = EncoderForImageClassification.from_encoder(tmp_path, num_labels=3, attn_implementation="eager")
    assert model.encoder.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "eager"
    attentions = model(torch.rand(1, 3, 32, 32), output_attentions=True).attentions
    assert len(attentions) == 4 and attentions[0].shape == (1, 4, 17, 17)


def test_device_placement_and_embeddings_are_the_encoders(encoder: PreTrainedModel) -> None:
    model = EncoderForImageClassification.from_encoder(encoder, num_labels=3)
    assert model._no_split_modules >= set(encoder._no_split_modules)
    assert model.get_input_embeddings() is encoder.get_input_embeddings()


def test_an_encoder_that_does_not_say_where_its_patches_are_embedded_is_named() -> None:
    encoder = RadioModel(RadioConfig(**CONFIG))
    model = adapt(EncoderForImageClassification.from_encoder(encoder, num_labels=3), "frozen", bands=["R", "G", "B"])
    with pytest.raises(UnsupportedOperationError, match="RadioModel does not say where its patches are embedded"):
        patch_embedding_parameters(model)
