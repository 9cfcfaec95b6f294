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
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.data.public import PublicDataset
from deflect_hf.evaluation.evaluate import evaluation_window
from deflect_hf.models.geovit.sources import SOURCES

METHODS = {
    "deflect": "DEFLECT",
    "lora": "LoRA",
    "slr": "scaled low-rank adapters (SLR)",
    "bitfit": "BitFit",
    "norm": "norm tuning",
    "frozen": "a frozen encoder under a trained head",
    "full": "full fine-tuning",
}


@dataclass(frozen=True)
class Facts:
    """What a card is made of.

    Attributes:
        name: how the model is loaded: its name on the Hub, or its folder.
        branch: of the Hub, None for main.
        files: size of each file in bytes.
        licence: of the base model; None where it is not known.
    """

    name: str
    branch: str | None
    config: RunArguments
    task: Mapping[str, Any]
    adapter: Mapping[str, Any]
    processor: MultispectralImageProcessor
    results: Mapping[str, Any]
    files: Mapping[str, int]
    licence: str | None
    public: PublicDataset | None

    @property
    def method(self) -> str:
        """The method's name for people."""
        return METHODS.get(self.config.finetune, self.config.finetune)

    @property
    def classes(self) -> list[str]:
        """The classes in label order."""
        return [self.task["id2label"][key] for key in sorted(self.task["id2label"], key=int)]

    @property
    def is_segmentation(self) -> bool:
        """Whether every pixel gets a class."""
        return self.task["model_type"] == "deflect_semantic_segmentation"

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
        crop, window = (
            self.config.augmentation.center_crop,
            evaluation_window(self.config, "segmentation" if self.is_segmentation else "classification"),
        )
        trained = self.processor.trained_size
        resized = self.processor.size is not None  # crop and window are then those of resized images
        if crop is not None and not resized:
            return crop[0], crop[1]
        if window is not None and not resized:
            return window, window
        if trained:
            return trained[0], trained[1]
        size = self.task["encoder_config"]["image_size"]
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of what comes out for each pixel of such an image."""
        size = self.processor.size
        return self.image_size if size is None else (size["height"], size["width"])


def read_facts(folder: Path, name: str, branch: str | None = None, licence: str | None = None) -> Facts:
    """The facts of a result folder that is safe to read: made here, or checked.

    Raises:
        CheckpointError: it is no result folder.
    """
    config = checkpoints.read_config(folder)

    def stored(file: str) -> dict[str, Any]:
        path = folder / file
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    return Facts(
        name=name,
        branch=branch,
        config=config,
        task=stored("config.json"),
        adapter=stored("adapter_config.json"),
        processor=MultispectralImageProcessor.from_pretrained(folder),
        results=stored(checkpoints.RESULTS),
        files={
            path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()
        },
        licence=licence if licence is not None else known_licence(config.encoder.name_or_path),
        public=public_dataset(config.dataset.name),
    )


def known_licence(encoder: str | None) -> str | None:
    """The licence of a published encoder by its name on the Hub, or as the card in its folder states it."""
    if encoder is None:
        return None
    by_name = {source.hub_id: source.licence for source in SOURCES.values() if source.hub_id is not None}
    card = Path(encoder) / "README.md"
    if card.is_file():
        try:
            licence = ModelCard.load(card).data.get("license")
        except (ValueError, yaml.YAMLError):  # somebody's text, no card
            return None
        return licence if isinstance(licence, str) else None
    return by_name.get(encoder)


def public_dataset(name: str) -> PublicDataset | None:
    """The facts of a public data set, None for one that is not public."""
    spec = dataset_spec(name)
    return spec if isinstance(spec, PublicDataset) else None
