"""The table of methods, and what each of them makes of a task model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peft import LNTuningConfig, LoraConfig, PeftConfig, get_peft_model
from torch import nn

from deflect_hf.config.methods import (
    BitFitOptions,
    DeflectOptions,
    EncoderOptions,
    LoraOptions,
    NormOptions,
    PeftOptions,
    PlainOptions,
    SlrOptions,
    options_of,
)
from deflect_hf.errors import ConfigError, DeflectError
from deflect_hf.methods.any_peft import PREFIX, make_peft_config, peft_options
from deflect_hf.methods.bands import HEAD, Bands, show_bands, start_patch_embedding
from deflect_hf.spectral.bands import Unit
from deflect_hf.tuners.bitfit import BitFitConfig
from deflect_hf.tuners.deflect import DeflectConfig
from deflect_hf.tuners.deflect.architectures import block_layers, find_encoder, outermost_modules
from deflect_hf.tuners.mergeable import pattern
from deflect_hf.tuners.scaled_lora import ScaledLoraConfig

if TYPE_CHECKING:
    from deflect_hf.models.base import EncoderWithHead

QUERY = ("q_proj",)
TARGETS = {"qv": ("q_proj", "v_proj"), "qkvo": ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj")}
# The first layer, or both first layers, of the MLPs that the known architectures have.
FIRST_OF_MLP = ("fc1", "up_proj", "gate_proj", "weights_in")


def linear_layers(model: nn.Module, target: str) -> str:
    """A pattern of the linear layers that a target such as "qv" names in the blocks of the encoder.

    Raises:
        ArchitectureError: the model holds no encoder that is known.
    """
    names = block_layers(model, find_encoder(model), nn.Linear)
    if target == "query+mlp":
        return _ending(names, QUERY + FIRST_OF_MLP)
    return pattern(names) if target == "all-linear" else _ending(names, TARGETS[target])


def norms(model: EncoderWithHead) -> list[str]:
    """Names of the encoder's layer norms, the final one included."""
    modules = outermost_modules(model.encoder)
    return [f"encoder.{name}" for name, module in modules.items() if isinstance(module, nn.LayerNorm)]


def _ending(names: Sequence[str], endings: Sequence[str]) -> str:
    return pattern(name for name in names if name.rpartition(".")[2] in endings)


def _deflect(model: EncoderWithHead, options: DeflectOptions, bands: Bands) -> PeftConfig:
    bands.refuse_extra_statistics()
    fields = {**bands.base_fields(), "unit": bands.unit, **options.model_dump()}
    return DeflectConfig(**fields, modules_to_save=[HEAD])


def _lora(model: EncoderWithHead, options: LoraOptions, bands: Bands) -> PeftConfig:
    return LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=linear_layers(model, options.target),
        modules_to_save=show_bands(model, options, bands),
    )


def _slr(model: EncoderWithHead, options: SlrOptions, bands: Bands) -> PeftConfig:
    saved = show_bands(model, options, bands)
    return ScaledLoraConfig(
        r=options.rank,
        target_modules=linear_layers(model, options.target),
        modules_to_save=saved + norms(model) * options.train_norms,
    )


def _norm(model: EncoderWithHead, options: NormOptions, bands: Bands) -> PeftConfig:
    return LNTuningConfig(target_modules=pattern(norms(model)), modules_to_save=show_bands(model, options, bands))


def _bitfit(model: EncoderWithHead, options: BitFitOptions, bands: Bands) -> PeftConfig:
    saved = show_bands(model, options, bands)
    target_modules = None if options.target == "all" else linear_layers(model, options.target)
    return BitFitConfig(target_modules=target_modules, modules_to_save=saved)


def _frozen(model: EncoderWithHead, options: PlainOptions, bands: Bands) -> None:
    show_bands(model, options, bands)
    model.encoder.requires_grad_(False)


def _full(model: EncoderWithHead, options: PlainOptions, bands: Bands) -> None:
    show_bands(model, options, bands)
    model.requires_grad_(True)


# What adapts the model: a configuration for PEFT, or the work itself.
METHODS: Mapping[str, Callable[[EncoderWithHead, Any, Bands], PeftConfig | None]] = {
    "deflect": _deflect,
    "lora": _lora,
    "slr": _slr,
    "norm": _norm,
    "bitfit": _bitfit,
    "frozen": _frozen,
    "full": _full,
}


def method_options(method: str, options: Mapping[str, Any]) -> Any:
    """The options of `method`, defaults filled in.

    Raises:
        ConfigError: the method or an option is unknown; the nearest valid name is given.
    """
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
    if isinstance(chosen, PeftOptions):
        adapted = _any_peft(model, method, chosen, images, revision)
    else:
        config = METHODS[method](model, chosen, images)
        adapted = model if config is None else _with_peft(model, config, revision)
    if isinstance(chosen, EncoderOptions):
        start_patch_embedding(adapted, chosen)
    return adapted


def _any_peft(
    model: EncoderWithHead, method: str, options: PeftOptions, bands: Bands, revision: str | None
) -> nn.Module:
    target = linear_layers(model, options.target) if options.target is not None else None
    config = make_peft_config(method, options, target, show_bands(model, options, bands))
    try:
        return _with_peft(model, config, revision)
    except DeflectError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RuntimeError, ImportError) as error:
        raise ConfigError(f"finetune={method!r}: PEFT cannot adapt this encoder with these options: {error}") from error


def _with_peft(model: EncoderWithHead, config: PeftConfig, revision: str | None) -> nn.Module:
    # PEFT writes the model's name into the adapter as that of its base: here, the encoder's.
    model.name_or_path = model.encoder.name_or_path
    adapted: nn.Module = get_peft_model(model, config, revision=revision)
    return adapted
