"""Where the task models are registered with transformers, whose Auto classes open result folders, adapter included.

What reads a folder is imported when one is read.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForSemanticSegmentation
from transformers.utils import CONFIG_NAME, cached_file, is_vision_available

from deflect_hf.config.tasks import MODEL_TYPES
from deflect_hf.errors import ConfigError, listing
from deflect_hf.files import CONFIG
from deflect_hf.models import EncoderForImageClassification, EncoderForSemanticSegmentation
from deflect_hf.models.base import EncoderWithHead
from deflect_hf.models.rivals import PixelNet, PixelNetConfig, UNet, UNetConfig

REACH = ("cache_dir", "local_files_only", "token")  # how a repository is reached
# what pipelines and users of the Auto classes hand on besides, which asks nothing of a trained model
HANDED_ON = {
    *REACH, "code_revision", "force_download", "proxies", "trust_remote_code", "_commit_hash", "_from_auto",
    "_from_pipeline",
}  # fmt: skip


def trained_model(
    kind: type[EncoderWithHead],
    source: Any,
    *,
    config: Any = None,
    dtype: Any = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    adapter_kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> EncoderWithHead | None:
    """The task model of a result folder or repository with its adapter in place, on the CPU, in evaluation mode.

    None: ``source`` holds no such model.

    Raises:
        ConfigError: it was trained for another task than ``kind``; or an option, or a changed setting in ``config``,
            which would do nothing.
        HubError, CheckpointError: as :func:`~deflect_hf.hub.load.load_predictor`.
    """
    adapter = adapter_kwargs or {}
    revision, subfolder = revision or adapter.get("revision"), subfolder or adapter.get("subfolder") or ""
    revision = None if revision is None else str(revision)  # of a pipeline, it holds a commit of the encoder besides
    reach = {name: options[name] for name in REACH if name in options}
    place = {"revision": revision, "subfolder": subfolder, "_raise_exceptions_for_missing_entries": False, **reach}
    try:
        stored = cached_file(source, CONFIG_NAME, **place)
        settings = {} if stored is None else json.loads(Path(stored).read_text(encoding="utf-8"))
        own = settings.get("model_type")
        if own not in MODEL_TYPES:
            return None
        whole = cached_file(source, CONFIG, **place) is not None
    except (OSError, ValueError):  # which transformers will say in its own words
        return None
    if own != kind.config_class.model_type:
        raise ConfigError(
            f"{source} holds a model of type {own!r}, not {kind.config_class.model_type!r}: "
            "AutoModelForImageClassification and AutoModelForSemanticSegmentation take their own, "
            "deflect_hf.load_predictor takes both."
        )
    if not whole:  # of save_pretrained, without an adapter
        return None
    known = kind.config_class.from_pretrained(stored).to_dict()
    given = {} if config is None else config.to_dict()
    passing = ("dtype", "encoder_config", "_name_or_path")
    changed = [name for name in given if name not in passing and given[name] != known.get(name)]
    without_use = changed + sorted(options.keys() - HANDED_ON)
    if without_use:
        raise ConfigError(
            f"{source} holds a trained model, which is loaded as it was trained: leave out {listing(without_use, 4)}."
        )
    folder = Path(source, subfolder)
    if subfolder and not folder.is_dir():
        raise ConfigError(f"{source}: a trained model lies at the top of its repository: leave out 'subfolder'.")
    from deflect_hf.hub.load import load_predictor
    from deflect_hf.methods import task_model

    here = folder.is_dir()
    predictor = load_predictor(folder if here else source, revision=None if here else revision, device="cpu", **reach)
    model = task_model(predictor.model)
    model.evaluation_window = predictor.window  # for pipelines
    if not here:  # transformers looks for the processor beside the encoder
        model.trained_processor = predictor.processor
    attention = attn_implementation or getattr(config, "_attn_implementation", None)
    if attention is not None:
        model.set_attn_implementation(attention)
    precision = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype  # "auto": as stored
    return model if precision is None else model.to(precision)


def open_trained(auto: Any, kind: type[EncoderWithHead]) -> None:
    """Let an Auto class know ``kind``, and open a trained model of that kind as such.

    Registering is not enough: of an adapter on the Hub, transformers reads the configuration of the encoder alone, and
    takes its own class for that.
    """
    auto.register(kind.config_class, kind, exist_ok=True)
    native = auto.from_pretrained.__func__

    @functools.wraps(native)
    def from_pretrained(cls: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
        trained = trained_model(kind, source, **kwargs)
        return native(cls, source, *args, **kwargs) if trained is None else trained

    auto.from_pretrained = classmethod(from_pretrained)


for _auto, _kind in (
    (AutoModelForImageClassification, EncoderForImageClassification),
    (AutoModelForSemanticSegmentation, EncoderForSemanticSegmentation),
):
    AutoConfig.register(_kind.config_class.model_type, _kind.config_class, exist_ok=True)
    open_trained(_auto, _kind)
for _config, _model in ((PixelNetConfig, PixelNet), (UNetConfig, UNet)):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
if is_vision_available():  # Pillow, which the tuner alone does without
    import deflect_hf.pipelines  # noqa: F401  (registration)
