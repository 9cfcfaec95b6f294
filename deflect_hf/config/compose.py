"""YAML files and command line -> one typed configuration.

Precedence, lowest first: the defaults of the dataclasses, the group files that the run's YAML names, the run's YAML,
the group files on the command line, the flags typed.
Every value remembers where it came from, so that an error names the file. pydantic checks the types; it was chosen
over jsonargparse and OmegaConf because it reports each error with its path, which lets us say it in plain words.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from deflect_hf.config.official import ALIASES, refuse_official_key
from deflect_hf.config.schema import check_types, leaves, parse_text
from deflect_hf.config.yaml import TYPED, read_yaml, yaml_text, yaml_value
from deflect_hf.errors import ConfigError, listing, nearest

GROUPS = ("encoder", "dataset", "segmentor", "augmentation")
MOST_LISTED = 12  # keys in a message; --help has them all
EXPONENTIAL = re.compile(r"-(?:\d+\.?\d*|\.\d+)[eE][+-]?\d{1,3}")

Config = TypeVar("Config")


@dataclass(frozen=True)
class Composed:
    """The merged values as nested mappings, and for each dotted key the file or command line that set it."""

    values: dict[str, Any]
    origins: dict[str, str]


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are :class:`ConfigError`, like all the others of the configuration."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting."""
        raise ConfigError(f"{TYPED}: {message}")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse, which takes negative numbers for values, but -1e-4 for a flag."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([_without_exponent(word) for word in words], namespace)


def _without_exponent(word: str) -> str:
    return f"{Decimal(word):f}" if EXPONENTIAL.fullmatch(word) and math.isfinite(float(word)) else word


