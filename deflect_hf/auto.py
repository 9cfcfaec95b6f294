"""Where the task models are registered with transformers, whose Auto classes open result folders, adapter included.

What reads a folder is imported when one is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)
from transformers.utils import is_vision_available

from deflect_hf.errors import ConfigError, listing
from deflect_hf.files import CONFIG
from deflect_hf.models import EncoderForImageClassification, EncoderForSemanticSegmentation
from deflect_hf.models.base import EncoderWithHead
from deflect_hf.models.rivals import PixelNet, PixelNetConfig, UNet, UNetConfig

# what the Auto classes and pipelines hand on by themselves, which asks nothing of a folder on this machine
HANDED_ON = {
    "adapter_kwargs", "cache_dir", "code_revision", "force_download", "local_files_only", "proxies", "revision",
    "subfolder", "token", "trust_remote_code", "_commit_hash", "_from_auto", "_from_pipeline",
}  # fmt: skip


def load_trained(folder: Path, config: Any = None, dtype: Any = None, **options: Any) -> Any:
    """The task model of a result folder with its adapter in place, on the CPU, in evaluation mode.

    Raises:
        ConfigError: an option or a changed setting, which would do nothing.
        HubError, CheckpointError: as :func:`~deflect_hf.hub.load.load_predictor`.
    """
    from deflect_hf.hub.load import load_predictor
    from deflect_hf.methods import task_model

    stored = AutoConfig.from_pretrained(folder).to_dict()
    given = stored if config is None else config.to_dict()
    changed = [name for name in given if name not in ("dtype", "encoder_config") and given[name] != stored.get(name)]
    without_use = changed + sorted(options.keys() - HANDED_ON)
    if without_use:
        raise ConfigError(
            f"{folder} holds a trained model, which is loaded as it was trained: leave out {listing(without_use)}."
        )
    predictor = load_predictor(folder, device="cpu")
    model = task_model(predictor.model)
    model.evaluation_window = predictor.window  # for pipelines
    attention = getattr(config, "_attn_implementation", None)
    if attention is not None:
        model.set_attn_implementation(attention)
    precision = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype  # "auto": as stored
    return model if precision is None else model.to(precision)


class TrainedModelOf:
    """What an Auto class finds for a task model's configuration: the trained model of a result folder, or the class."""

    model_class: ClassVar[type[EncoderWithHead]]

    @classmethod
    def from_pretrained(cls, source: Any, *args: Any, **kwargs: Any) -> Any:
        """The trained model of a result folder, adapter included; of any other source what the class loads."""
        folder = Path(source, kwargs.get("subfolder") or "")
        if (folder / CONFIG).is_file():
            return load_trained(folder, **kwargs)
        return cls.model_class.from_pretrained(source, *args, **kwargs)

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        return cls.model_class._from_config(config, **kwargs)


class TrainedImageClassification(TrainedModelOf):
    """What ``AutoModelForImageClassification`` finds."""

    model_class = EncoderForImageClassification
    config_class = model_class.config_class


class TrainedSemanticSegmentation(TrainedModelOf):
    """What ``AutoModelForSemanticSegmentation`` finds."""

    model_class = EncoderForSemanticSegmentation
    config_class = model_class.config_class


for _auto, _trained in (
    (AutoModelForImageClassification, TrainedImageClassification),
    (AutoModelForSemanticSegmentation, TrainedSemanticSegmentation),
):
    AutoConfig.register(_trained.config_class.model_type, _trained.config_class, exist_ok=True)
    _auto.register(_trained.config_class, _trained, exist_ok=True)
for _config, _model in ((PixelNetConfig, PixelNet), (UNetConfig, UNet)):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
if is_vision_available():  # Pillow, which the tuner alone does without
    import deflect_hf.pipelines  # noqa: F401  (registration)
