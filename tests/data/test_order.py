"""Which image goes where: once per epoch, the same over processes, the same after a resume."""

import itertools
import multiprocessing
import os
import signal
import subprocess
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing import reductions

from deflect_hf.config.data import AugmentationArguments, DatasetArguments
from deflect_hf.data import build_transform, load_dataset_splits
from deflect_hf.data.collate import collate_filled_up
from deflect_hf.data.order import Rank, epoch_batches, evaluation_loader, grouped, readers, steps_of, training_loader
from deflect_hf.errors import user_errors


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 3), st.integers(0, 5), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_processes_share_the_batches_of_one(length: int, size: int, count: int, seed: int, epoch: int) -> None:
    one = epoch_batches(length, size * count, seed, epoch, Rank())
    many = [epoch_batches(length, size, seed, epoch, Rank(index, count)) for index in range(count)]
    joined = [list(chain.from_iterable(batches[k] for batches in many)) for k in range(len(one))]
    assert joined == one
    assert len({len(batches) for batches in many}) == 1
    flat = list(chain.from_iterable(one))
    assert set(flat) <= set(range(length))
    if length >= size * count:
        assert len(set(flat)) == len(flat) == length // (size * count) * size * count


def test_weighted_images_are_drawn_alike_by_all_processes_and_as_often_as_they_should() -> None:
    weights = [1.0] * 90 + [9.0] * 10
    one = epoch_batches(100, 20, 3, 7, Rank(), weights)
    many = [epoch_batches(100, 10, 3, 7, Rank(index, 2), weights) for index in range(2)]
    assert one == [first + second for first, second in zip(*many, strict=True)]
    assert one != epoch_batches(100, 20, 3, 8, Rank(), weights)
    drawn = [
        index for epoch in range(50) for batch in epoch_batches(100, 20, 3, epoch, Rank(), weights) for index in batch
    ]
    assert sum(index >= 90 for index in drawn) / len(drawn) == pytest.approx(0.5, abs=0.03)


def test_order_changes_with_seed_and_epoch() -> None:
    orders = {str(epoch_batches(50, 50, seed, epoch, Rank())) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_steps_count_what_grouping_gives() -> None:
    for length in (1, 7, 8, 33):
        for accumulate in (1, 2, 3):
            batches = epoch_batches(length, 4, 0, 0, Rank())
            groups = list(grouped(({"k": k} for k in range(len(batches))), accumulate))
            assert len(groups) == steps_of(length, 4, accumulate, Rank())
            assert sum(len(group) for group in groups) == len(batches)


def training_batches(workers: int, skip: int = 0) -> list[list[dict[str, Any]]]:
    """The batches of two epochs of the embedded scenes, cropped and turned at random."""
    split = load_dataset_splits(DatasetArguments(num_samples=20, image_size=[12, 12]))["train"]
    augmentation = AugmentationArguments(random_crop=[8, 8], horizontal_flip=0.5, rot90=True)
    split = split.with_transform(build_transform(augmentation, "train"))
    return [list(training_loader(split, 3, workers, 4, epoch, Rank(), skip)) for epoch in range(2)]


@pytest.mark.parametrize(("cores", "here", "expected"), [(2, 1, 2), (64, 4, 4), (8, 4, 2), (2, 4, 1)])
def test_auto_shares_the_usable_cores_among_the_processes_here(cores, here, expected, monkeypatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    assert readers("auto") == expected and readers(7) == 7


def test_worker_processes_give_the_batches_of_one_process_also_after_a_resume() -> None:
    alone = training_batches(workers=0)
    for skip in (0, 2):
        helped = training_batches(2, skip)
        for expected, found in zip(alone, helped, strict=True):
            assert [batch["name"] for batch in found] == [batch["name"] for batch in expected[skip:]]
            for one, other in zip(expected[skip:], found, strict=True):
                assert torch.equal(one["pixel_values"], other["pixel_values"])


@given(st.integers(1, 20), st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_evaluation_sees_every_image_once_over_all_processes(length: int, count: int, size: int) -> None:
    examples = [{"pixel_values": torch.zeros(1, 2, 2), "name": str(k)} for k in range(length)]
    seen = [
        name
        for index in range(count)
        for batch in evaluation_loader(examples, size, workers=0, rank=Rank(index, count))
        for name in batch["name"]
    ]
    assert sorted(seen, key=int) == [str(k) for k in range(length)]


class Numbers(torch.utils.data.Dataset):
    """Images that hold the process that read them."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": torch.full((1, 1, 1), os.getpid()), "name": str(index)}


def test_a_worker_obeys_sigterm_of_its_own_process_alone() -> None:
    batches = iter(evaluation_loader(Numbers(), 1, 1, Rank()))
    worker = int(next(batches)["pixel_values"])
    subprocess.run(["kill", str(worker)], check=True)
    assert [int(batch["pixel_values"]) for batch in itertools.islice(batches, 3)] == [worker] * 3
    (child,) = (process for process in multiprocessing.active_children() if process.pid == worker)
    for _ in range(200):  # one that comes while another is pending is lost
        child.terminate()
        child.join(0.1)
    assert child.exitcode == 0


class Killed(Numbers):
    """Reading the second image kills the worker, at a moment when it holds no lock that torch would wait for."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def broken_off(*_: object) -> None:
    raise ConnectionResetError(104, "Connection reset by peer")


@pytest.mark.parametrize("handing_over", [False, True])
def test_a_killed_worker_is_a_sentence(
    handing_over: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if handing_over:  # what the socket says while the worker's death is not yet known
        monkeypatch.setattr(reductions, "rebuild_tensor", broken_off)
    with pytest.raises(SystemExit), user_errors([]):
        list(evaluation_loader(Numbers() if handing_over else Killed(), 1, 1, Rank()))
    assert capsys.readouterr().err.startswith("error: a process that reads images was killed from outside")


class Absent(Numbers):
    def __getitem__(self, index: int) -> dict[str, Any]:
        raise FileNotFoundError("a.tif")


def test_what_a_data_set_raised_in_a_worker_stays_as_it_is() -> None:
    for workers in (0, 1):
        with pytest.raises(FileNotFoundError, match=r"a\.tif"):
            list(evaluation_loader(Absent(), 1, workers, Rank()))


def test_batches_of_several_sizes() -> None:
    sizes = [(4, 6), (8, 2), (4, 6)]
    examples = [
        {"pixel_values": torch.ones(1, *size), "labels": torch.ones(size, dtype=torch.int64), "name": "x"}
        for size in sizes
    ]
    assert [len(batch["name"]) for batch in evaluation_loader(examples, 3, 0, Rank())] == [2, 1]
    batch = collate_filled_up(examples)
    assert batch["pixel_values"].shape == (3, 1, 8, 6) and batch["labels"].shape == (3, 8, 6)
    for image, labels, (height, width) in zip(batch["pixel_values"], batch["labels"], sizes, strict=True):
        assert image.nansum() == height * width and (labels == -100).sum() == 48 - height * width
