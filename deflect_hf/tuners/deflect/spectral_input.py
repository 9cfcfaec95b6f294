"""What one adapter knows of its input: bands, normalisation, indices and statistics (equations 1 and 2)."""

from __future__ import annotations

import dataclasses
import json
import logging
import zlib
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from deflect_hf.errors import BandError, CheckpointError, listing
from deflect_hf.spectral.features import SpectralFeatures
from deflect_hf.spectral.selection import normalise_base_bands, select_bands

if TYPE_CHECKING:
    from deflect_hf.tuners.deflect.architectures import Encoder
    from deflect_hf.tuners.deflect.config import DeflectConfig

logger = logging.getLogger(__name__)

OTHER_BASE = (
    "the adapter was trained on a base model with other weights than this one: its results will be worse, if not "
    "wrong. Load it onto the base that it names, in the same version"
)


# What the weights of an adapter assume beside their shapes: stored with them, so that both come together.
CONTRACT = (
    *("bands", "base_bands", "base_mean", "base_std", "unit", "formulas", "index_bounds"),
    *("feature_mean", "feature_std", "band_dropout"),
)


def _checksum(assumed: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(assumed).encode())


class SpectralInput(nn.Module):
    """Untangled Patch Embedding of one adapter: what the frozen embedding sees, and the pixel sets (equations 1, 2).

    It has no parameters. Its extra state holds what the configuration says of the input, as JSON: weights that are
    loaded into an adapter bring the bands, formulas and statistics that they were trained with.
    """

    def __init__(self, config: DeflectConfig, encoder: Encoder) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder
        self.has_loaded = self._has_warned = False
        self._follow_config()

    def _follow_config(self) -> None:
        config = self.config
        self.bands = list(config.bands) if config.bands is not None else None
        channels = self.bands or [f"channel_{i}" for i in range(self.encoder.num_channels)]
        self.num_channels = len(channels)
        self.base_positions = select_bands(channels, config.base_bands) if config.base_bands else None
        self.base_mean, self.base_std = config.base_mean, config.base_std
        self.band_dropout = config.band_dropout
        base = range(len(channels)) if self.base_positions is None else self.base_positions
        self.droppable = [band for position, band in enumerate(channels) if position not in base]
        statistics = (config.feature_mean, config.feature_std, config.index_bounds or {})
        self.features = SpectralFeatures(channels, config.formulas or {}, self.encoder.patch_size, *statistics)

    def set_statistics(self, mean: list[float], std: list[float]) -> None:
        """Standardise the 2F features with these, and write them into the configuration."""
        self.features.set_statistics(mean, std)
        self.config.feature_mean, self.config.feature_std = mean, std

    def _shapes(self, config: DeflectConfig) -> dict[str, Any]:
        """What the shapes of the adapter's weights follow from, by the name of its field."""
        return {
            "rank": config.rank,
            "aux_dim": config.aux_dim,
            "layers_to_transform": self.encoder.targeted_blocks(config.layers_to_transform),
            "bands": self.encoder.num_channels if config.bands is None else len(config.bands),
            "indices": len(config.formulas or {}),
        }

    def get_extra_state(self) -> torch.Tensor:
        """(bytes,) float32: the JSON of what the weights assume, in numbers that can be averaged like the weights."""
        names = (*CONTRACT, "rank", "aux_dim", "layers_to_transform", "base_fingerprint")
        assumed = {name: getattr(self.config, name) for name in names}
        return torch.tensor([*json.dumps({**assumed, "checksum": _checksum(assumed)}).encode()], dtype=torch.float32)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Take what the weights assume that are being loaded, before any of them is (CheckpointError)."""
        try:
            # a whole file may have been cast to halves, or be a mean of weights that assume the same
            stored = json.loads(bytes(state.float().round().to(torch.uint8).tolist()))
            if stored.pop("checksum", None) not in (None, _checksum(stored)):
                raise ValueError("its checksum is wrong")
            there = dataclasses.replace(self.config, **stored)
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"What the adapter's weights assume of their input cannot be read: {error}. Are they a mean of "
                "adapters with other bands, formulas or statistics? Only those with the same can be averaged."
            ) from None
        own, theirs = self._shapes(self.config), self._shapes(there)
        differing = [name for name in own if own[name] != theirs[name]]
        if differing:
            raise CheckpointError(
                f"The weights are of an adapter with other {listing(differing)} than the one they are loaded into. "
                "Fix: load them under another adapter_name, or delete that adapter first (model.delete_adapter)."
            )
        if None not in (pair := {there.base_fingerprint, self.config.base_fingerprint}) and len(pair) > 1:
            logger.warning(OTHER_BASE)
        changed = [name for name in CONTRACT if getattr(self.config, name) != getattr(there, name)]
        if not changed:
            return
        logger.warning("the weights bring their own %s, which replace those of the configuration", ", ".join(changed))
        for name in changed:
            setattr(self.config, name, getattr(there, name))
        device = self.features.feature_mean.device
        self._follow_config()
        self.features.to(device)

    def base_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) reflectance -> (B, C_base, H, W) as the frozen patch embedding was trained on (equation 1)."""
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.num_channels:
            shape = tuple(pixel_values.shape)
            given = f"{shape[1]} channels" if len(shape) == 4 else f"the shape {shape}"
            bands = f": {listing(self.bands)}, in this order" if self.bands else ""
            raise BandError(
                f"pixel_values has {given}, but the adapter takes {self.num_channels}{bands}. "
                "Fix: give (B, C, H, W) with exactly those bands; select them by name with deflect_hf.select_bands."
            )
        if self.base_positions is None:
            return pixel_values
        return normalise_base_bands(pixel_values, self.base_positions, self.base_mean, self.base_std)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) reflectance -> (B, N, 2F) standardised statistics of each patch's pixel set (equation 2).

        In training, bands that the frozen embedding does not see are lost with probability `band_dropout`.
        """
        known = self.config.feature_mean is not None or self.bands is None or self._has_warned
        if self.training and not (known or torch.compiler.is_compiling()):
            self._has_warned = True
            logger.warning(
                "the adapter is trained on features that are not standardised: call deflect_hf.fit_statistics(model, "
                "loader) before the training"
            )
        if not (self.training and self.band_dropout):
            return self.features(pixel_values)
        lost = torch.rand(len(pixel_values), len(self.droppable), device=pixel_values.device) < self.band_dropout
        return self.features(pixel_values, dropped=dict(zip(self.droppable, lost.unbind(1), strict=True)))
