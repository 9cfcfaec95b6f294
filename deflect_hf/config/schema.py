"""Dataclasses as the schema of a configuration: its keys, their help, and type errors in the user's words."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from deflect_hf.config.yaml import yaml_value
from deflect_hf.errors import ConfigError, DeflectError, nearest

Config = TypeVar("Config")

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
    "mapping": "a mapping of keys to values",
}
COMPARISONS = {"greater_than": "greater than", "greater_than_equal": "at least", "less_than": "less than",
               "less_than_equal": "at most"}  # fmt: skip


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
    def is_flag(self) -> bool:
        """Whether it is true or false."""
        return bool in self.members

    @property
    def is_list(self) -> bool:
        """Whether it takes several values."""
        return any(typing.get_origin(member) in (list, tuple) for member in self.members)

    @property
    def is_list_of_text(self) -> bool:
        """Whether it takes several values, all of them text: a file called 2020 is no number."""
        lists = [member for member in self.members if typing.get_origin(member) in (list, tuple)]
        return bool(lists) and all(typing.get_args(member)[:1] == (str,) for member in lists)

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
    def is_text(self) -> bool:
        """Whether its value may be text."""
        return str in self.members or bool(self.choices)

    @property
    def metavar(self) -> str:
        """How the help shows its value."""
        words = [m for m in self.members if m is not type(None) and typing.get_origin(m) is not Literal]
        if self.choices and not words:
            return "{" + ",".join(map(str, self.choices)) + "}"
        return self.key.rpartition(".")[2].upper()

    @property
    def help_text(self) -> str:
        """Its help with the default, as argparse wants it."""
        shown = "null" if self.default is None else yaml.safe_dump(self.default, default_flow_style=True).split("\n")[0]
        return f"{self.help} [{shown}]".replace("%", "%%")


def _bare(hint: Any) -> Any:
    while typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    return hint


def leaves(schema: type, prefix: str = "") -> Iterator[Leaf]:
    """Every key of a nested dataclass, in order."""
    hints = typing.get_type_hints(schema, include_extras=True)
    for item in dataclasses.fields(schema):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint):
            yield from leaves(typing.cast(type, hint), prefix=f"{prefix}{item.name}.")
            continue
        factory = item.default_factory
        default = item.default if factory is dataclasses.MISSING else factory()
        default = None if default is dataclasses.MISSING else default
        default = list(default) if isinstance(default, tuple) else default
        yield Leaf(prefix + item.name, hint, default, item.metadata.get("help", ""))


def parse_text(text: str | list[str], leaf: Leaf) -> Any:
    """The value of a flag as it was typed: text stays text, everything else is read as YAML would."""
    if isinstance(text, list):
        if len(text) == 1 and (text[0].startswith(("[", "{")) or text[0] == "null" or leaf.is_text):
            return parse_text(text[0], leaf)
        return list(text) if leaf.is_list_of_text else [yaml_value(word, f"--{leaf.key}") for word in text]
    if text == "null" and type(None) in leaf.members:
        return None
    if leaf.is_text and not text.startswith(("[", "{")):
        return [text] if leaf.is_list and text not in leaf.choices and str not in leaf.members else text
    return yaml_value(text, f"--{leaf.key}")


def check_types(schema: type[Config], values: Mapping[str, Any], origins: Mapping[str, str]) -> Config:
    """An instance of ``schema``; pydantic's complaints come back as one sentence with file and key.

    Raises:
        ConfigError: for the first value that does not fit.
    """
    known = {leaf.key: leaf for leaf in leaves(schema)}
    names = [item.name for item in dataclasses.fields(typing.cast(Any, schema))]
    unknown = next((key for key in values if key not in names), None)  # pydantic would pass it by
    if unknown is not None:
        raise ConfigError(f"{_origin(unknown, origins)}: unknown key {unknown!r}.{nearest(unknown, names)} All: --help")
    for leaf in known.values():
        _refuse_truth_values(leaf, _at(values, leaf.key), origins)
    try:
        config = TypeAdapter(schema).validate_python(_with_groups(schema, values))
    except ValidationError as error:
        raise ConfigError(_in_words(error, known, origins)) from error
    for leaf in known.values():
        _refuse_infinite(leaf, _at(config, leaf.key), origins)
    return config


def _at(owner: Any, key: str) -> Any:
    """The value of a dotted key in nested mappings or dataclasses, None where it is not set."""
    for name in key.split("."):
        owner = owner.get(name) if isinstance(owner, Mapping) else getattr(owner, name, None)
    return owner


def _refuse_truth_values(leaf: Leaf, value: Any, origins: Mapping[str, str]) -> None:
    """Pydantic takes true for 1, and YAML reads an unquoted yes, no, on or off as true or false."""
    if bool in leaf.members or leaf.is_mapping or leaf.members == (Any,):
        return
    if any(isinstance(item, bool) for item in (value if isinstance(value, list | tuple) else [value])):
        fix = ': write words such as "no" in quotes' if leaf.is_list_of_text or leaf.is_text else ""
        raise ConfigError(f"{_origin(leaf.key, origins)}: {leaf.key!r} holds true or false, which it cannot be{fix}")


def _refuse_infinite(leaf: Leaf, value: Any, origins: Mapping[str, str]) -> None:
    """Numbers that are none: NaN marks nodata, and does harm anywhere else."""
    if leaf.key.rpartition(".")[2] == "nodata":
        return
    numbers = [item for item in (value if isinstance(value, list | tuple) else [value]) if isinstance(item, float)]
    if not all(map(math.isfinite, numbers)):
        raise ConfigError(f"{_origin(leaf.key, origins)}: {leaf.key!r} must be finite, not {value!r:.80}")


def _with_groups(schema: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with every nested dataclass named: pydantic would make a missing one before it checks the others."""
    hints = typing.get_type_hints(schema)
    groups = {item.name: hints[item.name] for item in dataclasses.fields(schema)}
    nested = {
        name: _with_groups(typing.cast(type, hint), values.get(name, {}))
        for name, hint in groups.items()
        if dataclasses.is_dataclass(hint) and isinstance(values.get(name, {}), Mapping)
    }
    return {**values, **nested}


