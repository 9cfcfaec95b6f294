"""One run per folder: a second one, started while the first still trains, would mix its checkpoints with it."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from deflect_hf.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK = ".lock"
TAKEN = (errno.EACCES, errno.EAGAIN)


@contextmanager
def run_lock(work_dir: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold the folder, which is made, inside the block; it ends with the first process, however that ends.

    Raises:
        ConfigError: in every process, if another run holds it.
    """
    handle, taken = None, [False]
    if accelerator.is_main_process:
        work_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(work_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        taken = [not _held(handle, work_dir)]
    try:
        if broadcast_object_list(taken)[0]:
            raise ConfigError(
                f"{work_dir} is in use: another run trains there at this moment. Fix: wait for it or stop it, or give "
                "another --work_dir"
            )
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _held(handle: int, work_dir: Path) -> bool:
    """Whether the lock is this process's now; also where there are no locks, as all worked without them before."""
    if fcntl is None:
        return True
    try:
        # A record lock: unlike that of flock, it does not pass to the processes of data loaders, which may outlive a
        # killed run by seconds.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            return False
        logger.info("%s lies on a disk without locks (%s): start no second run there", work_dir, error.strerror)
    return True
