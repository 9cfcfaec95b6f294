"""What a result depends on besides its configuration: versions, source revision, machine."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    *("deflect_hf", "torch", "transformers", "peft", "accelerate", "datasets", "huggingface_hub", "safetensors"),
    *("spyndex", "rasterio", "h5py", "numpy", "torchmetrics"),
)


def version(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_revision(folder: Path) -> str | None:
    """Commit of the checkout that holds ``folder``, ``-dirty`` where files differ from it; None outside of git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def environment(device: torch.device, processes: int) -> dict[str, Any]:
    """Versions, source revision and device of this run, JSON-able."""
    name = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {package: version(package) for package in PACKAGES},
        "git_revision": git_revision(Path(__file__).parent),
        "device": f"{device.type}: {name}",
        "processes": processes,
    }
