"""Encoders whose linear layers are kept in 8 or 4 bits: frozen, they take less memory, and adapters go on top."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn
from transformers import BitsAndBytesConfig, TorchAoConfig

from deflect_hf.errors import named_extras

# Not the 8 bits of bitsandbytes: torch cannot make a checkpoint of its layers, and int8 takes as much.
PACKAGES = {"int8": "torchao", "bnb_4bit": "bitsandbytes"}


def quantization_config(kind: str) -> TorchAoConfig | BitsAndBytesConfig:
    """What `from_pretrained(..., quantization_config=...)` of transformers takes, for a name in `PACKAGES`."""
    with named_extras():
        importlib.import_module(PACKAGES[kind])
    if kind == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def as_numbers(tensor: Any) -> Tensor:
    """The tensor itself, or the floats that one of torchao stands for, which has no comparisons of its own."""
    return tensor.dequantize() if _of_torchao(tensor) else tensor


def _of_torchao(tensor: Tensor) -> bool:
    return type(tensor.data).__module__.startswith("torchao")


def is_quantised(module: nn.Module) -> bool:
    """Whether a weight of the module is not the numbers themselves, in a few bits each."""
    return any(not parameter.is_floating_point() or _of_torchao(parameter) for parameter in module.parameters())


def parameter_size(parameter: Any) -> int:
    """How many numbers a parameter holds; bitsandbytes packs two of 4 bits into one byte."""
    shape = getattr(getattr(parameter, "quant_state", None), "shape", parameter.shape)
    return int(shape.numel())