def flatten(values: Mapping[str, Any], schema: type, origin: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted leaf keys and values of a nested mapping; a key the schema does not have is refused.

    Raises:
        ConfigError: naming ``origin``, the key and the nearest valid one.
    """
    known = {leaf.key: leaf for leaf in leaves(schema)}
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if dotted in ALIASES and ALIASES[dotted].key in known:
            yield ALIASES[dotted].key, ALIASES[dotted].value(value)
        elif dotted in known:
            yield dotted, value
        elif any(name.startswith(f"{dotted}.") for name in known):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{origin}: {dotted!r} holds several keys, not the single value {value!r:.80}")
            yield from flatten(value, schema, origin, prefix=f"{dotted}.")
        else:
            refuse_official_key(dotted, origin)
            depth = dotted.count(".") + 1
            siblings = dict.fromkeys(".".join(name.split(".")[:depth]) for name in known if name.startswith(prefix))
            valid = f" Valid keys: {listing(sorted(siblings))}" if len(siblings) <= MOST_LISTED else " All: --help"
            raise ConfigError(f"{origin}: unknown key {dotted!r}.{nearest(dotted, siblings)}{valid}")


def groups_of(schema: type) -> list[str]:
    """The groups of keys that a schema has and that files may hold."""
    beginnings = {leaf.key.partition(".")[0] for leaf in leaves(schema) if "." in leaf.key}
    return [group for group in GROUPS if group in beginnings]


def file_flags(schema: type) -> list[str]:
    """The flags that name YAML files: none for a schema without groups."""
    groups = groups_of(schema)
    return ["config", *(f"{group}_config" for group in groups)] if groups else []


def build_parser(schema: type, description: str) -> Parser:
    """A parser with one flag per leaf of ``schema`` plus the ones that name files."""
    parser = Parser(description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    files = parser.add_argument_group("configuration files (typed files win over --config, typed flags over all)")
    if "config" in file_flags(schema):
        files.add_argument("--config", metavar="YAML", help="the run: any key below, and the files of the groups")
        for group in groups_of(schema):
            files.add_argument(f"--{group}_config", metavar="YAML", help=f"keys of the group '{group}'")
    parser.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    known = {leaf.key: leaf for leaf in leaves(schema)}
    for name, alias in ALIASES.items():
        if alias.key in known:
            switch: dict[str, Any] = {"nargs": "?", "const": "true"} if known[alias.key].is_list else {}
            parser.add_argument(f"--{name}", default=argparse.SUPPRESS, metavar="VALUE", help=alias.help, **switch)
    sections: dict[str, Any] = {}
    for leaf in known.values():
        section = leaf.key.rpartition(".")[0] or "run"
        if section not in sections:
            sections[section] = parser.add_argument_group(section)
        boolean: dict[str, Any] = {"nargs": "?", "const": "true"} if leaf.is_flag else {}
        boolean = {"nargs": "+"} if leaf.is_list else boolean
        sections[section].add_argument(
            f"--{leaf.key}", default=argparse.SUPPRESS, metavar=leaf.metavar, help=leaf.help_text, **boolean
        )
    return parser


def typed_flags(arguments: Mapping[str, Any], rest: Sequence[str], schema: type) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of what was typed; ``rest`` may reach into mappings: ``--method.rank 8``."""
    known = {leaf.key: leaf for leaf in leaves(schema)}
    for key, text in arguments.items():
        if key in ALIASES:
            yield ALIASES[key].key, ALIASES[key].value(yaml_value(text, f"--{key}"))
        else:
            yield key, parse_text(text, known[key])
    words = list(rest)
    while words:
        flag, equals, text = words.pop(0).partition("=")
        key = flag.removeprefix("--")
        owner = next((leaf for leaf in known.values() if leaf.is_mapping and key.startswith(f"{leaf.key}.")), None)
        if not flag.startswith("--") or owner is None:
            refuse_official_key(key, TYPED)
            options = [*known, *ALIASES, *file_flags(schema), "print_config", "debug"]
            near = nearest(flag, [f"--{option}" for option in options])
            raise ConfigError(f"{TYPED}: unknown option {flag!r}.{near} All of them: --help")
        collected = [text] if equals else []
        while words and not equals and not words[0].startswith("--"):
            collected.append(words.pop(0))
        if not collected:
            raise ConfigError(f"{TYPED}: {flag} needs a value")
        yield key, yaml_value(collected[0], flag) if len(collected) == 1 else [yaml_value(t, flag) for t in collected]


def compose(schema: type, typed: Mapping[str, Any], rest: Sequence[str]) -> Composed:
    """Merge run file, group files and flags; a later layer replaces single keys of the earlier ones.

    A group's file that the run's file names comes before the run's own keys, which refine it; one that was typed
    comes after them.
    """
    flags = {key: value for key, value in typed.items() if key not in ("print_config", "debug")}
    paths = {name: flags.pop(name, None) for name in file_flags(schema)}
    layers: list[tuple[str, Any, str]] = []
    run, run_file = {}, Path()
    if paths.get("config") is not None:
        run_file = Path(paths["config"])
        run = read_yaml(run_file)
    for group in groups_of(schema):
        named, typed_file = run.pop(f"{group}_config", None), paths[f"{group}_config"]
        if named is not None and not isinstance(named, str):
            raise ConfigError(f"{run_file}: '{group}_config' must be the name of a file, not {named!r:.80}")
        if named is not None and typed_file is None:
            layers += read_group(group, run_file.parent / named, schema)
    layers += [(key, value, str(run_file)) for key, value in flatten(run, schema, str(run_file))]
    for group in groups_of(schema):
        if paths[f"{group}_config"] is not None:
            layers += read_group(group, Path(paths[f"{group}_config"]), schema)
    layers += [(key, value, TYPED) for key, value in typed_flags(flags, rest, schema)]
    return merge(layers)


def read_group(group: str, path: Path, schema: type) -> list[tuple[str, Any, str]]:
    """Dotted key, value and origin of each key in a group's file."""
    return [(key, value, str(path)) for key, value in flatten({group: read_yaml(path)}, schema, str(path))]


def merge(layers: Sequence[tuple[str, Any, str]]) -> Composed:
    """Nested values and origins of ``(dotted key, value, origin)`` triples, later ones winning."""
    composed = Composed({}, {})
    for key, value, origin in layers:
        *parents, last = key.split(".")
        target = composed.values
        for parent in parents:
            if not isinstance(target.get(parent), dict):
                target[parent] = {}
            target = target[parent]
        target[last] = dict(value) if isinstance(value, Mapping) else value
        composed.origins[key] = origin
    return composed


def parse_arguments(
    schema: type[Config],
    description: str,
    argv: Sequence[str] | None = None,
    check: Callable[[Config], None] | None = None,
) -> Config:
    """The configuration that the command line asks for, of type ``schema``.

    Args:
        check: refuses values that do not go together; what it lets pass is printed or returned.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, a missing or broken file.
        SystemExit: after ``--help`` and ``--print_config``.
    """
    parser = build_parser(schema, description)
    namespace, rest = parser.parse_known_args(argv)
    composed = compose(schema, {key: value for key, value in vars(namespace).items() if value is not None}, rest)
    config = check_types(schema, composed.values, composed.origins)
    if check is not None:
        check(config)
    if namespace.print_config:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def load_config(schema: type[Config], path: Path) -> Config:
    """The configuration that ``to_yaml`` wrote to ``path``.

    Raises:
        ConfigError: naming the file.
    """
    composed = merge([(key, value, str(path)) for key, value in flatten(read_yaml(path), schema, str(path))])
    try:
        return check_types(schema, composed.values, composed.origins)
    except ConfigError as error:
        raise error if str(path) in str(error) else ConfigError(f"{path}: {error}") from error


def to_yaml(config: Any) -> str:
    """All keys of a configuration as YAML, defaults included, in the order of the dataclasses."""
    return yaml_text(plain(config))


def plain(config: Any) -> dict[str, Any]:
    """All keys and values of a configuration as a YAML file has them, in the order of the dataclasses."""
    values: dict[str, Any] = _lists(dataclasses.asdict(config))
    return values


def _lists(value: Any) -> Any:
    """Tuples as lists, which YAML can spell."""
    if isinstance(value, Mapping):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value
