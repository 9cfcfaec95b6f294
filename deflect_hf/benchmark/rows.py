"""A row of a benchmark: a method with its options, as it is written on the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from deflect_hf.errors import ConfigError
from deflect_hf.methods import method_options


@dataclass(frozen=True)
class Row:
    """`deflect`, `lora:rank=8,target=qv` or `peft:VeraConfig:r=64,target=qv`: a method's name, then its options."""

    text: str
    method: str
    options: Mapping[str, Any] = field(hash=False)

    @classmethod
    def parse(cls, text: str) -> Row:
        """Read a row.

        Raises:
            ConfigError: the method or an option is unknown, or an option has no value.
        """
        method, _, rest = text.partition(":")
        if method == "peft":
            name, _, rest = rest.partition(":")
            method = f"peft:{name}"
        options: dict[str, Any] = {}
        # Commas inside brackets belong to a list: layers_to_transform=[4,5].
        for item in filter(None, re.split(r",(?![^\[]*\])", rest)):
            name, equals, value = item.partition("=")
            if not equals:
                raise ConfigError(f"the row {text!r}: {item!r} has no value; write {name}=VALUE.")
            options[name.strip()] = yaml.safe_load(value)
        method_options(method, options)
        return cls(text, method, options)

    @property
    def slug(self) -> str:
        """The row as a file name."""
        return re.sub(r"[^A-Za-z0-9.-]+", "_", self.text).strip("_")
