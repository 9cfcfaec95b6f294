"""What starting costs: `import deflect_hf` beside peft and transformers, and the help of each command.

Each is a new process, one kind after the other in every round, so that a busy machine slows all alike. Medians are
printed; the ratio is that of the fastest, as whatever else the machine does only adds to a time.
"""

import statistics
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from deflect_hf.benchmark.flags import flag_parser, markdown, report
from deflect_hf.errors import ConfigError
from tests.benchmarks import in_turns, refuse_less

BASE, PACKAGE = "import peft, transformers", "import peft, transformers, deflect_hf"
SCRIPTS = Path(__file__).resolve().parents[2]  # those of a clone


def commands() -> dict[str, list[str]]:
    """What is started, by its name in the table."""
    scripts = {f"{script} --help": [script, "--help"] for script in ("train.py", "evaluate.py")}
    return {**{name: ["-c", name] for name in (BASE, PACKAGE)}, **scripts}


def main(argv: Sequence[str]) -> None:
    """Measure and print a Markdown table; the seconds of every round go to `startup.json`."""
    parser = flag_parser("startup", __doc__)
    parser.add_argument("--rounds", type=int, default=7, help="processes of each kind, after one that is not counted")
    own = parser.parse_args(argv)
    refuse_less(own, {"rounds": 1})
    kinds = commands()
    seconds = in_turns(own.rounds, {name: partial(run, words) for name, words in kinds.items()})
    ratio = min(seconds[PACKAGE]) / min(seconds[BASE])
    rows = [(f"`{name}`", f"{statistics.median(all_):.2f}", f"{min(all_):.2f}") for name, all_ in seconds.items()]
    note = f"With deflect_hf over without, fastest of {own.rounds} rounds: {ratio:.3f}."
    table = markdown("process | median, s | fastest, s", rows, note)
    report(own.output, "startup", {"seconds": seconds, "ratio": ratio}, table)


def run(words: Sequence[str]) -> None:
    """One process."""
    done = subprocess.run([sys.executable, *words], cwd=SCRIPTS, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{' '.join(words)} ends with status {done.returncode}: {done.stderr[-300:]}")
