"""One call from a description of a data set to its splits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deflect_hf.config.data import DatasetArguments
from deflect_hf.config.readers import dataset_module
from deflect_hf.data.dataset import ImageDataset
from deflect_hf.data.given import given_splits
from deflect_hf.data.processor import MultispectralImageProcessor


def load_dataset_splits(
    args: DatasetArguments,
    processor: MultispectralImageProcessor | None = None,
    given: Mapping[str, Any] | None = None,
) -> dict[str, ImageDataset]:
    """Build the splits of a data set, among ``"train"``, ``"val"`` and ``"test"``.

    Args:
        args: What the data set is; see the help of each field.
        processor: That of a trained model: its bands, unit and size stand, whatever ``args`` says about them. Scale,
            offset and nodata values belong to the files and come from ``args`` and the files, failing those from it.
        given: Data sets of a program by the names of their splits, which ``args`` says how to read.

    Raises:
        ConfigError: A value of ``args`` does not fit the data set.
        DataError: A file or folder is missing, empty or inconsistent; the message names it.
        BandError: A band is missing or cannot be named.
        UnitError: The images are of another unit than those the model was trained on.
    """
    if given is not None:
        return given_splits(args, given, processor)
    splits: dict[str, ImageDataset] = dataset_module(args.name).load(args, processor)
    return splits
