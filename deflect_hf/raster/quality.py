"""Quality layers: classes or bit fields of each pixel, some of which say that the ground was not measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from deflect_hf.config.reading import QualityClass, QualityPreset, ReadingArguments
from deflect_hf.errors import DataError
from deflect_hf.spectral.bands import fold

DEFAULT_CLASSES: tuple[QualityClass, ...] = ("cloud", "cirrus", "shadow")


# Layers of classes, bits and probabilities by the names of Sen2Cor, Sentinel Hub, Landsat, HLS and Planet
_LAYERS = {*("scl", "cld", "clp", "clm", "snw", "cldprb", "qapixel", "qaradsat"),
           *("qaaerosol", "srqaaerosol", "fmask", "udm2")}  # fmt: skip


def is_quality_layer(name: str) -> bool:
    """Whether products call a layer so that is no band."""
    return fold(name) in _LAYERS


@dataclass(frozen=True)
class Quality:
    """A layer of the file that says where its bands are no measurement."""

    band: str  # its band description in the file, whatever the case
    invalid: tuple[int, ...] = ()  # stored values at which no band of the file is valid
    bits: tuple[int, ...] = ()  # numbers of the bits, from 0, any of which says so
    above: float | None = None  # value above which no band is valid, of a probability of clouds; None: there is none

    @property
    def entry(self) -> list[Any]:
        """As a saved processor keeps it."""
        return [self.band, list(self.invalid), list(self.bits), *([] if self.above is None else [self.above])]

    def flags(self, layer: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Stored values of the layer -> bool: the ground was not measured there, or NaN does not say so."""
        found = np.isin(layer, self.invalid) | np.isnan(layer)
        if self.bits:
            fields = np.nan_to_num(layer).astype(np.int64)  # stored beside reflectance, they may be floats
            if not np.array_equal(fields, np.nan_to_num(layer)):
                raise DataError(f"band {self.band!r} holds fractions, no bit fields: give `qa_values` or `qa_above`.")
            found |= (fields & sum(1 << bit for bit in self.bits)) != 0
        if self.above is not None:
            found |= layer > self.above
        return found


@dataclass(frozen=True)
class _Preset:
    """What a product's layer holds: values or bits of each class, and what no pixel of the ground has."""

    band: str
    classes: Mapping[QualityClass, tuple[int, ...]]
    nothing: Quality
    fields: bool = True  # bits, not values


# Sources: Sentinel-2 L2A product specification (scene classification); USGS Landsat Collection 2 Level 2 science
# product guide (QA_PIXEL); HLS v2 user guide (Fmask, whose bit 2 is "adjacent to cloud or shadow").
PRESETS: Mapping[QualityPreset, _Preset] = MappingProxyType(
    {
        "sentinel2_scl": _Preset(
            "SCL",
            {"cloud": (8, 9), "cirrus": (10,), "shadow": (3,), "snow": (11,), "water": (6,)},
            Quality("SCL", (0, 1)),
            fields=False,
        ),
        "landsat_qa_pixel": _Preset(
            "QA_PIXEL",
            {"cloud": (1, 3), "cirrus": (2,), "shadow": (4,), "snow": (5,), "water": (7,)},
            Quality("QA_PIXEL", bits=(0,)),
        ),
        "hls_fmask": _Preset(
            "Fmask",
            {"cloud": (1, 2), "cirrus": (0,), "shadow": (3,), "snow": (4,), "water": (5,)},
            Quality("Fmask", (255,)),
        ),
    }
)


def quality_layer(args: ReadingArguments) -> Quality | None:
    """The layer that a preset describes, values, bits or a limit of a band, or both; None without either."""
    if args.qa is None:
        own = (tuple(args.qa_values), tuple(args.qa_bits), args.qa_above)
        return None if args.qa_band is None else Quality(args.qa_band, *own)
    known, classes = PRESETS[args.qa], args.qa_classes
    chosen = [number for name in (DEFAULT_CLASSES if classes is None else classes) for number in known.classes[name]]
    return Quality(
        args.qa_band or known.band,
        (*known.nothing.invalid, *args.qa_values, *([] if known.fields else chosen)),
        (*known.nothing.bits, *args.qa_bits, *(chosen if known.fields else [])),
        args.qa_above,
    )
