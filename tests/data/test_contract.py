import logging

import numpy as np
import pytest
import torch

from deflect_hf.data.contract import QUANTILES, BandContract, check_reflectance, refuse_mixed_units
from deflect_hf.errors import UnitError

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
        (
            np.where(GENERATOR.random((6, 64, 64)) < 0.1, -0.9999, chip(0.2)[..., :1, :1]),
            "many hold the lowest one.*`nodata`",
        ),
        (chip(0.2) - 1000, "an offset of digital numbers; it is added after the scale"),
        (GENERATOR.standard_normal((3, 32, 32)), "standardised .mean and standard deviation taken off."),
        (chip(0.03) - 0.1, "an offset that the images do not have.*'sentinel2_l2a_harmonized'"),
        (chip(0.2) * 1e-4, "no value is above .* a scale applied twice"),
    ],
)
def test_other_units_are_refused_with_the_fix(values, message):
    with pytest.raises(UnitError, match=r"^scene\.tif: .*(" + message + ")"):
        check_reflectance(values, "scene.tif")


def test_bands_that_are_no_reflectance_keep_their_unit():
    bands = ["B", "N", "T1", "DEM", "VV", "N@1"]
    values = np.stack([chip(one)[0] for one in (0.05, 0.3, 295, 1800, -12, 0.3)])
    check_reflectance(values, "x", bands)
    refuse_mixed_units(values * np.array([1e4, 1e4, 1, 1, 1e-3, 1e4])[:, None, None], np.float64(1e-4), bands, "x")
    for wrong in ([0, 2], [5, 3]):  # the same numbers under the name of a band of reflectance
        values[wrong[0]] = values[wrong[1]]
        with pytest.raises(UnitError, match=f"band '{bands[wrong[0]]}', channel {wrong[0]} is not reflectance"):
            check_reflectance(values, "x", bands)
        values[wrong[0]] = 0.1


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


BANDS = ("B", "G", "R", "N", "S1")


def contract(**options) -> BandContract:
    return BandContract(**{"bands": BANDS, "needed_bands": BANDS, "gsd_m": 30.0, **options})


def warnings_of(caplog, available, gsd_m=30.0, **options) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="deflect_hf.data.contract"):
        contract(**options).compare("a.tif", available, "reflectance", gsd_m)
    return caplog.messages


def test_the_same_bands_in_any_order_pass_without_a_word(caplog):
    assert warnings_of(caplog, ["S1", "N", "R", "G", "B"]) == []
    assert warnings_of(caplog, [*BANDS, "A"], ignored_bands=("A",)) == []  # training images had it too
    assert warnings_of(caplog, BANDS, gsd_m=None) == []
    assert warnings_of(caplog, BANDS, gsd_m=25.0) == []
    assert warnings_of(caplog, ["B", "G", "R", "N2", "S1"]) == []  # a single near-infrared band stands in


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda values: values + 0.1, r"in all bands, .* training images plus 0\.1; medians are B .*needs offset"),
        (lambda values: values - 0.1, "minus 0.1; .*unit_check"),
        (lambda values: values * 10, "times 10"),
        (lambda values: values * 2, "times 2; .*digital numbers mean something else"),
        (lambda values: values / 100, r"99 % of the values are below .*correct `scale` .*percent: 0\.01"),
        (lambda values: values * 0, None),
        (lambda values: values, None),
        (lambda values: values * np.array([3, 2, 1, 0.5, 0.4])[:, None], None),  # another landscape
        (lambda values: values * 0.2 + 0.55, None),  # cloud
        (lambda values: values * 0.1 + np.array([0.75, 0.72, 0.69, 0.6, 0.06])[:, None], None),  # snow
        (lambda values: np.full_like(values, np.nan), None),
    ],
)
def test_values_that_are_those_of_training_but_for_an_offset_or_a_scale_are_refused(change, told):
    generator = np.random.default_rng(0)
    middle = np.array([0.05, 0.08, 0.07, 0.25, 0.18])[:, None]
    trained = middle * generator.lognormal(sigma=0.4, size=(5, 4000))
    quantiles = dict(zip(BANDS, np.quantile(trained, QUANTILES, axis=1).T.tolist(), strict=True))
    values = change(middle * generator.lognormal(sigma=0.35, size=(5, 3000)))
    if told is None:
        contract(quantiles=quantiles).check_values(values, "a.tif")
    else:
        with pytest.raises(UnitError, match=told):
            contract(quantiles=quantiles).check_values(values, "a.tif")
    contract().check_values(values, "a.tif")  # trained before quantiles were kept
