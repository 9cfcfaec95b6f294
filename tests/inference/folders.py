"""Result folders of models that were never trained: adapters and heads with random weights on tiny encoders."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from deflect_hf.artifacts.saved_model import save_model
from deflect_hf.config.data import AugmentationArguments, DatasetArguments
from deflect_hf.config.run import EncoderArguments, RunArguments
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.methods import adapt
from deflect_hf.models import EncoderForImageClassification, EncoderForSemanticSegmentation
from tests.tuners.tiny import make_encoder, randomise

ALL_BANDS = ["B", "G", "R", "N", "S1", "S2"]
RGB_STATISTICS = {"base_mean": [0.1, 0.12, 0.14], "base_std": [0.1, 0.1, 0.1]}
SIDE = 32  # pixels of the encoders' pretraining


def encoder_folder(folder: Path, name: str = "vit", seed: int = 0, **overrides: Any) -> Path:
    """A tiny encoder of a family, saved."""
    encoder = make_encoder(name, **overrides)
    if hasattr(encoder, "pooler"):
        encoder.pooler = None  # no head reads it
    if seed:
        randomise(encoder, seed=seed)
    encoder.save_pretrained(folder)
    return folder


def result_folder(
    folder: Path,
    encoder: Path,
    method: str = "deflect",
    *,
    bands: list[str] = ALL_BANDS,
    classes: tuple[str, ...] = ("land", "water"),
    task: str = "segmentation",
    crop: int | None = None,
    model_options: dict[str, Any] | None = None,
    statistics: dict[str, list[float]] = RGB_STATISTICS,
    seed: int = 1,
    **options: Any,
) -> Path:
    """What training leaves behind, from adapter and head to processor; images come with `ALL_BANDS`."""
    kind = EncoderForSemanticSegmentation if task == "segmentation" else EncoderForImageClassification
    torch.manual_seed(seed)
    inner = kind.from_encoder(
        AutoModel.from_pretrained(encoder), id2label=dict(enumerate(classes)), **(model_options or {})
    )
    inner.encoder.name_or_path = str(encoder)
    if options.get("patch_embed", "frozen") != "frozen":
        further = len(set(bands) - {"R", "G", "B"})
        statistics = {**statistics, "extra_mean": [0.2] * further, "extra_std": [0.1] * further}
    model = randomise(adapt(inner, method, bands=bands, **statistics, **options), seed=seed)
    config = RunArguments(
        finetune=method,
        encoder=EncoderArguments(name_or_path=str(encoder)),
        dataset=DatasetArguments(name="synthetic"),
        augmentation=AugmentationArguments(random_crop=None if crop is None else [crop, crop]),
        method=options,
    )
    save_model(folder, model, config, MultispectralImageProcessor(bands, source_bands=ALL_BANDS))
    return folder


def images(count: int = 2, side: int = SIDE, seed: int = 3) -> torch.Tensor:
    """(count, 6, side, side) reflectance in `ALL_BANDS`."""
    return torch.rand(count, len(ALL_BANDS), side, side, generator=torch.Generator().manual_seed(seed)) * 0.4
