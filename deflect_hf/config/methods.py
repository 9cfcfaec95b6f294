"""What can be chosen of each method: `--method.NAME VALUE`.

Importing this file needs neither torch nor PEFT.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from deflect_hf.errors import ConfigError, listing

PatchEmbed = Literal["frozen", "repeat", "rgb+random"]
Target = Literal["qv", "qkvo", "all-linear"]
Biases = Literal["all", "query+mlp"]


def one_of(name: str, value: Any, choices: Iterable[str]) -> None:
    """Refuse a value that is none of the choices (ConfigError)."""
    if value not in choices:
        raise ConfigError(f"method.{name}={value!r} is unknown; choose from {listing(choices)}.")


def above_zero(name: str, value: float) -> None:
    """Refuse a size or factor of 0, below, or without end (ConfigError)."""
    if not 0 < value < math.inf:
        raise ConfigError(f"method.{name}={value!r} must be a number above 0.")


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
class EncoderOptions:
    """Of every method that changes the encoder alone, and of `frozen` and `full`: which bands the encoder sees.

    `frozen`: the base bands, through the pretrained patch embedding. Otherwise all bands enter a wider patch embedding,
    which is trained in full and counted: the base bands first, then the others in the order of the images, each
    normalised by its own mean and standard deviation. Its kernel starts as follows.

    - `repeat`: channel j gets the pretrained kernel of base channel j mod n (n base bands), divided by the number of
      channels that share it. For 3k channels this is the RGB kernel k times, as published baselines have it, over k;
      images whose bands all equal the base band that they share a kernel with are embedded as by the pretrained one.
    - `rgb+random`: the base bands keep their pretrained kernel, the others start as normal noise with its standard
      deviation.
    """

    patch_embed: PatchEmbed = field(
        default="frozen",
        metadata={"help": "frozen: the base bands; otherwise all bands, trained"},
    )

    def __post_init__(self) -> None:
        one_of("patch_embed", self.patch_embed, get_args(PatchEmbed))


@dataclass(frozen=True)
class LoraOptions(EncoderOptions):
    """Low-rank adaptation, by PEFT. Source: Hu et al., arXiv 2106.09685."""

    rank: int = field(default=8, metadata={"help": "rank r"})
    alpha: float = field(default=8.0, metadata={"help": "the update is scaled by alpha / r"})
    dropout: float = field(default=0.0, metadata={"help": "dropout before A"})
    target: Target = field(default="qv", metadata={"help": "layers of every block"})

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero("rank", self.rank)
        above_zero("alpha", self.alpha)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"method.dropout={self.dropout!r} must be at least 0 and below 1.")
        one_of("target", self.target, get_args(Target))


@dataclass(frozen=True)
class SlrOptions(EncoderOptions):
    """Scaled low-rank adapters. Source: Scheibenreif et al., CVPR 2024, whose recipe trains the norms, too."""

    rank: int = field(default=8, metadata={"help": "rank r"})
    target: Target = field(default="all-linear", metadata={"help": "layers of every block"})
    train_norms: bool = field(default=True, metadata={"help": "train the encoder's norms in full, as published"})

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero("rank", self.rank)
        one_of("target", self.target, get_args(Target))


@dataclass(frozen=True)
class NormOptions(EncoderOptions):
    """Norm tuning, by PEFT: the encoder's layer norms are trained. Source: Zhao et al., arXiv 2312.11420.

    PEFT's LN tuning is not merged for good: after `merge_and_unload` the model computes the same, but its head, which
    was trained in full, is still in PEFT's wrapper, and a model that is saved then is refused when it is loaded.
    Store the adapter instead.
    """


@dataclass(frozen=True)
class BitFitOptions(EncoderOptions):
    """BitFit: biases are trained. Source: Ben Zaken et al., arXiv 2106.10199."""

    target: Biases = field(
        default="all",
        metadata={"help": "all, or the paper's subset: queries and first MLP layer"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("target", self.target, get_args(Biases))


@dataclass(frozen=True)
class PlainOptions(EncoderOptions):
    """`frozen` trains the head alone (and a wider patch embedding), `full` everything."""


@dataclass(frozen=True)
class PeftOptions(EncoderOptions):
    """`peft:NAME`: any other method of PEFT, by the name of its configuration, whose fields are its options.

    Attributes:
        target: layers of every block, unless the field `target_modules` names them.
        fields: of PEFT's configuration, as given.
    """

    target: Target | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target is not None:
            one_of("target", self.target, get_args(Target))


def as_values(options: Any) -> dict[str, Any]:
    """The options as the mapping that they can be made of again."""
    values = dataclasses.asdict(options)
    fields = values.pop("fields") if isinstance(options, PeftOptions) else {}
    return {**values, **fields}
