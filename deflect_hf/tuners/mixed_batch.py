"""A batch whose samples ask for different adapters: PEFT's `adapter_names`, one forward pass for each adapter named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from deflect_hf.errors import DeflectError, UnsupportedOperationError

BASE = "__base__"  # PEFT's name for the model without an adapter


@contextmanager
def mixed_batch(tuner: BaseTuner, adapter_names: Sequence[str]) -> Iterator[None]:
    """Until the end of the context, `tuner.model` gives each row of a batch to the adapter named for it.

    Rows of `__base__` are computed as in `disable_adapter()`. No other thread may use the model meanwhile.
    """
    layers = [item for item in tuner.model.modules() if isinstance(item, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    if tuner.training:
        raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
    if any(layer.merged for layer in layers if isinstance(layer, BaseTunerLayer)):
        raise ValueError(
            "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
        )
    if unknown := set(adapter_names) - {BASE, *tuner.peft_config}:
        raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(sorted(unknown))}")
    forward, model = tuner.model.forward, tuner.model
    replaced = model.__dict__.get("forward")
    model.forward = lambda *args, **kwargs: _by_adapter(forward, layers, list(adapter_names), args, kwargs)
    try:
        yield
    finally:
        del model.forward
        if replaced is not None:
            model.forward = replaced


def _by_adapter(
    forward: Callable[..., Any],
    layers: list[nn.Module],
    names: list[str],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """(B, ...) tensors -> the outputs of the whole batch, from one forward pass for each adapter."""
    batch = next((len(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()), 0)
    if batch != len(names):
        raise ValueError(
            "Length of `adapter_names` should be the same as the number of inputs, but got "
            f"{len(names)} and {batch} respectively."
        )

    def of(rows: list[int], value: Any) -> Any:
        return value[rows] if isinstance(value, Tensor) and value.dim() and len(value) == batch else value

    rows = {name: [row for row, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}
    outputs = []
    for name, chosen in rows.items():
        with _switched(layers, name):
            try:
                one = forward(*(of(chosen, v) for v in args), **{key: of(chosen, v) for key, v in kwargs.items()})
            except DeflectError as error:
                raise type(error)(f"adapter {name!r}: {error}") from error
        outputs.append(one)
    return _joined(outputs, rows)


@contextmanager
def _switched(layers: list[nn.Module], name: str) -> Iterator[None]:
    """Activate one adapter, or none, as PEFT's methods do but without a change of what requires gradients."""
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    try:
        for layer in layers:
            if name == BASE:
                layer._disable_adapters = True  # type: ignore[assignment]
            else:
                layer._active_adapter = [name]  # type: ignore[assignment]
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled


def _joined(outputs: list[Any], rows: dict[str, list[int]]) -> Any:
    """Outputs of each adapter's rows -> those of the batch, in its order: tensors, or tuples and mappings of them."""
    first = outputs[0]
    if isinstance(first, Mapping):
        return type(first)(**{key: _joined([output[key] for output in outputs], rows) for key in first})
    if isinstance(first, tuple | list):
        return type(first)(_joined(list(items), rows) for items in zip(*outputs, strict=True))
    if not isinstance(first, Tensor):
        return first
    if first.dim() == 0:
        raise UnsupportedOperationError(
            "A loss over samples of several adapters is not computed. Fix: leave the labels out, and compute it from "
            "the logits."
        )
    order = [row for chosen in rows.values() for row in chosen]
    return torch.cat(outputs)[torch.argsort(torch.tensor(order, device=first.device))]
