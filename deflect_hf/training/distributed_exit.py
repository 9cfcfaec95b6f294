"""How a process ends: one of several, and one that a cluster sends SIGTERM before it takes the machine away."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

EXIT_STATUS = 128 + signal.SIGTERM  # 143, as of a program that SIGTERM ended


@contextmanager
def distributed_exit() -> Iterator[None]:
    """Around the work of a script: one of several processes ends with the block, not by way of the interpreter's end.

    The threads of gloo outlive ``destroy_process_group`` wherever DDP was used, since its reducer keeps the group. One
    that still has to free a tensor while the interpreter is torn down needs the interpreter's lock: it aborts the
    process, or waits for ever. Source: github.com/pytorch/pytorch/pull/179291.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    status = 0
    try:
        yield
    except SystemExit as error:
        if error.code is not None and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Preemption:
    """While the block runs, SIGTERM is noted instead of obeyed; outside of the main thread nothing changes."""

    def __init__(self) -> None:
        self.asked = False  # whether this process was told to stop; the others may not know yet
        self._before: Any = None

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
