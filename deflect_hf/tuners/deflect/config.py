"""Configuration of the DEFLECT tuner: everything an adapter assumes of its input, and its size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from deflect_hf.errors import BandError, ConfigError, UnitError, listing, nearest
from deflect_hf.spectral.bands import UNITS, Unit
from deflect_hf.spectral.formulas import parse
from deflect_hf.spectral.indices import select_indices
from deflect_hf.spectral.probe import LARGEST_BOUND, bound_of
from deflect_hf.spectral.selection import resolve_bands, select_bands
from deflect_hf.tuners.base import TunerConfig

RGB = ("R", "G", "B")
BANDS_NOTE = (
    "`adapter_config.json` names the bands that `pixel_values` must hold, in this order, in reflectance (1.0 = 100 %)."
)
# An adapter is small by design: sizes above these come from a broken or hostile adapter_config.json.
MAX_RANK = 4096
MAX_BANDS = 1024
LARGEST_MEAN = 10.0  # of reflectance: far above any, far below the digital numbers of any image


class ChosenFormulas(dict[str, str]):
    """Formulas that were chosen, not given: for other bands and indices, set or replaced, others will be."""

    choice: str | None = None  # the bands, indices and unit that they were chosen for


@dataclass
class DeflectConfig(TunerConfig):
    """Configuration of [`DeflectModel`].

    With its defaults, `DeflectConfig()` fits any supported RGB vision transformer: `pixel_values` are what the model
    was always given and pass to it unchanged. `bands=[...]` turns the spectral road on: `pixel_values` are then
    reflectance (1.0 = 100 %) in that band order, the frozen patch embedding sees the base bands (R, G, B by name),
    and the radiometric stream sees all bands and their spectral indices.

    Args:
        bands: spyndex band codes of the channels of `pixel_values`, in order (`["B", "G", "R", "N", "S1", "S2"]`).
            Common names (`red`, `nir`) are turned into codes.
        base_bands: bands the frozen patch embedding was pretrained on, in its order. Default: R, G, B.
        base_mean, base_std: per base band, what the encoder subtracts and divides by, in reflectance. `None`: the
            base bands pass unchanged.
        unit: `"reflectance"`, or `"8bit"` for stretched images (scaled to 0..1), which get no index with additive
            constants.
        indices: spectral indices of the radiometric stream: `"default"`, `"all"`, an application domain of the
            spyndex catalogue, a list of names, or `None`.
        formulas: index name -> formula over band codes and numbers. Filled from the spyndex catalogue when the config
            is made and frozen into the adapter, so that a saved adapter never depends on the installed catalogue.
        index_bounds: index name -> limit of its absolute value. Filled and frozen like the formulas.
        feature_mean, feature_std: statistics that standardise the 2F pixel-set features, filled by
            [`deflect_hf.fit_statistics`].
        band_dropout: in training, the probability with which the radiometric stream loses a band of an image, each
            band and image on its own, base bands excepted. Above 0 the adapter can do without these bands: give NaN
            for a missing one.
        aux_dim: width d of the radiometric stream, a multiple of the number of attention heads. `None`: the first
            multiple from 64 on; filled in when the adapter is made.
        rank: rank r of the deflection, `u = U gelu(G [norm(a) ; norm(m)])`.
        layers_to_transform: indices of the deflected blocks (negative ones count from the end). `None`: all. Blocks
            before the first one run without autograd state.
        modules_to_save: modules trained and saved in full beside the adapter, such as the task head.
        init_weights: `True` starts at the frozen model exactly (U = 0). `False` draws U at random, for tests.
        target_modules: filled by DEFLECT from the architecture; leave it `None`.
        base_fingerprint: filled by DEFLECT: of the frozen weights, so that another base is noticed when loading.
        base_sizes: filled by DEFLECT: of the encoder, some of which no weight shows, such as the attention heads.

    Raises:
        BandError: unknown, missing or repeated bands.
        ConfigError: a value out of range, or lists of different length.
        IndexFormulaError: an unknown index, or a formula that is not plain arithmetic on bands.
    """

    method: ClassVar[str] = "DEFLECT"
    card_note: ClassVar[str] = BANDS_NOTE

    bands: list[str] | None = None
    base_bands: list[str] | None = None
    base_mean: list[float] | None = None
    base_std: list[float] | None = None
    unit: Unit = "reflectance"
    indices: str | list[str] | None = "default"
    formulas: dict[str, str] | None = None
    index_bounds: dict[str, float] | None = None
    feature_mean: list[float] | None = None
    feature_std: list[float] | None = None
    band_dropout: float = 0.0
    aux_dim: int | None = None
    rank: int = 8
    layers_to_transform: int | list[int] | None = None
    modules_to_save: list[str] | None = None
    init_weights: bool = True
    target_modules: str | list[str] | None = None
    base_fingerprint: str | None = None
    base_sizes: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("rank", self.rank), ("aux_dim", 1 if self.aux_dim is None else self.aux_dim)):
            if type(value) is not int or not 1 <= value <= MAX_RANK:
                raise ConfigError(f"{name} must be a whole number from 1 to {MAX_RANK}, got {value!r}.")
        if self.unit not in UNITS:
            raise ConfigError(
                f"unit={self.unit!r} is unknown; choose from {listing(UNITS)}.{nearest(str(self.unit), UNITS)}"
            )
        if type(self.band_dropout) not in (int, float) or not 0 <= self.band_dropout < 1:
            raise ConfigError(f"band_dropout must be a number from 0 to below 1, got {self.band_dropout!r}.")
        if self.bands is None:
            self._refuse_spectral_fields()
        else:
            for name in ("bands", "base_bands"):
                if not isinstance(getattr(self, name), list | tuple | None):
                    raise BandError(f"{name} must be a list of names, not {getattr(self, name)!r:.80}.")
            self._prepare_spectral_fields(list(self.bands))

    def _refuse_spectral_fields(self) -> None:
        names = ("base_bands", "base_mean", "base_std", "formulas", "index_bounds")
        given = [name for name in names if getattr(self, name) is not None]
        given += ["band_dropout"] if self.band_dropout else []
        given += ["indices"] if self.indices and self.indices != "default" else []
        if given:
            raise ConfigError(
                f"{', '.join(given)} need(s) bands=[...]: the band codes of the input channels, in order."
            )

    def _prepare_spectral_fields(self, names: list[str]) -> None:
        if not 1 <= len(names) <= MAX_BANDS:
            raise BandError(f"bands must name 1 to {MAX_BANDS} bands, got {len(names)}.")
        self.bands = resolve_bands(names, settled=True)
        self.base_bands = resolve_bands(list(self.base_bands or RGB))
        select_bands(self.bands, self.base_bands)
        for name in ("base_mean", "base_std"):
            setattr(self, name, _finite_floats(name, getattr(self, name), len(self.base_bands), "base bands"))
        if (self.base_mean is None) != (self.base_std is None):
            raise ConfigError("base_mean and base_std come together: give both, or neither.")
        if self.base_std is not None and min(self.base_std) <= 0:
            raise ConfigError(f"base_std must be positive, got {self.base_std}.")
        if not self.inference_mode:
            refuse_digital_mean(self.base_mean, self.unit)
        if self.band_dropout and len(self.bands) == len(self.base_bands):
            raise ConfigError(f"band_dropout={self.band_dropout} has no band to drop: all are base bands.")
        self._freeze_indices(self.bands)
        for name in ("feature_mean", "feature_std"):
            features = 2 * (len(self.bands) + len(self.formulas or {}))
            setattr(self, name, _finite_floats(name, getattr(self, name), features, "pixel-set features"))
        if (self.feature_mean is None) != (self.feature_std is None):
            raise ConfigError("feature_mean and feature_std come together: use deflect_hf.fit_statistics.")
        if self.feature_std is not None and min(self.feature_std) < 0:
            raise ConfigError(f"feature_std of the adapter must not be negative, got {min(self.feature_std)}.")

    def _freeze_indices(self, bands: list[str]) -> None:
        """Choose formulas and bounds, or check those that are there: they come from a file that anybody may write."""
        choice = repr((bands, self.indices, self.unit))
        if isinstance(self.formulas, ChosenFormulas) and self.formulas.choice not in (None, choice):
            self.formulas = self.index_bounds = None
        for name in ("formulas", "index_bounds"):
            if not isinstance(getattr(self, name), dict | None):
                raise ConfigError(f"{name} must map index names to values, got {getattr(self, name)!r:.80}.")
        # Sorted, because PEFT sorts the keys of the file it writes: the order of the features must survive that.
        if self.formulas is None:
            self.formulas = ChosenFormulas(sorted(select_indices(bands, self.indices, self.unit).formulas.items()))
            self.formulas.choice = choice
        elif not isinstance(self.formulas, ChosenFormulas):
            self.formulas = dict(sorted(self.formulas.items()))
        for formula in self.formulas.values():
            parse(formula, bands)
        if self.index_bounds is None:
            self.index_bounds = {name: bound_of(formula) for name, formula in self.formulas.items()}
        if set(self.index_bounds) != set(self.formulas):
            differing = sorted(set(self.index_bounds) ^ set(self.formulas))
            raise ConfigError(
                f"index_bounds and formulas must name the same indices; they differ in {listing(differing)}."
            )
        values = _finite_floats("index_bounds", list(self.index_bounds.values()), len(self.formulas), "indices") or []
        if not all(0 < value <= LARGEST_BOUND for value in values):
            raise ConfigError(
                f"index_bounds must lie above 0 and be at most {LARGEST_BOUND:g}, got {self.index_bounds}."
            )
        self.index_bounds = dict(sorted(zip(self.index_bounds, values, strict=True)))


def refuse_digital_mean(base_mean: Sequence[float] | None, unit: Unit) -> None:
    """Refuse (UnitError) the mean of digital numbers where reflectance is meant."""
    if unit == "reflectance" and base_mean is not None and max(base_mean, default=0.0) > LARGEST_MEAN:
        raise UnitError(
            f"base_mean and base_std are of reflectance (1.0 = 100 %), as pixel_values are, got {list(base_mean)}. "
            "Fix: of digital numbers, mean * scale + offset and std * scale."
        )


def _finite_floats(name: str, values: Any, length: int, of: str) -> list[float] | None:
    """`values` as a list of `length` finite floats; `None` stays `None`."""
    if values is None:
        return None
    try:
        floats = [float(value) for value in values]
    except (TypeError, ValueError):
        raise ConfigError(f"{name} must be a list of {length} numbers, got {values!r}.") from None
    if len(floats) != length:
        raise ConfigError(f"{name} has {len(floats)} values, but there are {length} {of}.")
    if not all(math.isfinite(value) for value in floats):
        raise ConfigError(f"{name} must be finite, got {floats}.")
    return floats
