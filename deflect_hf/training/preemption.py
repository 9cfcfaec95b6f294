"""SIGTERM, which clusters send before they take a machine away: stop at the next batch, with everything saved."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

EXIT_STATUS = 128 + signal.SIGTERM  # 143, as of a program that SIGTERM ended


class Interrupted(Exception):
    """Work was left off, by all processes alike, because one of them was told to stop."""


class Preemption:
    """While the block runs, SIGTERM is noted instead of obeyed; outside of the main thread nothing changes.

    Attributes:
        asked: whether this process was told to stop. The others may not know yet.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def ignore_preemption(worker: int) -> None:
    """For a data loader's worker: it obeys SIGTERM of its own process alone, which sends it as it ends.

    Clusters signal all processes; a worker that obeyed would end the training in the middle of a step. One that obeyed
    nobody would be waited for without end where an error, with the loader in its traceback, ends the process.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS does not tell who sent a signal
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # of this thread and those to come
    threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)
