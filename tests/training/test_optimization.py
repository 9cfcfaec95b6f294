"""Learning rates over the iterations, and which parameters decay."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from deflect_hf.config.run import OptimizerArguments, SchedulerArguments
from deflect_hf.errors import ConfigError
from deflect_hf.training.optimization import build_optimizer, build_scheduler


def rates(arguments: SchedulerArguments, total: int) -> list[float]:
    optimizer = build_optimizer(nn.Linear(2, 2), OptimizerArguments(lr=1.0))
    scheduler = build_scheduler(optimizer, arguments, total)
    seen = []
    for _ in range(total):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_multistep_falls_at_its_shares_of_the_iterations() -> None:
    seen = rates(SchedulerArguments(), 10)
    assert seen == pytest.approx([1.0] * 6 + [0.1] * 3 + [0.01])


def test_cosine_falls_from_one_towards_zero_after_the_warm_up() -> None:
    seen = rates(SchedulerArguments(name="cosine", warmup=0.2), 20)
    assert seen[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8]) and seen[4] == 1.0
    assert all(a > b for a, b in pairwise(seen[4:])) and 0 < seen[-1] < 0.02


def test_only_matrices_decay_where_asked() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    model[0].weight.requires_grad_(False)
    model.append(nn.Linear(3, 2))
    groups = build_optimizer(model, OptimizerArguments(decay_vectors=False)).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.05), (4, 0.0)]
    (group,) = build_optimizer(model, OptimizerArguments()).param_groups
    assert len(group["params"]) == 5 and group["weight_decay"] == 0.05


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="every parameter of the model is frozen"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimizerArguments())


def test_schedule_state_goes_on(tmp_path) -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), OptimizerArguments(lr=1.0))
    first = build_scheduler(optimizer, SchedulerArguments(), 10)
    for _ in range(7):
        optimizer.step()
        first.step()
    torch.save(first.state_dict(), tmp_path / "state")
    second = build_scheduler(build_optimizer(nn.Linear(2, 2), OptimizerArguments(lr=1.0)), SchedulerArguments(), 10)
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert second.get_last_lr() == first.get_last_lr()
