"""What an adapter assumes of its input: written down once, saved with it, and checked against what it is given."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deflect_hf.bands import resolve_bands, select_bands, single_nir
from deflect_hf.errors import BandError, ConfigError, UnitError, listing, nearest
from deflect_hf.spectrum import Unit

logger = logging.getLogger(__name__)

# Limits on reflectance, 1.0 = 100 %. Bright snow and sun glint reach 1.6 to 2.9 in single pixels; atmospheric
# correction leaves water down to about -0.02.
TOO_BRIGHT = 3.0  # more than 10 % of a channel above it
TOO_DARK = 2e-4  # the whole image below it: 0.5 with a scale of 1e-4 applied twice is 5e-5
SHIFTED = -0.03  # more than half of a channel below it
STANDARDISED = -0.3  # more than 5 % of a channel below it
_SAMPLE = 65536  # values looked at per channel

GSD_RATIO = 2.0


@dataclass(frozen=True)
class BandContract:
    """Bands, unit, statistics and indices that an adapter was trained with.

    ``pixel_values`` are reflectance in the order of ``bands``; ``scale`` and ``offset`` are what the training images
    needed to become reflectance, ``gsd_m`` the size of their pixels on the ground, ``image_size`` (height, width) what
    they were resized to. An adapter trained with ``band_dropout`` > 0 accepts images that lack bands.
    """

    bands: tuple[str, ...]
    unit: Unit = "reflectance"
    scale: float = 1.0
    offset: float = 0.0
    gsd_m: float | None = None
    image_size: tuple[int, int] | None = None
    base_bands: tuple[str, ...] = ("R", "G", "B")
    base_mean: tuple[float, ...] | None = None
    base_std: tuple[float, ...] | None = None
    formulas: Mapping[str, str] = field(default_factory=dict)
    feature_mean: tuple[float, ...] | None = None
    feature_std: tuple[float, ...] | None = None
    band_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("bands", "image_size", "base_bands", "base_mean", "base_std", "feature_mean", "feature_std"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        if self.unit not in ("reflectance", "8bit"):
            raise ConfigError(f"unit {self.unit!r} is not one of 'reflectance', '8bit'.")
        if not 0 <= self.band_dropout < 1:
            raise ConfigError(f"band_dropout must be at least 0 and below 1, not {self.band_dropout!r}.")
        resolve_bands(self.bands)
        select_bands(self.bands, self.base_bands)

    def to_dict(self) -> dict[str, Any]:
        """Return the contract as JSON-able values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BandContract:
        """Rebuild a contract from :meth:`to_dict`.

        Raises:
            ConfigError: a key is unknown, or ``bands`` is missing.
        """
        known = [item.name for item in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(
                    f"band contract: unknown key {key!r}; the keys are {listing(known)}.{nearest(key, known)}"
                )
        if "bands" not in values:
            raise ConfigError("band contract: the key 'bands' is missing.")
        return cls(**values)

    def check(
        self, available: Sequence[str], unit: Unit = "reflectance", gsd_m: float | None = None
    ) -> list[int | None]:
        """Compare images that have the bands ``available`` with the contract.

        Returns:
            For each band of the contract its channel in the images, or None for a missing band, which only an adapter
            trained with band dropout accepts. Bands in another order are reordered, extra ones ignored with a warning;
            a pixel size beyond a factor of two of the trained one is warned about.

        Raises:
            BandError: bands are missing, or given twice.
            UnitError: the images are 8-bit and the adapter expects reflectance, or the other way round.
        """
        if unit != self.unit:
            raise UnitError(
                f"the adapter was trained on {_UNIT_NAMES[self.unit]}, but the images hold {_UNIT_NAMES[unit]}: "
                "use images of the same kind."
            )
        if gsd_m is not None and self.gsd_m is not None and not 1 / GSD_RATIO <= gsd_m / self.gsd_m <= GSD_RATIO:
            logger.warning("trained on pixels of %g m, applied to pixels of %g m", self.gsd_m, gsd_m)
        available = resolve_bands(available)
        stand_ins = {band: single_nir(band, available) for band in self.bands if {"N", "N2"} - set(self.bands)}
        found = [band if band in available else stand_ins.get(band) for band in self.bands]
        missing = [band for band, source in zip(self.bands, found, strict=True) if source is None]
        needed = [band for band in self.base_bands if band in missing]
        if missing and (not self.band_dropout or needed):
            raise BandError(
                f"the adapter needs the band(s) {listing(missing)}, but the images have {listing(available)}. "
                + _MISSING_FIX["base" if self.band_dropout else "any"]
            )
        extra = [band for band in available if band not in found]
        if extra:
            logger.warning("bands not used by the adapter are ignored: %s", listing(extra))
        return [None if source is None else available.index(source) for source in found]

    def arrange(self, pixel_values: Tensor, available: Sequence[str], unit: Unit = "reflectance") -> Tensor:
        """(B, len(available), H, W) -> (B, len(bands), H, W) in the contract's order; a missing band is NaN.

        Raises:
            BandError: as :meth:`check`, or the number of channels is not that of ``available``.
            UnitError: as :meth:`check`.
        """
        if pixel_values.shape[1] != len(available):
            raise BandError(
                f"the images have {pixel_values.shape[1]} channels, but the bands are {listing(available)}."
            )
        positions = self.check(available, unit)
        nothing = torch.full_like(pixel_values[:, 0], torch.nan)
        return torch.stack([nothing if p is None else pixel_values[:, p] for p in positions], dim=1)


_UNIT_NAMES = {"reflectance": "reflectance (1.0 = 100 %)", "8bit": "8-bit values"}
_MISSING_FIX = {
    "any": "Give images with these bands, or an adapter trained with band_dropout > 0, which can do without.",
    "base": "Band dropout covers the bands beyond the base bands; these are needed by the frozen model.",
}

Problem = Literal["8bit", "digital numbers", "dark", "shifted", "standardised"]
_FIXES: dict[Problem, str] = {
    "8bit": "these look like 8-bit values: use a sensor with unit '8bit' and scale 1/255, such as 'rgb'.",
    "digital numbers": "these look like digital numbers: give the sensor, or its scale and offset (Sentinel-2: scale "
    "1e-4, offset -0.1 from processing baseline 04.00 on, else 0; Landsat C2 L2: 2.75e-5, -0.2).",
    "dark": "this looks like a scale applied twice: values that are reflectance already need scale 1, offset 0.",
    "shifted": "this looks like an offset that the images do not have: Sentinel-2 before processing baseline 04.00 and "
    "'harmonized' collections need offset 0 (sensor 'sentinel2_l2a_harmonized' or 'sentinel2_l1c_harmonized').",
    "standardised": "these look standardised (mean and standard deviation taken off): spectral indices need the "
    "reflectance itself, so give the images before normalisation.",
}


def check_reflectance(values: NDArray[Any] | Tensor, where: str) -> None:
    """Refuse values that cannot be reflectance (1.0 = 100 %): (..., C, H, W) or any shape; NaN is skipped.

    Judged from percentiles of each channel, so that single bad pixels, snow, cloud, and water with slightly negative
    values pass. Values between 0 and 1 pass whatever they are: 8-bit divided by 255 cannot be told apart.

    Args:
        values: the image after scale and offset.
        where: what the message calls it, a file name for example.

    Raises:
        UnitError: digital numbers, 8-bit or standardised values, a scale applied twice, or an offset in excess; the
            message names the channel, what was found, and the fix.
    """
    array = values.detach().cpu().float().numpy() if isinstance(values, Tensor) else np.asarray(values)
    channels = np.moveaxis(array, -3, 0).reshape(array.shape[-3], -1) if array.ndim >= 3 else array.reshape(1, -1)
    brightest = 0.0
    for number, channel in enumerate(channels):
        sample = channel[:: max(1, channel.size // _SAMPLE)].astype(np.float64)
        sample = sample[np.isfinite(sample)]
        if not sample.size:
            continue
        low, half, high = np.percentile(sample, [5, 50, 90])
        brightest = max(brightest, float(np.abs(sample).max()))
        problem = _problem(sample, low, half, high)
        if problem is not None:
            raise UnitError(
                f"{where}: channel {number} is not reflectance (1.0 = 100 %): 5 % of its values are below {low:.4g}, "
                f"half below {half:.4g}, 90 % below {high:.4g}; {_FIXES[problem]}"
            )
    if 0 < brightest < TOO_DARK:
        raise UnitError(f"{where}: no value is above {brightest:.3g}, but 1.0 is 100 % reflectance; {_FIXES['dark']}")


def _problem(sample: NDArray[np.float64], low: float, half: float, high: float) -> Problem | None:
    whole = bool((sample == np.round(sample)).all())
    if high > TOO_BRIGHT or (whole and sample.max() > TOO_BRIGHT):
        return "8bit" if whole and sample.min() >= 0 and sample.max() <= 255 else "digital numbers"
    if low < STANDARDISED:
        return "standardised"
    return "shifted" if half < SHIFTED else None
