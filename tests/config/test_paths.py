"""Names of files as users write them."""

from pathlib import Path

import pytest

from deflect_hf.config.schema import user_path
from deflect_hf.errors import ConfigError


@pytest.mark.parametrize("text", ["data", "/data/floods", "a ~ b", "USER/NAME", ".", "work-dir/ü b"])
def test_other_names_stay_as_they_are(text: str) -> None:
    assert user_path(text) == text


def test_the_home_folder_is_found_without_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert (user_path("~"), user_path("~/data")) == ("/home/me", "/home/me/data")


def test_a_folder_that_is_called_like_a_home_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~no-such-user").mkdir()
    assert user_path("~no-such-user") == "~no-such-user"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the name of a file or folder"),
        ("  ", "the name of a file or folder"),
        ("a\0b", "without null characters"),
        ("~no-such-user/x", "in full, as there is no user 'no-such-user'"),
    ],
)
def test_what_names_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        user_path(text)
