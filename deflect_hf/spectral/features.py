"""Pixel-set statistics: what a patch is made of, without where it is (the radiometric half of the untangled embedding).

Per pixel, the bands and the bounded spectral indices; per patch, their mean and standard deviation over the valid
pixels. The formulas are those stored with the adapter: the catalogue is not needed here.

Source: R. Thoreau, V. Marsocci, D. Derksen, "Parameter-Efficient Adaptation of Geospatial Foundation Models through
Embedding Deflection", ICCV 2025 (pixel sets); the statistics chosen are this project's definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deflect_hf.errors import BandError, ConfigError, DataError, listing
from deflect_hf.spectral.formulas import compile_program
from deflect_hf.spectral.probe import bound_of

if TYPE_CHECKING:
    from accelerate import Accelerator


class SpectralFeatures(nn.Module):
    """(B, C, H, W) reflectance -> (B, N, 2F) standardised means and standard deviations per patch, float32.

    F features: the C bands, then the indices. A pixel counts for a feature if all bands that the feature uses are
    finite there; NaN marks what was not measured. All arithmetic is float32, whatever the autocast and the dtype of
    the surrounding model.

    Attributes:
        bands: band codes, in channel order.
        formulas: index name to formula over band codes and numbers.
        bounds: index name to the limit of its absolute value; by default :func:`deflect_hf.spectral.probe.bound_of`.
        patch_size: height and width of a patch in pixels.
        feature_mean, feature_std: (2F,) float32 buffers, not saved with the weights: they live in the configuration.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(
        self,
        bands: Sequence[str],
        formulas: Mapping[str, str],
        patch_size: tuple[int, int],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        bounds: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.bands, self.formulas = tuple(bands), dict(formulas)
        self.bounds = {name: bound_of(formulas[name]) for name in formulas} if bounds is None else dict(bounds)
        self.patch_size = (int(patch_size[0]), int(patch_size[1]))
        clashes = [name for name in self.formulas if name in self.bands]
        if clashes:
            raise ConfigError(
                f"{listing(clashes)} are names of bands and of indices at once: such an index is computed of the other "
                "bands anyway, so leave the band out, or give it another code."
            )
        limits = [self.bounds[name] for name in self.formulas]
        self.program = compile_program(list(self.formulas.values()), self.bands, limits)
        self.register_buffer("feature_mean", torch.zeros(self.num_features, device="cpu"), persistent=False)
        self.register_buffer("feature_std", torch.ones(self.num_features, device="cpu"), persistent=False)
        self.set_statistics(mean, std)

    @property
    def feature_names(self) -> list[str]:
        """The F features: bands, then indices."""
        return [*self.bands, *self.formulas]

    @property
    def statistic_names(self) -> list[str]:
        """The 2F outputs: ``mean NDVI`` and so on, then ``std NDVI`` and so on."""
        return [f"{kind} {name}" for kind in ("mean", "std") for name in self.feature_names]

    @property
    def num_features(self) -> int:
        """2F: the size of the last output dimension."""
        return 2 * (len(self.bands) + len(self.formulas))

    def set_statistics(self, mean: Sequence[float] | Tensor | None, std: Sequence[float] | Tensor | None) -> None:
        """Set what the output is standardised with, 2F values each; None for no standardisation.

        A statistic that did not vary when it was fitted (std 0) is only centred, as scikit-learn does.
        """
        means = [0.0] * self.num_features if mean is None else [float(value) for value in mean]
        stds = [1.0] * self.num_features if std is None else [float(value) for value in std]
        usable = [math.isfinite(m) and 0 <= s < math.inf for m, s in zip(means, stds, strict=True)]
        bad = [name for name, fine in zip(self.statistic_names, usable, strict=True) if not fine]
        if bad:
            raise ConfigError(f"no usable statistics for {listing(bad)}: was the band valid anywhere in the images?")
        self._statistics = (tuple(means), tuple(value or 1.0 for value in stds))
        self._fill_buffers()

    def _fill_buffers(self) -> None:
        for name, values in zip(("feature_mean", "feature_std"), self._statistics, strict=True):
            setattr(self, name, torch.tensor(values, dtype=torch.float32, device=getattr(self, name).device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # .to(bfloat16) would round the buffers and to_empty() would lose them: the device follows, the values stay
        module = super()._apply(fn, recurse)
        self._fill_buffers()
        return module

    def forward(self, pixel_values: Tensor, dropped: Mapping[str, Tensor] | None = None) -> Tensor:
        """(B, C, H, W) reflectance -> (B, N, 2F) standardised statistics; 0 where a patch has no valid pixel.

        Patches are in the order of a stride-P convolution, row by row.

        Args:
            dropped: band code to (B,) bool, True for images in which the band counts as not measured.
        """
        statistics = self.raw_statistics(pixel_values, dropped)
        standardised = (statistics - self.feature_mean) / self.feature_std
        return torch.where(torch.isnan(statistics), 0.0, standardised)

    def raw_statistics(self, pixel_values: Tensor, dropped: Mapping[str, Tensor] | None = None) -> Tensor:
        """(B, C, H, W) reflectance -> (B, N, 2F) statistics, float32; NaN where a patch has no valid pixel.

        This is what the mean and standard deviation of :meth:`set_statistics` are fitted on.
        """
        self._check_size(pixel_values)
        with torch.autocast(device_type=pixel_values.device.type, enabled=False):
            # one at a time: a second copy of all bands is never held
            measured = [_measured(self._patches(channel)) for channel in pixel_values.float().unbind(1)]
            valid = [mask for _, mask in measured]
            for band, images in (dropped or {}).items():
                channel = self.bands.index(band)
                valid[channel] = valid[channel] & ~images[:, None, None]  # a uint8, as both are 0 or 1
            return self._statistics_of([plane for plane, _ in measured], valid)

    def _statistics_of(self, planes: list[Tensor], valid: list[Tensor]) -> Tensor:
        """C reflectances (B, N, P*P), finite, and where they were measured -> (B, N, 2F)."""
        results: dict[int, tuple[Tensor, Tensor]] = {}
        weights: dict[frozenset[str], tuple[Tensor, Tensor]] = {}

        def collect(feature: int, values: Tensor, bands: frozenset[str]) -> None:
            if bands not in weights:
                weights.clear()  # formulas come sorted by their bands, so one weight at a time is enough
                weights[bands] = _weights([mask for band, mask in zip(self.bands, valid, strict=True) if band in bands])
            results[feature] = _mean_and_std(values, *weights[bands])

        for channel, plane in enumerate(planes):
            collect(channel, plane, frozenset([self.bands[channel]]))
        self.program.run(
            planes, lambda index, values: collect(len(planes) + index, values, self.program.bands_used[index])
        )
        return torch.stack([results[i][part] for part in (0, 1) for i in range(len(results))], dim=-1)

    def _patches(self, channel: Tensor) -> Tensor:
        """(B, H, W) -> (B, N, P*P): the pixels of a patch lie side by side."""
        batch, height, width = channel.shape
        rows, columns = self.patch_size
        split = channel.reshape(batch, height // rows, rows, width // columns, columns)
        return split.transpose(2, 3).reshape(batch, -1, rows * columns)

    def _check_size(self, pixel_values: Tensor) -> None:
        _, channels, height, width = pixel_values.shape
        rows, columns = self.patch_size
        if channels != len(self.bands):
            raise BandError(f"the images have {channels} channels, but the bands are {listing(self.bands)}.")
        if height % rows or width % columns:
            smaller = (height // rows * rows, width // columns * columns)
            larger = (-(-height // rows) * rows, -(-width // columns) * columns)
            crop = f", or crop it to {smaller[0]} x {smaller[1]}" if min(smaller) else ""
            raise DataError(
                f"an image of {height} x {width} pixels is not a whole number of {rows} x {columns} patches: "
                f"resize or pad it to {larger[0]} x {larger[1]}{crop}."
            )


def _measured(values: Tensor) -> tuple[Tensor, Tensor]:
    """Reflectance -> the same with 0 where there is none, and 1 where it was measured, else 0 (uint8)."""
    # x * 0 is 0 where measured, else NaN. On a CPU this is several times faster than isfinite, a comparison or a bool,
    # none of which are vectorised there.
    measured = (values.detach() * 0.0).add_(1.0).nan_to_num_(0.0)
    return values.nan_to_num(0.0, 0.0, 0.0), measured.to(torch.uint8)


def _weights(valid: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Masks (B, N, P*P), uint8, of the bands used -> 1 where all hold, else 0, and how many such pixels (B, N, 1)."""
    mask = valid[0]
    for other in valid[1:]:
        mask = mask & other
    weight = mask.float()
    return weight, weight.sum(-1, keepdim=True)


def _mean_and_std(values: Tensor, weight: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N, P*P) values, 0/1 weights and their sum -> (B, N) mean and std, NaN where the sum is 0.

    Two passes, so that a small spread around a large mean is not lost. A norm has gradient 0, not NaN, at 0.
    """
    some = count.clamp(min=1.0)
    mean = (values * weight).sum(-1, keepdim=True) / some
    deviation = (values - mean).mul_(weight)
    std = torch.linalg.vector_norm(deviation, dim=-1, keepdim=True) / some.sqrt()
    nothing = count == 0
    return mean.masked_fill(nothing, math.nan).squeeze(-1), std.masked_fill(nothing, math.nan).squeeze(-1)


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
