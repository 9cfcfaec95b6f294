"""Which image goes into which batch: a pure function of seed, epoch and position.

A resumed run can therefore start at any batch without reading the ones before it, and N processes with batch size B
see the same global batches as one process with batch size N B.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader

from deflect_hf.data.collate import IGNORED, batches_of_one_size, collate_filled_up
from deflect_hf.errors import KILLED_READER, DataError

if TYPE_CHECKING:
    from accelerate import Accelerator

SEED_RANGE = 2**63
MOST_READERS = 4  # that auto starts


@dataclass(frozen=True)
class Rank:
    """This process among those of the run."""

    index: int = 0
    count: int = 1

    @classmethod
    def of(cls, accelerator: Accelerator) -> Rank:
        """Those of a run that accelerate launched."""
        return cls(accelerator.process_index, accelerator.num_processes)


def epoch_batches(
    length: int, batch_size: int, seed: int, epoch: int, rank: Rank, weights: Sequence[float] | None = None
) -> list[list[int]]:
    """This process's batches of indices in an epoch; the incomplete global batch at the end is dropped.

    A split smaller than one global batch is repeated until it fills one, so that an epoch is at least one step.

    Args:
        weights: draw as many images with replacement, each as often as its weight says; None: each of them once.
    """
    generator = torch.Generator().manual_seed(_mixed(seed, epoch))
    if weights is None:
        order = torch.randperm(length, generator=generator).tolist()
    else:
        drawn = torch.tensor(weights, dtype=torch.float64).multinomial(length, replacement=True, generator=generator)
        order = drawn.tolist()
    group = batch_size * rank.count
    while len(order) < group:
        order = (order + order)[:group]
    starts = range(rank.index * batch_size, len(order) // group * group, group)
    return [order[start : start + batch_size] for start in starts]


def _mixed(*numbers: int) -> int:
    """One seed of several numbers; a plain sum would give (seed 1, epoch 0) the order of (seed 0, epoch 1)."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % SEED_RANGE
    return mixed


def readers(workers: int | Literal["auto"]) -> int:
    """Data loader processes of this process; auto: the cores it may use over the processes here, 1 to 4."""
    if workers != "auto":
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1), MOST_READERS)


def training_loader(
    dataset: Any,
    batch_size: int,
    workers: int | Literal["auto"],
    seed: int,
    epoch: int,
    rank: Rank,
    skip: int = 0,
    weights: Sequence[float] | None = None,
) -> DataLoader[dict[str, Any]]:
    """The batches of one epoch for this process, without the first ``skip``; ``weights`` as in `epoch_batches`."""
    dataset.set_epoch(epoch)
    batches = epoch_batches(len(dataset), batch_size, seed, epoch, rank, weights)[skip:]
    collate = partial(collate_filled_up, ignore_index=getattr(dataset, "ignore_index", IGNORED))
    return _loader(dataset, batches, workers, collate)


@dataclass(frozen=True)
class EvaluationLoader:
    """Batches of one size each, of images of any sizes; it can be gone through again."""

    loader: DataLoader[list[dict[str, Any]]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batches in self.loader:
            yield from batches


def evaluation_loader(dataset: Any, batch_size: int, workers: int | Literal["auto"], rank: Rank) -> EvaluationLoader:
    """Every image exactly once over all processes, in order; batches may be uneven, of several sizes, or absent."""
    share = list(range(rank.index, len(dataset), rank.count))
    batches = [share[start : start + batch_size] for start in range(0, len(share), batch_size)]
    return EvaluationLoader(_loader(dataset, batches, workers, batches_of_one_size))


class _Loader(DataLoader[Any]):
    """One that tells in words that a worker was killed, also where it died while it handed over an image."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            if self.num_workers == 0 or str(error).startswith("Caught"):  # the data set's own
                raise
            raise DataError(KILLED_READER) from error


def _loader(
    dataset: Any, batches: list[list[int]], workers: int | Literal["auto"], collate: Callable[[Any], Any]
) -> DataLoader[Any]:
    return _Loader(
        dataset,
        batch_sampler=batches,
        num_workers=min(readers(workers), len(batches)),
        generator=torch.Generator().manual_seed(0),  # torch's own would make dropout depend on interruptions
        collate_fn=collate,
        worker_init_fn=ignore_preemption,
        pin_memory=torch.cuda.is_available(),
    )


def ignore_preemption(worker: int) -> None:
    """For a data loader's worker: it obeys SIGTERM of its own process alone, which sends it as it ends.

    Clusters signal all processes; a worker that obeyed would end the training in the middle of a step. One that obeyed
    nobody would be waited for without end where an error, with the loader in its traceback, ends the process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C comes to all: what it ends is the training
    if not hasattr(signal, "sigwaitinfo"):  # macOS does not tell who sent a signal
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # of this thread and those to come
    threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)


def steps_of(length: int, batch_size: int, accumulate: int, rank: Rank) -> int:
    """Optimizer steps per epoch; the last one may add up fewer than ``accumulate`` batches."""
    batches = max(1, length // (batch_size * rank.count))
    return -(-batches // accumulate)


def grouped(loader: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Lists of ``size`` batches, the last one possibly shorter."""
    group: list[dict[str, Any]] = []
    for batch in loader:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def example_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """A random generator of its own for one example in one epoch."""
    state = np.random.SeedSequence([seed, epoch, index]).generate_state(1, dtype=np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
