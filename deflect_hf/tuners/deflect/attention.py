"""Untangled attention and embedding deflection, inside the block, at the attention's output.

The frozen block and its attention keep their classes, names and parameters; what changes is how their `forward` is
called. Everything a call needs travels as the keyword `deflect`, so there is no hidden state: two interleaved
forwards, threads, and gradient checkpointing from inside or outside see only their own tensors.

Source: design equations 3 and 4 (README, "The method"); published idea: arXiv 2503.09493, sections on uAtt and
deflection.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from deflect_hf.errors import UnsupportedOperationError

if TYPE_CHECKING:
    from deflect_hf.tuners.deflect.architectures import Architecture
    from deflect_hf.tuners.deflect.deflection import DeflectionUp

# The fused kernel known to take values of any width, and the multiple of channels that it is fast with.
WIDENED = "sdpa"
LANES = 8
# On CPUs that kernel takes queries in blocks of a multiple of this many rows, and a last row by itself by another way.
ROWS = 32


class Deflection(NamedTuple):
    """What one block's attention needs: the radiometric stream `a` (B, N, d), the adapter's G and U, and its names."""

    stream: torch.Tensor
    down: nn.Linear
    up: DeflectionUp
    architecture: Architecture


def _as_forward(function: Callable[..., Any]) -> Callable[..., Any]:
    """To be bound to a module: pickle looks a bound method up by its function's name."""
    function.__name__ = "forward"
    return function


