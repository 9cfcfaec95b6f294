"""Groups of keys as strict pydantic models; what they refuse is told in one sentence: file, key, what it must be."""

from __future__ import annotations

import os
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticUndefined

from deflect_hf.config.yaml import yaml_value
from deflect_hf.errors import ConfigError, listing, nearest

MOST_LISTED = 12  # keys in a message; --help has them all
MOST_SHOWN = 80  # characters of a value in a message
# pydantic's error types -> what the value has to be
EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping of keys to values",
}
COMPARISONS = {"greater_than": "greater than", "greater_than_equal": "at least", "less_than": "less than",
               "less_than_equal": "at most"}  # fmt: skip


def option(default: Any, help: str, **limits: Any) -> Any:
    """A key with its default, its help, and limits as of ``pydantic.Field``."""
    return Field(default, description=help, **limits)


def group() -> Any:
    """A group of keys within another, of nothing but defaults unless it is given."""
    return Field(default={}, validate_default=True)


class Arguments(BaseModel):
    """A group of keys: unknown ones are refused, and text for a number, true for 1, NaN where it is no nodata value.

    Raises:
        ConfigError: naming the key and what its value has to be.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, ser_json_inf_nan="constants")
    prefix: ClassVar[str] = ""  # of the keys, where the group is checked apart from the one that holds it

    if not TYPE_CHECKING:

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise ConfigError(_in_words(error, type(self), {})) from error

        __init__.__pydantic_base_init__ = True  # groups within groups are checked with them, which keeps their keys

    @classmethod
    def from_values(cls, values: Mapping[str, Any], origins: Mapping[str, str]) -> Self:
        """The group of nested mappings; ``origins`` are the files that dotted keys came from."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(_in_words(error, cls, origins)) from error

    def replace(self, **changes: Any) -> Self:
        """A copy with other values, which is checked as a whole."""
        return type(self)(**{**dict(self), **changes})


@dataclass(frozen=True)
class Leaf:
    """One key of the configuration: its dotted name, type, default and help."""

    key: str
    hint: Any
    default: Any
    help: str

    @property
    def members(self) -> tuple[Any, ...]:
        """The types of a union, ``Annotated`` removed; a plain type is a union of one."""
        hint = _bare(self.hint)
        union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        return tuple(_bare(member) for member in typing.get_args(hint)) if union else (hint,)

    @property
    def lists(self) -> list[Any]:
        """Those of its types that take several values."""
        return [member for member in self.members if typing.get_origin(member) in (list, tuple)]

    @property
    def is_mapping(self) -> bool:
        """Whether it takes keys and values of its own."""
        return any(member is dict or typing.get_origin(member) in (dict, Mapping) for member in self.members)

    @property
    def choices(self) -> list[str]:
        """The words it is limited to, none if it is not."""
        return [choice for member in self.members if typing.get_origin(member) is Literal
                for choice in typing.get_args(member)]  # fmt: skip

    @property
    def type_name(self) -> str:
        """Its type in words: ``list of number or null``."""
        return " or ".join(dict.fromkeys(_type_name(member) for member in self.members))

    @property
    def default_text(self) -> str:
        """Its default as a YAML file has it."""
        if self.default is PydanticUndefined:
            return "needed"
        default = "null" if self.default is None else self.default
        return str(default).lower() if isinstance(default, bool) else str(default)

    def parse(self, words: str | list[str]) -> Any:
        """The value of what was typed after its flag: text stays text, everything else is read as YAML would."""
        if isinstance(words, list) and len(words) > 1:
            return words if self._of_text else [yaml_value(word, f"--{self.key}") for word in words]
        word = words[0] if isinstance(words, list) else words
        if word == "null" and types.NoneType in self.members:
            return None
        if str in self.members and not word.startswith(("[", "{")):
            return word
        value = word if word in self.choices else yaml_value(word, f"--{self.key}")
        if not self.lists or isinstance(value, list) or word in self.choices:
            return value
        return [word] if self._of_text else [value]

    @property
    def _of_text(self) -> bool:
        """Whether it takes several texts: a file called 2020 is no number."""
        return all(_bare(typing.get_args(member)[0]) is str for member in self.lists)


def _bare(hint: Any) -> Any:
    while typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    return hint


def _type_name(hint: Any) -> str:
    names = {types.NoneType: "null", str: "text", bool: "true or false", int: "whole number", float: "number"}
    origin, inner = typing.get_origin(_bare(hint)), typing.get_args(_bare(hint))
    if origin in (list, tuple):
        return f"list of {_type_name(inner[0])}"
    if origin is Literal:
        return " or ".join(f"'{word}'" for word in inner)
    return names.get(_bare(hint), "mapping")


