"""Fitting what standardises the pixel sets: valid pixels only, whatever the batches and processes."""

import math

import numpy as np
import pytest
import torch

from deflect_hf.errors import ConfigError, DataError, UnitError
from deflect_hf.tuners.statistics import fit_statistics
from tests.tuners.tiny import BANDS, adapted, make_encoder

INDICES = ["NDVI", "EVI"]


def images() -> torch.Tensor:
    """(5, 6, 32, 32) reflectance of mixed validity: N is missing in two images, S1 in half of the pixels of one."""
    pixels = 0.02 + 0.4 * torch.rand(5, 6, 32, 32, generator=torch.Generator().manual_seed(4))
    pixels[:2, BANDS.index("N")] = math.nan
    pixels[3, BANDS.index("S1"), :16] = math.nan
    pixels[4, :, 8:24, 3:9] = math.nan
    return pixels


def test_statistics_are_those_of_all_valid_patches():
    model = adapted("vit", indices=INDICES)
    moments = fit_statistics(model, images().split(2))
    features = model.base_model.model.embeddings.deflect_input["default"].features
    raw = features.raw_statistics(images()).double().numpy().reshape(-1, 16)
    config = model.peft_config["default"]
    np.testing.assert_allclose(config.feature_mean, np.nanmean(raw, axis=0), rtol=1e-8)
    np.testing.assert_allclose(config.feature_std, np.nanstd(raw, axis=0), rtol=1e-6)
    assert moments.count.tolist() == np.isfinite(raw).sum(axis=0).tolist()
    # 16 patches per image: N and the indices that use it lack two images, S1 half of one
    assert moments.count[:8].tolist() == [80, 80, 80, 48, 72, 80, 48, 48]
    standardised = features(images()[2:])
    assert standardised.mean(dim=(0, 1)).abs().max() < 0.5
    assert torch.isfinite(features(images())).all()


def test_what_does_not_vary_is_centred_and_not_blown_up():
    """A constant band, a band that varies by rounding alone, and a large index of both."""
    flat = images()[2:4].nan_to_num(0.1)
    flat[:, BANDS.index("S2")] = 0.25
    flat[:, BANDS.index("S1")] = 0.2 + 1e-8 * torch.arange(32)
    model = adapted("vit", formulas={"high": "700 + S2 + S1"})
    fit_statistics(model, [flat])
    config = model.peft_config["default"]
    names = [*BANDS, "high"]
    still = [name for name, std in zip(names * 2, config.feature_std, strict=True) if std == 0]
    assert still == ["S1", "S2", "high"] * 2
    features = model.base_model.model.embeddings.deflect_input["default"].features
    flat[:, BANDS.index("S2")] = 0.75
    column = names.index("S2")
    torch.testing.assert_close(features(flat)[..., column], torch.full((2, 16), 0.5))
    assert features(flat)[..., : len(names)].abs().max() < 10


def test_what_cannot_be_fitted_is_refused():
    pixels = images()
    pixels[:, BANDS.index("N")] = math.nan
    model = adapted("vit", indices=["NDVI"])
    with pytest.raises(DataError, match=r"No valid pixel was seen for 'mean N', 'mean NDVI', 'std N', 'std NDVI'"):
        fit_statistics(model, [pixels])
    assert model.peft_config["default"].feature_mean is None
    with pytest.raises(DataError, match=r"batch 0 have the shape \(6, 32, 32\), not \(B, C, H, W\): give a DataLoader"):
        fit_statistics(model, images())
    with pytest.raises(ConfigError, match="The model has no DEFLECT adapter"):
        fit_statistics(make_encoder(), [pixels])
    with pytest.raises(ConfigError, match="No DEFLECT adapter 'other' here; there are 'default'"):
        fit_statistics(model, [pixels], adapter_name="other")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: (x * 10000).round(), "digital numbers"),
        (lambda x: (x - 0.2) / 0.1, "standardised .*indices need the reflectance itself, so give the images before"),
    ],
)
def test_values_that_are_no_reflectance_are_refused(change, told):
    pixels = change(images())
    with pytest.raises(UnitError, match=rf"^the first batch of pixel_values: .*{told}"):
        fit_statistics(adapted("vit", indices=INDICES), [pixels])
    fit_statistics(adapted("vit", indices=INDICES), [pixels], unit_check=False)
    fit_statistics(adapted("vit", indices=["NDVI"], unit="8bit"), [pixels])


def test_a_base_mean_in_another_unit_is_warned_about(caplog):
    fit_statistics(adapted("vit"), [images()])
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    of_imagenet = {"base_mean": [0.485, 0.456, 0.406], "base_std": [0.229, 0.224, 0.225]}
    fit_statistics(adapted("vit", **of_imagenet), [0.4 * images()])
    # the dark images of blue are not as far away
    red, green = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert red.startswith(
        "band R has the mean 0.0888, but base_mean is 0.485 and base_std 0.229: the frozen encoder is"
    )
    assert green.endswith("values -1.6 standard deviations away from its own. Are they in reflectance, as the images?")


def test_an_aliased_base_band_is_compared_too(caplog):
    """An encoder of N2 on images that have N alone, as Prithvi's on most sensors."""
    base = {"base_bands": ["N2", "G", "B"], "base_mean": [0.9, 0.2, 0.2], "base_std": [0.1] * 3}
    fit_statistics(adapted("vit", **base), [images()])
    (near_infrared,) = [message for message in caplog.messages if message.startswith("band ")]
    assert near_infrared.startswith("band N2 has the mean 0.22")
