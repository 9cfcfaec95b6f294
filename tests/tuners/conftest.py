"""Fixtures of the tuner tests: every architecture, both attention kernels, plausible reflectance."""

from __future__ import annotations

import pytest
import torch

from tests.tuners.tiny import BANDS, ENCODERS, IMAGE


@pytest.fixture(params=list(ENCODERS))
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["eager", "sdpa"])
def attention(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def reflectance() -> torch.Tensor:
    """(2, 6, 32, 32) plausible reflectance in the order of `BANDS`."""
    return 0.02 + 0.4 * torch.rand(2, len(BANDS), IMAGE, IMAGE, generator=torch.Generator().manual_seed(1))
