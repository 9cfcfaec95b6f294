"""From the name of a method to an adapted task model: ours, and by `peft:NAME` any method of PEFT."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from peft import PeftConfig, get_peft_model
from peft.config import PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import ConfigDict, PrivateAttr, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from torch import nn

from deflect_hf.config.methods import PREFIX, Method, options_of
from deflect_hf.config.schema import option
from deflect_hf.errors import ArchitectureError, ConfigError, DeflectError, listing, nearest
from deflect_hf.methods.bands import Bands, EncoderMethod
from deflect_hf.methods.inspect import Target, linear_layers
from deflect_hf.models.base import EncoderWithHead
from deflect_hf.spectral.bands import Unit

# Fields that say where an adapter comes from, or are set by us.
MANAGED = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "modules_to_save", "peft_type", "peft_version",
    "revision", "task_type",
}  # fmt: skip
REFUSED: Mapping[str, str] = {
    "AdaLoraConfig": "it redistributes its ranks by calls between the steps, which this training loop does not make",
    "AdaptionPromptConfig": "it puts trained prompts into the attention of LLaMA, and an image has no prompt",
    "DeflectConfig": "it is --finetune deflect, with options of its own",
    "PolyConfig": "it wants the number of a task with every image",
    "TrainableTokensConfig": "it trains rows of a table of words, and a vision transformer has none",
    "XLoraConfig": "it mixes adapters of a language model that were trained before",
}
PROMPTS = "it trains vectors that stand before the words of a text, and an image has none"


class PeftMethod(EncoderMethod):
    """`peft:NAME`: any other method of PEFT, by the name of its configuration, whose fields are its options."""

    target: Target | None = option(None, "layers of every block, unless the field `target_modules` names them")
    fields: dict[str, Any] = option({}, "of PEFT's configuration, as given")
    _schema: type[PeftConfig] = PrivateAttr()

    def configure(self, model: EncoderWithHead, bands: Bands) -> PeftConfig:
        fields = dict(self.fields)
        if self.target is not None:
            fields["target_modules"] = linear_layers(model, self.target)
        return self._schema(**fields, modules_to_save=self.show_bands(model, bands))


def peft_config_class(method: str) -> type[PeftConfig]:
    """The configuration class that `peft:NAME` names (ConfigError)."""
    name = method.removeprefix(PREFIX)
    classes = {cls.__name__: cls for cls in PEFT_TYPE_TO_CONFIG_MAPPING.values()}
    prompts = {key: PROMPTS for key, cls in classes.items() if issubclass(cls, PromptLearningConfig)}
    refused = {**prompts, **REFUSED}
    if name in refused:
        raise ConfigError(f"finetune={method!r} cannot adapt a vision transformer: {refused[name]}.")
    if name not in classes:
        usable = sorted(classes.keys() - refused.keys())
        near = nearest(name, usable) or f" It has {listing(usable)}."
        raise ConfigError(f"finetune={method!r}: PEFT has no configuration {name!r}.{near}")
    return classes[name]


def peft_options(method: str, values: Mapping[str, Any]) -> PeftMethod:
    """The options of `peft:NAME`: `patch_embed`, `target`, and fields of PEFT's configuration (ConfigError)."""
    schema = peft_config_class(method)
    own = [name for name in PeftMethod.model_fields if name != "fields"]
    known = [*own, *(item.name for item in dataclasses.fields(schema) if item.name not in MANAGED)]
    for name in values:
        if name not in known:
            raise ConfigError(
                f"method.{name} is no option of {method!r}; it has {listing(known)}.{nearest(name, known)}"
            )
    hints = typing.get_type_hints(schema)
    fields = {name: _typed(name, value, hints[name]) for name, value in values.items() if name not in own}
    options = PeftMethod(fields=fields, **{name: value for name, value in values.items() if name in own})
    options._schema = schema
    named = fields.get("target_modules") is not None
    if named == (options.target is not None):
        raise ConfigError(
            f"finetune={method!r} needs either method.target, one of 'qv', 'qkvo' and 'all-linear', or "
            "method.target_modules, names or a regular expression of modules" + (", not both." if named else ".")
        )
    return options


def _typed(name: str, value: Any, hint: Any) -> Any:
    """The value as the field's type has it; types that cannot be checked let it pass."""
    settings = None if dataclasses.is_dataclass(hint) else ConfigDict(arbitrary_types_allowed=True)
    try:
        return TypeAdapter(hint, config=settings).validate_python(value)
    except ValidationError as error:
        raise ConfigError(f"method.{name}={value!r} does not fit: {error.errors()[0]['msg']}.") from error
    except PydanticUserError:
        return value


def method_options(method: str, options: Mapping[str, Any]) -> Method:
    """The options of `method`, defaults filled in (ConfigError)."""
    return peft_options(method, options) if method.startswith(PREFIX) else options_of(method, options)


def adapt(
    model: EncoderWithHead,
    method: str,
    *,
    bands: Sequence[str],
    base_bands: Sequence[str] = ("R", "G", "B"),
    base_mean: Sequence[float] | None = None,
    base_std: Sequence[float] | None = None,
    extra_mean: Sequence[float] | None = None,
    extra_std: Sequence[float] | None = None,
    unit: Unit = "reflectance",
    revision: str | None = None,
    **options: Any,
) -> nn.Module:
    """Make `model` trainable by `method`: the model itself for `frozen` and `full`, a `PeftModel` otherwise.

    Args:
        model: encoder and head, taking (B, C, H, W) reflectance.
        method: a name in `METHODS`, or `peft:NAME` with the name of one of PEFT's configurations.
        bands: band codes of the channels of `pixel_values`, in order.
        base_bands: bands the encoder was pretrained on, in its channel order.
        base_mean, base_std: what the encoder subtracts and divides by, per base band, in reflectance.
        extra_mean, extra_std: the same of the other bands, in the order of `bands`, if `patch_embed` shows them to it.
        unit: of `pixel_values`: "reflectance", or "8bit" for stretched images, which get fewer spectral indices.
        revision: of the encoder on the Hub, written into the adapter beside its name.
        options: fields of the method's options, see `METHODS`.

    Raises:
        ArchitectureError: `model` is adapted already, or no encoder with a head.
        ConfigError: the method or an option is unknown, or does not fit the encoder.
        BandError: a base band is missing from `bands`.
        UnitError: `base_mean` is of digital numbers.
    """
    if not hasattr(model, "set_bands") or any(isinstance(part, BaseTunerLayer) for part in model.modules()):
        raise ArchitectureError(
            f"adapt takes an encoder with its head, as EncoderForSemanticSegmentation.from_encoder gives it, not a "
            f"{type(model).__name__} that is another model or has an adapter. Any other model that PEFT takes is for "
            "get_peft_model, with a DeflectConfig."
        )
    chosen = method_options(method, options)
    images = Bands(bands, base_bands, base_mean, base_std, extra_mean, extra_std, unit)
    adapted: nn.Module = model
    try:
        config = chosen.configure(model, images)
        if config is not None:
            # PEFT writes the model's name into the adapter as that of its base: here, the encoder's.
            model.name_or_path = model.encoder.name_or_path
            adapted = get_peft_model(model, config, revision=revision)
    except Exception as error:  # PEFT raises whatever it stumbles on in options that do not fit
        if isinstance(error, DeflectError) or not isinstance(chosen, PeftMethod):
            raise
        raise ConfigError(f"finetune={method!r}: PEFT cannot adapt this encoder with these options: {error}") from error
    if isinstance(chosen, EncoderMethod):
        chosen.start_patch_embedding(adapted)
    return adapted
