"""A linear layer between two learned scales, with a low-rank update beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from deflect_hf.tuners.mergeable import MergeableLayer

if TYPE_CHECKING:
    from deflect_hf.tuners.scaled_lora.config import ScaledLoraConfig


class ScaledLoraLayer(MergeableLayer):
    """y = s_out * (W (s_in * x) + b + U (D (s_in * x) + c_D) + c_U), with W and b frozen."""

    adapter_layer_names: tuple[str, ...] = ("slr_scale_in", "slr_scale_out", "slr_down", "slr_up")
    base_layer: nn.Linear

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__(base_layer)
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.slr_scale_in = nn.ParameterDict()  # s_in
        self.slr_scale_out = nn.ParameterDict()  # s_out
        self.slr_down = nn.ModuleDict()  # D, c_D
        self.slr_up = nn.ModuleDict()  # U, c_U

    def update_layer(self, adapter_name: str, config: ScaledLoraConfig) -> None:
        """Add the parameters of an adapter."""
        self.slr_scale_in[adapter_name] = nn.Parameter(torch.ones(self.in_features))
        self.slr_scale_out[adapter_name] = nn.Parameter(torch.ones(self.out_features))
        self.slr_down[adapter_name] = nn.Linear(self.in_features, config.r)
        self.slr_up[adapter_name] = nn.Linear(config.r, self.out_features)
        self.reset_slr_parameters(adapter_name, identity=config.init_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def reset_slr_parameters(self, adapter_name: str, identity: bool = True) -> None:
        """Draw D from N(0, 1), as published, and leave c_D as linear layers have it; U and c_U 0 if `identity`."""
        down, up = self._down_and_up(adapter_name)
        nn.init.normal_(down.weight)
        if identity:
            nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)

    def adapted(self, x: Tensor, names: list[str]) -> Tensor:
        """(*, in) -> (*, out)"""
        hidden, updates = x, []
        for name in reversed(names):
            scale = self.slr_scale_in[name]
            hidden = hidden.to(scale.dtype) * scale
            down, up = self._down_and_up(name)
            updates.append(up(down(hidden)))
        result = self.base_layer(hidden.to(x.dtype))
        dtype = result.dtype
        for name in names:
            result = self.slr_scale_out[name] * (result + updates.pop())
        return result.to(dtype)

    def folded(self, adapter_name: str) -> dict[str, Tensor]:
        """W' = diag(s_out) (W + U D) diag(s_in) and b' = s_out * (b + U c_D + c_U)"""
        down, up = self._down_and_up(adapter_name)
        base = self.get_base_layer()
        scale_out = self.slr_scale_out[adapter_name]
        weight = (base.weight + up.weight @ down.weight) * self.slr_scale_in[adapter_name]
        return {
            "weight": scale_out.unsqueeze(-1) * weight,
            "bias": scale_out * (base.bias + up.weight @ down.bias + up.bias),
        }

    def refusal_to_merge(self) -> str | None:
        """A layer without bias has nowhere to put c_D and c_U."""
        return "it has no bias" if self.get_base_layer().bias is None else super().refusal_to_merge()

    def _down_and_up(self, adapter_name: str) -> tuple[nn.Linear, nn.Linear]:
        return cast(nn.Linear, self.slr_down[adapter_name]), cast(nn.Linear, self.slr_up[adapter_name])
