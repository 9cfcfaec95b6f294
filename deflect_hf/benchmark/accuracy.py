"""What each method reaches: the same encoder, head, data, seeds and precision, one process, one table.

Every (row, learning rate, seed) is one ordinary training run and one JSON file, written when the run is done; a second
call of the same command runs only what is missing. The learning rate of each row is chosen on the validation split
with the first seed alone, from the same list for all rows; the test split is not looked at for that.

With --folds, for small data sets without a split of their own, every row is run on every fold of every repeat of a
stratified cross-validation instead; repeat r draws its folds with dataset.seed r. The learning rate is chosen on the
validation images of the first folds of the first repeat. These are test images of other folds, so a choice among many
learning rates makes the scores a little too good, for all rows alike.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from deflect_hf import __version__
from deflect_hf.benchmark.figures import metric_over_parameters
from deflect_hf.benchmark.rows import Row
from deflect_hf.benchmark.trials import Trial, cross_validation, half_interval, refuse_fixed_split
from deflect_hf.errors import ConfigError, listing, nearest
from deflect_hf.training.arguments import RunArguments
from deflect_hf.training.checkpoints import result_folder, write_json
from deflect_hf.training.compose import parse_arguments, to_yaml
from deflect_hf.training.metrics import scores, selection_metric
from deflect_hf.training.run import run

logger = logging.getLogger(__name__)


OWN = ("--finetune", "--seed", "--work_dir", "--segmentor.optimizer.lr", "--resume_from")
OWN_OF_FOLDS = ("--dataset.num_folds", "--dataset.fold", "--dataset.seed")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to run. `metric` is a mean (`miou`, `accuracy`, `f1_macro`) or a class's, as in `iou:water`.

    Attributes:
        tuning: number of trials, from the first, with which the learning rate is chosen.
        folds: of the cross-validation; None where the trials are seeds.
    """

    output: Path
    rows: tuple[Row, ...]
    trials: tuple[Trial, ...]
    tuning: int
    folds: int | None
    learning_rates: tuple[float, ...]
    metric: str
    base: RunArguments


def main(argv: Sequence[str]) -> None:
    """Run what is missing, then write `table.md`, `metric.png` and `summary.json` to the output folder."""
    plan = read_plan(argv)
    summary: list[dict[str, Any]] = []
    for row in plan.rows:
        tried = [[train(plan, row, lr, trial) for trial in plan.trials[: plan.tuning]] for lr in plan.learning_rates]
        best = max(range(len(tried)), key=lambda k: statistics.fmean(validation_score(one) for one in tried[k]))
        lr = plan.learning_rates[best]
        results = [*tried[best], *(train(plan, row, lr, trial) for trial in plan.trials[plan.tuning :])]
        summary.append(summarise(row, lr, results, plan, first=summary[0] if summary else None))
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
    parser.add_argument("--seeds", nargs="+", type=int, help="one run each; without --folds, 0 1 2")
    parser.add_argument("--folds", type=int, help="folds of a stratified cross-validation")
    parser.add_argument("--repeats", type=int, help="of the cross-validation; 1")
    parser.add_argument("--lr_folds", type=int, help="folds of the first repeat that choose the learning rate; 1")
    parser.add_argument("--lr", nargs="+", type=float, required=True, help="learning rates tried for every row")
    parser.add_argument("--report", default="miou", help="reported score: a mean, or a class's, as in iou:water")
    own, rest = parser.parse_known_args(argv)
    given = {flag.partition("=")[0] for flag in rest}
    for name in (*OWN, *(OWN_OF_FOLDS if own.folds is not None else ())):
        if name in given:
            raise ConfigError(f"{name} is set by the benchmark for each run; leave it out.")
    base = parse_arguments(RunArguments, __doc__ or "", rest)
    trials = read_trials(own, base)
    rows = tuple(Row.parse(text) for text in own.rows)
    return Plan(own.output, rows, trials, own.lr_folds or 1, own.folds, tuple(own.lr), own.report, base)


def read_trials(own: argparse.Namespace, base: RunArguments) -> tuple[Trial, ...]:
    """Seeds or folds.

    Raises:
        ConfigError: flags of both, or folds of data with a split of its own.
    """
    if own.folds is None:
        for name in ("repeats", "lr_folds"):
            if getattr(own, name) is not None:
                raise ConfigError(f"--{name} is for --folds: give it, or repeat with --seeds.")
        return tuple(Trial(seed) for seed in ([0, 1, 2] if own.seeds is None else own.seeds))
    if own.seeds is not None:
        raise ConfigError("--seeds and --folds exclude each other: repeat r of the cross-validation has the seed r.")
    repeats, tuning = (1 if number is None else number for number in (own.repeats, own.lr_folds))
    if own.folds < 2 or repeats < 1 or not 1 <= tuning <= own.folds:
        raise ConfigError(
            f"--folds {own.folds} --repeats {repeats} --lr_folds {tuning}: give at least 2 folds and 1 repeat, and "
            "choose the learning rate with at least 1 fold and at most all of them."
        )
    refuse_fixed_split(base.dataset)
    return cross_validation(own.folds, repeats)


