"""What a run takes while it goes on: memory and, where the machine tells it, energy."""

from __future__ import annotations

import importlib
import os
import statistics
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

STATM = Path("/proc/self/statm")
POWERCAP = Path("/sys/class/powercap")
INTERVAL_SECONDS = 0.2


class Monitor:
    """Watches this process from its ``with`` to the end of the block, in a thread of its own.

    On a GPU, memory is what torch holds there; otherwise it is the resident memory of this process, Python and its
    libraries and what runs before it left behind included, processes of the data loader not. Energy is that of all of
    the machine's processors of which a counter can be read, whoever uses them.
    """

    def __init__(self) -> None:
        self._samples: list[int] = []
        self._counters = [*processor_counters(), *gpu_counters()]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Monitor:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            over = self._stop.wait(INTERVAL_SECONDS if self._samples else 0)
            held = held_bytes()
            self._samples += [] if held is None else [held]
            for counter in self._counters:
                counter.read()
            if over or (held is None and not self._counters):
                return

    def result(self) -> dict[str, Any]:
        """``memory`` (``of`` gpu or process, ``peak_bytes``, ``mean_bytes``) and ``energy_joules``; None if unknown."""
        gpu = torch.cuda.is_available()
        memory = None
        if self._samples:
            peak = torch.cuda.max_memory_allocated() if gpu else max(self._samples)
            memory = {"of": "gpu" if gpu else "process", "peak_bytes": peak}
            memory["mean_bytes"] = round(statistics.fmean(self._samples))
        joules = sum(counter.joules for counter in self._counters) if self._counters else None
        return {"memory": memory, "energy_joules": joules}


def held_bytes() -> int | None:
    """Memory held now: of the GPU by torch, or by this process; None on systems that do not tell."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    if not STATM.is_file():
        return None
    return int(STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Counter:
    """Energy since the counter was made, of one that begins anew at its end."""

    def __init__(self, tell: Any, joules_per_unit: float, end: int | None = None) -> None:
        self.tell, self.joules_per_unit, self.end = tell, joules_per_unit, end
        self.last = tell()
        self.joules = 0.0

    def read(self) -> None:
        """Add what came since the last reading."""
        now = self.tell()
        spent = now - self.last if self.end is None else (now - self.last) % (self.end + 1)
        self.joules += spent * self.joules_per_unit
        self.last = now


def processor_counters(folder: Path = POWERCAP) -> Iterator[Counter]:
    """Of each processor package, in microjoules; none where the system keeps them from users."""
    for package in sorted(folder.glob("intel-rapl:[0-9]*")):
        if package.name.count(":") > 1:  # part of a package, counted with it
            continue
        try:
            end = int((package / "max_energy_range_uj").read_text(encoding="ascii"))
            yield Counter(lambda path=package / "energy_uj": int(path.read_text(encoding="ascii")), 1e-6, end)
        except OSError:
            continue


def gpu_counters() -> Iterator[Counter]:
    """Of the GPU, in millijoules; none without the package pynvml or on GPUs that do not count."""
    if not torch.cuda.is_available():
        return
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        gpu = nvml.nvmlDeviceGetHandleByUUID(uuid.encode())
        yield Counter(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu), 1e-3)
    except ImportError:
        return
    except nvml.NVMLError:
        return
