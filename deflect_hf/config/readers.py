"""The readers of data sets, and which keys each looks at."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from deflect_hf.errors import ConfigError, listing

SEGMENTATION_SETS = ("mados", "hlsburnscars", "sen1floods11")
GEOBENCH_SETS = ("m-so2sat", "m-brick-kiln", "m-forestnet", "m-eurosat")
CLASSIFICATION_SETS = (*GEOBENCH_SETS, "eurosat")
PUBLIC_SETS = (*SEGMENTATION_SETS, *CLASSIFICATION_SETS)
READERS = ("folder", "synthetic", *PUBLIC_SETS)

_OWN = ("folder", "synthetic")
_SPLIT_FILES = ("folder", "mados", "sen1floods11")
# the readers that look at a key; every reader looks at the others
USED_BY: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "root": ("folder", *PUBLIC_SETS),
        "download": PUBLIC_SETS,
        "task": _OWN,
        "sensor": ("folder",),
        "source_bands": ("folder",),
        "band_order": ("m-brick-kiln", "m-eurosat"),
        "partition": GEOBENCH_SETS,
        "scale": ("folder", *PUBLIC_SETS),
        "offset": ("folder", *PUBLIC_SETS),
        "nodata": ("folder", *PUBLIC_SETS),
        "qa_band": ("folder",),
        "qa_values": ("folder",),
        "resampling": ("mados",),
        "gsd_m": ("folder",),
        "classes": ("folder",),
        "class_values": ("folder",),
        "ignore_values": ("folder",),
        "ignore_index": (*_OWN, *SEGMENTATION_SETS),
        "train_split": _SPLIT_FILES,
        "val_split": _SPLIT_FILES,
        "test_split": _SPLIT_FILES,
        "val_fraction": _OWN,
        "test_fraction": _OWN,
        "num_folds": _OWN,
        "fold": _OWN,
        "num_samples": ("synthetic",),
        "noise": ("synthetic",),
    }
)


def keys_of_reader(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Those of the ``DatasetArguments`` in ``values`` that the reader ``name`` looks at."""
    return {key: value for key, value in values.items() if name in USED_BY.get(key, READERS)}


def refuse_unused(args: Any) -> None:
    """Refuse a key of ``DatasetArguments`` that was set and that the chosen reader would not look at.

    Raises:
        ConfigError: naming the readers that the key is for.
    """
    for one in dataclasses.fields(args):
        readers = USED_BY.get(one.name, READERS)
        default = one.default if one.default_factory is dataclasses.MISSING else one.default_factory()
        if args.name not in readers and getattr(args, one.name) != default:
            own = [repr(reader) for reader in readers if reader not in PUBLIC_SETS]
            everyone = set(PUBLIC_SETS) <= set(readers)
            who = " and ".join([*own, "the public data sets"]) if everyone else listing(readers)
            raise ConfigError(f"`{one.name}` does nothing for the data set {args.name!r}: remove it. It is for {who}.")
