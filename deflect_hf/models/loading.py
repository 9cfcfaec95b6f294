"""Encoders from a folder or the Hub, whole: weights that are missing are never made up."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from deflect_hf.config.tasks import MODEL_TYPES
from deflect_hf.errors import ArchitectureError, CheckpointError, DeflectError, brief, listing
from deflect_hf.models.geovit.sources import conversion_hint
from deflect_hf.models.quantization import as_numbers, quantization_config

MOST_NAMED = 4  # tensors in a message
# Vision transformers that transformers builds by itself, from numbers alone.
ENCODERS = (
    "beit", "clip_vision_model", "data2vec-vision", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "geovit",
    "ijepa", "siglip_vision_model", "vit", "vit_mae", "vit_msn",
)  # fmt: skip


def _encoder_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    if type(config) not in MODEL_MAPPING:
        raise ArchitectureError(f"{type(config).__name__} has no model class registered with transformers' AutoModel.")
    return MODEL_MAPPING[type(config)]


def without_pooler(config: PreTrainedConfig) -> dict[str, bool]:
    """Arguments of a model's class for one without pooler: no head reads it, and many checkpoints lack its weights."""
    for name in ("vision_use_head", "use_head"):  # SigLIP and AIMv2 pool by attention
        if hasattr(config, name):
            setattr(config, name, False)
    takes_option = "add_pooling_layer" in inspect.signature(_encoder_class(config).__init__).parameters
    return {"add_pooling_layer": False} if takes_option else {}


def refuse_new_weights(missing: Collection[str], source: str) -> None:
    """Refuse a checkpoint that lacks weights (CheckpointError)."""
    if missing:
        raise CheckpointError(
            f"{source} lacks {len(missing)} tensors, which would be filled with random numbers: "
            f"{listing(sorted(missing), MOST_NAMED)}. Give a checkpoint that holds them all."
        )


def refuse_broken_weights(model: PreTrainedModel, source: str) -> None:
    """Refuse weights that are no numbers (CheckpointError): training would blame the images for them."""
    broken = [name for name, tensor in model.state_dict().items() if not bool(as_numbers(tensor).isfinite().all())]
    if broken:
        raise CheckpointError(
            f"{source}: {len(broken)} tensors hold NaN or infinity, first {broken[0]!r}: fetch or convert it again."
        )


@contextlib.contextmanager
def _readable(source: str | Path) -> Iterator[None]:
    try:
        yield
    except DeflectError:
        raise
    except Exception as error:  # transformers raises whatever it stumbles on in a broken file
        raise CheckpointError(
            f"The encoder {str(source)!r} cannot be loaded: {brief(error)} Give a folder with config.json and "
            f"model.safetensors, or the name of a model on the Hub.{conversion_hint(source)}"
        ) from error


def load_encoder_config(
    source: str | Path, *, revision: str | None = None, local_files_only: bool = False
) -> PreTrainedConfig:
    """The configuration of a vision transformer in a folder or on the Hub, without its weights.

    Of a model that reads images and text, such as CLIP, it is that of the part that reads images.
    """
    with _readable(source):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            source, revision=revision, local_files_only=local_files_only
        )
    if config.model_type in MODEL_TYPES:
        raise ArchitectureError(
            f"{str(source)!r} is a trained model with its head. Give the bare encoder that it was trained on: its "
            "config.yaml names it, encoder.name_or_path, or a random one lies in its run's folder, encoder/."
        )
    return getattr(config, "vision_config", config)


def load_encoder(
    source: str | Path,
    *,
    revision: str | None = None,
    attn_implementation: str | None = None,
    local_files_only: bool = False,
    dtype: torch.dtype = torch.float32,
    quantization: str | None = None,
) -> PreTrainedModel:
    """Load a vision transformer without pooler from a folder or from the Hub.

    Of a model that reads images and text, such as CLIP, only the part that reads images.

    Args:
        quantization: `int8` (by torchao) or `bnb_4bit` (by bitsandbytes): how its linear layers are kept.
            The patch embedding, norms and tokens stay as they are.

    Raises:
        CheckpointError: it cannot be read, or lacks weights that the encoder needs (all of them are named).
        MissingPackageError: the quantization's package is not installed.
    """
    stored = {} if quantization is None else {"quantization_config": quantization_config(quantization)}
    where: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
    config = load_encoder_config(source, **where)
    with _readable(source):
        encoder, report = AutoModel.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            attn_implementation=attn_implementation,
            output_loading_info=True,
            **without_pooler(config),
            **stored,
            **where,
        )
    refuse_new_weights(report["missing_keys"], f"The encoder checkpoint {str(source)!r}")
    refuse_broken_weights(encoder, f"The encoder checkpoint {str(source)!r}")
    return encoder


def adopt_encoder(encoder: PreTrainedModel) -> PreTrainedModel:
    """A loaded encoder, taken over and without its pooler (ArchitectureError: it is a model with a head)."""
    expected = _encoder_class(encoder.config)
    if not isinstance(encoder, expected):
        raise ArchitectureError(
            f"{type(encoder).__name__} is not a bare encoder: pass a {expected.__name__}, "
            "for a model with a head its `base_model`."
        )
    if without_pooler(encoder.config):
        encoder.pooler = None
    if getattr(encoder, "use_head", False):
        encoder.use_head = False
        del encoder.head
    return encoder
