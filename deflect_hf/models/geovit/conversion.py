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
import pickle
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.schema import Arguments, UserPath, option
from deflect_hf.errors import CheckpointError, brief, listing, user_errors
from deflect_hf.files import atomic_dir, refuse_used, write_json, write_text
from deflect_hf.models.geovit.configuration import GeoViTConfig
from deflect_hf.models.geovit.layouts import convert_tensors
from deflect_hf.models.geovit.modeling import GeoViTModel
from deflect_hf.models.geovit.sources import SOURCES, Source, get_source

TEMPLATE = Path(__file__).with_name("card.md.j2")
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
# numpy 1 had the function that makes its numbers under another name
SCALAR = np.float64(0).__reduce__()[0]
SAFE: list[Any] = [argparse.Namespace, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8"))]
SAFE += [(SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


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


def where_to_get(source: Source) -> str:
    """One sentence for messages: where the checkpoint of ``source`` is published."""
    return f"The checkpoint of {source.title} is at {source.download}"


def find_checkpoint(
    source: Source, checkpoint: str | None = None, file: str | None = None, revision: str | None = None
) -> Path:
    """The file that ``checkpoint`` means; a Hub repository's is downloaded once into its cache.

    Args:
        checkpoint: a file, a folder, or a Hub repository; default the repository of ``source``, where it has one.
        file: name of the file in the folder or repository, if it is not one of ``source.files``.
    """
    if checkpoint is None:
        if source.hub_id is None:
            raise CheckpointError(f"{where_to_get(source)}, not on the Hub: download it and give --checkpoint FILE.")
        checkpoint = source.hub_id
    path = Path(checkpoint)
    if path.is_file():
        return path
    if path.is_dir():
        return _in_folder(path, source, file)
    if REPOSITORY.fullmatch(checkpoint) and path.suffix not in SUFFIXES:
        return _from_hub(checkpoint, source, file, revision)
    raise CheckpointError(f"{checkpoint}: no such file or folder. {where_to_get(source)}.")


def _in_folder(folder: Path, source: Source, file: str | None) -> Path:
    names = [file] if file else [*source.files]
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found and file is None:
        found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
        if len(found) > 1:
            raise CheckpointError(
                f"{folder} holds {len(found)} checkpoints: {listing(item.name for item in found)}. Choose with --file."
            )
    if not found:
        wanted = listing(names) if names else f"file ending in {listing(SUFFIXES)}"
        raise CheckpointError(f"{folder} holds no {wanted}. {where_to_get(source)}.")
    return found[0]


def _from_hub(repository: str, source: Source, file: str | None, revision: str | None) -> Path:
    names = [file] if file else [*source.files]
    if not names:
        raise CheckpointError(
            f"{repository}: which file of the repository? Name it with --file. {where_to_get(source)}."
        )
    reason: Exception | None = None
    for name in names:
        try:
            return Path(hf_hub_download(repository, name, revision=revision))
        except (OSError, EntryNotFoundError) as error:
            reason = error
    raise CheckpointError(
        f"{repository} is no file or folder here, and {listing(names)} cannot be had from a Hub repository of that "
        f"name: {reason} {where_to_get(source)}."
    ) from reason


def read_tensors(path: Path, source: Source) -> dict[str, Tensor]:
    """Tensors of a checkpoint by name, out of whatever dictionary they are wrapped in.

    A pickle can run any code. Only tensors, plain containers and what most of these files carry beside the weights are
    let in: ``argparse.Namespace``, the options of the training, and numpy's numbers, rates in the optimizer's state.
    """
    try:
        content = _load(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {_what_was_refused(path, error)} {where_to_get(source)}.") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {brief(error)} {where_to_get(source)}."
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors.")
    for wrapper in source.wrappers:
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        expected = f"under {listing(source.wrappers)} or " if source.wrappers else ""
        raise CheckpointError(
            f"{path} has no tensors {expected}at the top, only {listing(map(str, content))}. Is it the checkpoint of "
            f"{source.title}?"
        )
    return tensors


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    with torch.serialization.safe_globals(SAFE):
        # Mapped files are read where they are used: optimizer states, twice the size of the weights, are not.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _what_was_refused(path: Path, error: Exception) -> str:
    try:
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (ValueError, RuntimeError, pickle.UnpicklingError):  # files of before torch 1.6 name them in the error only
        names = set(re.findall(r"GLOBAL ([\w.]+)", str(error)))
    names = {name for name in names if name != "argparse.Namespace" and not name.startswith("numpy.")}
    if not names:
        return "it is damaged, or no checkpoint at all."
    return (
        f"it holds objects of {listing(sorted(names))}, and unpickling them can run code, so it is not opened. If you "
        "trust the file, open it in a sandbox and save its tensors alone."
    )


def convert(source: Source, checkpoint: Path, output: Path) -> Conversion:
    """Write the encoder in ``checkpoint`` to the new folder ``output`` (CheckpointError, ConfigError)."""
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


class ConversionArguments(Arguments):
    """Options of ``python -m deflect_hf.models.geovit.conversion``."""

    source: str = Field(description=f"the encoder: {', '.join(SOURCES)} (needed)")
    checkpoint: UserPath | None = option(None, "file, folder or Hub repository; null: the encoder's own repository")
    file: str | None = option(None, "name of the file in that folder or repository")
    revision: str | None = option(None, "commit, tag or branch of the Hub repository")
    output: UserPath = Field(description="new folder for the converted encoder (needed)")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, convert, and say what was taken; mistakes of the user end with status 2."""
    words = sys.argv[1:] if argv is None else list(argv)
    with user_errors(words):
        own = parse_arguments(ConversionArguments, __doc__ or "", words)
        source, output = get_source(own.source), Path(own.output)
        conversion = convert(source, find_checkpoint(source, own.checkpoint, own.file, own.revision), output)
    print(f"{source.title}: {conversion.parameters:,} parameters -> {output}")
    for part, count in conversion.left_out_by_part().items():
        print(f"  left out: {part} ({count} tensors)" if count > 1 else f"  left out: {part}")
    print(f"  license of the weights: {source.license}")


if __name__ == "__main__":
    main()
