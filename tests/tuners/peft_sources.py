"""PEFT's own tests, of the installed version: fetched as its source distribution, imported without its conftest.

The wheel does not hold them. They are kept in pytest's cache folder, so that a machine fetches them once.
"""

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType

import peft
import pytest
from filelock import FileLock
from packaging.version import Version

PACKAGE = "peft_own_tests"
# The tables of what is run and left out are of PEFT 0.21; an older one has fewer tests.
OLDER = Version(peft.__version__) < Version("0.21")


def fetch(cache: Path) -> Path:
    """The folder with PEFT's tests, below `cache`; skips where no package index can be reached (CI must have one)."""
    cache.mkdir(parents=True, exist_ok=True)
    name = f"peft-{peft.__version__}"
    with FileLock(cache / "lock"), tempfile.TemporaryDirectory(dir=cache) as download:
        if not (cache / name).is_dir():
            command = [sys.executable, "-m", "pip", "download", name.replace("-", "=="), "--no-binary", "peft"]
            pip = subprocess.run([*command, "--no-deps", "--dest", download], capture_output=True, text=True)
            if pip.returncode:
                reason = f"PEFT {peft.__version__} cannot be fetched as source: {pip.stderr.strip()[-300:]}"
                (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
            with tarfile.open(next(Path(download).glob("peft-*.tar.gz"))) as archive:
                archive.extractall(download, filter="data")
            (Path(download) / name).rename(cache / name)
    return cache / name / "tests"


def load(folder: Path, *names: str) -> list[ModuleType]:
    """Import modules of PEFT's tests. They import each other relatively, so their folder becomes a package."""
    if PACKAGE not in sys.modules:
        package = ModuleType(PACKAGE)
        package.__path__ = [str(folder)]
        sys.modules[PACKAGE] = package
    # `testing_common` wants one class of diffusers, for an isinstance check of a model that is not tested here.
    stands_in = "diffusers" not in sys.modules and importlib.util.find_spec("diffusers") is None
    if stands_in:
        sys.modules["diffusers"] = ModuleType("diffusers")
        sys.modules["diffusers"].StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})
    try:
        return [importlib.import_module(f"{PACKAGE}.{name}") for name in names]
    finally:
        if stands_in:
            del sys.modules["diffusers"]
