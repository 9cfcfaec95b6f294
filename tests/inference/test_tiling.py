"""Windows along an axis cover it, sum to one, and leave out what they see worst."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deflect_hf.inference.scenes import Axis


@given(length=st.integers(1, 400), size=st.integers(1, 64), overlap=st.floats(0, 0.5), step=st.integers(1, 16))
def test_weights_sum_to_one_at_every_pixel_and_stay_inside_their_window(
    length: int, size: int, overlap: float, step: int
) -> None:
    axis = Axis.cover(length, size, overlap, step)
    total = np.zeros(axis.length)
    for offset, start, end, weights in zip(axis.offsets, axis.starts, axis.ends, axis.weights, strict=True):
        total[start:end] += weights
        assert offset <= start < end <= min(offset + size, length)
        assert (weights > 0).all() and (weights <= 1 + 1e-6).all()
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert list(axis.starts) == sorted(set(axis.starts)) and list(axis.ends) == sorted(set(axis.ends))


@given(patches=st.integers(2, 8), count=st.integers(1, 60), overlap=st.floats(0, 0.5))
def test_windows_lie_on_whole_patches_and_overlap_as_much_as_asked(patches: int, count: int, overlap: float) -> None:
    size, length = 8 * patches, 8 * count
    axis = Axis.cover(length, size, overlap, 8)
    assert all(offset % 8 == 0 for offset in axis.offsets)
    for one, following in zip(axis.offsets, axis.offsets[1:], strict=False):
        assert following - one == 8 or one + size - following >= overlap * size


def test_the_outer_quarter_of_the_overlap_counts_nothing_except_at_the_edge_of_the_scene() -> None:
    axis = Axis.cover(160, 64, 0.5, 16)
    assert axis.offsets == (0, 32, 64, 96)
    assert axis.starts == [0, 40, 72, 104] and axis.ends == [56, 88, 120, 160]
    np.testing.assert_allclose(axis.weights[0][:40], 1)  # nothing else counts there
    fall = axis.weights[0][40:]
    np.testing.assert_allclose(fall, 0.5 + 0.5 * np.cos(np.pi * (np.arange(16) + 0.5) / 16), atol=1e-6)


def test_the_last_window_ends_at_the_edge_and_a_small_scene_is_one() -> None:
    assert Axis.cover(100, 32, 0.25, 8).offsets == (0, 24, 48, 68)
    axis = Axis.cover(30, 32, 0.5, 8)
    assert len(axis) == 1 and (axis.starts, axis.ends) == ([0], [30])
    np.testing.assert_array_equal(axis.weights[0], np.ones(30))
