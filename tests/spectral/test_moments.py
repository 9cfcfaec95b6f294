from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deflect_hf.errors import ConfigError
from deflect_hf.spectral.features import RunningMoments


def sample(rows: int = 300) -> torch.Tensor:
    values = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = values * torch.tensor([1.0, 1e-3, 5.0, 2.0]) + torch.tensor([0.0, 1e4, -3.0, 0.1])  # one far from 0
    values[::3, 1] = torch.nan
    values[:, 3] = torch.nan
    return values


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=6))
def test_moments_do_not_depend_on_the_batches(cuts):
    values = sample()
    moments = RunningMoments(4)
    edges = [0, *sorted(cuts), 300]
    for start, stop in pairwise(edges):
        moments.update(values[start:stop])
    seen = values[:, 1][~values[:, 1].isnan()]
    assert moments.count.tolist() == [300, 200, 300, 0]
    for k, column in enumerate([values[:, 0], seen, values[:, 2]]):
        torch.testing.assert_close(moments.mean[k], column.mean(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(moments.std[k], column.std(correction=0), rtol=1e-9, atol=1e-12)
    assert bool(moments.mean[3].isnan())
    assert bool(moments.std[3].isnan())


def test_any_leading_shape_and_low_precision_input():
    values = sample(24).to(torch.bfloat16)
    flat, shaped = RunningMoments(4), RunningMoments(4)
    flat.update(values)
    shaped.update(values.reshape(2, 3, 4, 4))
    torch.testing.assert_close(flat.mean, shaped.mean, equal_nan=True)
    assert flat.mean.dtype == torch.float64


def test_saving_continues_where_it_stopped():
    values = sample()
    whole, first = RunningMoments(4), RunningMoments(4)
    whole.update(values)
    first.update(values[:17])
    first = RunningMoments.from_state(first.state())
    first.update(values[17:])
    torch.testing.assert_close(first.std, whole.std, equal_nan=True)
    torch.testing.assert_close(first.count, whole.count)


def test_reducing_over_processes_equals_one_process():
    values = sample()
    parts = [RunningMoments(4) for _ in range(3)]
    for part, rows in zip(parts, values.split([100, 199, 1]), strict=True):
        part.update(rows)
    gathered = torch.stack([torch.tensor(list(part.state().values()), dtype=torch.float64) for part in parts])
    accelerator = SimpleNamespace(num_processes=3, device=torch.device("cpu"), gather=lambda state: gathered)
    whole = RunningMoments(4)
    whole.update(values)
    for part in parts:
        part.reduce(accelerator)
        torch.testing.assert_close(part.mean, whole.mean, equal_nan=True)
        torch.testing.assert_close(part.std, whole.std, equal_nan=True)


def test_other_sizes_are_refused():
    with pytest.raises(ConfigError, match="statistics of 4 features cannot take values of 3 features"):
        RunningMoments(4).update(torch.zeros(2, 3))
