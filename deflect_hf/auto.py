"""Where the task models are registered with transformers, whose Auto classes open result folders, adapter included.

What reads a folder is imported when one is read.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)
from transformers.utils import CONFIG_NAME, cached_file, is_vision_available

from deflect_hf.config.tasks import MODEL_TYPES
from deflect_hf.errors import ConfigError, listing
from deflect_hf.files import CONFIG
from deflect_hf.models import EncoderForImageClassification, EncoderForSemanticSegmentation
from deflect_hf.models.base import EncoderWithHead
from deflect_hf.models.loading import ENCODERS
from deflect_hf.models.rivals import PixelNet, PixelNetConfig, UNet, UNetConfig

# what the Auto classes and pipelines hand on by themselves, which asks nothing of a folder on this machine
HANDED_ON = {
    "adapter_kwargs", "cache_dir", "code_revision", "force_download", "local_files_only", "proxies", "revision",
    "subfolder", "token", "trust_remote_code", "_commit_hash", "_from_auto", "_from_pipeline",
}  # fmt: skip
WITH_TEXT = ("clip", "siglip")  # models that have one of the encoders as their part that reads images


def hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those that say how a repository is reached."""
    return {name: options[name] for name in ("cache_dir", "local_files_only", "token") if name in options}


def load_trained(
    trained: Path | str,
    config: Any,
    dtype: Any = None,
    *,
    bare: str | None = None,
    revision: str | None = None,
    adapter_kwargs: dict[str, Any],
    **options: Any,
) -> EncoderWithHead:
    """The task model of a result folder or repository with its adapter in place, on the CPU, in evaluation mode.

    Args:
        bare: The encoder of which transformers read ``config`` in place of the model's own, with its ``revision``.
        adapter_kwargs: With the revision of ``trained``.

    Raises:
        ConfigError: an option or a changed setting, which would do nothing.
        HubError, CheckpointError: as :func:`~deflect_hf.hub.load.load_predictor`.
    """
    from deflect_hf.hub.load import load_predictor
    from deflect_hf.methods import task_model

    hub = hub_options(options)
    own_revision = adapter_kwargs.get("revision")
    described, revision = (trained, own_revision) if bare is None else (bare, revision)
    stored = AutoConfig.from_pretrained(described, revision=revision, **hub).to_dict()
    given = config.to_dict()
    changed = [name for name in given if name not in ("dtype", "encoder_config") and given[name] != stored.get(name)]
    without_use = changed + sorted(options.keys() - HANDED_ON)
    if without_use:
        raise ConfigError(
            f"{trained} holds a trained model, which is loaded as it was trained: leave out {listing(without_use)}."
        )
    predictor = load_predictor(trained, revision=own_revision, device="cpu", **hub)
    model = task_model(predictor.model)
    model.evaluation_window = predictor.window  # for pipelines
    if bare is not None:  # whose processor transformers then takes as well
        model.trained_processor = predictor.processor
    attention = getattr(config, "_attn_implementation", None)
    if attention is not None:
        model.set_attn_implementation(attention)
    precision = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype  # "auto": as stored
    return model if precision is None else model.to(precision)


