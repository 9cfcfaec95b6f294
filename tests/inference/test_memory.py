"""What is freed goes back to the system."""

import subprocess
import sys
from pathlib import Path

import pytest

MODULE = Path(__file__).resolve().parents[2] / "deflect_hf" / "inference" / "memory.py"
PROGRAM = """
import runpy
import sys
from pathlib import Path

import numpy as np


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


memory = runpy.run_path(sys.argv[2])
if sys.argv[1] == "give":
    memory["give_large_blocks_back"]()
np.ones(2**21)  # 16 MiB: from now on glibc keeps what is smaller, unless told otherwise
before = resident_bytes()
blocks = [np.ones(2**18) for _ in range(32)]  # of 2 MiB
last = np.ones(2**16)  # holds the top of the heap
del blocks
if sys.argv[1] == "trim":
    memory["give_back"]()
print(resident_bytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="tells glibc how to behave")
def test_large_blocks_are_given_back_and_would_not_be_otherwise() -> None:
    kept = {}
    for word in ("give", "trim", "keep"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, word, str(MODULE)], capture_output=True, text=True, check=True
        )
        kept[word] = int(done.stdout)
    assert max(kept["give"], kept["trim"]) < 2**22 < kept["keep"]
