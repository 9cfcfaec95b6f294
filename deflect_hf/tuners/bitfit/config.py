"""Configuration of BitFit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deflect_hf.tuners.base import TunerConfig


@dataclass
class BitFitConfig(TunerConfig):
    """Configuration of [`BitFitModel`].

    All biases of an RGB vision transformer, patch embedding and norms included: 51,456 parameters of ViT-S, 102,912 of
    ViT-B, 272,384 of ViT-L, whether q, k and v are one layer or three.

    Args:
        target_modules: names or a regular expression of modules; those without a bias are left alone. `None`: every
            linear layer, convolution and layer norm of the model that has a bias.
        exclude_modules: names or a regular expression of modules that are left alone.
        modules_to_save: modules trained and saved in full beside the adapter, such as the task head.
        init_weights: `True` starts at the frozen model exactly. `False` draws the changes at random, for tests.
    """

    method: ClassVar[str] = "BITFIT"

    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    init_weights: bool = True
