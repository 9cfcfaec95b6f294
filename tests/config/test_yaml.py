"""YAML: numbers as everybody writes them, and text that comes back as text."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deflect_hf.config.yaml import read_yaml, yaml_text, yaml_value


@given(st.floats(allow_nan=False, allow_infinity=False))
@example(1e-6)
@example(1e22)
def test_a_number_is_read_however_python_writes_it(number: float) -> None:
    for text in (repr(number), f"{number:g}", f"{number:e}", f"{number:E}"):
        found = yaml_value(text, "--x")
        assert found == float(text) and not isinstance(found, str)


@pytest.mark.parametrize(
    "text", ["1e-6m", "e-6", "1e", "a1e-6", "1e-6 1", ".e1", "B05", "1.2.3", "010", "12:30", "1:30.5"]
)
def test_what_only_looks_like_a_number_is_text(text: str) -> None:
    assert yaml_value(text, "--x") == text


# text that some rule of YAML takes for a number, a date or a truth value, among others
CHARACTERS = st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"])
WORDS = st.text("0123456789.eE+-_:xo", min_size=1, max_size=8) | st.text(CHARACTERS, max_size=8)


@given(st.dictionaries(WORDS, WORDS | st.lists(WORDS | st.floats(allow_nan=False) | st.integers() | st.none())))
@example({"1e-6": "1e6"})
@settings(max_examples=300, deadline=None)
def test_what_is_written_is_read_as_it_was(values: dict[str, object]) -> None:
    assert yaml_value(yaml_text(values), "--x") == values


def test_a_file_reads_the_same_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("random: {layer_norm_eps: 1e-6}\nnames: ['1e6', 1E+3]\n")
    assert read_yaml(tmp_path / "a.yaml") == {"random": {"layer_norm_eps": 1e-6}, "names": ["1e6", 1000.0]}
