"""Learning rates over the iterations, and which parameters decay."""

from itertools import pairwise

import pytest
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


def test_multistep_falls_at_its_shares_and_cosine_from_one_towards_zero_after_the_warm_up() -> None:
    assert rates(SchedulerArguments(), 10) == pytest.approx([1.0] * 6 + [0.1] * 3 + [0.01])
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
    with pytest.raises(ConfigError, match="every parameter of the model is frozen"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimizerArguments())
