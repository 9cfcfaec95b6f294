"""`python -m deflect_hf.benchmark accuracy|cost|gpu ...`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from deflect_hf.errors import ConfigError, listing, nearest, show_log, user_errors

COMMANDS = ("accuracy", "cost", "gpu")


def main(
    argv: Sequence[str] | None = None, package: str = "deflect_hf.benchmark", commands: Sequence[str] = COMMANDS
) -> None:
    """Hand the rest of the command line to the benchmark named first; `--debug` is none of its flags."""
    typed = sys.argv[1:] if argv is None else list(argv)
    with user_errors(typed):
        name, *words = [word for word in typed if word != "--debug"] or ["--help"]
        if name in ("-h", "--help"):
            print(f"usage: python -m {package} {{{','.join(commands)}}} --help")
            print("--debug, for any of them: show the traceback of an error")
            return
        if name not in commands:
            raise ConfigError(f"no benchmark {name!r}; there are {listing(commands)}.{nearest(name, commands)}")
        show_log()
        importlib.import_module(f"{package}.{name}").main(words)


if __name__ == "__main__":
    main()