@cache
def keys_of(schema: type[Arguments]) -> Mapping[str, Leaf]:
    """Every key of a group and of the groups within it by its dotted name, in order."""
    return types.MappingProxyType({leaf.key: leaf for leaf in _leaves(schema, "")})


def _leaves(schema: type[Arguments], prefix: str) -> Iterator[Leaf]:
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Arguments):
            yield from _leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield Leaf(prefix + name, field.annotation, field.default, field.description or "")


def unknown_key(key: str, schema: type[Arguments]) -> str:
    """What to say of a dotted key that ``schema`` does not have: the nearest, or all that stand beside it."""
    parent, depth = key.rpartition(".")[0], key.count(".") + 1
    siblings = dict.fromkeys(".".join(name.split(".")[:depth]) for name in keys_of(schema) if name.startswith(parent))
    listed = listing(sorted(schema.prefix + name for name in siblings))
    valid = f" Valid keys: {listed}" if len(siblings) <= MOST_LISTED else " All: --help"
    return f"unknown key {schema.prefix + key!r:.80}.{nearest(key, siblings)}{valid}"


def _in_words(error: ValidationError, schema: type[Arguments], origins: Mapping[str, str]) -> str:
    """``FILE: 'key' must be a whole number, not 'many'``, for the key that pydantic's location leads to."""
    known, problems = keys_of(schema), error.errors(include_url=False)
    path = [str(part) for part in problems[0]["loc"]]
    depth = next((n for n in range(len(path), 0, -1) if ".".join(path[:n]) in known), 0)
    key = ".".join(path[:depth])
    if depth == 0:
        if problems[0]["type"] == "extra_forbidden":
            text = unknown_key(".".join(path), schema)
        else:
            text = str(problems[0].get("ctx", {}).get("error", problems[0]["msg"]))
        return _of_group(".".join(path), text, origins)
    if problems[0]["type"] == "missing":
        return f"{key!r} is missing: {known[key].help.removesuffix(' (needed)')}"
    same = [problem for problem in problems if ".".join(map(str, problem["loc"][:depth])) == key]
    expected = " or ".join(dict.fromkeys(map(_expected, same)))
    item = next((f"[{part}]" for part in path[depth:] if part.isdigit()), "")
    value = same[0]["input"]
    near = nearest(value, known[key].choices) if isinstance(value, str) else ""
    if isinstance(value, bool) and (
        "text" in expected or "'" in expected
    ):  # YAML reads an unquoted yes, no, on or off as true or false
        near = ' Write words such as "no" in quotes.'
    origin = next((f"{origins[name]}: " for name in origins if name == key or name.startswith(f"{key}.")), "")
    shown = repr(value) if len(repr(value)) <= MOST_SHOWN else f"{value!r:.{MOST_SHOWN}} ..."
    return f"{origin}{schema.prefix + key + item!r} must be {expected}, not {shown}.{near}".removesuffix(".")


def _of_group(group: str, text: str, origins: Mapping[str, str]) -> str:
    """A complaint about keys of a group together, with the files that set those it names, else any of the group."""
    own = {key: origin for key, origin in origins.items() if not group or key.startswith(f"{group}.")}
    first = text.partition(". ")[0]  # the next may name keys that were not meant
    named = [origin for key, origin in own.items() if repr(key) in first or first.startswith(f"{key} ")]
    named = named or [origin for key, origin in own.items() if re.search(rf"\b{key.rpartition('.')[2]}\b", first)]
    files = list(dict.fromkeys(named or own.values()))
    subject = f"{group}: {text}" if group not in text else text
    return f"{', '.join(files)}: {subject}" if files else subject


def _expected(problem: Any) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in COMPARISONS:
        limit = next(iter(context.values()))
        return f"{COMPARISONS[kind]} {limit if isinstance(limit, int) else format(limit, 'g')}"
    if kind == "literal_error":
        return ("one of " if " or " in context["expected"] else "") + context["expected"]
    if kind == "too_short":
        return f"at least {context['min_length']} long"
    if kind == "too_long":
        return f"at most {context['max_length']} long"
    if kind == "value_error":
        return str(context["error"])
    return next((words for name, words in EXPECTED.items() if kind.startswith(name)), problem["msg"])


def user_path(text: str) -> str:
    """``~/data`` -> ``/home/user/data``, in a YAML file too, where no shell expands it; other names stay."""
    if not text.strip():
        raise ConfigError("the name of a file or folder ('.' for this one) or left out")
    if "\0" in text:
        raise ConfigError("a name without null characters")
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text and not os.path.exists(text):
        raise ConfigError(f"a name in full, as there is no user {text[1:].partition('/')[0]!r}")
    return expanded


UserPath = Annotated[
    str,
    BeforeValidator(lambda path: os.fspath(path) if isinstance(path, os.PathLike) else path),
    AfterValidator(user_path),
]
