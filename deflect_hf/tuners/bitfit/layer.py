"""A module whose bias is changed by a trained vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deflect_hf.tuners.mergeable import MergeableLayer

if TYPE_CHECKING:
    from deflect_hf.tuners.bitfit.config import BitFitConfig

# The bias is added along the last axis, by a convolution along the second one.
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BIASED = (nn.Linear, nn.LayerNorm, *CONVOLUTIONS)


class BitFitLayer(MergeableLayer):
    """y = base(x) + delta: the change of the bias is trained and saved, the bias itself stays frozen."""

    adapter_layer_names: tuple[str, ...] = ("bitfit_delta",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.bitfit_delta = nn.ParameterDict()
        if isinstance(base_layer, nn.Linear):
            self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        elif isinstance(base_layer, CONVOLUTIONS):
            self.in_features, self.out_features = base_layer.in_channels, base_layer.out_channels
        else:
            self.in_features = self.out_features = self.bias.numel()

    def update_layer(self, adapter_name: str, config: BitFitConfig) -> None:
        """Add the change of an adapter."""
        self.bitfit_delta[adapter_name] = nn.Parameter(torch.zeros(self.bias.shape))
        if not config.init_weights:
            nn.init.normal_(self.bitfit_delta[adapter_name])
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def adapted(self, x: Tensor, names: list[str]) -> Tensor:
        """(*, in) -> (*, out), or (B, C, *) -> (B, D, *) for a convolution"""
        result = self.base_layer(x)
        delta = torch.stack([self.bitfit_delta[name] for name in names]).sum(dim=0)
        base = self.get_base_layer()
        if isinstance(base, CONVOLUTIONS):
            delta = delta.view(-1, *(1 for _ in base.kernel_size))
        return (result + delta).to(result.dtype)

    def folded(self, adapter_name: str) -> dict[str, Tensor]:
        """The bias `b + delta`."""
        return {"bias": self.bias + self.bitfit_delta[adapter_name]}
