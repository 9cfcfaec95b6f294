"""Which image goes where: once per epoch, the same over processes, the same after a resume."""

from __future__ import annotations

from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from deflect_hf.training.order import Rank, epoch_batches, grouped, steps_of


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 3), st.integers(0, 5), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_processes_share_the_batches_of_one(length: int, size: int, count: int, seed: int, epoch: int) -> None:
    one = epoch_batches(length, size * count, seed, epoch, Rank())
    many = [epoch_batches(length, size, seed, epoch, Rank(index, count)) for index in range(count)]
    joined = [list(chain.from_iterable(batches[k] for batches in many)) for k in range(len(one))]
    assert joined == one
    assert len({len(batches) for batches in many}) == 1
    flat = list(chain.from_iterable(one))
    assert set(flat) <= set(range(length))
    if length >= size * count:
        assert len(set(flat)) == len(flat) == length // (size * count) * size * count


def test_order_changes_with_seed_and_epoch() -> None:
    orders = {str(epoch_batches(50, 50, seed, epoch, Rank())) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_steps_count_what_grouping_gives() -> None:
    for length in (1, 7, 8, 33):
        for accumulate in (1, 2, 3):
            batches = epoch_batches(length, 4, 0, 0, Rank())
            groups = list(grouped(({"k": k} for k in range(len(batches))), accumulate))
            assert len(groups) == steps_of(length, 4, accumulate, Rank())
            assert sum(len(group) for group in groups) == len(batches)
