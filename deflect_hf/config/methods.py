"""The methods of `--finetune`, and what can be chosen of each: `--method.NAME VALUE`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, PositiveFloat

from deflect_hf.config.schema import Arguments, option
from deflect_hf.errors import ConfigError, listing, nearest

PREFIX = "peft:"
PatchEmbed = Literal["frozen", "repeat", "rgb+random"]
Target = Literal["qv", "qkvo", "all-linear"]
Rank = Annotated[int, Field(ge=1, le=2**16)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]


class DeflectOptions(Arguments):
    """Fields of [`DeflectConfig`] that are a choice of the user."""

    prefix: ClassVar[str] = "method."
    rank: Rank = option(8, "rank r of the deflection")
    aux_dim: Rank | None = option(None, "width d of the radiometric stream, null: about 64, to fit the attention heads")
    indices: str | list[str] | None = option("default", "'default', 'all', an application domain, names, or null")
    layers_to_transform: int | list[int] | None = option(None, "deflected blocks (-1: the last), null: all")
    band_dropout: Probability = option(0.0, "probability of losing a band in training; above 0, images may lack bands")


class EncoderOptions(Arguments):
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

    prefix: ClassVar[str] = "method."
    patch_embed: PatchEmbed = option("frozen", "frozen: the base bands; otherwise all bands, trained")


class LoraOptions(EncoderOptions):
    """Low-rank adaptation, by PEFT. Source: Hu et al., arXiv 2106.09685."""

    rank: Rank = option(8, "rank r")
    alpha: PositiveFloat = option(8.0, "the update is scaled by alpha / r")
    dropout: Probability = option(0.0, "dropout before A")
    target: Target = option("qv", "layers of every block")


class SlrOptions(EncoderOptions):
    """Scaled low-rank adapters. Source: Scheibenreif et al., CVPR 2024, whose recipe trains the norms, too."""

    rank: Rank = option(8, "rank r")
    target: Target = option("all-linear", "layers of every block")
    train_norms: bool = option(True, "train the encoder's norms in full, as published")


class NormOptions(EncoderOptions):
    """Norm tuning, by PEFT: the encoder's layer norms are trained. Source: Zhao et al., arXiv 2312.11420.

    PEFT's LN tuning is not merged for good: after `merge_and_unload` the model computes the same, but its head, which
    was trained in full, is still in PEFT's wrapper, and a model that is saved then is refused when it is loaded.
    Store the adapter instead.
    """


class BitFitOptions(EncoderOptions):
    """BitFit: biases are trained. Source: Ben Zaken et al., arXiv 2106.10199."""

    target: Literal["all", "query+mlp"] = option("all", "all, or the paper's subset: queries and first MLP layer")


class PlainOptions(EncoderOptions):
    """`frozen` trains the head alone (and a wider patch embedding), `full` everything."""


class PeftOptions(EncoderOptions):
    """`peft:NAME`: any other method of PEFT, by the name of its configuration, whose fields are its options."""

    target: Target | None = option(None, "layers of every block, unless the field `target_modules` names them")
    fields: dict[str, Any] = option({}, "of PEFT's configuration, as given")


OPTIONS: Mapping[str, type[Arguments]] = {
    "deflect": DeflectOptions,
    "lora": LoraOptions,
    "slr": SlrOptions,
    "norm": NormOptions,
    "bitfit": BitFitOptions,
    "frozen": PlainOptions,
    "full": PlainOptions,
}


def peft_method(method: str) -> str:
    """``peft:NAME`` as it is."""
    if not method.startswith(PREFIX) or method == PREFIX:
        raise ConfigError("peft:NAME with the name of one of PEFT's configurations, such as peft:VeraConfig")
    return method


if TYPE_CHECKING:
    Finetune = str
else:
    Finetune = Literal[tuple(OPTIONS)] | Annotated[str, AfterValidator(peft_method)]


def options_of(method: str, values: Mapping[str, Any]) -> Any:
    """The options of a method of :data:`OPTIONS`, defaults filled in."""
    if method not in OPTIONS:
        raise ConfigError(
            f"finetune={method!r:.80} is unknown; choose from {listing(OPTIONS)}, or peft:NAME with the name of one of "
            f"PEFT's configurations, such as peft:VeraConfig.{nearest(method, OPTIONS)}"
        )
    try:
        return OPTIONS[method](**values)
    except ConfigError as error:
        raise ConfigError(f"--finetune {method}: {error}") from error


def as_values(options: Arguments) -> dict[str, Any]:
    """The options as the mapping that they can be made of again."""
    values = options.model_dump()
    return {**values.pop("fields", {}), **values}


METHOD_OPTIONS = """
`method` takes the options of --finetune, as --method.NAME VALUE:
{lines}
    peft:NAME patch_embed, target, and the fields of PEFT's configuration NAME, such as VeraConfig
patch_embed: frozen shows the encoder its base bands; repeat and rgb+random all bands, through a patch embedding that is
trained and starts as copies of the pretrained kernel, or with noise for the other bands.
""".format(lines="\n".join(f"    {name:<9} {', '.join(schema.model_fields)}" for name, schema in OPTIONS.items()))
