"""What is published of a trained model's folder: its files without anything about the machine they were made on.

Paths are replaced by ``FOLDER`` (where the data lay, split files) or left out (the run's folder, where the encoder was
loaded from); what the run was told about publishing goes back to its defaults, so that nobody who reuses the
configuration pushes to somebody else's repository. The files are searched for this machine's folders afterwards.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deflect_hf.artifacts import saved_model as checkpoints
from deflect_hf.config.compose import to_yaml
from deflect_hf.config.run import RunArguments
from deflect_hf.errors import HubError
from deflect_hf.hub.safety import ENCODER, MODEL_WEIGHTS, TRAINED, is_path

PLACEHOLDER = "FOLDER"
PICTURE = "prediction.png"
CARD = "README.md"
TEXT = (".json", ".yaml", ".md")


@dataclass(frozen=True)
class Base:
    """Where others find the encoder of a trained model.

    Attributes:
        name, commit: on the Hub; None for an encoder that goes up beside the adapter, or is part of the model.
        folder: of an encoder that goes up beside the adapter.
        license: as the encoder's page on the Hub states it.
    """

    name: str | None = None
    commit: str | None = None
    folder: Path | None = None
    license: str | None = None


def stage(folder: Path, target: Path, config: RunArguments, base: Base, *, picture: bool = False) -> None:
    """Write into ``target`` what is published of the result folder ``folder``; weights are linked, not copied."""
    (target / checkpoints.CONFIG).write_text(to_yaml(published_config(config, base)), encoding="utf-8")
    for name in ("config.json", "preprocessor_config.json", checkpoints.RESULTS, "adapter_config.json"):
        if (folder / name).is_file():
            entries = json.loads((folder / name).read_text(encoding="utf-8"))
            if name == "adapter_config.json":
                entries |= {"base_model_name_or_path": base.name, "revision": base.commit}
            checkpoints.write_json(target / name, without_paths(entries))
    weights = [path for name in (*TRAINED, *MODEL_WEIGHTS) for path in folder.glob(name)]
    for path in dict.fromkeys(weights):
        link(path, target / path.name)
    if picture and (folder / PICTURE).is_file():
        link(folder / PICTURE, target / PICTURE)
    if base.folder is not None:
        (target / ENCODER).mkdir()
        entries = json.loads((base.folder / "config.json").read_text(encoding="utf-8"))
        checkpoints.write_json(target / ENCODER / "config.json", without_paths(entries))
        for path in [path for name in MODEL_WEIGHTS for path in base.folder.glob(name)]:
            link(path, target / ENCODER / path.name)


def published_config(config: RunArguments, base: Base) -> RunArguments:
    """The configuration of a run as others may read it."""
    hub: dict[str, Any] = {
        name: field.default for name, field in RunArguments.model_fields.items() if name.startswith("hub_")
    }
    encoder = config.encoder
    if encoder.random is None:
        encoder = encoder.replace(name_or_path=base.name or PLACEHOLDER, revision=base.commit)
    data = config.dataset
    paths = [name for name, value in data if is_path(value)]
    paths += ["root"] if data.root is not None else []
    hidden: dict[str, Any] = dict.fromkeys(paths, PLACEHOLDER)
    return config.replace(
        work_dir=None,
        overwrite=False,
        resume_from=None,
        push_to_hub=False,
        encoder=encoder,
        dataset=data.replace(**hidden),
        **hub,
    )


def without_paths(content: Any) -> Any:
    """A JSON value without the names that transformers loaded models by, other paths replaced."""
    if isinstance(content, Mapping):
        return {key: without_paths(value) for key, value in content.items() if key != "_name_or_path"}
    if isinstance(content, list):
        return [without_paths(value) for value in content]
    # a regular expression of module names may begin with a backslash, a path that was written here begins otherwise
    return PLACEHOLDER if is_path(content) and not content.startswith("\\") else content


def link(source: Path, target: Path) -> None:
    """Have the file under another name, without a copy of its content where the file system can do that."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def refuse_leaks(staged: Path, config: RunArguments, folder: Path) -> None:
    """Search what is about to be published for folders of this machine (HubError: naming file and folder)."""
    places = [Path.home(), Path.cwd(), folder.resolve().parent]
    places += [Path(place).absolute() for place in (config.dataset.root, config.work_dir) if place is not None]
    needles = {str(place) for place in places if len(place.parts) > 1}
    for path in sorted(staged.rglob("*")):
        if path.suffix not in TEXT:
            continue
        text = path.read_text(encoding="utf-8")
        found = next((needle for needle in sorted(needles) if re.search(re.escape(needle) + r"(?![\w-])", text)), None)
        if found is not None:
            raise HubError(
                f"{path.relative_to(staged)} would tell everybody of {found} on this machine: remove that from the "
                f"file of that name in {folder}."
            )
