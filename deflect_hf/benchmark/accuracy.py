"""What each method reaches: the same encoder, head, data, seeds and precision, one process, one table.

Every (row, learning rate, seed) is one ordinary training run and one JSON file, written when the run is done; a second
call of the same command runs only what is missing. The learning rate of each row is chosen on the validation split
with the first seed alone, from the same list for all rows; the test split is not looked at for that.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from deflect_hf import __version__
from deflect_hf.benchmark.figures import metric_over_parameters
from deflect_hf.benchmark.rows import Row
from deflect_hf.errors import ConfigError, listing, nearest
from deflect_hf.training.arguments import Finetune, RunArguments
from deflect_hf.training.checkpoints import result_folder, write_json
from deflect_hf.training.compose import parse_arguments, to_yaml
from deflect_hf.training.metrics import selection_metric
from deflect_hf.training.run import run

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to run. `metric` is a mean (`miou`, `accuracy`, `f1_macro`) or a class's, as in `iou:water`."""

    output: Path
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    metric: str
    base: RunArguments


def main(argv: Sequence[str]) -> None:
    """Run what is missing, then write `table.md`, `metric.png` and `summary.json` to the output folder."""
    plan = read_plan(argv)
    summary = []
    for row in plan.rows:
        first = [train(plan, row, lr, plan.seeds[0]) for lr in plan.learning_rates]
        best = max(range(len(first)), key=lambda k: first[k]["val"][selection_metric(first[k]["task"])])
        lr = plan.learning_rates[best]
        results = [first[best], *(train(plan, row, lr, seed) for seed in plan.seeds[1:])]
        summary.append(summarise(row, lr, results, plan.metric))
    write_json(plan.output / "summary.json", summary)
    table = as_markdown(summary, plan)
    (plan.output / "table.md").write_text(table, encoding="utf-8")
    metric_over_parameters(plan.output / "metric.png", summary, plan.metric)
    print(table)


def read_plan(argv: Sequence[str]) -> Plan:
    """The benchmark's own flags; everything else is given to every run, as train.py takes it.

    Raises:
        ConfigError: an unknown key, row or value.
    """
    parser = argparse.ArgumentParser(
        prog="python -m deflect_hf.benchmark accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="All other flags are those of train.py.",
        allow_abbrev=False,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--rows", nargs="+", required=True, help="methods, such as deflect lora:rank=8,target=qv")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="one run each")
    parser.add_argument("--lr", nargs="+", type=float, required=True, help="learning rates tried for every row")
    parser.add_argument("--report", default="miou", help="reported score: a mean, or a class's, as in iou:water")
    own, rest = parser.parse_known_args(argv)
    for name in ("--finetune", "--seed", "--work_dir", "--segmentor.optimizer.lr", "--resume_from"):
        if name in rest:
            raise ConfigError(f"{name} is set by the benchmark for each run; leave it out.")
    base = parse_arguments(RunArguments, __doc__ or "", rest)
    rows = tuple(Row.parse(text) for text in own.rows)
    return Plan(own.output, rows, tuple(own.seeds), tuple(own.lr), own.report, base)


def train(plan: Plan, row: Row, lr: float, seed: int) -> dict[str, Any]:
    """The results of one run, from its file when it is there and was made by the same configuration."""
    name = f"{row.slug}-lr{lr:g}-seed{seed}"
    segmentor = plan.base.segmentor
    config = dataclasses.replace(
        plan.base,
        finetune=cast(Finetune, row.method),
        method=dict(row.options),
        seed=seed,
        segmentor=dataclasses.replace(segmentor, optimizer=dataclasses.replace(segmentor.optimizer, lr=lr)),
    )
    digest = hashlib.sha256(f"{__version__}\n{to_yaml(config)}".encode()).hexdigest()
    path = plan.output / "rows" / f"{name}.json"
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["config_sha256"] == digest:
            return stored
        raise ConfigError(f"{path} was made by another configuration: give another --output, or remove the file.")
    logger.info("%s", name)
    work_dir = plan.output / "runs" / name
    results, folder, _ = run(dataclasses.replace(config, work_dir=str(work_dir), overwrite=True))
    weights = [*result_folder(folder).glob("*.safetensors")]
    results |= {
        "row": row.text,
        "lr": lr,
        "config_sha256": digest,
        "bytes": sum(file.stat().st_size for file in weights),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, results)
    return results


def score(results: dict[str, Any], metric: str) -> float:
    """The test score that `metric` names.

    Raises:
        ConfigError: there is no such mean or class.
    """
    name, _, kind = metric.partition(":")
    test = results["test"]
    if not kind:
        means = [key for key, value in test.items() if isinstance(value, float)]
        if name not in means:
            raise ConfigError(f"--report {metric!r} is no mean; there are {listing(means)}.{nearest(name, means)}")
        return test[name]
    if kind not in test["per_class"]:
        raise ConfigError(f"--report {metric!r}: no class {kind!r}; there are {listing(test['per_class'])}.")
    return test["per_class"][kind][name]


def summarise(row: Row, lr: float, results: Sequence[dict[str, Any]], metric: str) -> dict[str, Any]:
    """Mean over the seeds, with Student's 95 % interval of the mean, and what is the same for all of them."""
    scores = [score(one, metric) for one in results]
    # Student's t at 97.5 % for 1 to 9 degrees of freedom; beyond that the normal value is close enough.
    student = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]
    factor = student[len(scores) - 2] if 1 < len(scores) <= 10 else 1.96
    error = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None
    return {
        "row": row.text,
        "lr": lr,
        "scores": scores,
        "mean": statistics.fmean(scores),
        "half_interval": None if error is None else factor * error,
        "bytes": results[0]["bytes"],
        "seconds_per_step": statistics.median(one["seconds"] / one["steps"] for one in results),
        **results[0]["parameters"],
    }


def as_markdown(summary: Sequence[dict[str, Any]], plan: Plan) -> str:
    """One line per row; times as ratios to the first row."""
    title = plan.metric.replace(":", " of ")
    head = f"| method | lr | test {title} (95 %) | encoder parameters | share | head | file kB | step time |"
    lines = [head, "|" + "---|" * 8]
    for one in summary:
        interval = "" if one["half_interval"] is None else f" ± {one['half_interval']:.3f}"
        lines.append(
            f"| {one['row']} | {one['lr']:g} | {one['mean']:.3f}{interval} | {one['encoder_trainable']:,} "
            f"| {one['encoder_trainable_percent']:.2f} % | {one['head_trainable']:,} | {one['bytes'] / 1e3:,.0f} "
            f"| {one['seconds_per_step'] / summary[0]['seconds_per_step']:.2f} |"
        )
    lines.append(f"\n{len(plan.seeds)} seed(s): {listing(map(str, plan.seeds))}. Step time: ratio to the first row.")
    return "\n".join(lines) + "\n"
