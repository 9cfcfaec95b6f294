"""What rows come to together: the comparison with the first row, the table, the plots."""

from pathlib import Path
from typing import Any

import pytest

from deflect_hf.benchmark.summary import (
    Design,
    Trial,
    as_markdown,
    memory,
    metric_over_parameters,
    metric_over_time,
    score,
    short,
)
from deflect_hf.errors import ConfigError

DESIGN = Design((Trial(0), Trial(1), Trial(2)), None, "iou:water")


def entry(row: str, scores: list[float], trained: int, **others: Any) -> dict[str, Any]:
    return {
        "row": row, "method": row.partition(":")[0], "bands": "RGB", "trains_patch_embedding": row == "full",
        "lr": 0.01, "scores": scores,
        "mean": sum(scores) / 3, "half_interval": 0.1, "bytes": 2000, "seconds_per_step": 0.5, "memory": None,
        "encoder_trainable": trained, "encoder_trainable_percent": 1.0, "patch_embedding_trainable": 0,
        "head_trainable": 7, "device": ["cpu"], **others,
    }  # fmt: skip


def rows(**others: Any) -> list[dict[str, Any]]:
    first = entry("deflect", [0.6, 0.7, 0.8], 1000, **others)
    found = [
        entry("norm", [0.5, 0.601, 0.699], 10_000, **others),  # 0.1 lower in each
        entry("lora:rank=4", [0.7, 0.5, 0.8], 900, **others),  # now higher, now lower
        entry("full", [0.7, 0.801, 0.899], 10_001, seconds_per_step=1.0, **others),
    ]
    gains = ((0.1, 0.002), (0.033, 0.2), (-0.1, 0.002))
    return [
        first,
        *(
            {**one, "gain_of_first": gain, "gain_half_interval": half}
            for one, (gain, half) in zip(found, gains, strict=True)
        ),
    ]


def test_the_table_says_what_the_first_row_reaches() -> None:
    table = as_markdown(rows(), DESIGN)
    assert "| test IoU of water (95 %) | gain of deflect (95 %) | encoder parameters |" in table
    assert "| full | RGB | 0.01 | 0.800 ± 0.100 | -0.100 ± 0.002 | 10,001 | 1.00 % | 0 | 7 | 2 | 2.00 |" in table
    assert "peak memory" not in table
    held = {"memory": {"of": "process", "peak_bytes": 300, "mean_bytes": 200}}
    assert "| step time | peak memory |" in as_markdown(rows(**held), DESIGN)
    assert "this process, Python and libraries included" in as_markdown(rows(**held), DESIGN)
    several = [*rows()[:3], {**rows()[3], "device": ["cuda: H100"]}]
    assert "on different devices (cpu, cuda: H100): times and memory do not compare" in as_markdown(several, DESIGN)


def test_memory_that_was_not_measured_in_all_runs_is_unknown() -> None:
    one, other = ({"of": "process", "peak_bytes": peak, "mean_bytes": 2} for peak in (4, 6))
    assert memory([one, other]) == {"of": "process", "peak_bytes": 6, "mean_bytes": 2}
    assert memory([one, None]) is None
    assert memory([one, {**other, "of": "gpu"}]) is None


def test_plots(tmp_path: Path) -> None:
    for number, summary in enumerate((rows(), rows()[:1], [entry("frozen", [0.6, 0.6, 0.6], 0)])):
        for path in (
            metric_over_parameters(tmp_path / f"{number}.png", summary, DESIGN.title),
            metric_over_time(tmp_path / f"{number}_time.png", summary, DESIGN.title),
        ):
            assert path.read_bytes().startswith(b"\x89PNG")
    assert short("peft:VeraConfig:r=64,patch_embed=repeat") == "VeraConfig r=64 repeat"


def test_reported_score_must_exist() -> None:
    test = {"accuracy": 0.5, "miou": 0.25, "per_class": {"water": {"iou": 0.75, "recall": None}}}
    assert score(test, "iou:water") == 0.75
    with pytest.raises(ConfigError, match="the data set has no test images to report on"):
        score({}, "miou")
    with pytest.raises(ConfigError, match=r"no mean.*Did you mean 'miou'"):
        score(test, "miuo")
    with pytest.raises(ConfigError, match="no class 'ice'; there are 'water'"):
        score(test, "iou:ice")
    with pytest.raises(ConfigError, match="no score 'iuo' of a class; there are 'iou', 'recall'"):
        score(test, "iuo:water")
    with pytest.raises(ConfigError, match="test images of a run have no 'water' in label or prediction"):
        score(test, "recall:water")
