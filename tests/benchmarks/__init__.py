"""Measurements for maintainers; nothing here is timed in a test."""

import argparse
import gc
from collections.abc import Callable, Mapping

import torch

from deflect_hf.benchmark.meters import timed
from deflect_hf.errors import ConfigError


def in_turns(rounds: int, ways: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each way in each round, one way after the other, so that a change of load falls on all alike.

    A first round, which warms up, does not count.
    """
    found = []
    for _ in range(rounds + 1):
        gc.collect()
        found.append({name: timed(way, torch.cuda.is_available()) for name, way in ways.items()})
    return {name: [one[name] for one in found[1:]] for name in ways}


def refuse_less(own: argparse.Namespace, least: Mapping[str, int]) -> None:
    """Refuse (ConfigError) numbers below ``least``: flags of one number or several, and the smallest sensible one."""
    for name, smallest in least.items():
        given = getattr(own, name)
        for value in given if isinstance(given, list) else [given]:
            if value < smallest:
                raise ConfigError(f"--{name} {value}: give at least {smallest}.")
