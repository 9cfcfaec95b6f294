"""Variants of DEFLECT for the ablation: `deflect@NAME` as a row of the accuracy benchmark.

Each takes one decision of the method back, or tries another, by putting another function in the place of one of this
package's own while a run lasts. They live here and not in `DeflectConfig`, because none of them is worth an option: the
README has the table. They are for single processes without gradient checkpointing, and images without missing pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deflect_hf.errors import ConfigError, listing, nearest
from deflect_hf.spectral.features import SpectralFeatures
from deflect_hf.tuners.deflect import attention, layer
from deflect_hf.tuners.deflect.attention import deflect_displacement

QUANTILES = (0.1, 0.5, 0.9)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` inside the block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def free(displacement: Tensor, push: Tensor) -> Tensor:
    """(B, N, D) displacement, (B, N, D) push -> (B, N, D): the sum, of any length."""
    step = displacement.float()
    return (step + _length(step) * push.float()).to(displacement.dtype)


def clipped(displacement: Tensor, push: Tensor) -> Tensor:
    """(B, N, D) displacement, (B, N, D) push -> (B, N, D): the sum, shortened where it is longer than before."""
    bent = free(displacement, push).float()
    shrinking = _length(displacement.float()) / _length(bent).clamp_min(1e-12)
    return (bent * shrinking.clamp(max=1.0)).to(displacement.dtype)


def absolute(displacement: Tensor, push: Tensor) -> Tensor:
    """(B, N, D) displacement, (B, N, D) push -> (B, N, D): bent by a push in the embedding's own unit."""
    step = displacement.float()
    return deflect_displacement(displacement, push.float() / _length(step).clamp_min(1e-12))


def _length(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)


@contextmanager
def without_attention() -> Iterator[None]:
    """No uAtt: a token's own radiometry takes the place of what its attention gathers, at the same size."""
    push = attention._push
    with replaced(attention, "_push", lambda deflect, _: push(deflect, deflect.stream)):
        yield


@contextmanager
def without_norm() -> Iterator[None]:
    """U = U gelu(G [a ; m]): the radiometry enters as it is."""

    def push(deflect: attention.Deflection, radiometry: Tensor) -> Tensor:
        inner = torch.cat([deflect.stream, radiometry], dim=-1).to(deflect.down.weight.dtype)
        return deflect.up(F.gelu(deflect.down(inner)))

    with replaced(attention, "_push", push):
        yield


