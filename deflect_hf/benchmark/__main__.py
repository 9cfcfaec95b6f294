"""`python -m deflect_hf.benchmark accuracy|cost|gpu ...`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import partial

from deflect_hf.errors import run_job

COMMANDS = ("accuracy", "cost", "gpu")


def main(
    argv: Sequence[str] | None = None, package: str = "deflect_hf.benchmark", commands: Sequence[str] = COMMANDS
) -> None:
    """Hand the rest of the command line to the benchmark named first; `--debug` is none of its flags."""

    def run(name: str, words: list[str]) -> None:
        importlib.import_module(f"{package}.{name}").main([word for word in words if word != "--debug"])

    usage = f"usage: python -m {package} {{{','.join(commands)}}} --help"
    debug = "--debug, for any of them: show the traceback of an error"
    run_job({name: partial(run, name) for name in commands}, f"{usage}\n{debug}", argv)


if __name__ == "__main__":
    main()
