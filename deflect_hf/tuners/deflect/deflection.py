"""The deflection itself: a displacement bent by the radiometry, its length kept (equation 4).

Source: design equation 4 (README, "The method"); published idea: arXiv 2503.09493, section on deflection.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

# The displacement keeps its length unless displacement and deflection cancel to less than this share of it.
CANCELLATION = 1e-6


class DeflectionUp(nn.Linear):
    """U: Linear(r -> D), applied to the displacement that it bends, as no layer of its own needs (B, N, D) u."""

    def forward(self, displacement: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """(B, N, D) displacement, (B, N, r) inner -> (B, N, D) bent displacement."""
        return deflect_displacement(displacement, inner, self.weight, self.bias)


def deflect_displacement(
    displacement: torch.Tensor, inner: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """(B, N, D), (B, N, r), U's (D, r) and (D,) -> (B, N, D): bent by u = U inner, of unchanged length per token.

    u is in lengths of the displacement, so that the angle by which it bends one does not depend on how long that is.

    All is computed in float32, under autocast too, or in float64 for displacements in it. With u = 0 the result equals
    the displacement.
    """
    # a file of torch.jit.trace holds no autograd functions of Python
    bend = _Bent.forward if torch.jit.is_tracing() else _Bent.apply
    bent: torch.Tensor = bend(displacement, inner, weight, bias)
    return bent


class _Sum(NamedTuple):
    """Displacement + length * u, and what it is made of."""

    length: torch.Tensor  # (B, N, 1) of the displacement
    pushes: torch.Tensor  # (B, N, r + 1) what U and its bias are multiplied with
    bent: torch.Tensor  # (B, N, D)
    bent_length: torch.Tensor  # (B, N, 1)
    floor: torch.Tensor  # (B, N, 1) the least that counts as its length


class _Bent(torch.autograd.Function):
    """[`deflect_displacement`], which keeps its inputs for the backward pass, as they are, and nothing else.

    Autograd would keep four tensors (B, N, D), three of them in float32. u is of rank r + 1, and is never made: sums
    over it, and its gradients, are products with U. The backward pass can itself be differentiated.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        displacement: torch.Tensor, inner: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """(B, N, D), (B, N, r), (D, r), (D,) -> (B, N, D)."""
        with torch.autocast(device_type=displacement.device.type, enabled=False):
            dtype = torch.promote_types(displacement.dtype, torch.float32)
            found = _sum(displacement.to(dtype), inner.to(dtype), _rows(weight, bias, dtype))
            ratio = found.length / torch.maximum(found.bent_length, found.floor)
            return found.bent.mul_(ratio).to(displacement.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """Keep all; apart from `forward`, so that torch.func and vmap take it, too."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """(B, N, D) -> (B, N, D) or none, (B, N, r), (D, r), (D,)."""
        displacement, inner, weight, bias = ctx.saved_tensors
        with torch.autocast(device_type=displacement.device.type, enabled=False):
            dtype = torch.promote_types(displacement.dtype, torch.float32)
            step, factors, rows = displacement.to(dtype), inner.to(dtype), _rows(weight, bias, dtype)
            gradient = gradients[0].to(dtype)
            length, pushes, bent, bent_length, floor = _sum(step, factors, rows)
            divisor = torch.maximum(bent_length, floor)
            ratio = length / divisor
            # of the ratio, which is constant where the floor stands for the length
            slope = torch.where(bent_length > floor, (gradient * bent).sum(-1, keepdim=True) / divisor, 0.0)
            of_bent = torch.addcmul(gradient * ratio, bent, slope * ratio / divisor, value=-1)
            of_rows = (pushes.flatten(0, -2).t() @ of_bent.flatten(0, -2)).t()
            of_pushes = of_bent @ rows.t()
            of_inner = length * of_pushes[..., :-1]
            of_step = None
            if ctx.needs_input_grad[0]:  # not in the first deflected block
                along = (of_pushes[..., :-1] * factors).sum(-1, keepdim=True) + of_pushes[..., -1:]
                of_step = torch.addcmul(of_bent, step, torch.where(length > 0, (slope + along) / length, 0.0))
                of_step = of_step.to(displacement.dtype)
            return (
                of_step,
                of_inner.to(inner.dtype),
                of_rows[:, :-1].to(weight.dtype),
                of_rows[:, -1].to(bias.dtype),
            )


def _rows(weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(D, r), (D,) -> (r + 1, D)."""
    return torch.cat([weight.to(dtype), bias.to(dtype).unsqueeze(-1)], dim=-1).t()


def _sum(step: torch.Tensor, inner: torch.Tensor, rows: torch.Tensor) -> _Sum:
    """(B, N, D), (B, N, r), (r + 1, D) -> the sum of displacement and push."""
    length = torch.linalg.vector_norm(step, dim=-1, keepdim=True)
    pushes = torch.cat([length * inner, length], dim=-1)
    bent = torch.addmm(step.flatten(0, -2), pushes.flatten(0, -2), rows).view_as(step)
    bent_length = torch.linalg.vector_norm(bent, dim=-1, keepdim=True)
    # Where u cancels the displacement there is no direction to keep; the floor keeps the quotient finite there.
    floor = (CANCELLATION * length).clamp_min(torch.finfo(torch.float32).tiny)
    return _Sum(length, pushes, bent, bent_length, floor)
