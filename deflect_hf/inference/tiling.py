"""Windows over a scene: where they lie, and how much each counts where they overlap.

Along an axis, a window counts nothing in its outermost quarter of the overlap, where a model sees the least around a
pixel, then rises along half a cosine to 1; at the edge of the scene it counts fully up to the last pixel. The weights
sum to 1 at every pixel, so that what all windows agree on comes out unchanged. As the windows form a grid, the weight
of one is the product of its weights along rows and columns.
"""

from __future__ import annotations

import functools
import itertools
import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Axis:
    """Windows along one axis of a scene.

    Attributes:
        length: pixels of the scene.
        size: pixels of a window; a single window may be longer than the scene.
        offsets: first pixel of each window, rising.
        margin: pixels at an inner border of a window that it counts nothing for.
    """

    length: int
    size: int
    offsets: tuple[int, ...]
    margin: int

    @classmethod
    def cover(cls, length: int, size: int, overlap: float, step: int) -> Axis:
        """Windows of ``size`` pixels that overlap by at least the share ``overlap``, at multiples of ``step`` pixels.

        The last one ends at the scene's edge, wherever that is, rather than looking beyond it.
        """
        if length <= size:
            return cls(length, size, (0,), 0)
        shared = min(math.ceil(overlap * size), size - 1)
        stride = max((size - shared) // step * step, min(step, size))
        offsets = [*range(0, length - size, stride), length - size]
        return cls(length, size, tuple(offsets), (size - stride) // 4)

    def __len__(self) -> int:
        return len(self.offsets)

    @functools.cached_property
    def starts(self) -> list[int]:
        """First pixel that each window counts for."""
        return [0] + [offset + self.margin for offset in self.offsets[1:]]

    @functools.cached_property
    def ends(self) -> list[int]:
        """One past the last pixel that each window counts for."""
        return [offset + self.size - self.margin for offset in self.offsets[:-1]] + [self.length]

    def split(self, most: int) -> list[tuple[int, int, range]]:
        """Stretches of about equal length: first pixel, one past the last, and the windows that count there.

        Args:
            most: windows that begin to count in a stretch; those that reach into it from outside come on top.
        """
        count = -(-len(self) // most)
        edges = [*(self.starts[len(self) * number // count] for number in range(count)), self.length]
        return [
            (low, high, range(bisect_right(self.ends, low), bisect_left(self.starts, high)))
            for low, high in itertools.pairwise(edges)
        ]

    def share(self, number: int, low: int, high: int) -> tuple[slice, slice, Array]:
        """The pixels from ``low`` to before ``high`` that a window counts for: there, in the window, their weights."""
        start, stop = max(self.starts[number], low), min(self.ends[number], high)
        offset, first = self.offsets[number], self.starts[number]
        there, inside = slice(start - low, stop - low), slice(start - offset, stop - offset)
        return there, inside, self.weights[number][start - first : stop - first]

    @functools.cached_property
    def weights(self) -> list[Array]:
        """(ends - starts,) float32 weights of each window, from its first to its last pixel that counts."""
        spans = list(zip(self.starts, self.ends, strict=True))
        raw, total = [], np.zeros(self.length)
        for number, (start, end) in enumerate(spans):
            values = np.ones(end - start)
            if number > 0:
                rise = _half_cosine(min(self.ends[number - 1], end) - start)
                values[: len(rise)] *= rise
            if number < len(self) - 1:
                fall = _half_cosine(end - max(self.starts[number + 1], start))[::-1]
                values[len(values) - len(fall) :] *= fall
            raw.append(values)
            total[start:end] += values
        return [(values / total[start:end]).astype(np.float32) for values, (start, end) in zip(raw, spans, strict=True)]


def _half_cosine(width: int) -> Array:
    """(width,) from 0 to 1, at the centers of the pixels."""
    return 0.5 - 0.5 * np.cos(np.pi * (np.arange(width) + 0.5) / max(width, 1))
