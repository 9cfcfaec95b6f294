"""Write docs/configuration.md from the configuration itself: ``python -m deflect_hf.reference``."""

from __future__ import annotations

from pathlib import Path

from deflect_hf.config.inference import ExportArguments, PredictArguments
from deflect_hf.config.methods import METHODS, method_class
from deflect_hf.config.run import EvaluateArguments, RunArguments
from deflect_hf.config.schema import Arguments, keys_of

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
OPENING = """# Configuration

Written by `python -m deflect_hf.reference`; do not edit.

A key is a line of a YAML file or a flag: `epochs: 3` and `--epochs 3`, nested keys as `--segmentor.optimizer.lr 1e-3`.
One file may hold all keys, `train.py mine.yaml`, or name a file for each group (`encoder_config: vit.yaml`).
`--print_config` shows what a command comes to.
"""


def table(schema: type[Arguments], title: str) -> str:
    """A heading, the text of the group, and a row for each key."""
    rows = [
        f"| `{schema.prefix}{key}` | {leaf.type_name} | `{leaf.default_text}` | {leaf.help} |"
        for key, leaf in keys_of(schema).items()
    ]
    return "\n".join([f"## {title}", "", "| key | type | default | meaning |", "|---|---|---|---|", *rows, ""])


def page() -> str:
    """The whole page."""
    programs = [
        table(RunArguments, "Training"),
        *(table(method_class(name), f"Training: `method` of `--finetune {name}`") for name in METHODS),
        table(EvaluateArguments, "Evaluation"),
        table(PredictArguments, "Maps"),
        table(ExportArguments, "Export"),
    ]
    return "\n".join([OPENING, *programs])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
