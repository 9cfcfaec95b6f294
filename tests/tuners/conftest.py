"""Fixtures of the tuner tests: every architecture, both attention kernels."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.tuners.peft_sources import fetch
from tests.tuners.tiny import ENCODERS


@pytest.fixture(params=list(ENCODERS))
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["eager", "sdpa"])
def attention(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def peft_folder(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with PEFT's own tests, kept in pytest's cache where there is one."""
    cache = getattr(pytestconfig, "cache", None)
    return fetch(Path(cache.mkdir("peft-sources")) if cache else tmp_path_factory.mktemp("peft-sources"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many of PEFT's own tests ran per method and architecture, when they ran."""
    counts: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed", "skipped", "xfailed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, value in getattr(report, "user_properties", []):
                if name == "peft_suite":
                    counts.setdefault(value, Counter())[outcome] += 1
    for name, counter in sorted(counts.items()):
        total = sum(counter.values())
        terminalreporter.write_line(
            f"PEFT's own tests, {name}: {counter['passed']} of {total} passed, {counter['failed']} failed, "
            f"{counter['xfailed']} failed as known, {counter['skipped']} skipped by PEFT itself"
        )
