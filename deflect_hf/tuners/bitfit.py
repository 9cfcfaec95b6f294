"""BitFit as a PEFT method: the biases of a model are trained, and nothing else.

Source: Ben Zaken, Goldberg, Ravfogel, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
Language-models", ACL 2022 (arXiv 2106.10199).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from peft.tuners import tuners_utils
from torch import Tensor, nn

from deflect_hf.errors import ArchitectureError, listing
from deflect_hf.tuners.base import TunerConfig
from deflect_hf.tuners.deflect.architectures import outermost_modules
from deflect_hf.tuners.mergeable import MergeableLayer, MergeableModel, pattern
from deflect_hf.tuners.registration import register

# The bias is added along the last axis, by a convolution along the second one.
CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
BIASED = (nn.Linear, nn.LayerNorm, *CONVOLUTIONS)


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
        self._trailing = _axes_after_channels(self.get_base_layer())

    @property
    def bias(self) -> Tensor:
        """The bias with its changes, for who reads it instead of calling this, as nn.MultiheadAttention does."""
        bias: Tensor = self.get_base_layer().bias
        if not (self.disable_adapters or self.merged):
            for name in self.active_adapters:
                if name in self.bitfit_delta:
                    bias = (bias + self.bitfit_delta[name]).to(bias.dtype)
        return bias

    def update_layer(self, adapter_name: str, config: BitFitConfig) -> None:
        """Add the change of an adapter."""
        self.bitfit_delta[adapter_name] = nn.Parameter(torch.zeros(self.bias.shape))
        if not config.init_weights:
            nn.init.normal_(self.bitfit_delta[adapter_name])

    def adapted(self, x: Tensor, names: list[str]) -> Tensor:
        """(*, in) -> (*, out), or (B, C, *) -> (B, D, *) for a convolution"""
        result = self.base_layer(x)
        delta = torch.stack([self.bitfit_delta[name] for name in names]).sum(dim=0)
        if self._trailing:
            delta = delta.view(-1, *(1 for _ in range(self._trailing)))
        return (result + delta).to(result.dtype)

    def folded(self, adapter_name: str) -> dict[str, Tensor]:
        """The bias `b + delta`."""
        return {"bias": self.get_base_layer().bias + self.bitfit_delta[adapter_name]}


def _axes_after_channels(module: nn.Module) -> int:
    """How many axes follow the one that the bias lies along."""
    if isinstance(module, CONVOLUTIONS):
        return len(module.kernel_size)
    if type(module) is nn.LayerNorm or not isinstance(module, nn.LayerNorm) or module.bias.ndim > 1:
        return 0
    # a class of its own (ConvNext, EoMT), which may norm images (B, C, H, W): it takes this one then, and no other does
    channels = module.bias.numel()
    try:
        module(module.bias.detach().new_zeros(1, channels, 1, channels + 1))
    except RuntimeError:
        return 0
    return 2


class BitFitModel(MergeableModel):
    """Trains biases alone, those of norms and convolutions included.

    Source: Ben Zaken, Goldberg, Ravfogel, ACL 2022 (arXiv 2106.10199).
    """

    prefix: str = "bitfit_"
    tuner_layer_cls = BitFitLayer

    def _prepare_adapter_config(self, peft_config: BitFitConfig, model_config: dict) -> BitFitConfig:
        # PEFT names all linear layers later, after what follows has looked for biases
        peft_config = tuners_utils._maybe_include_all_linear_layers(peft_config, self.model)
        modules = outermost_modules(self.model)
        biased = [name for name, module in modules.items() if isinstance(module, BIASED) and module.bias is not None]
        if peft_config.target_modules is None:
            saved = [re.compile(rf"(^|.*\.){name}($|\..*)") for name in peft_config.modules_to_save or ()]
            peft_config.target_modules = pattern(
                name for name in biased if not any(regex.match(name) for regex in saved)
            )
        if not any(self._check_target_module_exists(peft_config, name) for name in biased):
            raise ArchitectureError(
                f"BitFit finds no bias to train in {type(self.model).__name__}: none of the modules that "
                f"target_modules={peft_config.target_modules!r} names is a {listing(kind.__name__ for kind in BIASED)} "
                "with a bias."
            )
        return peft_config

    def _wrap(self, target: nn.Module, name: str) -> BitFitLayer | None:
        if getattr(target, "bias", None) is None:
            return None
        if not isinstance(target, BIASED):
            raise ArchitectureError(
                f"BitFit changes the bias of {listing(kind.__name__ for kind in BIASED)}, but target_modules also "
                f"names {name!r}, which is a {type(target).__name__}."
            )
        return BitFitLayer(target)


register("bitfit", BitFitConfig, BitFitModel)
