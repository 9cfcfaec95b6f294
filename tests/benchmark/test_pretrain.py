"""Pretraining: the encoder it writes, that it can be repeated and resumed exactly, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from transformers import ViTMAEConfig, ViTModel
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from deflect_hf.benchmark import pretrain as pretraining
from deflect_hf.benchmark.masked_autoencoder import (
    build_masked_autoencoder,
    fixed_positions,
    random_views,
    to_vit_encoder,
)
from deflect_hf.benchmark.pretrain import PretrainArguments, RGBChips, load_chips, pretrain
from deflect_hf.errors import CheckpointError, ConfigError, DataError

SMALL = {
    "image_size": 16,
    "hidden_size": 16,
    "layers": 2,
    "heads": 2,
    "decoder_hidden_size": 8,
    "decoder_layers": 1,
    "decoder_heads": 2,
    "batch_size": 4,
    "warmup_epochs": 1,
    "save_every_epochs": 2,
}


def small_config() -> ViTMAEConfig:
    return PretrainArguments(images="chips.npz", output="encoder", **SMALL).mae_config()


@pytest.fixture
def chips_file(tmp_path):
    rng = np.random.default_rng(0)
    # Smooth scenes: neighbouring patches tell about a hidden one.
    waves = np.sin(np.linspace(0, 6, 16)[None, :, None, None] * rng.uniform(0.5, 2, (12, 1, 1, 3)))
    rgb = 1000 + 800 * waves + 100 * np.arange(16)[None, None, :, None]
    np.savez(tmp_path / "chips.npz", rgb=rgb.astype(np.uint16))
    return tmp_path / "chips.npz"


def run(chips_file, output, **options):
    return pretrain(PretrainArguments(images=str(chips_file), output=str(output), **(SMALL | options)))


def weights(folder):
    return ViTModel.from_pretrained(folder, add_pooling_layer=False).state_dict()


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_encoder_equals_the_autoencoders_with_nothing_masked():
    config = small_config()
    config.mask_ratio = 0.0
    torch.manual_seed(0)
    model = build_masked_autoencoder(config).eval()
    pixel_values = torch.randn(3, 3, 16, 16)
    in_order = torch.arange(4.0).expand(3, 4)
    with torch.no_grad():
        expected = model.vit(pixel_values, noise=in_order).last_hidden_state
        actual = to_vit_encoder(model)(pixel_values).last_hidden_state
    assert torch.equal(actual, expected)


def test_positions_are_those_of_published_weights():
    published = build_2d_sinusoidal_position_embedding(3, 3, 16, cls_token=True)
    # transformers turns the two halves to match the published weights.
    expected = torch.cat([published[:, 8:], published[:, :8]], dim=1)
    torch.testing.assert_close(fixed_positions(3, 16)[0], expected)


def test_new_autoencoder_knows_where_a_patch_is():
    model = build_masked_autoencoder(small_config())
    for positions in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        assert len(torch.unique(positions[0], dim=0)) == 5  # CLS and 2 x 2 patches
        assert not positions.requires_grad
    assert model.decoder.mask_token.abs().min() > 0


def test_same_seed_same_encoder_and_another_seed_another(chips_file, tmp_path):
    first = weights(run(chips_file, tmp_path / "first", epochs=2))
    assert_same(first, weights(run(chips_file, tmp_path / "second", epochs=2)))
    other = weights(run(chips_file, tmp_path / "other", epochs=2, seed=1))
    assert not torch.equal(first["layers.0.mlp.fc1.weight"], other["layers.0.mlp.fc1.weight"])


def test_interrupted_run_resumes_to_the_same_weights(chips_file, tmp_path, monkeypatch):
    whole = run(chips_file, tmp_path / "whole", epochs=3)
    train_epoch = pretraining.train_epoch

    def stop_in_the_last_epoch(accelerator, training, args, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        return train_epoch(accelerator, training, args, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "train_epoch", stop_in_the_last_epoch)
        with pytest.raises(KeyboardInterrupt):
            run(chips_file, tmp_path / "halves", epochs=3)
    halves = run(chips_file, tmp_path / "halves", epochs=3, resume=True)
    assert_same(weights(whole), weights(halves))
    assert (whole / "pretraining.json").read_text() == (halves / "pretraining.json").read_text()


def test_output_folder(chips_file, tmp_path):
    output = run(chips_file, tmp_path / "out", epochs=5, learning_rate=1e-2)
    folders = sorted(path.name for path in output.iterdir() if path.is_dir())
    assert folders == ["checkpoint_0005", "epoch_002", "epoch_004"]
    normalisation = json.loads((output / "normalisation.json").read_text())
    rgb = load_chips(chips_file) * 1e-4
    assert normalisation["bands"] == ["R", "G", "B"]
    np.testing.assert_allclose(normalisation["mean"], rgb.mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(normalisation["std"], rgb.std(axis=(0, 1, 2)))
    record = json.loads((output / "pretraining.json").read_text())
    assert record["losses"][-1] < record["losses"][0]
    assert str(tmp_path) not in (output / "pretraining.json").read_text()
    assert not torch.equal(weights(output)["layernorm.weight"], weights(output / "epoch_002")["layernorm.weight"])


def test_chips_are_standardised(chips_file):
    chips = RGBChips(load_chips(chips_file), 1e-4)
    values = torch.stack([chips[i] for i in range(len(chips))])
    assert values.shape == (12, 3, 16, 16)
    torch.testing.assert_close(values.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_whole_views_are_the_eight_symmetries_of_the_chip():
    chip = torch.arange(2 * 16.0).view(1, 2, 4, 4)
    views = random_views(chip.expand(64, 2, 4, 4), 4, 1.0, torch.Generator().manual_seed(0))
    turned = [chip[0].rot90(turns, (1, 2)) for turns in range(4)]
    expected = torch.stack([*turned, *(view.flip(2) for view in turned)])
    distance = (views[:, None] - expected[None]).abs().amax(dim=(2, 3, 4))
    assert distance.amin(dim=1).max() < 1e-4  # each view is one of the eight
    assert distance.amin(dim=0).max() < 1e-4  # each of the eight occurs


def test_crops_stay_inside_the_chip_and_differ():
    ramp = torch.arange(64.0).expand(32, 1, 64, 64)
    views = random_views(ramp, 32, 0.25, torch.Generator().manual_seed(0))
    assert views.min() >= 0 and views.max() <= 63
    width = (views.amax(dim=(1, 2, 3)) - views.amin(dim=(1, 2, 3)) + 1) / 64
    assert 0.45 < width.min() < width.max() <= 1.01
    assert len(torch.unique(width)) == 32


def test_checkpoints_that_do_not_fit_the_command_are_named(chips_file, tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no checkpoint: leave out --resume, or correct --output"):
        run(chips_file, tmp_path / "out", resume=True)
    output = run(chips_file, tmp_path / "out", epochs=1)
    with pytest.raises(CheckpointError, match=r"holds checkpoint_0001: add --resume to go on, or take another --out"):
        run(chips_file, output, epochs=1)
    with pytest.raises(CheckpointError, match=r"was made with epochs=1, seed=0: resume with the same options"):
        run(chips_file, output, epochs=2, seed=3, resume=True)
    for file in ("model.safetensors", "pretraining.json"):
        (output / "checkpoint_0001" / file).write_bytes(b"{")
        with pytest.raises(CheckpointError, match=r"checkpoint_0001.*: cannot be loaded: "):
            run(chips_file, output, epochs=1, resume=True)


def test_weights_that_are_no_numbers_are_not_saved(chips_file, tmp_path):
    with pytest.raises(DataError, match=r"weights are not finite after epoch 1: give a lower --learning_rate"):
        run(chips_file, tmp_path / "out", epochs=2, learning_rate=1e30, warmup_epochs=1)
    assert not (tmp_path / "out").exists()


def test_folder_of_files_is_joined_and_must_agree(tmp_path):
    with pytest.raises(DataError, match=r"no \.npz file here"):
        load_chips(tmp_path)
    for name, count in (("a", 2), ("b", 3)):
        np.savez(tmp_path / f"{name}.npz", rgb=np.full((count, 8, 8, 3), count, np.uint16))
    assert load_chips(tmp_path)[:, 0, 0, 0].tolist() == [2, 2, 3, 3, 3]
    np.savez(tmp_path / "c.npz", rgb=np.ones((1, 9, 9, 3), np.uint16))
    with pytest.raises(DataError, match=r"c.npz: chips of \(9, 9\), but .*a.npz has \(8, 8\) pixels"):
        load_chips(tmp_path)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"image_size": 60}, "image_size 60 is not a multiple of patch_size 8"),
        ({"heads": 5}, "hidden_size 192 must be a multiple of 4 and of heads"),
        ({"mask_ratio": 1.0}, "'mask_ratio' must be less than 1"),
        ({"weight_decay": float("nan")}, "'weight_decay' must be a finite number"),
    ],
)
def test_impossible_option_is_refused(option, message):
    with pytest.raises(ConfigError, match=message):
        PretrainArguments(**{"images": "chips.npz", "output": "encoder", **option})
