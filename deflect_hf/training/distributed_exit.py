"""How a process ends: one of several, and one that is told to: by a cluster, or by Ctrl-C."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STATUS = 128  # and the signal: 143 as of a program that SIGTERM ended, 130 after Ctrl-C
PASSED_ON = 1.0  # seconds: accelerate's launcher sends a Ctrl-C again to processes that the terminal sent it to


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
    """While the block runs, SIGTERM and the first Ctrl-C are noted instead of obeyed, but not in other threads."""

    def __init__(self) -> None:
        self.asked = False  # whether this process was told to stop; the others may not know yet
        self.signal = signal.SIGTERM  # by which it was
        self._before: dict[int, Any] = {}
        self._since = 0.0

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._note)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # no program's own, nor ignored
                self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.asked:
            if now - self._since > PASSED_ON:
                raise KeyboardInterrupt
            return
        self.asked, self.signal, self._since = True, signal.Signals(number), now
        if number == signal.SIGINT:  # not through a stream, in the middle of whose writing this may be
            os.write(2, b"\nCtrl-C: this step is finished and saved; once more ends it at once\n")
