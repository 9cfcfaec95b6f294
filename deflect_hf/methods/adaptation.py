"""From the name of a method to an adapted task model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peft import get_peft_model
from torch import nn

from deflect_hf.config.methods import PREFIX, Method, options_of
from deflect_hf.errors import ConfigError, DeflectError
from deflect_hf.methods.any_peft import PeftMethod, peft_options
from deflect_hf.methods.bands import Bands, EncoderMethod
from deflect_hf.spectral.bands import Unit

if TYPE_CHECKING:
    from deflect_hf.models.base import EncoderWithHead

# What PEFT raises on options that do not fit a model.
PEFT_ERRORS = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RuntimeError, ImportError)


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
        ConfigError: the method or an option is unknown, or does not fit the encoder.
        BandError: a base band is missing from `bands`.
    """
    chosen = method_options(method, options)
    images = Bands(bands, base_bands, base_mean, base_std, extra_mean, extra_std, unit)
    adapted: nn.Module = model
    try:
        config = chosen.configure(model, images)
        if config is not None:
            # PEFT writes the model's name into the adapter as that of its base: here, the encoder's.
            model.name_or_path = model.encoder.name_or_path
            adapted = get_peft_model(model, config, revision=revision)
    except PEFT_ERRORS as error:
        if isinstance(error, DeflectError) or not isinstance(chosen, PeftMethod):
            raise
        raise ConfigError(f"finetune={method!r}: PEFT cannot adapt this encoder with these options: {error}") from error
    if isinstance(chosen, EncoderMethod):
        chosen.start_patch_embedding(adapted)
    return adapted