def _origin(key: str, origins: Mapping[str, str]) -> str:
    """The file that set a key or a part of it."""
    return next((origins[name] for name in origins if name == key or name.startswith(f"{key}.")), "the defaults")


def _in_words(error: ValidationError, known: Mapping[str, Leaf], origins: Mapping[str, str]) -> str:
    """``FILE: 'key' must be a whole number, not 'many'``, for the key that pydantic's location leads to."""
    problems = error.errors()
    path = [str(part) for part in problems[0]["loc"]]
    depth = next((n for n in range(len(path), 0, -1) if ".".join(path[:n]) in known), 0)
    if depth == 0:
        cause = problems[0].get("ctx", {}).get("error")
        told = str(cause) if isinstance(cause, DeflectError) else f"{'.'.join(path)}: {problems[0]['msg']}"
        return _of_group(".".join(path), told, origins)
    key = ".".join(path[:depth])
    if problems[0]["type"] == "missing" and len(path) == depth:
        return f"{key!r} is missing: {known[key].help.removesuffix(' (needed)')}"
    same = [problem for problem in problems if ".".join(map(str, problem["loc"][:depth])) == key]
    expected = " or ".join(dict.fromkeys(_expected(problem) for problem in same))
    item = next((f"[{part}]" for part in path[depth:] if part.isdigit()), "")
    position = item if problems[0]["type"] != "missing" else ""  # an item that is missing is told of the whole list
    value = same[-1]["input"]
    near = nearest(value, known[key].choices) if isinstance(value, str) else ""
    return f"{_origin(key, origins)}: {key + position!r} must be {expected}, not {value!r:.80}.{near}".removesuffix(".")


def _of_group(group: str, told: str, origins: Mapping[str, str]) -> str:
    """A complaint about keys of a group together, with the files that set those it names, else any of the group."""
    own = {key: origin for key, origin in origins.items() if not group or key.startswith(f"{group}.")}
    named = [origin for key, origin in own.items() if re.search(rf"\b{key.rpartition('.')[2]}\b", told)]
    files = list(dict.fromkeys(named or own.values()))
    subject = f"{group}: {told}" if group not in told else told
    return f"{', '.join(files)}: {subject}" if files else told


def _expected(problem: Any) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in COMPARISONS:
        limit = next(iter(context.values()))
        return f"{COMPARISONS[kind]} {limit if isinstance(limit, int) else format(limit, 'g')}"
    if kind == "missing":
        return "longer"
    if kind == "literal_error":
        return "one of " + context["expected"]
    if kind == "value_error":
        return str(context.get("error", problem["msg"]))
    name = next((name for name in EXPECTED if kind.startswith(name)), None)
    return EXPECTED[name] if name else problem["msg"]