@_as_forward
def deflected_attention(
    attention: Any,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    deflect: Deflection | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(B, N, D) normalised tokens -> (B, N, D) deflected displacement, attention weights where the kernel gives them.

    The geometry `O(S V)` is computed exactly as the frozen attention does; the radiometry `m = S a` uses the same map.
    """
    if deflect is None:
        return type(attention).forward(attention, hidden_states, attention_mask, **kwargs)
    architecture = deflect.architecture
    source = sys.modules[type(attention).__module__]
    heads = (*hidden_states.shape[:-1], -1, attention.head_dim)
    query, key, value = (
        projection(hidden_states).view(heads).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if architecture.rotary:
        cos, sin = kwargs.pop("position_embeddings")
        query, key = source.apply_rotary_pos_emb(query, key, cos, sin)
    kernel = ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation,
        source.eager_attention_forward,
    )
    scale = getattr(attention, architecture.scale)
    call = partial(kernel, attention, attention_mask=attention_mask, scaling=scale, **kwargs)
    wide = attention.config._attn_implementation == WIDENED
    return _deflected(attention, deflect, (query, key, value), call, wide)


def _deflected(
    attention: Any,
    deflect: Deflection,
    projected: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    call: Callable[..., Any],
    wide: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(B, h, N, D/h) queries, keys, values -> (B, N, D) deflected displacement, and weights where `call` gives them.

    `call` is the frozen attention's kernel; `wide` tells whether it takes values of another width than the keys.
    """
    query, key, value = projected
    architecture = deflect.architecture
    dropout = attrgetter(architecture.dropout)(attention) if attention.training else 0.0
    stream = deflect.stream.view(*deflect.stream.shape[:-1], query.shape[1], -1).transpose(1, 2).to(value.dtype)
    mixed: torch.Tensor
    weights: torch.Tensor | None = None
    widened = wide and dropout == 0.0
    # In evaluation a model gives the same bits with and without autograd state.
    differentiable = attention.training and torch.is_grad_enabled() and query.requires_grad
    if widened and _is_exact_when_wide(query):
        mixed, radiometry = _wide_mixtures(call, query, key, value, stream)
    elif widened and differentiable:
        mixed, radiometry = _differentiable_mixtures(call, query, key, value, stream)
    else:
        mixed, weights = call(query, key, value, dropout=dropout)
        radiometry = _mixed_stream(call, query, key, stream, weights)
    output = getattr(attention, architecture.output)
    displacement = output(mixed.reshape(*deflect.stream.shape[:-1], -1).contiguous())
    radiometry = radiometry.reshape(deflect.stream.shape)
    return deflect.up(displacement, _inner(deflect, radiometry)), weights


def _mixed_stream(
    call: Callable[..., Any],
    query: torch.Tensor,
    key: torch.Tensor,
    stream: torch.Tensor,
    weights: torch.Tensor | None,
) -> torch.Tensor:
    """(B, h, N, D/h) queries and keys, (B, h, N, d/h) stream -> (B, N, h, d/h): m = S a (equation 3).

    With the weights themselves where there are any (eager); else the fused kernel gets the same queries and keys once
    more, with values padded to their width, and never keeps an (N, N) tensor.
    """
    if weights is not None:
        return (weights.to(stream.dtype) @ stream).transpose(1, 2)
    padded = F.pad(stream, (0, query.shape[-1] - stream.shape[-1]))
    mixed: torch.Tensor = call(query, key, padded, dropout=0.0)[0]
    return mixed[..., : stream.shape[-1]]


def _is_exact_when_wide(query: torch.Tensor) -> bool:
    """Whether one call with the values [V ; a] gives `S V` to the last bit as a call with V alone does.

    On CPUs it does for heads of whole vector registers, unless one row is left over: its products are those of a
    matrix and a vector, which are summed in an order that depends on the width (measured; tests/tuners/
    test_attention.py). Other devices choose another kernel for another width.
    """
    rows, width = query.shape[-2:]
    whole = width >= 2 * LANES and width % LANES == 0
    return query.device.type == "cpu" and whole and rows % ROWS != 1


def _wide_mixtures(
    call: Callable[..., Any], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, stream: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, h, N, D/h) queries, keys and values, (B, h, N, d/h) stream -> (B, N, h, D/h) S V and (B, N, h, d/h) S a.

    One call with the values [V ; a]; queries and keys are padded to their width, which fused kernels ask for.
    """
    width, used = value.shape[-1], value.shape[-1] + stream.shape[-1]
    rest = -used % LANES
    # `cat` rather than `F.pad`, which fills what it then copies over, and copies its gradient
    zeros = value.new_zeros(()).expand(*value.shape[:-1], used - width + rest)
    query, key = (torch.cat([part, zeros], dim=-1) for part in (query, key))
    both = call(query, key, torch.cat([value, stream, zeros[..., :rest]], dim=-1), dropout=0.0)[0]
    mixed, radiometry, _ = both.split([width, used - width, rest], dim=-1)  # one gradient, where slices add up two
    return mixed, radiometry


def _differentiable_mixtures(
    call: Callable[..., Any], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, stream: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As [`_wide_mixtures`], where a wide call changes the last bits of `S V`.

    Its value is then that of the frozen call, without autograd state, and only its gradient that of the wide one, as
    one backward pass costs less than two.
    """
    with torch.no_grad():
        exact = call(query, key, value, dropout=0.0)[0]
    both, radiometry = _wide_mixtures(call, query, key, value, stream)
    mixed: torch.Tensor = _WithGradientOf.apply(exact, both)
    return mixed, radiometry


class _WithGradientOf(torch.autograd.Function):
    """Value of the first tensor, gradient of the second: the same quantity, rounded differently."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: torch.Tensor, differentiable: torch.Tensor) -> torch.Tensor:
        """(...) and (...) -> (...)."""
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, torch.Tensor]:
        """(...) -> none, (...)."""
        return None, gradients[0]


def _inner(deflect: Deflection, radiometry: torch.Tensor) -> torch.Tensor:
    """(B, N, d) own and (B, N, d) gathered radiometry -> (B, N, r): gelu(G [norm(a) ; norm(m)]) (equation 4)."""
    width = (deflect.stream.shape[-1],)
    wide = torch.promote_types(deflect.stream.dtype, torch.float32)
    pair = [F.layer_norm(part.to(wide), width) for part in (deflect.stream, radiometry)]
    inner = torch.cat(pair, dim=-1).to(deflect.down.weight.dtype)
    return F.gelu(deflect.down(inner))


@_as_forward
def deflected_block(
    block: Any, hidden_states: torch.Tensor, *args: Any, deflect: Deflection | None = None, **kwargs: Any
) -> torch.Tensor:
    """(B, N, D) tokens -> (B, N, D) tokens: the frozen block, its attention deflected when `deflect` is given.

    The block's own gradient checkpointing is followed here, because there the stream would enter the checkpointed
    function as a closure, through which re-entrant checkpointing passes no gradient.
    """
    if deflect is None:
        return type(block).forward(block, hidden_states, *args, **kwargs)
    inner = _without_checkpointing(type(block).forward)
    if not (block.gradient_checkpointing and block.training):
        return inner(block, hidden_states, *args, deflect=deflect, **kwargs)

    def run(tokens: torch.Tensor, stream: torch.Tensor, *rest: Any) -> torch.Tensor:
        return inner(block, tokens, *rest, deflect=deflect._replace(stream=stream), **kwargs)

    return block._gradient_checkpointing_func(run, hidden_states, deflect.stream, *args)


def _without_checkpointing(forward: Any) -> Any:
    """The block's forward as its class wrote it, without transformers' checkpointing around it."""
    while forward.__code__.co_name == "forward_with_checkpointing":
        forward = forward.__wrapped__
    return forward


@_as_forward
def deflected_timm_block(
    block: Any, tokens: torch.Tensor, *args: Any, deflect: Deflection | None = None, **kwargs: Any
) -> torch.Tensor:
    """(B, N, D) tokens -> the same: timm's block hands on its mask alone, so the deflection goes in its place."""
    if deflect is not None:
        if any(value is not None and value is not False for value in (*args, *kwargs.values())):
            raise UnsupportedOperationError("DEFLECT on timm's VisionTransformer takes no attn_mask and no is_causal.")
        args, kwargs = (), {"attn_mask": deflect}
    return type(block).forward(block, tokens, *args, **kwargs)


@_as_forward
def deflected_timm_attention(
    attention: Any, tokens: torch.Tensor, attn_mask: Any = None, **kwargs: Any
) -> torch.Tensor:
    """(B, N, D) normalised tokens -> (B, N, D) deflected displacement, with timm's fused `qkv` and its kernels."""
    if not isinstance(attn_mask, Deflection):
        return type(attention).forward(attention, tokens, attn_mask=attn_mask, **kwargs)
    parts = attention.qkv(tokens).reshape(*tokens.shape[:-1], 3, -1, attention.head_dim).permute(2, 0, 3, 1, 4)
    query, key, value = parts.unbind(0)
    projected = (attention.q_norm(query), attention.k_norm(key), value)
    call = partial(_timm_kernel, attention)
    bent, _ = _deflected(attention, attn_mask, projected, call, attention.fused_attn)
    return attention.proj_drop(bent)


def _timm_kernel(
    attention: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    weights = None
    if attention.fused_attn:
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=attention.scale)
    else:
        weights = F.dropout(((query * attention.scale) @ key.transpose(-2, -1)).softmax(dim=-1), dropout)
        mixed = weights @ value
    return mixed.transpose(1, 2), weights


def install(block: nn.Module, architecture: Architecture) -> None:
    """Let `block` and its attention accept the keyword `deflect`; without it they do what they always did.

    As bound methods, which `torch.compile` takes for the same code in each block, and compiles once.
    """
    attention: Any = getattr(block, architecture.attention)
    of_block, of_attention = INSTALLED[2:] if architecture.fused else INSTALLED[:2]
    block.forward, attention.forward = MethodType(of_block, block), MethodType(of_attention, attention)


def uninstall(block: nn.Module, architecture: Architecture) -> None:
    """Undo [`install`]: the block is again what its class says."""
    for module in (block, getattr(block, architecture.attention)):
        if getattr(module.__dict__.get("forward"), "__func__", None) in INSTALLED:
            del module.__dict__["forward"]


INSTALLED = (deflected_block, deflected_attention, deflected_timm_block, deflected_timm_attention)
