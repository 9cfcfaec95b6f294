"""The tiny runs of `tests/conf`, by the name of their file."""

from pathlib import Path

from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.run import RunArguments

CONF = Path(__file__).resolve().parent / "conf"


def tiny_run(name: str, *words: str) -> RunArguments:
    """The configuration of `tests/conf/NAME.yaml` with further flags."""
    return parse_arguments(RunArguments, "test", ["--config", str(CONF / f"{name}.yaml"), *words])
