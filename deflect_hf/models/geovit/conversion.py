"""Bring a published checkpoint into the form of transformers.

    python -m deflect_hf.models.geovit.conversion --source scale-mae --checkpoint FILE --output DIR

FILE may also be a folder or a Hub repository. DIR then loads with ``AutoModel.from_pretrained`` after
``import deflect_hf``, or with ``--encoder_config`` of train.py. It holds config.json, model.safetensors, a card with
the licence of the weights, conversion.json (what was taken and what was left out), and normalisation.json where the
encoder was pretrained on reflectance.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deflect_hf.errors import CheckpointError, user_errors
from deflect_hf.models.geovit.card import model_card
from deflect_hf.models.geovit.checkpoint_files import find_checkpoint, read_tensors
from deflect_hf.models.geovit.configuration import GeoViTConfig
from deflect_hf.models.geovit.layouts import convert_tensors
from deflect_hf.models.geovit.modeling import GeoViTModel
from deflect_hf.models.geovit.sources import SOURCES, Source, get_source


@dataclass(frozen=True)
class Conversion:
    """What became of a checkpoint: its name and hash, parameters of the encoder, names of the tensors left out."""

    source: str
    file: str
    sha256: str
    parameters: int
    left_out: list[str]

    def left_out_by_part(self) -> dict[str, int]:
        """The tensors left out, counted by the parts of the model they belong to."""
        return dict(Counter(".".join(name.split(".")[:2]) if "." in name else name for name in self.left_out))


def convert(source: Source, checkpoint: Path, output: Path) -> Conversion:
    """Write the encoder in ``checkpoint`` to the new folder ``output``.

    Raises:
        CheckpointError: the checkpoint is not that of ``source``, or ``output`` is in use.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"{output} is there already: remove it, or choose another --output.")
    config = GeoViTConfig(**source.config)
    tensors = read_tensors(checkpoint, source)
    try:
        state, left_out = convert_tensors(tensors, source, config)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error
    with torch.device("meta"):
        model = GeoViTModel(config)
    model.load_state_dict(state, assign=True)
    conversion = Conversion(source.name, checkpoint.name, _sha256(checkpoint), model.num_parameters(), left_out)
    _write(model, source, conversion, output)
    return conversion


def _write(model: GeoViTModel, source: Source, conversion: Conversion, output: Path) -> None:
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    _write_json(partial / "conversion.json", vars(conversion))
    if source.mean is not None and source.std is not None:
        normalisation = {"bands": list(source.base_bands), "mean": list(source.mean), "std": list(source.std)}
        _write_json(partial / "normalisation.json", normalisation)
    card = model_card(source, conversion.file, conversion.sha256, conversion.left_out_by_part())
    (partial / "README.md").write_text(card, encoding="utf-8")
    if output.exists():
        output.rmdir()
    partial.rename(output)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deflect_hf.models.geovit.conversion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--source", required=True, help=f"the encoder: {', '.join(SOURCES)}")
    parser.add_argument("--checkpoint", help="file, folder or Hub repository; default: the encoder's own repository")
    parser.add_argument("--file", help="name of the file in that folder or repository")
    parser.add_argument("--revision", help="commit, tag or branch of the Hub repository")
    parser.add_argument("--output", required=True, type=Path, help="new folder for the converted encoder")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, convert, and say what was taken; mistakes of the user end with status 2."""
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = _parser().parse_args(words)
    with user_errors(words):
        source = get_source(arguments.source)
        checkpoint = find_checkpoint(source, arguments.checkpoint, arguments.file, arguments.revision)
        conversion = convert(source, checkpoint, arguments.output)
    print(f"{source.title}: {conversion.parameters:,} parameters -> {arguments.output}")
    for part, count in conversion.left_out_by_part().items():
        print(f"  left out: {part} ({count} tensors)" if count > 1 else f"  left out: {part}")
    print(f"  licence of the weights: {source.licence}")


if __name__ == "__main__":
    main()
