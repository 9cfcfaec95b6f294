"""What tests of measurements share."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def collect_what_is_new() -> Iterator[None]:
    """The garbage collections between measurements leave out what other tests and imports have left."""
    gc.freeze()
    yield
    gc.unfreeze()
