import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deflect_hf.errors import BandError
from deflect_hf.spectral.selection import match_bands, normalise_base_bands, resolve_bands, select_bands
from deflect_hf.spectral.sensors import SENSORS


def test_names_of_one_band_lead_to_its_code():
    sensor = SENSORS["sentinel2_l2a"]
    red = dict.fromkeys(["B04", "b4", "Band 4", "red", "Red", "R"], "R")
    others = {"B8A": "N2", "nir narrow": "N2", "B08": "N", "SWIR-1": "S1", "swir16": "S1", "blue": "B", "B": "B"}
    for name, code in {**red, **others}.items():
        assert sensor.resolve(name).code == code


def test_common_names_need_no_sensor_but_band_numbers_do():
    assert resolve_bands(["red", "NIR", "S1", "W1034"]) == ["R", "N", "S1", "W1034"]
    assert resolve_bands(iter(["red", "NIR"])) == ["R", "N"]
    with pytest.raises(BandError, match=r"band number 'B05' needs a sensor: it is another band on another sensor\."):
        resolve_bands(["B05"])
    assert resolve_bands(["B05"], SENSORS["sentinel2_l2a"]) == ["RE1"]
    assert resolve_bands(["B05"], SENSORS["landsat_c2l2"]) == ["N"]


def test_unknown_band_names_the_valid_ones_and_the_nearest():
    with pytest.raises(BandError, match=r"'grene' is not a band of sensor 'rgb'; the bands are 'R', 'G', 'B'"):
        SENSORS["rgb"].resolve("grene")
    with pytest.raises(BandError, match=r"Did you mean 'swir1'\?"):
        resolve_bands(["swri1"])


def test_the_name_that_an_error_proposes_is_known():
    with pytest.raises(BandError, match=r"Did you mean 'Short-wave infrared 1'\?"):
        resolve_bands(["Short-wave infrered 1"])
    assert resolve_bands(["Short-wave infrared 1", "coastal aerosol"]) == ["S1", "A"]


@pytest.mark.parametrize("names", [["R", "red"], ["N", "nir"], ["W1034", "W1034"]])
def test_a_band_given_twice_is_refused_with_what_was_written(names):
    with pytest.raises(BandError, match=f"is given twice .'{names[0]}', '{names[1]}'.; name each band once"):
        resolve_bands(names)


def test_positions_and_single_strings_are_not_names():
    with pytest.raises(BandError, match="chosen by its name, not by 3"):
        resolve_bands([3])
    with pytest.raises(BandError, match="not the single string 'RGB'"):
        resolve_bands("RGB")


def test_selection_is_by_name_whatever_the_order():
    assert select_bands(["S1", "B", "N", "R", "G"], ["R", "G", "B"]) == [3, 4, 1]


def test_a_single_near_infrared_band_answers_to_both_codes(caplog):
    with caplog.at_level(logging.INFO, logger="deflect_hf.spectral.selection"):
        assert select_bands(["R", "N2"], ["N", "R"]) == [1, 0]
        assert select_bands(["R", "N"], ["N2"]) == [1]
    with pytest.raises(BandError, match=r"lack the band\(s\) 'N2'"):  # one band cannot be two features
        select_bands(["R", "N"], ["N", "N2"])
    assert select_bands(["N2", "N"], ["N", "N2"]) == [1, 0]


def test_bands_that_are_not_needed_may_be_missing():
    assert match_bands(["S1", "R"], ["R", "N", "S1"], needed=["R"]) == [1, None, 0]
    assert match_bands(["R", "N2"], ["N", "R"], needed=["R"]) == [1, 0]  # the one near infrared stands in
    assert match_bands(["R", "N2"], ["N", "N2"], needed=[]) == [None, 1]  # but not for two bands
    with pytest.raises(BandError, match=r"lack the band\(s\) 'R'; they have 'S1'"):
        match_bands(["S1"], ["R", "S1", "N"], needed=["R"])


@given(st.permutations(["B", "G", "R", "N", "S1", "A"]), st.sets(st.sampled_from(["N", "S1"])))
def test_any_order_of_the_bands_leads_to_the_same_ones(order, gone):
    available = [band for band in order if band not in gone]
    positions = match_bands(available, ["R", "G", "B", "N", "S1"], needed=["R", "G", "B"])
    found = [None if position is None else available[position] for position in positions]
    assert found == ["R", "G", "B", "N" if "N" not in gone else None, "S1" if "S1" not in gone else None]


def test_base_bands_are_normalised_and_nodata_becomes_the_mean():
    image = torch.tensor([[0.1, 0.2, float("nan")], [0.4, 0.6, 0.8], [1.0, float("inf"), 0.0]]).reshape(1, 3, 1, 3)
    result = normalise_base_bands(image, [2, 0], [0.5, 0.1], [0.5, 0.2])
    torch.testing.assert_close(result, torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.5, 0.0]]).reshape(1, 2, 1, 3))


def test_without_statistics_base_bands_are_unchanged_bit_for_bit():
    image = torch.randn(2, 4, 3, 5)
    assert torch.equal(normalise_base_bands(image, [0, 1, 2, 3], None, None), image)
    assert torch.equal(normalise_base_bands(image, [3, 1], None, None), image[:, [3, 1]])
    image[0, 1, 0, 0] = torch.nan
    result = normalise_base_bands(image, [0, 1, 2, 3], None, None)
    assert result[0, 1, 0, 0] == 0
    assert int((result != image).sum()) == 1


def test_base_bands_keep_dtype_and_pass_finite_gradients_around_nodata():
    image = torch.rand(1, 3, 2, 2, dtype=torch.bfloat16)
    image[0, 0, 0, 0] = torch.nan
    image.requires_grad_()
    result = normalise_base_bands(image, [0, 1, 2], [0.1] * 3, [0.2] * 3)
    result.float().sum().backward()
    assert result.dtype == torch.bfloat16
    assert image.grad is not None
    assert image.grad[0, 0, 0, 0] == 0
    assert bool(image.grad.isfinite().all())
