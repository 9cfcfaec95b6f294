"""Which layers of the encoder a method means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from torch import nn

from deflect_hf.tuners.deflect.architectures import block_layers, find_encoder, outermost_modules
from deflect_hf.tuners.mergeable import pattern

if TYPE_CHECKING:
    from deflect_hf.models.base import EncoderWithHead

Target = Literal["qv", "qkvo", "all-linear"]
ENDINGS = {
    "qv": ("q_proj", "v_proj"),
    "qkvo": ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj"),
    # queries and the first layer, or both first layers, of the MLPs that the known architectures have
    "query+mlp": ("q_proj", "fc1", "up_proj", "gate_proj", "weights_in"),
}


def linear_layers(model: nn.Module, target: str) -> str:
    """A pattern of the linear layers that a target such as "qv" names in the blocks of the encoder.

    Raises:
        ArchitectureError: the model holds no encoder that is known.
    """
    names: Sequence[str] = block_layers(model, find_encoder(model), nn.Linear)
    if target in ENDINGS:
        names = [name for name in names if name.rpartition(".")[2] in ENDINGS[target]]
    return pattern(names)


def norms(model: EncoderWithHead) -> list[str]:
    """Names of the encoder's layer norms, the final one included."""
    modules = outermost_modules(model.encoder)
    return [f"encoder.{name}" for name, module in modules.items() if isinstance(module, nn.LayerNorm)]
