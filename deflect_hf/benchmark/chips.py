"""Unlabelled RGB chips, for pretraining."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from deflect_hf.errors import DataError, brief, listing

BASE_BANDS = ("R", "G", "B")


class RGBChips(Dataset):
    """Unlabelled RGB chips held as digital numbers; an item is a standardised float32 tensor (3, H, W).

    Attributes:
        mean: mean reflectance of R, G, B over the set.
        std: standard deviation of R, G, B over the set, in reflectance.
    """

    def __init__(self, digital_numbers: np.ndarray, scale: float) -> None:
        self.digital_numbers = digital_numbers
        self.scale = scale
        # Chip by chip: a float64 copy of the whole set would take four times its memory.
        means = np.stack([chip.mean(axis=(0, 1), dtype=np.float64) for chip in digital_numbers])
        squares = np.stack([np.square(chip, dtype=np.float64).mean(axis=(0, 1)) for chip in digital_numbers])
        mean = means.mean(axis=0)
        self.mean = (mean * scale).tolist()
        self.std = (np.sqrt(squares.mean(axis=0) - mean**2) * scale).tolist()
        if min(self.std) <= 0:
            raise DataError(
                f"A band of {listing(BASE_BANDS)} is constant over all chips: standard deviations {self.std}."
            )

    def __len__(self) -> int:
        """Return the number of chips."""
        return len(self.digital_numbers)

    def __getitem__(self, item: int) -> torch.Tensor:
        """Return chip ``item``, standardised, (3, H, W)."""
        reflectance = self.digital_numbers[item].astype(np.float32) * np.float32(self.scale)
        values = (reflectance - np.float32(self.mean)) / np.float32(self.std)
        return torch.from_numpy(values.transpose(2, 0, 1).copy())


def _read_chips(file: Path) -> np.ndarray:
    try:
        with np.load(file) as archive:
            if "rgb" in archive.files:
                stack: np.ndarray = archive["rgb"]
                return stack
            known = archive.files
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"{file}: cannot be read as a .npz file of numbers: {brief(error)}") from error
    raise DataError(f"{file}: no array 'rgb'; it holds {listing(known)}.")


def load_chips(path: str | Path) -> np.ndarray:
    """Read chips (N, H, W, 3) of digital numbers, order R, G, B, from a .npz file or a folder of them.

    Raises:
        DataError: nothing there, the key ``rgb`` is missing, or the array is no stack of integer RGB chips.
    """
    path = Path(path)
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise DataError(f"{path}: no .npz file here; give a file or a folder of files with the key 'rgb'.")
    stacks: list[np.ndarray] = []
    for file in files:
        stack = _read_chips(file)
        if stack.ndim != 4 or stack.shape[-1] != 3 or not len(stack):
            raise DataError(f"{file}: 'rgb' has shape {stack.shape}; expected (N, H, W, 3), order R, G, B.")
        if not np.issubdtype(stack.dtype, np.integer):
            raise DataError(f"{file}: 'rgb' is {stack.dtype}; expected integers (reflectance / --scale).")
        if stack.shape[1:] != (stacks or [stack])[0].shape[1:]:
            raise DataError(f"{file}: chips of {stack.shape[1:3]}, but {files[0]} has {stacks[0].shape[1:3]} pixels.")
        stacks.append(stack)
    return np.concatenate(stacks)
