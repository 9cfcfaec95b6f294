"""Further bands behind the base bands: a wider patch embedding, which changes nothing until its kernel is set."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from deflect_hf.errors import BandError, ConfigError
from deflect_hf.models import EncoderForImageClassification, GeoViTConfig, GeoViTModel
from deflect_hf.models.patch_embedding import patch_projection
from tests.tuners.tiny import BANDS, ENCODERS, SIZES, make_encoder

KINDS = [*ENCODERS, "geovit", "temporal"]
NORMALISATION = {"base_mean": [0.1, 0.12, 0.14], "base_std": [0.1, 0.1, 0.1]}
EXTRA: dict[str, Any] = {
    "extra_bands": ["N", "S1", "S2"], "extra_mean": [0.3, 0.2, 0.1], "extra_std": [0.1, 0.2, 0.3],
}  # fmt: skip


def task_model(kind: str = "vit", encoder: torch.nn.Module | None = None) -> EncoderForImageClassification:
    if encoder is None:
        encoder = make_encoder(kind) if kind in ENCODERS else geovit(kind)
    return EncoderForImageClassification.from_encoder(encoder, num_labels=3)


def geovit(kind: str) -> GeoViTModel:
    torch.manual_seed(0)
    frames = {"num_frames": 2, "position_embedding": "sincos_3d"} if kind == "temporal" else {}
    return GeoViTModel(GeoViTConfig(**SIZES, **frames)).eval()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_wider_encoder_answers_as_before_until_its_kernel_changes(kind: str, reflectance: torch.Tensor) -> None:
    model = task_model(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.set_bands(BANDS, **NORMALISATION)
    expected = model(reflectance).logits
    model.set_bands(BANDS, **NORMALISATION, **EXTRA)
    assert model.encoder.config.num_channels == 6 and model.config.encoder_bands == ["R", "G", "B", "N", "S1", "S2"]
    torch.testing.assert_close(model(reflectance).logits, expected, rtol=1e-5, atol=1e-6)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert len(changed) == 1 and changed[0].endswith(("projection.weight", "patch_embeddings.weight"))
    reflectance[:, BANDS.index("S1")] = torch.nan
    torch.testing.assert_close(model(reflectance).logits, expected, rtol=1e-5, atol=1e-6)


def test_the_wider_encoder_sees_each_band_normalised_in_its_channel(reflectance: torch.Tensor) -> None:
    model = task_model()
    model.set_bands(BANDS, **NORMALISATION, **EXTRA)
    seen: list[torch.Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(reflectance)
    order = [BANDS.index(band) for band in ("R", "G", "B", "N", "S1", "S2")]
    mean, std = torch.tensor([0.1, 0.12, 0.14, 0.3, 0.2, 0.1]), torch.tensor([0.1, 0.1, 0.1, 0.1, 0.2, 0.3])
    expected = (reflectance[:, order] - mean.view(1, 6, 1, 1)) / std.view(1, 6, 1, 1)
    torch.testing.assert_close(seen[0], expected)


def test_saved_and_loaded_whole_and_around_the_narrow_encoder(
    kind: str, tmp_path: Path, reflectance: torch.Tensor
) -> None:
    model = task_model(kind)
    model.set_bands(BANDS, **NORMALISATION, **EXTRA)
    with torch.no_grad():
        patch_projection(model.encoder.get_input_embeddings()).weight.normal_()
    expected = model(reflectance).logits
    model.save_pretrained(tmp_path)
    assert torch.equal(EncoderForImageClassification.from_pretrained(tmp_path)(reflectance).logits, expected)
    narrow: Any = make_encoder(kind) if kind in ENCODERS else geovit(kind)
    narrow.pooler = None
    again = EncoderForImageClassification(AutoConfig.from_pretrained(tmp_path), narrow).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(reflectance).logits, expected)


def test_wider_once() -> None:
    model = task_model()
    model.set_bands(BANDS, **NORMALISATION, **EXTRA)
    kernel = patch_projection(model.encoder).weight
    model.set_bands(BANDS, **NORMALISATION, **EXTRA)
    assert patch_projection(model.encoder).weight is kernel
    with pytest.raises(ConfigError, match="has 3 entries, but the encoder takes 6 channels"):
        model.set_bands(BANDS, **NORMALISATION)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"extra_bands": ["N"]}, ConfigError, "all bands are normalised, or none is"),
        ({**EXTRA, "base_mean": None, "base_std": None}, ConfigError, "all bands are normalised, or none is"),
        ({"extra_mean": [0.1], "extra_std": [0.1]}, ConfigError, "'extra_mean', 'extra_std' given, but"),
        ({**EXTRA, "extra_mean": [0.1]}, ConfigError, r"extra_mean=\[0.1\] must have one entry for each"),
        ({"extra_bands": [], "extra_mean": [], "extra_std": []}, ConfigError, r"extra_bands=\[\] must have one entry"),
        ({**EXTRA, "extra_std": [0.1, 0.0, 0.1]}, ConfigError, "deviations above 0"),
        ({**EXTRA, "extra_bands": ["N", "S1", "RE1"]}, BandError, r"lack the band\(s\) 'RE1'"),
        ({**EXTRA, "extra_bands": ["N", "S1", "R"]}, BandError, "'R'"),
    ],
)
def test_what_does_not_fit(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    model = task_model()
    with pytest.raises(error, match=message):
        model.set_bands(BANDS, **{**NORMALISATION, **fields})
    assert model.config.bands is None and model.encoder.config.num_channels == 3


def test_without_bands_there_are_none() -> None:
    with pytest.raises(ConfigError, match="'extra_bands' given without bands"):
        EncoderForImageClassification.from_encoder(make_encoder(), num_labels=3, extra_bands=["N"])