@contextmanager
def updated_stream() -> Iterator[None]:
    """Each block hands on a + m: the stream spreads along the attention of all blocks before."""
    gathered: list[Tensor] = []
    push, forward = attention._push, layer.DeflectBlock.forward

    def keep(deflect: attention.Deflection, radiometry: Tensor) -> Tensor:
        gathered.append(radiometry)
        return push(deflect, radiometry)

    def update(block: layer.DeflectBlock, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = forward(block, hidden_states, *args, **kwargs)
        width = output.shape[-1] - block.out_features
        return output + F.pad(gathered.pop(), (block.out_features, 0)) if gathered and width else output

    with replaced(attention, "_push", keep), replaced(layer.DeflectBlock, "forward", update):
        yield


@contextmanager
def whole_block() -> Iterator[None]:
    """What is bent is the displacement of the whole block, attention and MLP, instead of the attention's."""
    pushes: list[Tensor] = []
    push, forward, bend = attention._push, layer.DeflectBlock.forward, attention.deflect_displacement

    def keep(deflect: attention.Deflection, radiometry: Tensor) -> Tensor:
        pushes.append(push(deflect, radiometry))
        return pushes[-1]

    def bent(block: layer.DeflectBlock, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = forward(block, hidden_states, *args, **kwargs)
        if not pushes:
            return output
        before, after = (tokens[..., : block.out_features] for tokens in (hidden_states, output))
        tokens = before + bend(after - before, pushes.pop())
        return torch.cat([tokens, output[..., block.out_features :]], dim=-1)

    with (
        replaced(attention, "_push", keep),
        replaced(attention, "deflect_displacement", lambda displacement, _: displacement),
        replaced(layer.DeflectBlock, "forward", bent),
    ):
        yield


def statistics(part: Callable[[Tensor, tuple[int, int]], Tensor], times: float) -> Callable[[], Any]:
    """A variant whose pixel-set vector has `times` 2F values.

    `part` of (B, N, P*P) values -> (B, N, K) joins the mean and the standard deviation, standardised as the mean is.
    """

    @contextmanager
    def variant() -> Iterator[None]:
        forward, count = SpectralFeatures.forward, layer.feature_count

        def extended(features: SpectralFeatures, pixel_values: Tensor, dropped: Any = None) -> Tensor:
            usual = forward(features, pixel_values, dropped)
            half = features.num_features // 2
            mean, std = features.feature_mean[:half], features.feature_std[:half]
            found = torch.stack([part(plane, features.patch_size) for plane in planes(features, pixel_values)], dim=-1)
            return torch.cat([usual, ((found - mean) / std).flatten(-2)], dim=-1)

        with (
            replaced(SpectralFeatures, "forward", extended),
            replaced(layer, "feature_count", lambda config, encoder: int(times * count(config, encoder))),
        ):
            yield

    return variant


def planes(features: SpectralFeatures, pixel_values: Tensor) -> list[Tensor]:
    """(B, C, H, W) reflectance -> F times (B, N, P*P): bands and indices per pixel."""
    bands = [features._patches(channel) for channel in pixel_values.float().unbind(1)]
    indices: dict[int, Tensor] = {}
    features.program.run(bands, lambda index, values: indices.update({index: values.clone()}))
    return [*bands, *(indices[index] for index in range(len(indices)))]


def quantiles(values: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """(B, N, P*P) values -> (B, N, 3): their 10, 50 and 90 % quantiles."""
    return torch.quantile(values, values.new_tensor(QUANTILES), dim=-1).movedim(0, -1)


def cells(grid: int) -> Callable[[Tensor, tuple[int, int]], Tensor]:
    """(B, N, P*P) values -> (B, N, grid * grid): means of the patch's parts."""

    def part(values: Tensor, patch_size: tuple[int, int]) -> Tensor:
        rows, columns = patch_size
        split = values.unflatten(-1, (grid, rows // grid, grid, columns // grid))
        return split.mean(dim=(-3, -1)).flatten(-2)

    return part


@contextmanager
def mean_alone() -> Iterator[None]:
    """The standard deviations are 0: the mean is the only statistic."""
    forward = SpectralFeatures.forward

    def masked(features: SpectralFeatures, pixel_values: Tensor, dropped: Any = None) -> Tensor:
        statistics = forward(features, pixel_values, dropped)
        half = features.num_features // 2
        return torch.cat([statistics[..., :half], torch.zeros_like(statistics[..., half:])], dim=-1)

    with replaced(SpectralFeatures, "forward", masked):
        yield


VARIANTS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "clip": lambda: replaced(attention, "deflect_displacement", clipped),
    "free": lambda: replaced(attention, "deflect_displacement", free),
    "absolute": lambda: replaced(attention, "deflect_displacement", absolute),
    "no-uatt": without_attention,
    "no-norm": without_norm,
    "updated": updated_stream,
    "whole-block": whole_block,
    "mean": mean_alone,
    "quantiles": statistics(quantiles, 1 + len(QUANTILES) / 2),
    "g2": statistics(cells(2), 1 + 4 / 2),
    "g4": statistics(cells(4), 1 + 16 / 2),
}


def check_variants(names: str) -> None:
    """Raise ConfigError if one of the `names`, joined by `+`, is no variant."""
    for name in names.split("+"):
        if name not in VARIANTS:
            raise ConfigError(
                f"deflect@{names}: no variant {name!r}; there are {listing(VARIANTS)}.{nearest(name, VARIANTS)}"
            )


@contextmanager
def variants(names: str) -> Iterator[None]:
    """DEFLECT as the variants `names`, joined by `+`, have it, inside the block; as it is for an empty string."""
    with ExitStack() as stack:
        for name in filter(None, names.split("+")):
            stack.enter_context(VARIANTS[name]())
        yield
