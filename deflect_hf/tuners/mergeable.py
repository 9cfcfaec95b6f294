"""What our mergeable tuners share: a wrapper around one module, whose adapters can be folded into its parameters."""

from __future__ import annotations

import re
import warnings
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from deflect_hf.errors import CheckpointError, UnsupportedOperationError
from deflect_hf.models.quantization import is_quantised
from deflect_hf.tuners.base import Tuner, TunerLayer


class MergeableLayer(TunerLayer):
    """A wrapped module, on which several active adapters act one after the other, the first one innermost.

    It is as if each had been merged before the next was put on top. Merging keeps the module's own parameters, so that
    unmerging gives them back bit for bit; until then they take their memory a second time.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self._unmerged: dict[str, Tensor] = {}

    @abstractmethod
    def update_layer(self, adapter_name: str, config: Any) -> None:
        """Add the parameters of an adapter."""

    @abstractmethod
    def adapted(self, x: Tensor, names: list[str]) -> Tensor:
        """What the module returns with the adapters `names` on it, at least one."""

    @abstractmethod
    def folded(self, adapter_name: str) -> dict[str, Tensor]:
        """The module's parameters with the adapter in them, by name."""

    def refusal_to_merge(self) -> str | None:
        """Why this layer cannot be merged, if it cannot."""
        return "its base weight is quantised" if is_quantised(self.get_base_layer()) else None

    def forward(self, x: Tensor) -> Tensor:
        """(*, in) -> (*, out), or (B, C, H, W) -> (B, D, h, w) for a convolution"""
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x)
        present = self._get_available_adapters()
        names = [] if self.merged else [name for name in self.active_adapters if name in present]
        return self.adapted(x, names) if names else self.base_layer(x)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold adapters into the module's own parameters, the active ones by default.

        Args:
            safe_merge: refuse values that are not finite.

        Raises:
            CheckpointError: `safe_merge` found some; the module is unchanged.
        """
        present = self._get_available_adapters()
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in present:
                continue
            base = self.get_base_layer()
            folded = {key: value.to(base.get_parameter(key).dtype) for key, value in self.folded(name).items()}
            if safe_merge and not all(torch.isfinite(value).all() for value in folded.values()):
                raise CheckpointError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
            for parameter_name, value in folded.items():
                parameter = base.get_parameter(parameter_name)
                self._unmerged.setdefault(parameter_name, parameter.data)
                parameter.data = value
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Give the module the parameters back that it had before it was merged, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        for parameter_name, kept in self._unmerged.items():
            parameter = self.get_base_layer().get_parameter(parameter_name)
            parameter.data = kept.to(parameter)  # the model may have moved in the meantime
        self._unmerged.clear()
        self.merged_adapters.clear()


class MergeableModel(Tuner):
    """Puts a `MergeableLayer` around each targeted module."""

    tuner_layer_cls: type[MergeableLayer]

    def _with_adapter(
        self, target: nn.Module, name: str, adapter_name: str, config: PeftConfig
    ) -> MergeableLayer | None:
        layer = target if isinstance(target, self.tuner_layer_cls) else self._wrap(target, name)
        if layer is not None:
            layer.update_layer(adapter_name, config)
        return layer

    @abstractmethod
    def _wrap(self, target: nn.Module, name: str) -> MergeableLayer | None:
        """The layer for a targeted module, None to leave it alone (ArchitectureError)."""

    def _check_merge_allowed(self) -> None:
        """Refuse before any module is touched (UnsupportedOperationError)."""
        super()._check_merge_allowed()
        for name, module in self.model.named_modules():
            reason = module.refusal_to_merge() if isinstance(module, MergeableLayer) else None
            if reason is not None:
                raise UnsupportedOperationError(
                    f"The adapter cannot be merged: {name!r} cannot take it, since {reason}. Fix: keep the adapter, or "
                    "train one without this module (exclude_modules)."
                )


def pattern(names: Iterable[str]) -> str:
    """A regular expression for modules of these names and of the same names in all blocks: numbers stand for any."""
    inside: dict[str, dict[str, None]] = {}
    for name in names:
        alike = re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(name))
        container, number, rest = alike.partition(r"\.\d+\.")
        inside.setdefault(container + number, {})[rest] = None
    return "|".join(
        head if list(rests) == [""] else head + (f"(?:{'|'.join(rests)})" if len(rests) > 1 else next(iter(rests)))
        for head, rests in inside.items()
    )
