"""Names of files and folders as users write them, in a YAML file too, where no shell has expanded them."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator

from deflect_hf.errors import ConfigError


def user_path(text: str) -> str:
    """``~/data`` -> ``/home/user/data``; other names stay as they are.

    Raises:
        ConfigError: says what it must be; it is empty, holds a null character, or there is no such user.
    """
    if not text.strip():
        raise ConfigError("the name of a file or folder ('.' for this one) or left out")
    if "\0" in text:
        raise ConfigError("a name without null characters")
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text and not os.path.exists(text):
        raise ConfigError(f"a name in full, as there is no user {text[1:].partition('/')[0]!r}")
    return expanded


UserPath = Annotated[str, AfterValidator(user_path)]
