"""Data sets of multispectral images with labels.

Loaded when first asked for: reading the arguments alone needs neither torch nor datasets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deflect_hf.lazy import lazy_names

if TYPE_CHECKING:
    from deflect_hf.data.adapt import adapt_dataset
    from deflect_hf.data.collate import collate_examples
    from deflect_hf.data.dataset import ImageDataset, Labels
    from deflect_hf.data.load import load_dataset_splits
    from deflect_hf.data.transforms import build_transform

_LAZY = {
    "ImageDataset": "dataset",
    "Labels": "dataset",
    "adapt_dataset": "adapt",
    "build_transform": "transforms",
    "collate_examples": "collate",
    "load_dataset_splits": "load",
}

__all__ = ["ImageDataset", "Labels", "adapt_dataset", "build_transform", "collate_examples", "load_dataset_splits"]

__getattr__, __dir__ = lazy_names(__name__, _LAZY)
