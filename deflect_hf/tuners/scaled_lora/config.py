"""Configuration of scaled low-rank adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deflect_hf.errors import ConfigError
from deflect_hf.tuners.base import TunerConfig


@dataclass
class ScaledLoraConfig(TunerConfig):
    """Configuration of [`ScaledLoraModel`].

    Parameters of a layer: `in + out` for the scales and `r * in + r + r * out + out` for the low-rank part. The
    published sizes are those of encoders with a fused `qkv` layer, which has one low-rank part where our encoders have
    three, for `q_proj`, `k_proj` and `v_proj`. All linear layers of the blocks, without norms:

    | | fused, r=8 | fused, r=16 | separate, r=8 | separate, r=16 |
    | --- | --- | --- | --- | --- |
    | ViT-S | 705,408 | 1,295,616 | 788,544 | 1,452,672 |
    | ViT-B | 1,410,432 | 2,590,464 | 1,576,512 | 2,904,192 |
    | ViT-L | 3,760,896 | 6,907,392 | 4,203,648 | 7,743,744 |

    The published recipe trains the norms, too (`modules_to_save`, or `--finetune slr`): 19,200, 38,400 and 100,352
    more.

    Args:
        r: rank of the low-rank part.
        target_modules: names or a regular expression of linear layers. `None`: all those in the blocks of a vision
            transformer.
        exclude_modules: names or a regular expression of modules that are left alone.
        modules_to_save: modules trained and saved in full beside the adapter, such as the task head or the norms.
        layers_to_transform: numbers of the blocks; with a list of `target_modules` only.
        layers_pattern: name of the list of blocks, where `layers_to_transform` does not find it.
        init_weights: `True` starts at the frozen model exactly (U = 0, scales 1). `False` draws U at random, for tests.

    Raises:
        ConfigError: the rank is no positive number, or `layers_to_transform` cannot be followed.
    """

    method: ClassVar[str] = "SLR"

    r: int = 8
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    init_weights: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise ConfigError(f"r must be a whole number above 0, got {self.r!r}.")
        if self.layers_to_transform is not None and not isinstance(self.target_modules, set):
            raise ConfigError(
                f"layers_to_transform={self.layers_to_transform!r} picks among a list of target_modules, such as "
                f"['q_proj', 'v_proj'], but target_modules is {self.target_modules!r}."
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError(f"layers_pattern={self.layers_pattern!r} is for layers_to_transform, which is not given.")
