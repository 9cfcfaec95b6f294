"""Configuration of BitFit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft.config import PeftConfig
from peft.utils.peft_types import PeftType

from deflect_hf.tuners.card import complete_card


@dataclass
class BitFitConfig(PeftConfig):
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

    target_modules: str | list[str] | None = field(
        default=None, metadata={"help": "modules by name or regular expression, None: all that have a bias"}
    )
    exclude_modules: str | list[str] | None = field(default=None, metadata={"help": "modules that are left alone"})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "modules trained and saved in full beside the adapter"}
    )
    init_weights: bool = field(default=True, metadata={"help": "start at the frozen model exactly"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["BITFIT"]
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            setattr(self, name, set(value) if isinstance(value, list) else value)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write adapter_config.json; a model card that PEFT wrote for this adapter gets told how to load it."""
        super().save_pretrained(save_directory, **kwargs)
        complete_card(Path(save_directory), "BITFIT")
