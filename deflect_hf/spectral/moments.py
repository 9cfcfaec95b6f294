"""Mean and standard deviation in one streaming pass, the same whatever the batches and the number of processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deflect_hf.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import Accelerator


class RunningMoments:
    """Streaming count, mean and standard deviation of K features in float64; NaN means "not measured".

    Source: T. Chan, G. Golub, R. LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
    1979 (the merge that keeps Welford's accuracy).
    """

    def __init__(self, num_features: int) -> None:
        self._state = torch.zeros(3, num_features, dtype=torch.float64)  # count, mean, sum of squared deviations

    def update(self, values: Tensor) -> None:
        """(..., K) values, NaN where there is none: add them."""
        size = self._state.shape[1]
        if values.shape[-1] != size:
            raise ConfigError(f"statistics of {size} features cannot take values of {values.shape[-1]} features.")
        rows = values.detach().reshape(-1, size).cpu().double()  # to the CPU first: some devices have no float64
        valid = ~torch.isnan(rows)
        count = valid.sum(0).double()
        mean = torch.where(valid, rows, 0.0).sum(0) / count.clamp(min=1)
        squares = torch.where(valid, rows - mean, 0.0).square().sum(0)
        self._merge(torch.stack([count, mean, squares]))

    def _merge(self, other: Tensor) -> None:
        count = self._state[0] + other[0]
        share = other[0] / count.clamp(min=1)
        delta = other[1] - self._state[1]
        mean = self._state[1] + delta * share
        squares = self._state[2] + other[2] + delta.square() * self._state[0] * share
        self._state = torch.stack([count, mean, squares])

    def reduce(self, accelerator: Accelerator) -> None:
        """Merge the statistics of all processes; afterwards every process holds the same."""
        if accelerator.num_processes == 1:
            return
        gathered = accelerator.gather(self._state.unsqueeze(0).to(accelerator.device)).cpu()
        self._state = gathered[0]
        for state in gathered[1:]:
            self._merge(state)

    @property
    def count(self) -> Tensor:
        """(K,) number of values seen, float64."""
        return self._state[0].clone()

    @property
    def mean(self) -> Tensor:
        """(K,) means, float64; NaN for a feature without values."""
        return torch.where(self._state[0] > 0, self._state[1], torch.nan)

    @property
    def std(self) -> Tensor:
        """(K,) population standard deviations, float64; NaN for a feature without values."""
        return torch.where(self._state[0] > 0, (self._state[2] / self._state[0].clamp(min=1)).sqrt(), torch.nan)

    def state(self) -> dict[str, list[float]]:
        """Return plain numbers from which :meth:`from_state` continues."""
        return dict(zip(("count", "mean", "squares"), self._state.tolist(), strict=True))

    @classmethod
    def from_state(cls, state: dict[str, list[float]]) -> RunningMoments:
        """Continue from :meth:`state`."""
        moments = cls(len(state["count"]))
        moments._state = torch.tensor([state["count"], state["mean"], state["squares"]], dtype=torch.float64)
        return moments
