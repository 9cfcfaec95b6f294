"""`python -m deflect_hf.benchmark accuracy|adapters|cost|encoders|loader|scenes ...`."""

from __future__ import annotations

import importlib
import sys

from deflect_hf.errors import ConfigError, listing, nearest
from deflect_hf.training.cli import show_log, user_errors

COMMANDS = ("accuracy", "adapters", "cost", "encoders", "loader", "scenes")


def main() -> None:
    """Hand the rest of the command line to the benchmark named first."""
    with user_errors(sys.argv):
        name = sys.argv[1] if len(sys.argv) > 1 else "--help"
        if name in ("-h", "--help"):
            print(f"usage: python -m deflect_hf.benchmark {{{','.join(COMMANDS)}}} --help")
            return
        if name not in COMMANDS:
            raise ConfigError(f"no benchmark {name!r}; there are {listing(COMMANDS)}.{nearest(name, COMMANDS)}")
        show_log()
        importlib.import_module(f"deflect_hf.benchmark.{name}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
