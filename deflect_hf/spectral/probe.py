"""What a formula does, found by trying it on fixed reflectances: its bound, its scale behaviour, its duplicates.

A probe spectrum has a brightness, from 2 % to 80 %, and each band differs from it by a factor of its own, from 0.4 to
2.5, all log-uniform: wider than real land and water, in which neighbouring bands go together. The values depend on
nothing but the band code, so a formula has the same bound on every machine and in every version.
"""

from __future__ import annotations

import functools
import random

import torch
from torch import Tensor

from deflect_hf.errors import IndexFormulaError
from deflect_hf.spectral.formulas import bands_of, compile_program, parse

POINTS = 1024
DARKEST, BRIGHTEST = 0.02, 0.8
SPREAD = 2.5
SHARE_INSIDE_BOUND = 0.99
LARGEST_BOUND = 1e6  # about as many digits as float32 has
_TOLERANCE = 1e-6


@functools.cache
def _reflectances(band: str) -> tuple[float, ...]:
    # a text seeds the same sequence on every platform and Python version
    brightness, own = random.Random("brightness"), random.Random(band)
    return tuple(
        DARKEST * (BRIGHTEST / DARKEST) ** brightness.random() * SPREAD ** (2 * own.random() - 1) for _ in range(POINTS)
    )


@functools.lru_cache(maxsize=1024)  # each configuration of an adapter asks again
def _evaluate(formula: str, factor: float = 1.0) -> Tensor:
    bands = sorted(bands_of(parse(formula, None)))
    planes = [factor * torch.tensor(_reflectances(band), dtype=torch.float64, device="cpu") for band in bands]
    return compile_program([formula], bands).values(planes)[0]


def bound_of(formula: str) -> float:
    """Return the limit of a formula's absolute value: values beyond it are set to it.

    1 for a formula that cannot leave [-1, 1] on positive reflectances, such as a normalised difference. Otherwise the
    smallest power of ten, 10 at least, that holds 99 % of the values on the probe reflectances.
    """
    size = _evaluate(formula).abs()
    if bool((size <= 1 + 1e-9).all()):
        return 1.0
    typical = torch.quantile(size, SHARE_INSIDE_BOUND).item()
    for bound in (1e1, 1e2, 1e3, 1e4, 1e5, LARGEST_BOUND):
        if typical <= bound:
            return bound
    raise IndexFormulaError(f"formula {formula!r:.80} exceeds 1e6 on plausible reflectances.")


def has_additive_constant(formula: str) -> bool:
    """Whether the formula depends on the unit: no power of k gives f(k x) from f(x).

    True for EVI and SAVI, false for normalised differences, ratios and differences of bands.
    """
    once, twice = _evaluate(formula), _evaluate(formula, factor=2.0)
    clear = once.abs() > _TOLERANCE
    ratio = twice[clear] / once[clear]
    return not torch.allclose(ratio, ratio.median().expand_as(ratio), rtol=_TOLERANCE, atol=0.0)


def signature(formula: str) -> Tensor:
    """Return what is left of the probe values after shift and scale: equal for features that standardise alike."""
    values = _evaluate(formula)
    shifted = values[1:] - values[0]
    return shifted / shifted[0]


def same_feature(one: Tensor, other: Tensor) -> bool:
    """Whether two signatures are of one feature."""
    return torch.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE)
