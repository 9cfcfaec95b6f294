"""What one call takes: time, memory, and what its backward pass keeps."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from safetensors.torch import save
from torch import nn


def timed(call: Any, cuda: bool) -> float:
    """Seconds of one call."""
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def processor_seconds(call: Callable[[], object]) -> float:
    """Seconds that one call on one thread has the processor: what else the machine does hardly counts."""
    start = time.process_time()
    call()
    return time.process_time() - start


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Memory of the tensors, each storage once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def file_bytes(model: nn.Module) -> int:
    """Size of a safetensors file of all that is trained, the task head included."""
    return len(save({name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}))


def allocated(call: Callable[[], object], cuda: bool) -> int:
    """Most bytes that ``call`` takes at once beyond what was there before.

    What the allocator hands out and takes back, in order: all intermediate results, also those inside an operator, but
    neither the caches of libraries nor what the allocator itself keeps in reserve.
    """
    return max(itertools.accumulate(_allocations(call, cuda)), default=0)


def _allocations(call: Callable[[], object], cuda: bool) -> list[int]:
    """Bytes that the allocator hands out, and takes back (negative), in order, while the result of ``call`` lives."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, profile_memory=True) as recorded:
        result = call()
        if cuda:
            torch.cuda.synchronize()
    del result
    assert recorded.profiler is not None
    results: Any = recorded.profiler.kineto_results
    device = torch.autograd.DeviceType.CUDA if cuda else torch.autograd.DeviceType.CPU
    memory = [event for event in results.events() if event.name() == "[memory]" and event.device_type() == device]
    return [event.nbytes() for event in sorted(memory, key=lambda event: event.start_ns())]


def saved_for_backward(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> int:
    """Bytes that the backward pass of one batch keeps: what the allocator has not got back while the loss lives.

    The hooks of autograd do not see what selective checkpointing keeps.
    """
    model.train()
    return sum(_allocations(lambda: model(pixels, labels=labels).loss, pixels.is_cuda))


def spectral_inputs(model: nn.Module) -> list[nn.Module]:
    """The module that makes the pixel-set features, in a list; empty for a method that has none."""
    return [module for name, module in model.named_modules() if name.endswith("deflect_input.default")]


@torch.no_grad()
def spectral_peak(model: nn.Module, pixels: torch.Tensor) -> int | None:
    """Most bytes that the pixel-set features of one batch take at once, result included, the images not; None without.

    As ``allocated`` counts them.
    """
    features = spectral_inputs(model)
    if not features:
        return None
    model.eval()
    return allocated(lambda: features[0](pixels), pixels.is_cuda)
