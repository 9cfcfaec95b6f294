"""A row of a benchmark: a method with its options, as it is written on the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deflect_hf.benchmark.ablation import check_variants
from deflect_hf.config.yaml import yaml_value
from deflect_hf.errors import ConfigError
from deflect_hf.methods import adapt, extra_bands, method_options

if TYPE_CHECKING:
    from torch import nn

    from deflect_hf.models.base import EncoderWithHead

RGB = ("R", "G", "B")


@dataclass(frozen=True)
class Row:
    """`deflect`, `lora:rank=8,target=qv` or `peft:VeraConfig:r=64,target=qv`: a method's name, then its options.

    `deflect@free` is a variant of DEFLECT for the ablation ([`deflect_hf.benchmark.ablation`]).
    """

    text: str
    method: str
    options: Mapping[str, Any] = field(hash=False)
    variant: str = ""

    @classmethod
    def parse(cls, text: str, *, variants: bool = False) -> Row:
        """Read a row; with `variants`, those of the ablation are among the methods.

        Raises:
            ConfigError: the method, an option or a variant is unknown, or an option has no value.
        """
        method, _, rest = text.partition(":")
        if method == "peft":
            name, _, rest = rest.partition(":")
            method = f"peft:{name}"
        method, at, variant = method.partition("@")
        if at:
            if not variants or method != "deflect":
                raise ConfigError(f"the row {text!r}: variants are those of deflect, in the benchmark accuracy alone.")
            check_variants(variant)
        options: dict[str, Any] = {}
        # Commas inside brackets belong to a list: layers_to_transform=[4,5].
        for item in filter(None, re.split(r",(?![^\[]*\])", rest)):
            name, equals, value = item.partition("=")
            if not equals:
                raise ConfigError(f"the row {text!r}: {item!r} has no value; write {name}=VALUE.")
            options[name.strip()] = yaml_value(value, "--rows")
        method_options(method, options)
        return cls(text, method, options, variant)

    def adapt(self, model: EncoderWithHead, bands: Sequence[str]) -> nn.Module:
        """Adapt a model of R, G, B whose speed is all that matters: the statistics of its bands are made up."""
        base: dict[str, Any] = {"base_mean": [0.1] * 3, "base_std": [0.1] * 3}
        if self.options.get("patch_embed", "frozen") != "frozen":
            base |= dict.fromkeys(("extra_mean", "extra_std"), [0.1] * len(extra_bands(bands, RGB)))
        return adapt(model, self.method, bands=bands, base_bands=RGB, **base, **self.options)

    @property
    def slug(self) -> str:
        """The row as a file name."""
        return file_name(self.text)


def file_name(row: str) -> str:
    """A row as the name of a file."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", row).strip("_")
