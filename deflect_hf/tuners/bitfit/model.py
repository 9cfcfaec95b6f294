"""[`BitFitModel`]: makes the biases of a model trainable."""

from __future__ import annotations

import re

from torch import nn

from deflect_hf.errors import ArchitectureError, listing
from deflect_hf.tuners.bitfit.config import BitFitConfig
from deflect_hf.tuners.bitfit.layer import BIASED, BitFitLayer
from deflect_hf.tuners.deflect.architectures import outermost_modules
from deflect_hf.tuners.mergeable import MergeableModel, pattern


class BitFitModel(MergeableModel):
    """Trains biases alone, those of norms and convolutions included.

    Source: Ben Zaken, Goldberg, Ravfogel, ACL 2022 (arXiv 2106.10199).

    Args:
        model ([`torch.nn.Module`]): the model.
        config ([`BitFitConfig`]): the configuration.
        adapter_name (`str`): name of the adapter.
        low_cpu_mem_usage (`bool`): create empty adapter weights on the meta device.
    """

    prefix: str = "bitfit_"
    tuner_layer_cls = BitFitLayer

    def _prepare_adapter_config(self, peft_config: BitFitConfig, model_config: dict) -> BitFitConfig:
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
