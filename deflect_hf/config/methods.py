"""The methods of `--finetune`, and what can be chosen of each: `--method.NAME VALUE`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from deflect_hf.config.schema import Arguments
from deflect_hf.errors import ConfigError, listing, nearest

PREFIX = "peft:"
Rank = Annotated[int, Field(ge=1, le=2**16)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]

# What `--finetune` can name, and the class of each, which is looked up when it is asked for.
METHODS: dict[str, str] = {
    "deflect": "deflect_hf.methods.builtin.Deflect",
    "lora": "deflect_hf.methods.builtin.Lora",
    "slr": "deflect_hf.methods.builtin.Slr",
    "norm": "deflect_hf.methods.builtin.Norm",
    "bitfit": "deflect_hf.methods.builtin.BitFit",
    "frozen": "deflect_hf.methods.builtin.Frozen",
    "full": "deflect_hf.methods.builtin.Full",
}

# The learning rate of a method where none is given: see docs/results.md, "Learning rates".
ADAPTER_RATE = 3e-3
LEARNING_RATES = {"deflect": 1e-3, "full": 1e-4}


def known_method(method: str) -> str:
    """The name as it is, if it is one."""
    if method in METHODS or (method.startswith(PREFIX) and method != PREFIX):
        return method
    raise ConfigError(f"{PREFIX}NAME with the name of one of PEFT's configurations, such as peft:VeraConfig")


if TYPE_CHECKING:
    Finetune = str
else:
    Finetune = Literal[tuple(METHODS)] | Annotated[str, AfterValidator(known_method)]


class Method(Arguments):
    """A method: its options are the fields, and `configure` is what it does."""

    prefix: ClassVar[str] = "method."

    def configure(self, model: Any, bands: Any) -> Any:
        """The PEFT configuration that adapts a task model to `bands`; None if the model itself was changed for it."""
        raise NotImplementedError


def method_class(method: str) -> type[Method]:
    """The class of a method of :data:`METHODS`."""
    if method not in METHODS:
        raise ConfigError(
            f"finetune={method!r:.80} is unknown; choose from {listing(METHODS)}, or {PREFIX}NAME with the name of one "
            f"of PEFT's configurations, such as peft:VeraConfig.{nearest(method, METHODS)}"
        )
    module, _, name = METHODS[method].rpartition(".")
    found: type[Method] = getattr(import_module(module), name)
    return found


def options_of(method: str, values: Mapping[str, Any]) -> Method:
    """The options of a method of :data:`METHODS`, defaults filled in."""
    schema = method_class(method)
    try:
        return schema(**values)
    except ConfigError as error:
        raise ConfigError(f"--finetune {method}: {error}") from error


def as_values(options: Method) -> dict[str, Any]:
    """The options as the mapping that they can be made of again."""
    values = options.model_dump()
    return {**values.pop("fields", {}), **values}


def methods_help() -> str:
    """The part of `--help` about the methods."""
    lines = "\n".join(f"    {name:<9} {', '.join(method_class(name).model_fields)}" for name in METHODS)
    return f"""
`method` takes the options of --finetune, as --method.NAME VALUE:
{lines}
    peft:NAME patch_embed, target, and the fields of PEFT's configuration NAME, such as VeraConfig
patch_embed: frozen shows the encoder its base bands; repeat and rgb+random all bands, through a patch embedding that is
trained and starts as copies of the pretrained kernel, or with noise for the other bands.
"""
