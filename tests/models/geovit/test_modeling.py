"""GeoViT as a model of transformers, whatever its positions."""

import pytest
import torch
from transformers import AutoBackbone, AutoConfig

from deflect_hf.errors import BandError, ConfigError, DataError
from deflect_hf.models.geovit import GeoViTBackbone, GeoViTConfig, GeoViTModel
from deflect_hf.models.geovit.sources import SOURCES
from tests.models.geovit.conftest import make_encoder
from tests.tuners.tiny import SIZES

MILLIONS = {
    "scale-mae": 303.10,
    "dino-mc": 21.67,
    "cross-scale-mae-base": 85.65,
    "cross-scale-mae-large": 303.10,
    "satmae": 303.10,
    "prithvi-eo-1": 86.24,
    "prithvi-eo-2-300m": 303.89,
    "prithvi-eo-2-300m-tl": 303.89,
    "prithvi-eo-2-600m": 631.19,
    "prithvi-eo-2-600m-tl": 631.19,
}
GRIDS = {"dino-mc": (1, 28, 28), "cross-scale-mae-base": (1, 8, 8), "prithvi-eo-1": (3, 14, 14)}
GRIDS |= {"prithvi-eo-2-600m": (4, 16, 16), "scale-mae": (1, 14, 14)}


@pytest.mark.parametrize("source", list(SOURCES))
def test_parameters_of_the_published_sizes(source):
    config = GeoViTConfig(**SOURCES[source].config)
    with torch.device("meta"):
        model = GeoViTModel(config)
    assert model.num_parameters() / 1e6 == pytest.approx(MILLIONS[source], abs=0.006)
    assert config.grid_size == GRIDS.get(source, config.grid_size)
    assert config.num_channels == len(SOURCES[source].base_bands)


def test_tokens_of_rectangular_images(encoder, pixels):
    output = encoder(pixels, output_hidden_states=True)
    assert output.last_hidden_state.shape == (2, 1 + 4 * 6, 32)
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])
    assert len(output.hidden_states) == 4
    assert torch.equal(encoder.layernorm(output.hidden_states[-1]), output.last_hidden_state)


def test_height_and_width_are_not_mixed_up(encoder, pixels):
    encoder.embeddings.patch_embeddings.projection.bias.data.zero_()
    with torch.no_grad():
        encoder.embeddings.patch_embeddings.projection.weight.zero_()
        wide, high = encoder(pixels), encoder(pixels.transpose(-2, -1))
    maps = [tokens.last_hidden_state[0, 1:].unflatten(0, grid) for tokens, grid in ((wide, (4, 6)), (high, (6, 4)))]
    # Without pixels a token knows only where it stands: rows and columns have codes of their own.
    assert not torch.allclose(maps[0], maps[1].transpose(0, 1), atol=1e-3)


def test_kernels_agree(kind, pixels):
    eager, sdpa = (make_encoder(kind, attn_implementation=name) for name in ("eager", "sdpa"))
    outputs = eager(pixels, output_attentions=True)
    torch.testing.assert_close(outputs.last_hidden_state, sdpa(pixels).last_hidden_state, atol=1e-5, rtol=1e-5)
    assert [weights.shape for weights in outputs.attentions] == [(2, 4, 25, 25)] * 3


def test_backbone_returns_maps_of_the_chosen_blocks(encoder, pixels, tmp_path):
    encoder.save_pretrained(tmp_path)
    backbone = GeoViTBackbone.from_pretrained(tmp_path, out_indices=[0, 2, 3]).eval()
    output = backbone(pixels)
    tokens = encoder(pixels, output_hidden_states=True).hidden_states
    assert backbone.channels == [32, 32, 32] and output.hidden_states is None
    for values, index in zip(output.feature_maps, (0, 2, 3), strict=True):
        assert values.shape == (2, 32, 4, 6)
        assert torch.equal(values.flatten(2).transpose(1, 2), tokens[index][:, 1:])
    normed = GeoViTBackbone.from_pretrained(tmp_path, out_indices=[3], apply_layernorm=True).eval()
    last = encoder(pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(normed(pixels).feature_maps[0].flatten(2).transpose(1, 2), last)


def test_auto_backbone_knows_it(kind):
    config = AutoConfig.for_model("geovit", position_embedding=kind, out_features=["stage1", "stage3"], **SIZES)
    backbone = AutoBackbone.from_config(config)
    assert type(backbone) is GeoViTBackbone
    assert [values.shape for values in backbone(torch.randn(1, 3, 16, 40)).feature_maps] == [(1, 32, 2, 5)] * 2


def test_compiles_in_one_graph(encoder, pixels):
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(pixels).last_hidden_state, encoder(pixels).last_hidden_state)


def test_gsd_of_the_call_overrides_that_of_the_configuration():
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    one, ten = make_encoder("sincos_gsd"), make_encoder("sincos_gsd", gsd=10.0)
    assert torch.equal(one(pixels, gsd=10.0).last_hidden_state, ten(pixels).last_hidden_state)
    assert torch.equal(ten(pixels, gsd=1).last_hidden_state, one(pixels).last_hidden_state)
    assert not torch.allclose(one(pixels).last_hidden_state, ten(pixels).last_hidden_state, atol=1e-3)
    # The default is what a plain sine-cosine encoder computes.
    assert torch.equal(one(pixels).last_hidden_state, make_encoder("sincos")(pixels).last_hidden_state)