def train(plan: Plan, row: Row, lr: float, trial: Trial) -> dict[str, Any]:
    """The results of one run, from its file when it is there and was made by the same configuration."""
    name = f"{row.slug}-lr{lr:g}-{trial.name}"
    segmentor = plan.base.segmentor
    config = dataclasses.replace(
        trial.settings(plan.base),
        finetune=row.method,
        method=dict(row.options),
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


def validation_score(results: dict[str, Any]) -> float:
    """What learning rates are compared by."""
    return results["val"][selection_metric(results["task"])]


def score(test: dict[str, Any], metric: str) -> float:
    """The score that `metric` names, of what was found on the test images.

    Raises:
        ConfigError: there is no such mean or class, or the class is not among these images.
    """
    name, _, kind = metric.partition(":")
    if not kind:
        means = [key for key in ("accuracy", "miou", "f1_macro") if key in test]
        if name not in means:
            raise ConfigError(f"--report {metric!r} is no mean; there are {listing(means)}.{nearest(name, means)}")
        return test[name]
    if kind not in test["per_class"]:
        raise ConfigError(f"--report {metric!r}: no class {kind!r}; there are {listing(test['per_class'])}.")
    row = test["per_class"][kind]
    if name not in row:
        raise ConfigError(f"--report {metric!r}: no score {name!r} of a class; there are {listing(row)}.")
    if row[name] is None:
        raise ConfigError(
            f"--report {metric!r}: the test images of a run have no {kind!r} in label or prediction, so it has no "
            f"{name}: report a mean, or use fewer folds."
        )
    return row[name]


def summarise(
    row: Row, lr: float, results: Sequence[dict[str, Any]], plan: Plan, first: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Mean over the trials with its 95 % interval, and what is the same for all of them.

    With folds also the scores of each repeat's confusion matrix, added up over its folds, and the difference to the
    ``first`` row, fold by fold.
    """
    found = [score(one["test"], plan.metric) for one in results]
    summary = {
        "row": row.text,
        "lr": lr,
        "scores": found,
        "mean": statistics.fmean(found),
        "half_interval": half_interval(found, plan.folds),
        "bytes": results[0]["bytes"],
        "seconds_per_step": statistics.median(one["seconds"] / one["steps"] for one in results),
        **results[0]["parameters"],
    }
    if plan.folds is not None:
        tests = [one["test"] for one in results]
        summary["pooled"] = [
            score(pooled(tests[start : start + plan.folds]), plan.metric) for start in range(0, len(tests), plan.folds)
        ]
        gains = [one - other for one, other in zip(found, (first or summary)["scores"], strict=True)]
        summary["gain"] = statistics.fmean(gains)
        summary["gain_half_interval"] = half_interval(gains, plan.folds)
    return summary


def pooled(tests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The scores of the images of several tests taken together."""
    matrix = torch.tensor([one["confusion_matrix"] for one in tests]).sum(dim=0)
    return scores(matrix, list(tests[0]["per_class"]), tests[0]["convention"])


def as_markdown(summary: Sequence[dict[str, Any]], plan: Plan) -> str:
    """One line per row; times as ratios to the first row."""
    title = plan.metric.replace(":", " of ")
    folded = plan.folds is not None
    extra = " pooled | gain (95 %) |" if folded else ""
    head = f"| method | lr | test {title} (95 %) |{extra} encoder parameters | share | head | file kB | step time |"
    lines = [head, "|" + "---|" * head.count(" |")]
    for one in summary:
        extra = ""
        if folded:
            gain = f"{one['gain']:+.3f}{plus_minus(one['gain_half_interval'])}" if one is not summary[0] else ""
            extra = f" {statistics.fmean(one['pooled']):.3f} | {gain} |"
        lines.append(
            f"| {one['row']} | {one['lr']:g} | {one['mean']:.3f}{plus_minus(one['half_interval'])} |{extra} "
            f"{one['encoder_trainable']:,} | {one['encoder_trainable_percent']:.2f} % | {one['head_trainable']:,} "
            f"| {one['bytes'] / 1e3:,.0f} | {one['seconds_per_step'] / summary[0]['seconds_per_step']:.2f} |"
        )
    lines.append(f"\n{footnote(plan)} Step time: ratio to the first row.")
    return "\n".join(lines) + "\n"


def plus_minus(half: float | None) -> str:
    """An interval's half, where there is one."""
    return "" if half is None else f" ± {half:.3f}"


def footnote(plan: Plan) -> str:
    """What the means are over, and which interval is given."""
    if plan.folds is None:
        return f"{len(plan.trials)} seed(s): {listing(str(trial.seed) for trial in plan.trials)}."
    return (
        f"{len(plan.trials) // plan.folds} x {plan.folds}-fold cross-validation: mean over the folds, 95 % interval by "
        "the corrected resampled variance (Nadeau & Bengio 2003). Pooled: of each repeat's test images together, mean "
        "over the repeats. Gain: over the first row, fold by fold."
    )
