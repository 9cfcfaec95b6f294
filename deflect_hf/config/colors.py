"""The colors of classes in masks that are painted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator

from deflect_hf.errors import ConfigError, listing

UNLABELLED = "_"  # in `class_colors`: what has no label


def _rgb(color: Any) -> list[int]:
    from PIL.ImageColor import getrgb

    try:
        found = list(getrgb(color))[:3] if isinstance(color, str) else color
    except ValueError:
        found = []
    if len(found) != 3 or not all(type(part) is int and 0 <= part <= 255 for part in found):
        raise ConfigError(f"a color is [red, green, blue], 0 to 255 each, '#0000ff' or a name, not {color!r}")
    return found


def _rgbs(given: str | list[Any]) -> list[list[int]]:
    several = isinstance(given, list) and any(isinstance(part, str | list) for part in given)
    return [_rgb(color) for color in (given if several else [given])]


Colors = Annotated[str | list[Any], AfterValidator(_rgbs)]


def classes_of_colors(colors: Mapping[str, Any], classes: Sequence[str] | None) -> list[str]:
    """The classes of ``class_colors``, in the order of ``classes`` where they are given."""
    named = [name for name in colors if name != UNLABELLED]
    classes = list(classes or named)
    if set(named) != set(classes) or len(named) < 2:
        raise ConfigError(
            f"class_colors has the classes {listing(named)}, but `classes` {listing(classes)}: give a color to each, "
            "and at least two."
        )
    every = [color for found in colors.values() for color in found]
    repeated = [color for color in every if every.count(color) > 1]
    if repeated:
        raise ConfigError(f"class_colors: {repeated[0]} is given twice, but each class has colors of its own.")
    return classes


def color_table(colors: Mapping[str, Any], classes: Sequence[str]) -> dict[tuple[int, int, int], int]:
    """The class of each color, -1 for no label."""
    numbers = {name: number for number, name in enumerate(classes)} | {UNLABELLED: -1}
    return {(red, green, blue): numbers[name] for name, found in colors.items() for red, green, blue in found}
