"""What the command lines of the benchmarks share."""

from __future__ import annotations

import argparse
from pathlib import Path


def flag_parser(benchmark: str, description: str | None, others: str | None = None) -> argparse.ArgumentParser:
    """A parser that knows ``--output``.

    Args:
        others: what the flags that it does not know are; they are never taken for short forms of known ones.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m deflect_hf.benchmark {benchmark}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"All other flags are those of {others}." if others else None,
        allow_abbrev=others is None,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    return parser
