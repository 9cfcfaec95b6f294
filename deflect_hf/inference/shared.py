"""One encoder in memory under several adapted models, and its frozen parts computed once for all of them.

A *twin* of an encoder has modules of its own and the same weights in memory. An adapter on a twin wraps the twin's
modules alone: there is no state to switch between tasks, so any number of threads may use any of them at once, and a
model on a twin computes what it would compute on an encoder of its own, bit for bit.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from deflect_hf.errors import ArchitectureError, UnsupportedOperationError
from deflect_hf.tuners.deflect.architectures import find_encoder, patch_projection

# What adaptation puts into the names of the modules that it wraps.
WRAPPERS = ("base_layer.", "original_module.")
# Entries of a configuration that only describe the encoder, or that each run chooses for its own twin.
NOT_COMPARED = {
    "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "problem_type", "id2label",
    "label2id", "gsd", "num_channels", "mask_ratio", "norm_pix_loss", "decoder_hidden_size",
    "decoder_intermediate_size", "decoder_num_attention_heads", "decoder_num_hidden_layers",
}  # fmt: skip
MAX_REPLAY_BYTES = 2**29


def twin(encoder: PreTrainedModel) -> PreTrainedModel:
    """Modules of its own over the same weights in memory, frozen."""
    shared: dict[int, Any] = {}
    for parameter in encoder.parameters():
        # Not the parameter itself: what is done to the twin's, such as moving it to a device, stays with the twin.
        shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    shared |= {id(buffer): buffer for buffer in encoder.buffers()}
    return copy.deepcopy(encoder, shared)


def differences(encoder: PreTrainedModel, other: PreTrainedModel) -> list[str]:
    """Names of settings and weights in which two bare encoders differ."""
    found = differing_settings(encoder.config.to_dict(), other.config.to_dict())
    own, others = _weights(encoder), _weights(other)
    return found + sorted(name for name in own.keys() | others.keys() if not _equal(own.get(name), others.get(name)))


def differing_settings(config: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Entries in which two configurations make different encoders."""
    names = (config.keys() & other.keys()) - NOT_COMPARED
    return sorted(name for name in names if config[name] != other[name])


def unlike(adapted: PreTrainedModel, encoder: PreTrainedModel) -> list[str]:
    """Names of the weights of `encoder` that an adapted encoder does not have, or has other values of.

    Left out are those of the patch embedding, which some methods train.
    """
    others = _weights(adapted)
    trained = {id(parameter) for parameter in encoder.get_input_embeddings().parameters()}
    weights = {name: tensor for name, tensor in _weights(encoder).items() if id(tensor) not in trained}
    return [name for name, tensor in weights.items() if not _equal(tensor, others.get(name))]


def share_weights(adapted: PreTrainedModel, encoder: PreTrainedModel) -> None:
    """Let the weights of an adapted encoder that equal those of `encoder` be those, which frees their memory."""
    others = _weights(adapted)
    for name, tensor in _weights(encoder).items():
        if _equal(tensor, others.get(name)):
            others[name].data = tensor.detach()


def refuse_merging(adapted: nn.Module) -> None:
    """Let no adapter be merged into weights that others share, which merging writes into."""
    for module in adapted.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge = _no_merging


def _no_merging(*_: Any, **__: Any) -> None:
    raise UnsupportedOperationError(
        "The encoder's weights are shared with other tasks, and merging would write into them. Fix: load this model "
        "alone (Predictor.from_folder), and merge that."
    )


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by the names that they have in the bare encoder."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for wrapper in WRAPPERS:
        named = {name.replace(wrapper, ""): tensor for name, tensor in named.items()}
    return {name: tensor for name, tensor in named.items() if not name.startswith("pooler.")}


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other.to(one.device))


class Call(NamedTuple):
    """What a frozen module was given, under which precision, and what it gave."""

    given: tuple[Any, ...]
    output: Tensor


class Replay:
    """What frozen modules gave for the first task, given again to the next where they are given the same.

    The n-th call of a module by one task is compared with the n-th by those before: tasks that cut an image into the
    same windows meet in the same order. What would exceed `max_bytes` is not kept, but computed again.
    """

    def __init__(self, max_bytes: int = MAX_REPLAY_BYTES) -> None:
        self.room = max_bytes
        self.kept: dict[tuple[Any, int], list[Call]] = {}
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
        given = (precision, args, {name: kwargs[name] for name in kwargs if name != "output_hidden_states"})
        for call in self.kept.get(place, ()):
            if _same(call.given, given):
                return call.output.clone()
        output = forward(*args, **kwargs)
        size = output.nbytes + sum(value.nbytes for value in _tensors(given))
        if size <= self.room:
            self.room -= size
            # Copies, in case a module further on writes into what it is given.
            self.kept.setdefault(place, []).append(Call(_copied(given), output.clone()))
        return output


_REPLAY: ContextVar[Replay | None] = ContextVar("replay", default=None)


@contextmanager
def replaying() -> Iterator[Replay]:
    """Within the block, in this thread, the frozen modules of [`replay_frozen`] models are computed once."""
    replay = Replay()
    token = _REPLAY.set(replay)
    try:
        yield replay
    finally:
        _REPLAY.reset(token)


def replay_frozen(adapted: nn.Module, encoder: PreTrainedModel) -> None:
    """Let the parts of an adapted twin of `encoder` that are as they were take part in [`replaying`].

    These are the patch embedding and the blocks, unless an adapter changed them; a deflected block takes the
    deflection as an argument and is computed anew for it.
    """
    try:
        found = find_encoder(encoder)
    except ArchitectureError:
        return  # an encoder that DEFLECT does not know is computed as a whole
    parts = [patch_projection(encoder.get_submodule(found.embeddings))]
    parts += [encoder.get_submodule(name) for name in found.blocks]
    keys = {_pointers(part): number for number, part in enumerate(parts)}
    kinds = {type(part) for part in parts}
    for module in adapted.modules():
        if type(module) in kinds and _pointers(module) in keys:
            module.forward = partial(_replayed, module.forward, keys[_pointers(module)])


def _replayed(forward: Callable[..., Any], key: int, *args: Any, **kwargs: Any) -> Any:
    # torch.compile cannot trace a context variable
    replay = None if torch.compiler.is_compiling() else _REPLAY.get()
    if replay is None or kwargs.get("deflect") is not None:
        return forward(*args, **kwargs)
    return replay(key, forward, *args, **kwargs)


def _pointers(module: nn.Module) -> tuple[int, ...]:
    return tuple(parameter.data_ptr() for parameter in module.parameters())


def _same(one: Any, other: Any) -> bool:
    """Equal values; tensors element by element, which NaN never is."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        alike = isinstance(one, Tensor) and isinstance(other, Tensor)
        return alike and (one.dtype, one.device) == (other.dtype, other.device) and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    return tuple(map(_copied, value)) if isinstance(value, (list, tuple)) else value
