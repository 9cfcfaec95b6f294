import json
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deflect_hf.contract import BandContract, check_reflectance
from deflect_hf.errors import BandError, ConfigError, UnitError

GENERATOR = np.random.default_rng(0)


def chip(mean: float, spread: float = 0.3, shape: tuple[int, ...] = (6, 32, 32)) -> np.ndarray:
    return (mean * (1 + spread * GENERATOR.standard_normal(shape))).astype(np.float32)


@pytest.mark.parametrize(
    "values",
    [
        chip(0.2),
        chip(0.01, spread=1.0),  # dark water: a sixth of the values are negative
        chip(0.0004),  # water in the SWIR alone
        chip(1.3, spread=0.2),  # snow and cloud
        np.zeros((6, 8, 8)),
        np.ones((6, 8, 8)),
        np.full((6, 8, 8), np.nan),
        np.where(GENERATOR.random((6, 64, 64)) < 0.02, 28.0, 0.2),  # a few broken pixels
        np.where(GENERATOR.random((6, 64, 64)) < 0.02, -0.9, 0.2),
        GENERATOR.integers(0, 2, (6, 32, 32)),
        torch.rand(2, 6, 8, 8, dtype=torch.bfloat16),
        np.array([0.3]),
    ],
)
def test_reflectance_passes(values):
    check_reflectance(values, "image.tif")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (chip(1800).round(), "digital numbers: give the sensor, or its scale and offset .Sentinel-2: scale 1e-4"),
        (chip(120).round(), "8-bit values: use a sensor with unit '8bit' and scale 1/255"),
        (GENERATOR.integers(0, 256, (3, 16, 16)).astype(np.uint8), "8-bit values"),
        (np.where(GENERATOR.random((3, 64, 64)) < 0.95, 0, 200), "8-bit values"),  # dark, but whole numbers
        (chip(300).round() - 1000, "digital numbers|standardised"),
        (GENERATOR.standard_normal((3, 32, 32)), "standardised .mean and standard deviation taken off."),
        (chip(0.03) - 0.1, "an offset that the images do not have.*'sentinel2_l2a_harmonized'"),
        (chip(0.2) * 1e-4, "no value is above .* a scale applied twice"),
    ],
)
def test_other_units_are_refused_with_the_fix(values, message):
    with pytest.raises(UnitError, match=r"^scene\.tif: .*(" + message + ")"):
        check_reflectance(values, "scene.tif")


def test_one_bad_channel_among_good_ones_is_named():
    values = chip(0.2)
    values[4] = 140
    with pytest.raises(UnitError, match=r"channel 4 is not reflectance .*half below 140"):
        check_reflectance(values, "x")


def test_real_images_pass_as_reflectance_and_fail_as_digital_numbers(shared_data):
    rasterio = pytest.importorskip("rasterio")
    files = (
        sorted((shared_data / "eurosat200").rglob("*.tif"))[::8] + sorted((shared_data / "water").rglob("*.tif"))[::12]
    )
    assert len(files) > 20
    for file in files:
        with rasterio.open(file) as image:
            stored = image.read()
        check_reflectance(stored * 1e-4, file.name)
        with pytest.raises(UnitError):
            check_reflectance(stored, file.name)
        with pytest.raises(UnitError):
            check_reflectance(
                (stored - stored.mean((1, 2), keepdims=True)) / stored.std((1, 2), keepdims=True), file.name
            )
        if len(stored) == 13:  # the cirrus band is so dark that a wrong offset always shows
            with pytest.raises(UnitError, match="offset"):
                check_reflectance(stored * 1e-4 - 0.1, file.name)


def contract(**options) -> BandContract:
    values = {"bands": ["B", "G", "R", "N", "S1"], "gsd_m": 30.0, "formulas": {"NDVI": "(N-R)/(N+R)"}}
    return BandContract(**{**values, **options})


@settings(max_examples=25, deadline=None)
@given(st.permutations(["B", "G", "R", "N", "S1", "S2", "A"]))
def test_any_order_of_the_bands_gives_the_same_channels(order):
    image = {band: float(i) for i, band in enumerate(["B", "G", "R", "N", "S1", "S2", "A"])}
    pixel_values = torch.tensor([image[band] for band in order]).reshape(1, -1, 1, 1).expand(2, -1, 3, 3)
    arranged = contract().arrange(pixel_values, order)
    assert arranged[0, :, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_extra_bands_and_other_pixel_sizes_are_warned_about(caplog):
    with caplog.at_level(logging.WARNING, logger="deflect_hf.contract"):
        assert contract().check(["S2", "B", "G", "R", "N", "S1"], gsd_m=20.0) == [1, 2, 3, 4, 5]
    assert caplog.messages == ["bands not used by the adapter are ignored: 'S2'"]
    caplog.clear()
    contract().check(["B", "G", "R", "N", "S1"], gsd_m=10.0)
    assert caplog.messages == ["trained on pixels of 30 m, applied to pixels of 10 m"]


def test_a_missing_band_is_refused_unless_trained_with_band_dropout():
    message = r"the adapter needs the band\(s\) 'S1', but the images have 'N', 'R', 'G', 'B'\. .*band_dropout > 0"
    with pytest.raises(BandError, match=message):
        contract().check(["N", "R", "G", "B"])
    robust = contract(band_dropout=0.3)
    assert robust.check(["N", "R", "G", "B"]) == [3, 2, 1, 0, None]
    arranged = robust.arrange(torch.ones(1, 4, 2, 2), ["N", "R", "G", "B"])
    assert bool(arranged[:, 4].isnan().all())
    assert bool((arranged[:, :4] == 1).all())
    with pytest.raises(BandError, match=r"'R'.*needed by the frozen model"):
        robust.check(["N", "G", "B", "S1"])


def test_a_single_near_infrared_band_stands_in():
    assert contract().check(["B", "G", "R", "N2", "S1"]) == [0, 1, 2, 3, 4]
    with pytest.raises(BandError, match=r"needs the band\(s\) 'N2'"):
        contract(bands=["B", "G", "R", "N", "N2"]).check(["B", "G", "R", "N"])


def test_other_units_are_refused():
    with pytest.raises(UnitError, match=r"trained on reflectance \(1.0 = 100 %\), but the images hold 8-bit values"):
        contract().check(["B", "G", "R", "N", "S1"], unit="8bit")


def test_a_wrong_number_of_channels_is_refused():
    with pytest.raises(BandError, match="the images have 3 channels, but the bands are 'B', 'G'"):
        contract().arrange(torch.ones(1, 3, 2, 2), ["B", "G"])


def test_saved_and_restored_through_json():
    original = contract(
        base_mean=(0.1, 0.2, 0.3), base_std=(1, 1, 1), feature_mean=[0.5], image_size=(224, 224), offset=-0.1
    )
    restored = BandContract.from_dict(json.loads(json.dumps(original.to_dict())))
    assert restored == original
    with pytest.raises(ConfigError, match=r"unknown key 'band'; .*Did you mean 'bands'\?"):
        BandContract.from_dict({"band": ["R"]})
    with pytest.raises(ConfigError, match="the key 'bands' is missing"):
        BandContract.from_dict({"unit": "8bit"})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"unit": "dn"}, ConfigError, "unit 'dn' is not one of"),
        ({"band_dropout": 1.0}, ConfigError, "band_dropout must be at least 0 and below 1, not 1.0"),
        ({"bands": ["B", "G", "N"]}, BandError, r"lack the band\(s\) 'R'"),
        ({"bands": ["B", "G", "R", "red"]}, BandError, "given twice"),
    ],
)
def test_contradictory_contracts_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        contract(**options)
