"""Bring a published checkpoint into the form of transformers.

    python -m deflect_hf.models.geovit.conversion --source scale-mae --checkpoint FILE --output DIR

FILE may also be a folder or a Hub repository. DIR then loads with ``AutoModel.from_pretrained`` after
``import deflect_hf``, or with ``--encoder_config`` of train.py. It holds config.json, model.safetensors, a card with
the license of the weights, conversion.json (what was taken and what was left out), and normalisation.json where the
encoder was pretrained on reflectance.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import ModelCard, ModelCardData

from deflect_hf.errors import CheckpointError, user_errors
from deflect_hf.files import atomic_dir, refuse_used, write_json, write_text
from deflect_hf.models.geovit.checkpoint_files import find_checkpoint, read_tensors
from deflect_hf.models.geovit.configuration import GeoViTConfig
from deflect_hf.models.geovit.layouts import convert_tensors
from deflect_hf.models.geovit.modeling import GeoViTModel
from deflect_hf.models.geovit.sources import SOURCES, Source, get_source

TEMPLATE = Path(__file__).with_name("card.md.j2")


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
        return dict(Counter(".".join(name.split(".")[:2]) for name in self.left_out))


def convert(source: Source, checkpoint: Path, output: Path) -> Conversion:
    """Write the encoder in ``checkpoint`` to the new folder ``output``.

    Raises:
        CheckpointError: the checkpoint is not that of ``source``.
        ConfigError: ``output`` is in use.
    """
    refuse_used(output)
    config = GeoViTConfig(**source.config)
    tensors = read_tensors(checkpoint, source)
    try:
        state, left_out = convert_tensors(tensors, source, config)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error
    with torch.device("meta"):
        model = GeoViTModel(config)
    model.load_state_dict(state, assign=True)
    with checkpoint.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    conversion = Conversion(source.name, checkpoint.name, sha256, model.num_parameters(), left_out)
    tags = ["geospatial", "remote-sensing", "vision-transformer"]
    card = ModelCard.from_template(
        ModelCardData(library_name="transformers", license=source.license, tags=tags),
        template_path=str(TEMPLATE),
        source=source,
        conversion=conversion,
        left_out=conversion.left_out_by_part(),
    )
    with atomic_dir(output) as folder:
        model.save_pretrained(folder)
        write_json(folder / "conversion.json", vars(conversion))
        if source.mean is not None and source.std is not None:
            normalisation = {"bands": source.base_bands, "mean": source.mean, "std": source.std}
            write_json(folder / "normalisation.json", normalisation)
        write_text(folder / "README.md", card.content)
    return conversion


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, convert, and say what was taken; mistakes of the user end with status 2."""
    words = sys.argv[1:] if argv is None else list(argv)
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
    arguments = parser.parse_args(words)
    with user_errors(words):
        source = get_source(arguments.source)
        checkpoint = find_checkpoint(source, arguments.checkpoint, arguments.file, arguments.revision)
        conversion = convert(source, checkpoint, arguments.output)
    print(f"{source.title}: {conversion.parameters:,} parameters -> {arguments.output}")
    for part, count in conversion.left_out_by_part().items():
        print(f"  left out: {part} ({count} tensors)" if count > 1 else f"  left out: {part}")
    print(f"  license of the weights: {source.license}")


if __name__ == "__main__":
    main()
