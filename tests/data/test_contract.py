import logging

import numpy as np
import pytest
import torch

from deflect_hf.data.contract import QUANTILES, BandContract, check_reflectance
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.errors import BandError, UnitError

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


def test_what_is_odd_is_warned_about(caplog):
    message = "a.tif: band(s) 'A', 'S2' are unknown to the model and are ignored"
    assert warnings_of(caplog, ["A", *BANDS, "S2"]) == [message]
    caplog.clear()
    assert warnings_of(caplog, BANDS, gsd_m=20.0) == ["a.tif: pixels of 20 m, but the model was trained on 30 m"]


def test_a_grid_of_another_kind_is_warned_about_and_another_zone_is_not(caplog):
    def compared(projection: str | None, trained: str | None = "Transverse_Mercator") -> list[str]:
        caplog.clear()
        contract(projection=trained).compare("a.tif", BANDS, "reflectance", 30.0, projection)
        return caplog.messages

    assert compared("Transverse_Mercator") == compared(None) == compared("geographic", trained=None) == []
    assert compared("geographic") == [
        "a.tif: its coordinate reference system is geographic, but the model was trained on images in one that is "
        "Transverse_Mercator: pixels may have another size or shape on the ground (gdalwarp -t_srs brings the image to "
        "such a system)"
    ]


def test_pixels_are_compared_as_the_model_sees_them_once_images_are_resized(caplog):
    def resized(gsd_m: float, height: int) -> list[str]:
        caplog.clear()
        contract(height=128).compare("a.tif", BANDS, "reflectance", gsd_m, None, height)
        return caplog.messages

    assert resized(30.0, 128) == resized(10.0, 384) == []  # three times as fine, and shrunk three times as much
    assert resized(30.0, 384) == [
        "a.tif: pixels of 90 m once 384 of them are resized as 128 were in training, but the model was trained on 30 m"
    ]
    processor = MultispectralImageProcessor(["R", "G", "B"], size=64, trained_size=[128, 96])
    assert processor.contract.height == 128
    assert MultispectralImageProcessor(["R", "G", "B"], trained_size=[128, 96]).contract.height is None


def test_a_missing_band_is_refused_unless_trained_with_band_dropout(caplog):
    message = r"a.tif: the images lack the band\(s\) 'S1'; they have 'N', 'R', 'G', 'B'\. .*trained with band_dropout"
    with pytest.raises(BandError, match=message):
        contract().compare("a.tif", ["N", "R", "G", "B"], "reflectance", None)
    message = "a.tif: without the band(s) 'S1'; the model was trained to do without"
    assert warnings_of(caplog, ["N", "R", "G", "B"], needed_bands=("R", "G", "B")) == [message]
    with pytest.raises(BandError, match=r"lack the band\(s\) 'R'; they have 'N', 'G', 'B', 'S1'"):
        contract(needed_bands=("R", "G", "B")).compare("a.tif", ["N", "G", "B", "S1"], "reflectance", None)


def test_a_single_near_infrared_band_stands_in(caplog):
    assert warnings_of(caplog, ["B", "G", "R", "N2", "S1"]) == []


@pytest.mark.parametrize(
    ("trained", "given", "message"),
    [
        ("reflectance", "8bit", r"a.tif: .*trained on reflectance \(1.0 = 100 %\), but the images hold 8-bit values"),
        ("8bit", "reflectance", r"a.tif: .*trained on 8-bit values, but the images hold reflectance"),
    ],
)
def test_other_units_are_refused(trained, given, message):
    with pytest.raises(UnitError, match=message):
        contract(unit=trained).compare("a.tif", BANDS, given, None)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda values: values + 0.1,
            r"in all bands, .* training images plus 0\.1; medians are B .*needs offset -0\.1",
        ),
        (lambda values: values - 0.1, "minus 0.1; .*unit_check"),
        (lambda values: values * 10, "times 10"),
        (lambda values: values * 2, "times 2; .*digital numbers mean something else"),
        (lambda values: values, None),
        (lambda values: values * np.array([3, 2, 1, 0.5, 0.4])[:, None], None),  # another landscape
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
