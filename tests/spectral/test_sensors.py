import math

import pytest

from deflect_hf.errors import BandError, ConfigError
from deflect_hf.spectral.selection import resolve_bands
from deflect_hf.spectral.sensors import SENSORS, get_sensor

S2 = ["A", "B", "G", "R", "RE1", "RE2", "RE3", "N", "N2", "WV", "CIRRUS", "S1", "S2"]


@pytest.mark.parametrize(
    ("name", "codes", "digital_number", "reflectance"),
    [
        ("sentinel2_l1c", S2, 2000, 0.1),
        ("sentinel2_l2a", [code for code in S2 if code != "CIRRUS"], 2000, 0.1),
        ("sentinel2_l1c_harmonized", S2, 2000, 0.2),
        ("sentinel2_l2a_harmonized", [code for code in S2 if code != "CIRRUS"], 2000, 0.2),
        ("landsat_c2l2", ["A", "B", "G", "R", "N", "S1", "S2"], 10000, 0.075),
        ("landsat_tm_c2l2", ["B", "G", "R", "N", "S1", "S2"], 10000, 0.075),
        ("hls", ["B", "G", "R", "N", "S1", "S2"], 2000, 0.2),
        ("hls_s30", S2, 2000, 0.2),
        ("hls_l30", ["A", "B", "G", "R", "N", "S1", "S2"], 2000, 0.2),
        ("hls_burn_scars", ["B", "G", "R", "N", "S1", "S2"], 0.2, 0.2),
        ("so2sat", ["B", "G", "R", "RE1", "RE2", "RE3", "N", "N2", "S1", "S2"], 0.2, 0.2),
        ("mados", ["A", "B", "G", "R", "RE1", "RE2", "RE3", "N", "N2", "S1", "S2"], 0.2, 0.2),
        ("eurosat", [*(code for code in S2 if code != "N2"), "N2"], 2000, 0.2),
        ("brick_kiln", ["A", "B", "G", "R", "RE1", "RE3", "N2", "N", "S1", "S2"], 2000, 0.2),
        ("forestnet", ["B", "G", "R", "N", "S1", "S2"], 51, 0.2),
        ("planetscope_superdove", ["A", "B", "G1", "G", "Y", "R", "RE1", "N"], 2000, 0.2),
        ("rgb", ["R", "G", "B"], 51, 0.2),
    ],
)
def test_presets(name, codes, digital_number, reflectance):
    sensor = get_sensor(name)
    assert sensor.codes == codes
    assert digital_number * sensor.scale + sensor.offset == pytest.approx(reflectance)


def test_every_preset_is_tested_above():
    tested = test_presets.pytestmark[0].args[1]
    assert sorted(row[0] for row in tested) == sorted(SENSORS)


@pytest.mark.parametrize("name", sorted(SENSORS))
def test_no_two_bands_of_a_preset_share_a_name(name):
    sensor = SENSORS[name]
    for band in sensor.bands:
        for alias in (band.code, *band.aliases):
            assert sensor.resolve(alias) is band


def test_both_numberings_of_harmonised_landsat_and_sentinel():
    hls = SENSORS["hls"]
    for numbers in (["B02", "B03", "B04", "B05", "B06", "B07"], ["B02", "B03", "B04", "B8A", "B11", "B12"]):
        assert resolve_bands(numbers, hls) == hls.codes


def test_presets_cannot_be_changed():
    with pytest.raises(TypeError):
        SENSORS["mine"] = SENSORS["rgb"]


def test_user_sensor_from_yaml_values():
    sensor = get_sensor(
        {
            "name": "drone",
            "scale": "1e-4",  # what YAML makes of 1e-4
            "offset": 0,
            "nodata": -1,
            "bands": [
                {"code": "N", "wavelength_nm": 840, "gsd_m": 0.1, "aliases": ["Channel_5"]},
                "red",
                {"code": "LIDAR"},
            ],
        }
    )
    assert (sensor.codes, sensor.scale, sensor.nodata) == (["N", "R", "LIDAR"], 1e-4, (-1.0,))
    assert sensor.resolve("channel 5") is sensor.bands[0]
    assert (sensor.bands[0].wavelength_nm, sensor.bands[0].gsd_m) == (840.0, 0.1)


def test_hyperspectral_bands_by_wavelength():
    sensor = get_sensor(
        {"name": "imager", "wavelengths_nm": [433, 493, 560, 660, 672, 705, 740, 833, 865, 1034, 1640, 2200]}
    )
    assert sensor.codes == ["A", "B", "G", "R", "W672", "RE1", "RE2", "N", "N2", "W1034", "S1", "S2"]


@pytest.mark.parametrize(
    ("sensor", "error", "message"),
    [
        ({"bands": ["R"], "scale": 0}, ConfigError, r"scale 0.0 is not positive"),
        ({"bands": ["R"], "scale": math.inf}, ConfigError, "'sensor.scale' must be a finite number, not inf"),
        ({"bands": ["R"], "offset": math.nan}, ConfigError, "'sensor.offset' must be a finite number, not nan"),
        ({"bands": [{"code": "R", "aliases": "B4"}]}, ConfigError, "'bands.aliases' must be a list, not 'B4'"),
        ({"bands": [{"code": "R", "aliases": None}]}, ConfigError, "aliases' must be a list, not None"),
        ({"bands": [{"code": "R", "aliases": ["B"]}, "B"]}, BandError, "'B' is the code of one band and an alias"),
        ({"bands": ["R", "red"]}, BandError, "sensor 'user': band 'R' is given twice"),
        ({"bands": [{"code": "a b"}]}, ConfigError, "must be letters, digits and underscores"),
        ({"bands": ["B04"]}, ConfigError, r"'bands.code' must be a code \(.*\); a band number is an alias, not 'B04'"),
        ({"wavelengths_nm": [0.49, 0.56]}, ConfigError, r"'sensor.wavelengths_nm\[0\]' must be at least 100, not 0.49"),
        (
            {"bands": [{"code": "N", "wavelength_nm": 0.84}]},
            ConfigError,
            "'bands.wavelength_nm' must be at least 100",
        ),
        ({"wavelengths_nm": [1034, 1034.2]}, BandError, "band 'W1034' is given twice"),
    ],
)
def test_bad_sensors_are_refused(sensor, error, message):
    with pytest.raises(error, match=message):
        get_sensor(sensor)


def test_free_text_of_a_band_counts_where_no_code_or_alias_fits():
    bands = [{"code": "R"}, {"code": "X1", "name": "red"}, {"code": "X2", "name": "my own"}]
    sensor = get_sensor({"name": "camera", "bands": bands})
    assert sensor.resolve("Red").code == "R" and sensor.resolve("My Own").code == "X2"
