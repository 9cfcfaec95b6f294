"""What the frozen parts of one encoder compute for a first task, kept for the next that gives them the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers import PreTrainedModel

from deflect_hf.errors import ArchitectureError
from deflect_hf.tuners.deflect.architectures import find_encoder, patch_projection

MAX_CACHE_BYTES = 2**29


class ActivationCache:
    """What frozen modules gave for the first task, given again to the next where they are given the same.

    The n-th call of a module by one task is compared with the n-th by those before: tasks that cut an image into the
    same windows meet in the same order. What would exceed `max_bytes` is not kept, but computed again.
    """

    def __init__(self, max_bytes: int = MAX_CACHE_BYTES) -> None:
        self.room = max_bytes
        self.kept: dict[tuple[Any, int], list[tuple[list[Any], Any, Tensor]]] = {}  # inputs, their tree, output
        self.calls: Counter[Any] = Counter()

    def next_task(self) -> None:
        """Start counting calls again."""
        self.calls.clear()

    def __call__(self, key: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The output of `forward`, of this call or of an equal one before."""
        place = (key, self.calls[key])
        self.calls[key] += 1
        device = args[0].device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        # which layers are captured is the business of hooks around the block, not of the block
        named = {name: kwargs[name] for name in sorted(kwargs) if name != "output_hidden_states"}
        leaves, tree = pytree.tree_flatten((precision, args, named))
        for known, known_tree, output in self.kept.get(place, ()):
            if known_tree == tree and all(map(_same, known, leaves)):
                return output.clone()
        output = forward(*args, **kwargs)
        size = output.nbytes + sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
        if size <= self.room:
            self.room -= size
            # copies, in case a module further on writes into what it is given
            copied = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            self.kept.setdefault(place, []).append((copied, tree, output.clone()))
        return output


def _same(one: Any, other: Any) -> bool:
    """Equal values; tensors element by element, which NaN never is."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return (one.dtype, one.device) == (other.dtype, other.device) and torch.equal(one, other)
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and bool(one == other)


_CACHE: ContextVar[ActivationCache | None] = ContextVar("cache", default=None)


@contextmanager
def caching() -> Iterator[ActivationCache]:
    """Within the block, in this thread, the frozen modules of [`cache_frozen`] models are computed once."""
    cache = ActivationCache()
    token = _CACHE.set(cache)
    try:
        yield cache
    finally:
        _CACHE.reset(token)


def cache_frozen(adapted: nn.Module, encoder: PreTrainedModel) -> None:
    """Let the parts of an adapted model that are those of `encoder`, in memory, take part in [`caching`].

    These are the patch embedding and the blocks, unless an adapter changed them; a deflected block takes the
    deflection as an argument and is computed anew for it.
    """
    try:
        found = find_encoder(encoder)
    except ArchitectureError:
        return  # an encoder that DEFLECT does not know is computed as a whole
    parts = [patch_projection(encoder.get_submodule(found.embeddings)), *map(encoder.get_submodule, found.blocks)]
    keys = {_pointers(part): number for number, part in enumerate(parts)}
    kinds = {type(part) for part in parts}
    for module in adapted.modules():
        if type(module) in kinds and _pointers(module) in keys:
            module.forward = partial(_cached, module.forward, keys[_pointers(module)])


def _cached(forward: Callable[..., Any], key: int, *args: Any, **kwargs: Any) -> Any:
    # torch.compile cannot trace a context variable
    cache = None if torch.compiler.is_compiling() else _CACHE.get()
    if cache is None or kwargs.get("deflect") is not None:
        return forward(*args, **kwargs)
    return cache(key, forward, *args, **kwargs)


def _pointers(module: nn.Module) -> tuple[int, ...]:
    return tuple(parameter.data_ptr() for parameter in module.parameters())
