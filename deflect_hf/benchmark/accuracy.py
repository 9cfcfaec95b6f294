"""What each method reaches: the same encoder, head, data, seeds and precision, one process, one table.

Every (row, learning rate, seed) is one ordinary training run and one JSON file, written when the run is done; a second
call of the same command, also with more rows or seeds, runs only what is missing. Several processes may work on rows of
the same --output at the same time; runs of another output are taken over with --reuse. The learning rate of each row is
chosen on the validation split with the first seed alone, from the same list for all rows; the test split is not looked
at for that.

With --folds, for small data sets without a split of their own, every row is run on every fold of every repeat of a
stratified cross-validation instead; repeat r draws its folds with dataset.seed r. The learning rate is chosen on the
validation images of the first folds of the first repeat. These are test images of other folds, so a choice among many
learning rates makes the scores a little too good, for all rows alike.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from deflect_hf.benchmark.flags import flag_parser
from deflect_hf.benchmark.runs import RIVALS, MemoryMonitor, Row, RunFiles, file_name, read, rival_config, store, write
from deflect_hf.benchmark.summary import (
    Design,
    Trial,
    as_markdown,
    cross_validation,
    metric_over_parameters,
    metric_over_time,
    score,
    summarise,
)
from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.data import DatasetArguments
from deflect_hf.config.readers import dataset_spec
from deflect_hf.config.run import RunArguments
from deflect_hf.config.tasks import TASKS
from deflect_hf.data.splits import SPLITS
from deflect_hf.errors import ConfigError, listing
from deflect_hf.files import refuse_used, write_json, write_text
from deflect_hf.training.run import run

logger = logging.getLogger(__name__)

OWN = ("--finetune", "--seed", "--work_dir", "--segmentor.optimizer.lr", "--resume_from", "--overwrite")
OWN_OF_FOLDS = ("--dataset.num_folds", "--dataset.fold", "--dataset.seed")


@dataclasses.dataclass(frozen=True)
class Plan(Design):
    """What to run, and what is reported of it."""

    output: Path
    rows: tuple[Row, ...]
    tuning: int  # number of trials, from the first, with which the learning rate is chosen
    learning_rates: tuple[float, ...]
    base: RunArguments
    reuse: tuple[Path, ...] = ()  # other outputs, whose finished runs are taken over
    only_finished: bool = False  # train nothing, leave out rows that are not finished
    # step time of each row as a ratio to the first one's, where they were measured apart
    ratios: Mapping[str, float] | None = None


class Unfinished(Exception):
    """A run that has not been made yet, and is not to be made now."""


def main(argv: Sequence[str]) -> None:
    """Run what is missing, then write `table.md`, `metric.png`, `metric_time.png` and `summary.json` (ConfigError)."""
    plan = read_plan(argv)
    refuse_used(plan.output, ("rows", "runs"))
    summary: list[dict[str, Any]] = []
    for row in plan.rows:
        try:
            lr, results = run_row(plan, row)
        except Unfinished as missing:
            if not summary:
                raise ConfigError(f"{missing} is not finished, and the others are compared with it.") from None
            logger.warning("%s is left out: %s is not finished", row.text, missing)
            continue
        summary.append(summarise(row, lr, results, plan, first=summary[0] if summary else None))
    table = as_markdown(summary, plan)
    write_json(plan.output / "summary.json", summary)
    write_text(plan.output / "table.md", table)
    metric_over_parameters(plan.output / "metric.png", summary, plan.title)
    metric_over_time(plan.output / "metric_time.png", summary, plan.title, plan.ratios)
    print(table)


def run_row(plan: Plan, row: Row) -> tuple[float, list[dict[str, Any]]]:
    """The learning rate that is best on the validation images, and the results of all trials with it (ConfigError)."""

    def made(lr: float, trial: Trial) -> dict[str, Any]:
        results = train(plan, row, lr, trial)
        score(results.get("test", {}), plan.metric)  # refused now rather than after all the other runs
        return results

    tried = [[made(lr, trial) for trial in plan.trials[: plan.tuning]] for lr in plan.learning_rates]
    rank = TASKS[tried[0][0]["task"]].rank
    best = max(range(len(tried)), key=lambda k: statistics.fmean(rank(one["val"]) for one in tried[k]))
    lr = plan.learning_rates[best]
    return lr, [*tried[best], *(made(lr, trial) for trial in plan.trials[plan.tuning :])]


def read_plan(argv: Sequence[str]) -> Plan:
    """The benchmark's own flags; everything else is given to every run, as train.py takes it (ConfigError)."""
    parser = flag_parser("accuracy", __doc__, others="train.py")
    parser.add_argument("--rows", nargs="+", required=True, help="methods, such as deflect lora:rank=8,target=qv")
    parser.add_argument("--seeds", nargs="+", type=int, help="one run each; without --folds, 0 1 2")
    parser.add_argument("--folds", type=int, help="folds of a stratified cross-validation")
    parser.add_argument("--repeats", type=int, help="of the cross-validation; 1")
    parser.add_argument("--lr_folds", type=int, help="folds of the first repeat that choose the learning rate; 1")
    parser.add_argument("--lr", nargs="+", type=float, required=True, help="learning rates tried for every row")
    parser.add_argument("--report", default="miou", help="reported score: a mean, or a class's, as in iou:water")
    parser.add_argument("--reuse", nargs="+", type=Path, default=[], help="outputs whose finished runs are taken over")
    parser.add_argument("--only_finished", action="store_true", help="train nothing: a table of what is finished")
    parser.add_argument(
        "--cost", type=Path, help="cost.json of the benchmark cost with these rows, for the plot of times"
    )
    own, rest = parser.parse_known_args(argv)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("the benchmark accuracy trains in one process: start it with python, without a launcher.")
    if not all(0 < lr < math.inf for lr in own.lr):
        raise ConfigError(f"--lr {' '.join(map(str, own.lr))}: learning rates are above 0.")
    given = {flag.partition("=")[0] for flag in rest}
    for name in (*OWN, *(OWN_OF_FOLDS if own.folds is not None else ())):
        if name in given:
            raise ConfigError(f"{name} is set by the benchmark for each run; leave it out.")
    options = sorted(name for name in given if name == "--method" or name.startswith("--method."))
    if options:
        raise ConfigError(f"{options[0]}: options of a method stand in its row, as in lora:rank=8; leave it out.")
    base = parse_arguments(RunArguments, __doc__ or "", rest)
    if base.push_to_hub:
        raise ConfigError("push_to_hub: a benchmark publishes nothing; leave it out, and train the one to publish.")
    rows = tuple(Row.parse(text) for text in own.rows)
    for row in rows:
        base.segmentor.replace(**row.segmentor)  # an unknown head is refused before the first run
    return Plan(
        trials=read_trials(own, base),
        folds=own.folds,
        metric=own.report,
        output=own.output,
        rows=rows,
        tuning=own.lr_folds or 1,
        learning_rates=tuple(own.lr),
        base=base.replace(overwrite=False, resume_from=None),
        reuse=tuple(own.reuse),
        only_finished=own.only_finished,
        ratios=read_ratios(own.cost, own.rows) if own.cost is not None else None,
    )