class TrainedModelOf:
    """What an Auto class finds for a task model's configuration: the trained model, or the class.

    Of an adapter's id on the Hub, transformers reads the configuration of the encoder that was adapted. So this is also
    found for the encoders that transformers itself has no class for, and `StandIn` stands before the classes it has.
    """

    model_class: ClassVar[type[EncoderWithHead]]

    @classmethod
    def from_pretrained(cls, source: Any, *args: Any, config: Any, **kwargs: Any) -> Any:
        """The trained model of a result folder or repository, adapter included; of another what the class loads."""
        if config.model_type in MODEL_TYPES:
            cls._refuse_other(source, config.model_type)
        if not isinstance(config, cls.model_class.config_class):
            trained = cls.beside(source, config=config, **kwargs)
            return cls._refuse_bare(config) if trained is None else trained
        adapter = kwargs.get("adapter_kwargs") or {}
        trained = adapter.get("_adapter_model_path", source)
        folder = Path(trained, kwargs.get("subfolder") or "")
        if (folder / CONFIG).is_file():
            return load_trained(folder, config, **kwargs)
        if not folder.is_dir() and not kwargs.get("subfolder"):
            lenient = {"_raise_exceptions_for_missing_entries": False, **hub_options(kwargs)}
            if cached_file(trained, CONFIG, revision=adapter.get("revision"), **lenient) is not None:
                return load_trained(str(trained), config, **kwargs)
        return cls.model_class.from_pretrained(source, *args, config=config, **kwargs)

    @classmethod
    def beside(
        cls, encoder: Any, *, config: Any = None, adapter_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> EncoderWithHead | None:
        """The trained model whose adapter led transformers to ``encoder``; None: no adapter, or not of such a model.

        Raises:
            ConfigError: it was trained for another task; as :func:`load_trained`.
        """
        adapter = adapter_kwargs or {}
        trained, subfolder = adapter.get("_adapter_model_path"), adapter.get("subfolder") or ""
        if trained is None:
            return None
        # as lenient as transformers is where it looks for the adapter, which may be anybody's
        lenient = {
            f"_raise_exceptions_for_{what}": False for what in ("connection_errors", "gated_repo", "missing_entries")
        }
        place = {"revision": adapter.get("revision"), "subfolder": subfolder, **hub_options(options)}
        stored = cached_file(trained, CONFIG_NAME, **place, **lenient)
        kind = None if stored is None else json.loads(Path(stored).read_text(encoding="utf-8")).get("model_type")
        if kind not in MODEL_TYPES:
            return None
        cls._refuse_other(trained, kind)
        folder = Path(trained, subfolder)
        if subfolder and not folder.is_dir():
            raise ConfigError(f"{trained}: a trained model lies at the top of its repository: leave out 'subfolder'.")
        where = folder if folder.is_dir() else str(trained)
        return load_trained(where, config, bare=encoder, adapter_kwargs=adapter, **options)

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        if not isinstance(config, cls.model_class.config_class):
            cls._refuse_bare(config)
        return cls.model_class._from_config(config, **kwargs)

    @classmethod
    def _refuse_other(cls, trained: Any, kind: str) -> None:
        """Refuse a model of this package that was trained for another task."""
        own = cls.model_class.config_class.model_type
        if kind != own:
            raise ConfigError(
                f"{trained} holds a model of type {kind!r}, not {own!r}: AutoModelForImageClassification and "
                "AutoModelForSemanticSegmentation take their own, deflect_hf.load_predictor takes both."
            )

    @classmethod
    def _refuse_bare(cls, config: Any) -> NoReturn:
        """Of an encoder, which has no head, say what transformers would."""
        raise ValueError(
            f"Unrecognized configuration class {type(config)} for this kind of AutoModel: transformers has no head "
            f"of this kind for it. deflect_hf.{cls.model_class.__name__}.from_encoder(NAME) gives it one."
        )


class TrainedImageClassification(TrainedModelOf):
    """What ``AutoModelForImageClassification`` finds."""

    model_class = EncoderForImageClassification


class TrainedSemanticSegmentation(TrainedModelOf):
    """What ``AutoModelForSemanticSegmentation`` finds."""

    model_class = EncoderForSemanticSegmentation


class StandIn:
    """What an Auto class finds where transformers has a class: that, but for adapters of this package's models.

    It has the name of that class, by which transformers chooses among several of an encoder, and a module of
    transformers, by which it prefers the class over a repository's own code. The class itself is imported when it is
    needed, as that takes as long as all else of ``import deflect_hf``. Instances are always of the class.

    Args:
        native: The class, or its name in transformers.
    """

    def __init__(self, trained: type[TrainedModelOf], native: type | str) -> None:
        self._made_of = (trained, native)
        named = (native, "transformers.models") if isinstance(native, str) else (native.__name__, native.__module__)
        self.__name__, self.__module__ = named

    @cached_property
    def native(self) -> Any:
        """The class."""
        native = self._made_of[1]
        return getattr(transformers, native) if isinstance(native, str) else native

    def from_pretrained(self, source: Any, *args: Any, **kwargs: Any) -> Any:
        """The trained model whose adapter led transformers to ``source``; of another what the class loads."""
        trained = self._made_of[0].beside(source, **kwargs)
        return self.native.from_pretrained(source, *args, **kwargs) if trained is None else trained

    def __getattr__(self, name: str) -> Any:
        return getattr(self.native, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """An instance of the class."""
        return self.native(*args, **kwargs)

    @property
    def __bases__(self) -> tuple[type]:  # for issubclass
        return (self.native,)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, self.native)

    def __reduce__(self) -> tuple[Any, ...]:
        return StandIn, self._made_of


def stand_before(auto: Any, kind: str, trained: type[TrainedModelOf]) -> None:
    """Let ``auto`` find ``trained`` for encoders of the model type ``kind``, before the class it has for them if any.

    That is another package's if one registered its own. `auto.register` would import a class to look at it.
    """
    config, found = CONFIG_MAPPING[kind], auto._model_mapping
    native = found._extra_content.get(config, found._model_mapping.get(kind))
    if native is None:
        stand_in: Any = trained
    elif isinstance(native, tuple):
        stand_in = tuple(StandIn(trained, one) for one in native)
    else:
        stand_in = StandIn(trained, native)
    found.register(config, stand_in, exist_ok=True)


for _auto, _trained in (
    (AutoModelForImageClassification, TrainedImageClassification),
    (AutoModelForSemanticSegmentation, TrainedSemanticSegmentation),
):
    _own = _trained.model_class.config_class
    AutoConfig.register(_own.model_type, _own, exist_ok=True)
    for _of_task in (EncoderForImageClassification, EncoderForSemanticSegmentation):  # that of the other is told
        _auto.register(_of_task.config_class, _trained, exist_ok=True)
    for _kind in (*ENCODERS, *WITH_TEXT):
        stand_before(_auto, _kind, _trained)
for _config, _model in ((PixelNetConfig, PixelNet), (UNetConfig, UNet)):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
if is_vision_available():  # Pillow, which the tuner alone does without
    import deflect_hf.pipelines  # noqa: F401  (registration)
