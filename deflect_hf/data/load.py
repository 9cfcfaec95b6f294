"""One call from a description of a data set to its splits."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data.dataset import ImageDataset
from deflect_hf.data.processor import MultispectralImageProcessor

# reader -> module in this package and function (args, processor) -> splits, imported when chosen: rasterio, h5py
LOADERS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "folder": ("folder", "load_folder"),
        "synthetic": ("synthetic", "load_synthetic"),
        "mados": ("mados", "load_mados"),
        "hlsburnscars": ("burn_scars", "load_burn_scars"),
        "sen1floods11": ("sen1floods11", "load_sen1floods11"),
        "m-so2sat": ("geobench", "load_geobench"),
        "m-brick-kiln": ("geobench", "load_geobench"),
        "m-forestnet": ("geobench", "load_geobench"),
        "m-eurosat": ("geobench", "load_geobench"),
        "eurosat": ("eurosat", "load_eurosat"),
    }
)


def load_dataset_splits(
    args: DatasetArguments, processor: MultispectralImageProcessor | None = None
) -> dict[str, ImageDataset]:
    """Build the splits of a data set, among ``"train"``, ``"val"`` and ``"test"``.

    Args:
        args: What the data set is; see the help of each field.
        processor: That of a trained model: its bands, unit and size stand, whatever ``args`` says about them. Scale,
            offset and nodata values belong to the files and come from ``args`` and the files, failing those from it.

    Raises:
        ConfigError: A value of ``args`` does not fit the data set.
        DataError: A file or folder is missing, empty or inconsistent; the message names it.
        BandError: A band is missing or cannot be named.
        UnitError: The images are of another unit than those the model was trained on.
    """
    module, function = LOADERS[args.name]
    splits: dict[str, ImageDataset] = getattr(importlib.import_module(f"deflect_hf.data.{module}"), function)(
        args, processor
    )
    return splits