def read_trials(own: argparse.Namespace, base: RunArguments) -> tuple[Trial, ...]:
    """Seeds or folds (ConfigError: flags of both, a seed twice, or folds of data with a split of its own)."""
    if own.folds is None:
        for name in ("repeats", "lr_folds"):
            if getattr(own, name) is not None:
                raise ConfigError(f"--{name} is for --folds: give it, or repeat with --seeds.")
        seeds = [0, 1, 2] if own.seeds is None else own.seeds
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ConfigError(f"--seeds {' '.join(map(str, seeds))}: give each seed once, none below 0.")
        return tuple(Trial(seed) for seed in seeds)
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


def refuse_fixed_split(dataset: DatasetArguments) -> None:
    """Refuse folds where the data says itself what is for training and what for the test (ConfigError)."""
    if "num_folds" not in dataset_spec(dataset.name).keys:
        raise ConfigError(
            f"--folds: the data set {dataset.name!r} has a published split, which is the one to report on: "
            "leave --folds out and repeat with --seeds."
        )
    if dataset.name != "folder" or dataset.place_km is not None:
        return
    names = [getattr(dataset, f"{split}_split") or f"{split}.txt" for split in SPLITS]
    found = [name for name in names if (Path(str(dataset.root)) / name).is_file()]
    if found:
        raise ConfigError(
            f"--folds: {dataset.root} has split files ({listing(found)}), which random folds would mix, and with them "
            "perhaps images of one place: leave --folds out, or move the files away if any image may be in any fold."
        )


def read_ratios(path: Path, rows: Sequence[str]) -> dict[str, float]:
    """Fastest step times in a `cost.json`, as ratios to that of the first of ``rows`` (ConfigError)."""
    try:
        costs = {one["row"]: one["step_seconds"] for one in json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--cost {path}: give a cost.json that the benchmark cost wrote: {error}") from error
    missing = [row for row in rows if row not in costs]
    if missing:
        raise ConfigError(f"--cost {path}: no row {listing(missing)}; it has {listing(costs)}.")
    first = min(costs[rows[0]])
    return {row: min(costs[row]) / first for row in rows}


def train(plan: Plan, row: Row, lr: float, trial: Trial) -> dict[str, Any]:
    """The results of one run: from its file, here or in an output to reuse, or by training; or Unfinished."""
    name = f"{file_name(row.text)}-lr{lr:g}-{trial.name}"
    segmentor, config = plan.base.segmentor, trial.settings(plan.base)
    config = config.replace(segmentor=segmentor.replace(optimizer=segmentor.optimizer.replace(lr=lr), **row.segmentor))
    if row.method in RIVALS:
        config = rival_config(config, row.method, row.options)
    else:
        config = config.replace(finetune=row.method, method=dict(row.options))
    files = RunFiles.of(plan.output, name)
    found = finished(plan, name, config)
    if found is not None:
        return found
    if plan.only_finished:
        raise Unfinished(name)
    files.lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(files.lock):
        found = finished(plan, name, config)  # by another process, which had the lock before
        if found is not None:
            return found
        logger.info("%s", name)
        monitor = MemoryMonitor()
        with monitor:
            results, _, _ = run(config.replace(work_dir=str(files.folder), overwrite=True))
        return write(files, row, config, {**results, "memory": monitor.result()})


def finished(plan: Plan, name: str, config: RunArguments) -> dict[str, Any] | None:
    """The results of a finished run; of one in an output to reuse, the file is taken over."""
    for output in (plan.output, *plan.reuse):
        found = read(RunFiles.of(output, name), config)
        if found is not None:
            if output != plan.output:
                store(RunFiles.of(plan.output, name), found)
            return found
    return None
