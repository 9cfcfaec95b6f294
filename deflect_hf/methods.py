"""One road from a method's name to an adapted model: what `--finetune NAME` does.

`deflect` takes all bands inside the tuner; every other method sees the base bands alone, picked by name and normalised
by the task model. All methods train the task head.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn

from deflect_hf.errors import ConfigError, listing, nearest
from deflect_hf.spectrum import Unit
from deflect_hf.tuners.deflect import DeflectConfig
from deflect_hf.tuners.deflect.architectures import find_encoder

if TYPE_CHECKING:
    from deflect_hf.models.base import EncoderWithHead

HEAD = "head"
LORA_TARGETS = {
    "qv": ("q_proj", "v_proj"),
    "qkvo": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "all-linear": ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "up_proj", "down_proj", "gate_proj"),
}


@dataclass(frozen=True)
class Bands:
    """Bands of `pixel_values`, what the frozen patch embedding takes of them, and the unit of both."""

    bands: Sequence[str]
    base_bands: Sequence[str]
    base_mean: Sequence[float] | None
    base_std: Sequence[float] | None
    unit: Unit

    def as_fields(self) -> dict[str, Any]:
        """The lists of bands and numbers as plain lists, as configurations want them."""
        names = ("bands", "base_bands", "base_mean", "base_std")
        return {name: None if getattr(self, name) is None else list(getattr(self, name)) for name in names}


@dataclass(frozen=True)
class NoOptions:
    """`frozen` trains the head alone, `full` everything; neither has anything to choose."""


@dataclass(frozen=True)
class DeflectOptions:
    """Fields of [`DeflectConfig`] that are a choice of the user."""

    rank: int = field(default=8, metadata={"help": "rank r of the deflection"})
    aux_dim: int | None = field(
        default=None, metadata={"help": "width d of the radiometric stream, null: about 64, to fit the attention heads"}
    )
    indices: str | list[str] | None = field(
        default="default", metadata={"help": "'default', 'all', an application domain, names, or null"}
    )
    layers_to_transform: int | list[int] | None = field(
        default=None, metadata={"help": "deflected blocks (-1: the last), null: all"}
    )
    band_dropout: float = field(
        default=0.0, metadata={"help": "probability of losing a band in training; above 0, images may lack bands"}
    )


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adaptation, by PEFT. Source: Hu et al., arXiv 2106.09685."""

    rank: int = field(default=8, metadata={"help": "rank r"})
    alpha: float = field(default=8.0, metadata={"help": "the update is scaled by alpha / r"})
    dropout: float = field(default=0.0, metadata={"help": "dropout before A"})
    target: Literal["qv", "qkvo", "all-linear"] = field(default="qv", metadata={"help": "layers of every block"})

    def __post_init__(self) -> None:
        if self.target not in LORA_TARGETS:
            raise ConfigError(f"method.target={self.target!r} is unknown; choose from {listing(LORA_TARGETS)}.")


def _deflect(model: EncoderWithHead, options: DeflectOptions, bands: Bands) -> nn.Module:
    fields = {**bands.as_fields(), "unit": bands.unit, **dataclasses.asdict(options)}
    config = DeflectConfig(**fields, modules_to_save=[HEAD])
    return _with_peft(model, config)


def _lora(model: EncoderWithHead, options: LoraOptions, bands: Bands) -> nn.Module:
    model.set_bands(**bands.as_fields())
    encoder = find_encoder(model)
    container = re.escape(encoder.blocks[0].rpartition(".")[0])
    names = "|".join(LORA_TARGETS[options.target])
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=rf"{container}\.\d+\..*\b(?:{names})",
        modules_to_save=[HEAD],
    )
    return _with_peft(model, config)


def _frozen(model: EncoderWithHead, options: NoOptions, bands: Bands) -> nn.Module:
    model.set_bands(**bands.as_fields())
    model.encoder.requires_grad_(False)
    return model


def _full(model: EncoderWithHead, options: NoOptions, bands: Bands) -> nn.Module:
    model.set_bands(**bands.as_fields())
    return model.requires_grad_(True)


def _with_peft(model: EncoderWithHead, config: PeftConfig) -> nn.Module:
    # PEFT writes the model's name into the adapter as that of its base: here, the encoder's.
    model.name_or_path = model.encoder.name_or_path
    return get_peft_model(model, config)


METHODS: Mapping[str, tuple[type, Callable[[Any, Any, Bands], nn.Module]]] = {
    "deflect": (DeflectOptions, _deflect),
    "lora": (LoraOptions, _lora),
    "frozen": (NoOptions, _frozen),
    "full": (NoOptions, _full),
}


def method_options(method: str, options: Mapping[str, Any]) -> Any:
    """The options of `method`, typed, defaults filled in.

    Raises:
        ConfigError: the method or an option is unknown; the nearest valid name is given.
    """
    if method not in METHODS:
        raise ConfigError(f"finetune={method!r} is unknown; choose from {listing(METHODS)}.{nearest(method, METHODS)}")
    schema = METHODS[method][0]
    known = [item.name for item in dataclasses.fields(schema)]
    for name in options:
        if name not in known:
            raise ConfigError(
                f"method.{name} is no option of {method!r}; it has {listing(known)}.{nearest(name, known)}"
            )
    return schema(**options)


def adapt(
    model: EncoderWithHead,
    method: str,
    *,
    bands: Sequence[str],
    base_bands: Sequence[str] = ("R", "G", "B"),
    base_mean: Sequence[float] | None = None,
    base_std: Sequence[float] | None = None,
    unit: Unit = "reflectance",
    **options: Any,
) -> nn.Module:
    """Make `model` trainable by `method`: a `PeftModel` for `deflect` and `lora`, the model itself otherwise.

    Args:
        model: encoder and head, taking (B, C, H, W) reflectance.
        method: `deflect`, `lora`, `frozen` or `full`.
        bands: band codes of the channels of `pixel_values`, in order.
        base_bands: bands the encoder was pretrained on, in its channel order.
        base_mean, base_std: what the encoder subtracts and divides by, per base band, in reflectance.
        unit: of `pixel_values`: "reflectance", or "8bit" for stretched images, which get fewer spectral indices.
        options: fields of the method's options, see `METHODS`.

    Raises:
        ConfigError: the method or an option is unknown, or does not fit the encoder.
        BandError: a base band is missing from `bands`.
    """
    checked = method_options(method, options)
    return METHODS[method][1](model, checked, Bands(bands, base_bands, base_mean, base_std, unit))


def needed_bands(model: nn.Module) -> list[str]:
    """Bands without which an adapted model cannot work; the others may be all NaN.

    All of them, if a DEFLECT adapter was not trained with band dropout; else those that the frozen encoder sees.
    """
    config = deflect_config(model)
    if config is not None:
        return list((config.base_bands if config.band_dropout else config.bands) or [])
    task = cast("EncoderWithHead", model.get_base_model() if isinstance(model, PeftModel) else model)
    return list(task.config.selected_base_bands)


def deflect_config(model: nn.Module) -> DeflectConfig | None:
    """The configuration of the active DEFLECT adapter, None if the model has none."""
    config = model.peft_config.get(model.active_adapter) if isinstance(model, PeftModel) else None
    return config if isinstance(config, DeflectConfig) else None


def encoder_parameters(model: nn.Module) -> tuple[int, int]:
    """Trainable and total parameters of the encoder side: everything but the head (the paper's "< 1 %")."""
    named = [(name, p) for name, p in model.named_parameters() if f".{HEAD}." not in f".{name}"]
    return sum(p.numel() for _, p in named if p.requires_grad), sum(p.numel() for _, p in named)
