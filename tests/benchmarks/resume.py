"""How a training survives being killed: SIGKILL at random instants, resumed, compared with one that was left alone.

Every other kill waits until a checkpoint or the best model is being written. A tiny vision transformer learns from the
embedded data, with dropout and random transforms; the losses of all steps, the scores, and the weights at the end have
to be those of the uninterrupted run, bit for bit.
"""

import argparse
import dataclasses
import itertools
import json
import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deflect_hf.benchmark.flags import flag_parser
from deflect_hf.errors import DeflectError, show_log
from deflect_hf.files import PARTIAL, write_json
from deflect_hf.training.checkpoint import FOLDER, list_checkpoints
from deflect_hf.training.checkpoint import TRAINING as TENSORS
from tests.benchmarks import refuse_less
from tests.meeting import meeting

logger = logging.getLogger(__name__)

ENCODER = {
    "model_type": "vit",
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
TRAINING = (
    *("--encoder.random", json.dumps(ENCODER), "--dataset.name", "synthetic", "--dataset.num_samples", "48"),
    *("--dataset.image_size", "16", "16", "--augmentation.horizontal_flip", "0.5", "--method.aux_dim", "8"),
    *("--segmentor.pooling", "mean", "--segmentor.dropout", "0.2", "--segmentor.optimizer.lr", "1e-2"),
    *("--epochs", "3", "--eval_interval", "1", "--log_interval", "1", "--ckpt_steps", "1"),
)
# what a run imports: the instants are to fall into the training, not into the imports
PRELOADED = (__name__, "deflect_hf.training.run", "matplotlib.backends.backend_agg", "torchmetrics.classification")
GLOBAL_BATCH = 8
POLL_S = 0.001
LONGEST_S = 600.0


@dataclasses.dataclass
class Kill:
    """One killed and resumed run.

    Attributes:
        seconds: after its start.
        states: its checkpoints at that instant, by their steps.
        writing: whether something was half written.
        differs: in what it differs from the uninterrupted run, None if in nothing.
    """

    seconds: float
    states: list[int]
    writing: bool
    differs: str | None


def main(argv: Sequence[str]) -> None:
    """Kill, resume, compare; the table goes to `resume.json`.

    Raises:
        ConfigError: a number that makes no sense.
        DeflectError: a run ended by itself in another way than expected.
        SystemExit: a resumed run was not the same; with status 1.
    """
    parser = flag_parser("resume", __doc__)
    parser.add_argument("--kills", type=int, default=50, help="how many runs are killed, each once")
    parser.add_argument("--processes", type=int, choices=[1, 2], default=1, help="training processes (gloo)")
    parser.add_argument("--num_workers", type=int, default=0, help="data loader processes, per process")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    own = parser.parse_args(argv)
    refuse_less(own, {"kills": 1, "num_workers": 0, "seed": 0})
    words = [*TRAINING, "--batch_size", str(GLOBAL_BATCH // own.processes), "--num_workers", str(own.num_workers)]
    rng = np.random.default_rng(own.seed)
    reference = own.output / "uninterrupted"
    own.output.mkdir(parents=True, exist_ok=True)
    finish(start([], 1, target=do_nothing))  # the imports are not timed
    started = time.monotonic()
    finish(start([*words, "--work_dir", str(reference), "--overwrite"], own.processes))
    whole = time.monotonic() - started
    kills: list[Kill] = []
    while len(kills) < own.kills:
        kill = one_kill(words, own, reference, rng, whole, during_write=len(kills) % 2 == 0)
        if kill is None:
            whole *= 0.8  # it was over before: the first took longer than the others do
            continue
        kills.append(kill)
        logger.info("kill %d of %d: %s", len(kills), own.kills, kill)
    write_json(own.output / "resume.json", [dataclasses.asdict(kill) for kill in kills])
    good = sum(kill.differs is None for kill in kills)
    print(
        f"{good}/{len(kills)} resumed runs of {own.processes} process(es) equal the uninterrupted one; "
        f"{sum(kill.writing for kill in kills)} were killed while something was half written, "
        f"{sum(not kill.states for kill in kills)} before their first checkpoint"
    )
    if good < len(kills):
        raise SystemExit(1)


Target = Callable[[Sequence[str], Path | None], None]


def start(
    words: Sequence[str], processes: int, log: Path | None = None, target: Target | None = None
) -> list[BaseProcess]:
    """The processes of a training with these words of `train.py`, forked from one that has imported everything.

    Args:
        log: gets what they print.
        target: what they do instead of `train`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    store, environments = meeting(processes)
    started: list[BaseProcess] = []
    for environment in environments:
        work = (target if target is not None else train, list(words), log)
        process = context.Process(target=begin, args=(environment if processes > 1 else {}, *work))
        process.start()
        process.store = store  # which lives as long as one of them is known
        started.append(process)
    return started


def begin(environment: dict[str, str], target: Target, words: Sequence[str], log: Path | None) -> None:
    """One process, as `accelerate launch` would start it."""
    os.environ.update(environment)
    target(words, log)


def train(words: Sequence[str], log: Path | None) -> None:
    """A training."""
    from deflect_hf.config.compose import parse_arguments
    from deflect_hf.config.run import RunArguments
    from deflect_hf.training.distributed_exit import distributed_exit
    from deflect_hf.training.run import run

    multiprocessing.set_start_method("fork", force=True)  # of workers; inherited is the server, which outlives us
    sink = os.open(log if log is not None else os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    show_log()
    with distributed_exit():
        run(parse_arguments(RunArguments, "", list(words)))


def do_nothing(words: Sequence[str], log: Path | None) -> None:
    """Have the server of processes started, which imports everything."""


def finish(processes: Sequence[BaseProcess]) -> None:
    """Wait for the end of a training.

    Raises:
        DeflectError: it failed.
    """
    for process in processes:
        process.join(LONGEST_S)
    codes = [process.exitcode for process in processes]
    stop(processes)
    if any(codes):
        raise DeflectError(f"the processes of a training ended with {codes} instead of 0; None: not at all")


def stop(processes: Sequence[BaseProcess]) -> None:
    """SIGKILL to all of them."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def one_kill(
    words: Sequence[str],
    own: argparse.Namespace,
    reference: Path,
    rng: np.random.Generator,
    whole: float,
    during_write: bool,
) -> Kill | None:
    """Start a run, kill and resume it; None if it was over before it could be killed."""
    folder = own.output / "killed"
    fresh = [*words, "--work_dir", str(folder), "--overwrite"]
    shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    processes = start(fresh, own.processes, own.output / "killed.log")
    if during_write:
        wait_for_writing(folder, processes, int(rng.integers(1, 20)))
        time.sleep(rng.uniform(0, 0.01))
    else:
        last = started + rng.uniform(0, whole)
        while time.monotonic() < last and all(process.is_alive() for process in processes):
            time.sleep(POLL_S)
    over = not any(process.is_alive() for process in processes)
    seconds = time.monotonic() - started
    stop(processes)
    if over:
        return None
    writing = any(folder.rglob(f"*{PARTIAL}"))
    steps = [int(path.name.removeprefix("step-")) for path in list_checkpoints(folder)]
    resumed = [*words, "--work_dir", str(folder), "--resume_from", "last"] if folder.is_dir() else fresh
    finish(start(resumed, own.processes, own.output / "killed.log"))
    return Kill(round(seconds, 3), steps, writing, difference(reference, folder))


def wait_for_writing(folder: Path, processes: Sequence[BaseProcess], count: int) -> None:
    """Return when the ``count``-th file or folder is being written, or the run is over."""
    seen: set[str] = set()
    while all(process.is_alive() for process in processes):
        places = (folder, folder / FOLDER)
        seen |= {path.name for place in places if place.is_dir() for path in place.glob(f"*{PARTIAL}")}
        if len(seen) >= count:
            return
        time.sleep(POLL_S)


def difference(reference: Path, folder: Path) -> str | None:
    """What of a run's log, scores and weights is not as in ``reference``."""
    for name, read in (("log", _log), ("scores", _scores), ("weights", _weights)):
        expected, found = read(reference), read(folder)
        for one, other in itertools.zip_longest(expected, found):
            if one != other:
                return f"{name}: {str(other)[:200]} instead of {str(one)[:200]}"
    return None


def _log(folder: Path) -> Any:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def _scores(folder: Path) -> Any:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return [(name, results[name]) for name in ("best_epoch", "steps", "val", "test")]


def _weights(folder: Path) -> Any:
    tensors = torch.load(list_checkpoints(folder)[-1] / TENSORS, weights_only=True)["model"]
    return [(name, tensor.tolist()) for name, tensor in tensors.items()]
