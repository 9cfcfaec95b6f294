"""Scaled low-rank adapters (SLR) as a PEFT method.

Source: Scheibenreif, Mommert, Borth, "Parameter Efficient Self-Supervised Geospatial Domain Adaptation", CVPR 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deflect_hf.errors import ArchitectureError, ConfigError
from deflect_hf.tuners.base import TunerConfig
from deflect_hf.tuners.deflect.architectures import block_layers, find_encoder
from deflect_hf.tuners.mergeable import MergeableLayer, MergeableModel, pattern
from deflect_hf.tuners.registration import register


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
        if type(self.r) is not int or self.r < 1:
            raise ConfigError(f"r must be a whole number above 0, got {self.r!r}.")
        if self.layers_to_transform is not None and not isinstance(self.target_modules, set):
            raise ConfigError(
                f"layers_to_transform={self.layers_to_transform!r} picks among a list of target_modules, such as "
                f"['q_proj', 'v_proj'], but target_modules is {self.target_modules!r}."
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError(f"layers_pattern={self.layers_pattern!r} is for layers_to_transform, which is not given.")


class ScaledLoraLayer(MergeableLayer):
    """y = s_out * (W (s_in * x) + b + U (D (s_in * x) + c_D) + c_U), with W and b frozen."""

    adapter_layer_names: tuple[str, ...] = ("slr_scale_in", "slr_scale_out", "slr_down", "slr_up")
    base_layer: nn.Linear

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__(base_layer)
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.slr_scale_in = nn.ParameterDict()  # s_in
        self.slr_scale_out = nn.ParameterDict()  # s_out
        self.slr_down: Any = nn.ModuleDict()  # D, c_D
        self.slr_up: Any = nn.ModuleDict()  # U, c_U

    def update_layer(self, adapter_name: str, config: ScaledLoraConfig) -> None:
        """Add the parameters of an adapter: D drawn from N(0, 1), as published, and c_D as linear layers have it."""
        self.slr_scale_in[adapter_name] = nn.Parameter(torch.ones(self.in_features))
        self.slr_scale_out[adapter_name] = nn.Parameter(torch.ones(self.out_features))
        self.slr_down[adapter_name] = nn.Linear(self.in_features, config.r)
        self.slr_up[adapter_name] = nn.Linear(config.r, self.out_features)
        nn.init.normal_(self.slr_down[adapter_name].weight)
        if config.init_weights:
            nn.init.zeros_(self.slr_up[adapter_name].weight)
            nn.init.zeros_(self.slr_up[adapter_name].bias)

    def adapted(self, x: Tensor, names: list[str]) -> Tensor:
        """(*, in) -> (*, out)"""
        hidden, updates = x, []
        for name in reversed(names):
            scale = self.slr_scale_in[name]
            hidden = hidden.to(scale.dtype) * scale
            updates.append(self.slr_up[name](self.slr_down[name](hidden)))
        result = self.base_layer(hidden.to(x.dtype))
        dtype = result.dtype
        for name in names:
            result = self.slr_scale_out[name] * (result + updates.pop())
        return result.to(dtype)

    def folded(self, adapter_name: str) -> dict[str, Tensor]:
        """W' = diag(s_out) (W + U D) diag(s_in) and b' = s_out * (b + U c_D + c_U)"""
        base, down, up = self.get_base_layer(), self.slr_down[adapter_name], self.slr_up[adapter_name]
        scale_out = self.slr_scale_out[adapter_name]
        weight = (base.weight + up.weight @ down.weight) * self.slr_scale_in[adapter_name]
        return {
            "weight": scale_out.unsqueeze(-1) * weight,
            "bias": scale_out * (base.bias + up.weight @ down.bias + up.bias),
        }

    def refusal_to_merge(self) -> str | None:
        """A layer without bias has nowhere to put c_D and c_U."""
        return "it has no bias" if self.get_base_layer().bias is None else super().refusal_to_merge()


class ScaledLoraModel(MergeableModel):
    """Adapts linear layers by a scale of their input, a scale of their output, and a low-rank update with biases.

    Source: Scheibenreif, Mommert, Borth, CVPR 2024. Their code also has a convolutional adapter for the patch
    embedding, which does not start at the identity; it is not offered here.
    """

    prefix: str = "slr_"
    tuner_layer_cls = ScaledLoraLayer

    def _prepare_adapter_config(self, peft_config: ScaledLoraConfig, model_config: dict) -> ScaledLoraConfig:
        if peft_config.target_modules is None:
            try:
                encoder = find_encoder(self.model)
            except ArchitectureError as error:
                raise ConfigError(
                    f"target_modules=None stands for the linear layers in the blocks of a vision transformer. {error} "
                    "Or name the layers: target_modules=[...]."
                ) from error
            peft_config.target_modules = pattern(block_layers(self.model, encoder, nn.Linear))
        return peft_config

    def _wrap(self, target: nn.Module, name: str) -> ScaledLoraLayer:
        if not isinstance(target, nn.Linear):
            raise ArchitectureError(
                f"SLR adapts linear layers, but target_modules also names {name!r}, which is a {type(target).__name__}."
            )
        return ScaledLoraLayer(target)


# the paper's name: `scaled_lora_` would hold LoRA's prefix
register("slr", ScaledLoraConfig, ScaledLoraModel)
