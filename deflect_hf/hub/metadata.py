"""What a model card is made of: the files of a result folder, read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from deflect_hf.artifacts import saved_model as checkpoints
from deflect_hf.config.readers import dataset_spec
from deflect_hf.config.run import RunArguments
from deflect_hf.config.tasks import Task, task_of
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.data.public import PublicDataset
from deflect_hf.evaluation.protocol import evaluation_window
from deflect_hf.models.geovit.sources import SOURCES


@dataclass(frozen=True)
class Metadata:
    """What is known of a trained model.

    Attributes:
        task, adapter: entries of ``config.json`` and ``adapter_config.json``, where there is one.
        results: entries of ``results.json``.
        files: size of each file in bytes.
        license: of the base model; None where it is not known.
        public: the public data set that it was trained on, if it was one.
    """

    config: RunArguments
    task: Mapping[str, Any]
    adapter: Mapping[str, Any]
    processor: MultispectralImageProcessor
    results: Mapping[str, Any]
    files: Mapping[str, int]
    license: str | None
    public: PublicDataset | None

    @property
    def classes(self) -> list[str]:
        """The classes in label order."""
        return [self.task["id2label"][key] for key in sorted(self.task["id2label"], key=int)]

    @property
    def kind(self) -> Task:
        """What it was trained for."""
        return task_of(self.task["model_type"], self.task.get("problem_type"))

    @property
    def encoder_bands(self) -> list[str]:
        """Bands that the encoder sees: its base bands, and those that a trained patch embedding takes besides."""
        base = self.adapter.get("base_bands") or self.task.get("base_bands") or self.config.encoder.base_bands
        return [*base, *(self.task.get("extra_bands") or [])]

    @property
    def data(self) -> str:
        """The training data's name for people."""
        return dataset_spec(self.config.dataset.name).title

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of an image that the model takes as it is, before it is resized if training did that."""
        crop, window = self.config.augmentation.center_crop, evaluation_window(self.config, self.kind.name)
        if self.processor.size is None:  # else crop and window are those of resized images
            if crop is not None:
                return crop[0], crop[1]
            if window is not None:
                return window, window
        size = self.processor.trained_size or self.task["encoder_config"]["image_size"]
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of what comes out for each pixel of such an image."""
        size = self.processor.size
        return self.image_size if size is None else (size["height"], size["width"])


def read_metadata(folder: Path, license: str | None = None) -> Metadata:
    """What a result folder says that is safe to read: made here, or checked.

    Args:
        license: of the base model, where the Hub stated it.

    Raises:
        CheckpointError: it is no result folder.
    """
    config = checkpoints.read_config(folder)

    def stored(name: str) -> dict[str, Any]:
        path = folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    return Metadata(
        config=config,
        task=stored("config.json"),
        adapter=stored("adapter_config.json"),
        processor=MultispectralImageProcessor.from_pretrained(folder),
        results=stored(checkpoints.RESULTS),
        files={
            path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()
        },
        license=license or known_license(config.encoder.name_or_path),
        public=public_dataset(config.dataset.name),
    )


def known_license(encoder: str | None) -> str | None:
    """The license of a published encoder by its name on the Hub, or as the card in its folder states it."""
    if encoder is None:
        return None
    card = Path(encoder) / "README.md"
    if not card.is_file():
        return next((source.license for source in SOURCES.values() if source.hub_id == encoder), None)
    try:
        stated = ModelCard.load(card).data.get("license")
    except (ValueError, yaml.YAMLError):  # somebody's text, no card
        return None
    return stated if isinstance(stated, str) else None


def public_dataset(name: str) -> PublicDataset | None:
    """What is known of a public data set, None for one that is not public."""
    spec = dataset_spec(name)
    return spec if isinstance(spec, PublicDataset) else None
