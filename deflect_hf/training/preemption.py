"""SIGTERM, which clusters send before they take a machine away: stop at the next batch, with everything saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

EXIT_STATUS = 128 + signal.SIGTERM  # 143, as of a program that SIGTERM ended


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