def test_each_image_may_have_its_own_gsd():
    encoder, pixels = make_encoder("sincos_gsd"), torch.randn(2, 3, 16, 16)
    both = encoder(pixels, gsd=torch.tensor([1.0, 3.5])).last_hidden_state
    for index, gsd in enumerate((1.0, 3.5)):
        alone = encoder(pixels[index : index + 1], gsd=gsd).last_hidden_state
        torch.testing.assert_close(both[index : index + 1], alone, atol=1e-6, rtol=1e-5)


def test_series_of_frames():
    encoder = make_encoder("sincos_3d")
    image = torch.randn(2, 6, 16, 24, generator=torch.Generator().manual_seed(0))
    alone = encoder(image).last_hidden_state
    assert torch.equal(encoder(image.unsqueeze(2)).last_hidden_state, alone)
    series = torch.stack([image, image], dim=2)
    tokens = encoder.embeddings(series)
    assert tokens.shape == (2, 1 + 2 * 6, 32)
    # The same image twice: only the frame's code, the last 4/16 of the channels, tells them apart.
    first, second = tokens[:, 1:7], tokens[:, 7:]
    assert torch.equal(first[..., :24], second[..., :24])
    assert not torch.allclose(first[..., 24:], second[..., 24:], atol=1e-3)
    backbone = GeoViTBackbone(encoder.config)
    backbone.load_state_dict(encoder.state_dict())
    hidden = encoder(series, output_hidden_states=True).hidden_states[-1]
    mean = hidden[:, 1:].unflatten(1, (2, 2, 3)).mean(dim=1).permute(0, 3, 1, 2)
    torch.testing.assert_close(backbone.eval()(series).feature_maps[0], mean)


def test_backbone_gives_what_terratorch_does_of_prithvi(tmp_path):
    """There: `out[-1] = norm(x)`, then `batch (t h w) e -> batch (t e) h w` of each."""
    encoder = make_encoder("sincos_3d", num_frames=2)
    encoder.save_pretrained(tmp_path)
    series = torch.randn(2, 6, 2, 16, 24, generator=torch.Generator().manual_seed(0))
    options = {"out_indices": [1, 3], "apply_layernorm": "last", "series": "channels"}
    backbone = GeoViTBackbone.from_pretrained(tmp_path, **options).eval()
    output = encoder(series, output_hidden_states=True)
    assert backbone.channels == [64, 64]
    expected = [output.hidden_states[1][:, 1:], output.last_hidden_state[:, 1:]]
    for values, tokens in zip(backbone(series).feature_maps, expected, strict=True):
        theirs = tokens.reshape(2, 2, 2, 3, 32).permute(0, 1, 4, 2, 3).reshape(2, 64, 2, 3)
        torch.testing.assert_close(values, theirs)
    with pytest.raises(DataError, match=r"the series has 1 frames, but .* num_frames=2: load it with num_frames=1"):
        backbone(series[:, :, 0])
    with pytest.raises(ConfigError, match="series='sum' must be 'mean' or 'channels'"):
        GeoViTBackbone.from_pretrained(tmp_path, series="sum")


@pytest.mark.parametrize(
    ("kind", "shape", "error", "message"),
    [
        ("sincos", (1, 4, 16, 16), BandError, "pixel_values has 4 channels, but the encoder takes 3"),
        ("sincos", (1, 3, 16, 20), DataError, "must be multiples of the patch size 8 x 8"),
        ("sincos", (1, 3, 2, 16, 16), DataError, r"must be \(batch, bands, height, width\), not of shape"),
        ("sincos_3d", (6, 16, 16), DataError, r"or \(batch, bands, frames, height, width\), not of shape"),
        ("learned", (0, 3, 16, 16), DataError, "nothing empty"),
    ],
)
def test_wrong_shapes_are_refused(kind, shape, error, message):
    with pytest.raises(error, match=message):
        make_encoder(kind)(torch.zeros(shape))


def test_gsd_must_be_positive_and_fit_the_batch_and_the_encoder():
    for gsd in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="must be positive"):
            make_encoder("sincos_gsd")(torch.zeros(1, 3, 16, 16), gsd=gsd)
    with pytest.raises(DataError, match=r"one number or one per image \(2\), not \(3,\)"):
        make_encoder("sincos_gsd")(torch.zeros(2, 3, 16, 16), gsd=torch.ones(3))
    with pytest.raises(ConfigError, match="'learned' positions do not depend on it"):
        make_encoder("learned")(torch.zeros(2, 3, 16, 16), gsd=2.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"position_embedding": "sincos_2d"}, r"Did you mean 'sincos_[3g]"),
        ({"gsd": 2.0}, "gsd=2.0 has no effect on 'sincos' positions"),
        ({"position_embedding": "sincos_gsd", "gsd": 0.0}, "must be positive"),
        ({"num_frames": 3}, "more than one frame needs 'sincos_3d'"),
        ({"hidden_size": 24, "position_embedding": "sincos_3d"}, "multiple of 16"),
        ({"num_attention_heads": 5}, "multiple of num_attention_heads=5"),
        ({"image_size": 36}, "image_size=36 must be a multiple of patch_size=8"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        GeoViTConfig(**{**SIZES, **fields})


def test_a_rectangular_pretraining_grid():
    encoder = make_encoder("learned", image_size=[16, 32])
    pixels = torch.randn(1, 3, 16, 32)
    assert encoder.embeddings.position_embeddings.shape == (1, 1 + 2 * 4, 32)
    patches = encoder.embeddings.patch_embeddings(pixels)
    torch.testing.assert_close(
        encoder.embeddings(pixels)[:, 1:], patches + encoder.embeddings.position_embeddings[:, 1:]
    )
