"""One run per folder, at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator

from deflect_hf.errors import ConfigError
from deflect_hf.training.run_lock import run_lock

# Holds the folder, as does a process that it forks, like the workers of a data loader, and that outlives it.
HOLDER = """
import os, sys, time
from pathlib import Path
from accelerate import Accelerator
from deflect_hf.training.run_lock import run_lock
with run_lock(Path(sys.argv[1]), Accelerator(cpu=True)):
    if os.fork() == 0:
        os.close(1)
        time.sleep(30)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_until_the_first_ends_however_it_ends(tmp_path: Path) -> None:
    work_dir = tmp_path / "runs" / "one"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(work_dir)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            message = r"one is in use: another run trains there at this moment\. Fix: wait"
            with pytest.raises(ConfigError, match=message), run_lock(work_dir, Accelerator(cpu=True)):
                pytest.fail("two runs in one folder")
        finally:
            holder.kill()
    with run_lock(work_dir, Accelerator(cpu=True)):
        pass
    with run_lock(work_dir, Accelerator(cpu=True)):  # and again in the same process
        pass
