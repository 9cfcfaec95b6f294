"""Fixtures of the tuner tests: every architecture, both attention kernels."""

from __future__ import annotations

import pytest

from tests.tuners.tiny import ENCODERS


@pytest.fixture(params=list(ENCODERS))
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["eager", "sdpa"])
def attention(request: pytest.FixtureRequest) -> str:
    return request.param
