"""How one of several processes ends."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


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
