"""What several training processes cost beside one: processor time of a window in each number of them.

The model, images and loop of the `step` benchmark, on one thread per process and as many images for each of them; gloo
adds up gradients and the weights of labels. Numbers of processes are measured in turns. Processor time counts what they
compute, exchange and read, but not waiting, so that it holds with fewer cores than processes and beside other work; the
windows per second, of the clock on the wall, do not.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from deflect_hf.benchmark.flags import flag_parser, markdown, report
from tests.benchmarks import refuse_less, resume
from tests.benchmarks.step import make_loop, our_epoch, step_flags


def main(argv: Sequence[str]) -> None:
    """Measure and print a Markdown table; the numbers go to `processes.json`.

    Raises:
        ConfigError: a number that makes no sense.
        DeflectError: a process failed.
    """
    parser = flag_parser("processes", __doc__)
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2], help="numbers of processes to try")
    step_flags(parser, images=64, rounds=3)
    own = parser.parse_args(argv)
    refuse_less(own, {"processes": 1, "images": own.batch_size, "batch_size": 1, "width": 16, "blocks": 1, "rounds": 1})
    measured: list[dict[str, Any]] = [{"processes": count, "rounds": []} for count in own.processes]
    for _ in range(own.rounds):
        for one in measured:
            one["rounds"].append(measure(one["processes"], own))
    first = measured[0]["rounds"]
    for one in measured:
        ratios = [a["processor_seconds"] / b["processor_seconds"] for a, b in zip(first, one["rounds"], strict=True)]
        one["efficiency"] = statistics.median(ratios)
    rows = [
        (
            str(one["processes"]),
            f"{1000 * statistics.median(found['processor_seconds'] for found in one['rounds']):.1f}",
            f"{one['efficiency']:.2f}",
            f"{statistics.median(found['windows_per_second'] for found in one['rounds']):.1f}",
        )
        for one in measured
    ]
    note = (
        f"Batch {own.batch_size} per process, width {own.width}, {own.blocks} blocks. Median of {own.rounds} round(s)."
    )
    columns = "processes | processor time of a window, ms | efficiency | windows/s in all"
    report(own.output, "processes", measured, markdown(columns, rows, note))


def measure(count: int, own: argparse.Namespace) -> dict[str, float]:
    """Processor seconds of a window, over all processes, and windows per second of the wall."""
    with tempfile.TemporaryDirectory() as folder:
        given = {**vars(own), "images": own.images * count, "output": folder}
        resume.finish(resume.start([json.dumps(given)], count, Path(folder), epoch_of_one))
        found = [json.loads(path.read_text(encoding="utf-8")) for path in Path(folder).glob("rank-*.json")]
    windows = sum(one["windows"] for one in found)
    return {
        "processor_seconds": sum(one["processor_seconds"] for one in found) / windows,
        "windows_per_second": windows / max(one["seconds"] for one in found),
    }


def epoch_of_one(words: Sequence[str], folder: Path | None) -> None:
    """What one of the processes does: an epoch to warm up, and one that counts."""
    from deflect_hf.training.distributed_exit import distributed_exit

    own = argparse.Namespace(**json.loads(words[0]))
    torch.set_num_threads(1)
    with distributed_exit():
        loop = make_loop(own, folder)
        our_epoch(loop)
        loop.accelerator.wait_for_everyone()
        steps, started, spent = loop.progress.step, time.perf_counter(), time.process_time()
        our_epoch(loop)
        found = {
            "processor_seconds": time.process_time() - spent,
            "seconds": time.perf_counter() - started,
            "windows": (loop.progress.step - steps) * own.batch_size,
        }
        (folder / f"rank-{loop.rank.index}.json").write_text(json.dumps(found), encoding="utf-8")
