"""Whatever is given, the answer is a result or an error of ours."""

import contextlib
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deflect_hf import DeflectConfig
from deflect_hf.config.compose import load_config, parse_arguments, to_yaml
from deflect_hf.config.run import EvaluateArguments, RunArguments
from deflect_hf.config.schema import keys_of
from deflect_hf.data.splits import read_split_file
from deflect_hf.errors import BandError, ConfigError, DataError, DeflectError
from deflect_hf.raster.read import Raster, read_mask, read_raster
from deflect_hf.spectral.bands import BAND_CODES
from deflect_hf.spectral.selection import resolve_bands
from deflect_hf.spectral.sensors import get_sensor
from tests.faults.inputs import write_segments

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([*BAND_CODES, "red", "B8A", "linear", "folder", "deflect", "default", "encoder", "null"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | SCALARS, inner, max_size=3),
    max_leaves=6,
)
KEYS = list(keys_of(RunArguments))
ENCODER = {"random": {"model_type": "vit"}}


def nested(pairs: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested mappings."""
    values: dict[str, Any] = {"encoder": dict(ENCODER)}
    for key, value in pairs.items():
        *parents, last = key.split(".")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return values


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3))
@settings(max_examples=100, deadline=None)
def test_any_configuration_is_refused_in_one_line_or_reads_back_the_same(pairs: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_text(yaml.safe_dump(nested(pairs), allow_unicode=True), encoding="utf-8")
        try:
            config = load_config(RunArguments, path)
        except ConfigError as error:
            assert str(path) in str(error) and len(str(error)) < 700
            return
        path.write_text(to_yaml(config), encoding="utf-8")
        assert to_yaml(load_config(RunArguments, path)) == to_yaml(config)


@given(st.lists(st.sampled_from([f"--{key}" for key in KEYS]) | st.text(max_size=8), max_size=6))
@settings(max_examples=100, deadline=None)
def test_any_words_are_a_configuration_or_refused(words: list[str]) -> None:
    for schema in (RunArguments, EvaluateArguments):
        with contextlib.suppress(ConfigError, SystemExit):
            parse_arguments(schema, "test", words)


FIELDS = ("bands", "base_bands", "base_mean", "base_std", "unit", "indices", "formulas", "index_bounds")
FIELDS += ("feature_mean", "feature_std", "band_dropout", "aux_dim", "rank")
BANDS = st.lists(st.sampled_from([*BAND_CODES, "red", "nir", "B8A", "Q", "", "r"]), max_size=8)


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES | BANDS, max_size=4))
@settings(max_examples=100, deadline=None)
def test_any_adapter_configuration_is_refused_or_reads_back_the_same(fields: dict[str, Any]) -> None:
    try:
        config = DeflectConfig(**fields)
    except DeflectError:
        return
    assert DeflectConfig(**config.to_dict()) == config


@given(BANDS | VALUES)
@settings(max_examples=100, deadline=None)
def test_any_band_list_is_refused_or_becomes_codes(names: Any) -> None:
    try:
        codes = resolve_bands(names)
    except BandError:
        return
    assert resolve_bands(codes) == codes and len(set(codes)) == len(codes) == len(names)


KEYS_OF_SENSORS = st.sampled_from(["name", "bands", "wavelengths_nm", "scale", "offset", "unit", "nodata"])


@given(st.dictionaries(KEYS_OF_SENSORS, VALUES | BANDS, max_size=4) | VALUES)
@settings(max_examples=100, deadline=None)
def test_any_sensor_is_refused_or_has_bands(described: Any) -> None:
    try:
        sensor = get_sensor(described)
    except DeflectError:
        return
    assert sensor.codes and math.isfinite(sensor.scale) and math.isfinite(sensor.offset)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_segments(tmp_path_factory.mktemp("stored") / "segments")


@given(
    st.sampled_from(["images", "masks"]),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=4),
)
@example("images", [(0.12, b"\x80")])  # the name of a band that is no text
@settings(max_examples=100, deadline=None)
def test_any_damage_to_an_image_is_told_or_harmless(
    stored: Path, kind: str, damages: list[tuple[float, bytes]]
) -> None:
    content = bytearray((stored / kind / "a0.tif").read_bytes())
    for share, data in damages:
        start = int(share * len(content))
        content[start : start + len(data)] = data
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.tif"
        path.write_bytes(content)
        try:
            raster = read_raster(path, source_bands=list("BGRN")) if kind == "images" else read_mask(path)
        except DeflectError as error:
            assert str(path) in str(error)
            return
        assert isinstance(raster, Raster)


@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
@settings(max_examples=100, deadline=None)
def test_any_split_file_is_refused_or_lists_images(content: bytes) -> None:
    known = {f"a{number}": Path("images", f"a{number}.tif") for number in range(10)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.txt"
        path.write_bytes(content)
        try:
            ids = read_split_file(path, known)
        except DataError as error:
            assert str(path) in str(error)
            return
        assert ids and set(ids) <= set(known)
