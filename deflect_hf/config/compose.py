"""YAML files and command line -> one typed configuration.

Precedence, lowest first: the defaults, the group files that the run's YAML names, the run's YAML, the group files on
the command line, the flags typed. Every value remembers where it came from, so that an error names the file.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from deflect_hf.config.run import RunArguments
from deflect_hf.config.schema import Arguments, keys_of, unknown_key
from deflect_hf.config.yaml import TYPED, read_yaml, yaml_text, yaml_value
from deflect_hf.errors import ConfigError, listing, nearest
from deflect_hf.files import CONFIG, LOG

logger = logging.getLogger(__name__)

GROUPS = ("encoder", "dataset", "segmentor", "augmentation")
EXPONENTIAL = re.compile(r"-(?:\d+\.?\d*|\.\d+)[eE][+-]?\d{1,3}")
# Short names, and those of the official command line (run.py of pangaea-bench, 20 August to 16 September 2024) that are
# spelt otherwise here: the key, its value for a value of theirs, and the help.
ALIASES: Mapping[str, tuple[str, Callable[[Any], Any], str]] = {
    "limited_label": (
        "dataset.limited_label",
        lambda value: 1.0 if value == -1 else value,
        "short for --dataset.limited_label; -1: all labels",
    ),
    "lr": ("segmentor.optimizer.lr", lambda value: value, "short for --segmentor.optimizer.lr"),
    "use_wandb": (
        "tracker",
        lambda value: value if not isinstance(value, bool) else ["wandb"] * value,
        "short for --tracker wandb",
    ),
}
LAUNCHER = ("rank", "local_rank", "world_size", "local_world_size")

Config = TypeVar("Config", bound=Arguments)
Layers = list[tuple[str, Any, str]]  # dotted key, value, and the file or command line that set it


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are :class:`ConfigError`, like all the others of the configuration."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting."""
        raise ConfigError(f"{TYPED}: {message}")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse, which takes negative numbers for values, but -1e-4 for a flag."""
        words = [
            f"{Decimal(word):f}" if EXPONENTIAL.fullmatch(word) and math.isfinite(float(word)) else word
            for word in (sys.argv[1:] if args is None else args)
        ]
        return super().parse_known_args(words, namespace)


def refuse_official_key(key: str, origin: str) -> None:
    """Say of a key of the official code that has no counterpart in a configuration what to do instead."""
    if key == "eval_dir":
        raise ConfigError(f"{origin}: 'eval_dir' evaluates a run that is trained: give it alone, without 'config'")
    if key in LAUNCHER:
        rank = " (the rank of an adapter is --method.rank)" if key == "rank" else ""
        raise ConfigError(
            f"{origin}: {key!r} is set by accelerate, leave it out: "
            f"accelerate launch --num_processes N train.py ...{rank}"
        )


def flatten(values: Mapping[str, Any], schema: type[Arguments], origin: str, prefix: str = "") -> Layers:
    """Dotted leaf keys and values of a nested mapping; a key the schema does not have is refused."""
    known, found = keys_of(schema), []
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if dotted in ALIASES and ALIASES[dotted][0] in known:
            found.append((ALIASES[dotted][0], ALIASES[dotted][1](value), origin))
        elif dotted in known:
            found.append((dotted, value, origin))
        elif any(name.startswith(f"{dotted}.") for name in known):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{origin}: {dotted!r} holds several keys, not the single value {value!r:.80}")
            found += flatten(value, schema, origin, prefix=f"{dotted}.")
        else:
            refuse_official_key(dotted, origin)
            raise ConfigError(f"{origin}: {unknown_key(dotted, schema)}")
    return refuse_two_values(found)


def refuse_two_values(layers: Layers) -> Layers:
    """Refuse a key that one file, or the command line, gives twice in two spellings, of which one would be lost."""
    given: dict[str, Any] = {}
    for key, value, origin in layers:
        parts = {f"{key}.{name}": part for name, part in value.items()} if isinstance(value, Mapping) else {key: value}
        for name, part in parts.items():
            if name in given and given[name] != part:
                raise ConfigError(
                    f"{origin}: {name!r} is given twice, in two spellings, as {given[name]!r:.80} and as {part!r:.80}: "
                    "give it once"
                )
            given[name] = part
    return layers


def groups_of(schema: type[Arguments]) -> list[str]:
    """The groups of keys that a schema has and that files may hold."""
    return [group for group in GROUPS if any(key.startswith(f"{group}.") for key in keys_of(schema))]


def build_parser(schema: type[Arguments], description: str) -> Parser:
    """A parser with one flag per leaf of ``schema`` plus the ones that name files."""
    parser = Parser(description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    files = parser.add_argument_group("configuration files (typed files win over --config, typed flags over all)")
    if groups_of(schema):
        files.add_argument(
            "--config", metavar="YAML", action="append", help="the run: any key below, and the files of the groups"
        )
    for group in groups_of(schema):
        files.add_argument(f"--{group}_config", metavar="YAML", action="append", help=f"keys of the group '{group}'")
    parser.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    known = keys_of(schema)
    for name, (key, _, text) in ALIASES.items():
        if key in known:
            switch: dict[str, Any] = {"nargs": "?", "const": "true"} if known[key].lists else {}
            parser.add_argument(f"--{name}", default=argparse.SUPPRESS, metavar="VALUE", help=text, **switch)
    sections: dict[str, Any] = {}
    for key, leaf in known.items():
        section = key.rpartition(".")[0] or "run"
        if section not in sections:
            sections[section] = parser.add_argument_group(section)
        switch = {"nargs": "?", "const": "true"} if bool in leaf.members else {}
        sections[section].add_argument(
            f"--{key}",
            default=argparse.SUPPRESS,
            metavar=key.rpartition(".")[2].upper(),
            help=f"{leaf.help} [{leaf.default_text}]".replace("%", "%%"),
            **({"nargs": "+"} if leaf.lists else switch),
        )
    return parser


def typed_flags(
    flags: Mapping[str, Any], words: list[str], parser: Parser, schema: type[Arguments]
) -> Iterator[tuple[str, Any]]:
    """Keys and values of what was typed; ``words`` may reach into mappings: ``--method.rank 8``."""
    known = keys_of(schema)
    reaching: dict[str, Any] = {}  # of one flag typed twice the last counts, as of all others
    for key, text in flags.items():
        if key in ALIASES:
            yield ALIASES[key][0], ALIASES[key][1](yaml_value(text, f"--{key}"))
        else:
            yield key, known[key].parse(text)
    while words:
        flag, equals, text = words.pop(0).partition("=")
        key = flag.removeprefix("--")
        if not flag.startswith("--") or not any(
            leaf.is_mapping and key.startswith(f"{leaf.key}.") for leaf in known.values()
        ):
            refuse_official_key(key, TYPED)
            near = nearest(flag, parser._option_string_actions)
            raise ConfigError(f"{TYPED}: unknown option {flag!r:.80}.{near} All of them: --help")
        collected = [text] if equals else []
        while words and not equals and not words[0].startswith("--"):
            collected.append(words.pop(0))
        if not collected:
            raise ConfigError(f"{TYPED}: {flag} needs a value")
        values = [yaml_value(word, flag) for word in collected]
        reaching[key] = values[0] if len(values) == 1 else values
    yield from reaching.items()


def config_file(name: str) -> Path:
    """The file of this name; outside of a clone, ``configs/...`` is the one that the package ships."""
    path, shipped = Path(name), Path(__file__).parents[1] / name
    return shipped if path.parts[:1] == ("configs",) and not path.exists() and shipped.is_file() else path


def file_layers(schema: type[Arguments], paths: Mapping[str, str]) -> Layers:
    """What the run's file and the files of the groups hold, later ones winning.

    A group's file that the run's file names comes before the run's own keys, which refine it; one that was typed
    comes after them.
    """
    run_file = config_file(paths.get("config", ""))
    run = read_yaml(run_file) if "config" in paths else {}
    if run_file.name == CONFIG and any((run_file.parent / name).is_file() for name in (LOG, "config.json")):
        for name in {"resume_from", "overwrite"} & run.keys():
            if value := run.pop(name):  # runs of older releases kept it
                logger.warning("%s: %s %s is of that run's own start, and ignored here", run_file, name, value)
    before: Layers = []
    after: Layers = []
    for group in groups_of(schema):
        named, typed = run.pop(f"{group}_config", None), paths.get(f"{group}_config")
        if named is not None and not isinstance(named, str):
            raise ConfigError(f"{run_file}: '{group}_config' must be the name of a file, not {named!r:.80}")
        if typed is not None:
            after += _group_layers(schema, group, config_file(typed))
        elif named is not None:
            before += _group_layers(schema, group, run_file.parent / named)
    return [*before, *flatten(run, schema, str(run_file)), *after]


def _group_layers(schema: type[Arguments], group: str, path: Path) -> Layers:
    """What a file says of a group: all of it, or that part of a run's own file."""
    values = read_yaml(path)
    if isinstance(values.get(group), dict):
        layers = file_layers(RunArguments, {"config": str(path)})  # also where a figure looks at the data set alone
        return [layer for layer in layers if layer[0].startswith(f"{group}.")]
    return flatten({group: values}, schema, str(path))


def merge(schema: type[Config], layers: Layers) -> Config:
    """The configuration of all layers, later ones winning."""
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key, value, origin in layers:
        *parents, last = key.split(".")
        target = merged
        for parent in parents:
            if not isinstance(target.get(parent), dict):
                target[parent] = {}
            target = target[parent]
        target[last] = dict(value) if isinstance(value, Mapping) else value
        origins[key] = origin
    return schema.from_values(merged, origins)


def parse_arguments(
    schema: type[Config], description: str, argv: Sequence[str] | None = None, named: Sequence[str] = ()
) -> Config:
    """The configuration that the command line asks for; its first word may be the run's YAML file.

    Args:
        named: keys whose values may be typed without their flags, in this order, before or after the others.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0].endswith((".yaml", ".yml")) and groups_of(schema):
        words.insert(0, "--config")
    parser = build_parser(schema, description)
    namespace, rest = parser.parse_known_args(words)
    flags = {key: value for key, value in vars(namespace).items() if value is not None}
    for key in named:
        words = list(itertools.takewhile(lambda word: not word.startswith("-"), rest))
        if words and key not in flags:
            flags[key] = words if keys_of(schema)[key].lists else words[0]
            del rest[: len(words) if keys_of(schema)[key].lists else 1]
    printed = flags.pop("print_config")
    del flags["debug"]
    names = ["config", *(f"{group}_config" for group in GROUPS)]
    typed_files = {name: list(dict.fromkeys(flags.pop(name))) for name in names if name in flags}
    for name, files in typed_files.items():
        if len(files) > 1:
            for file in files:
                read_yaml(config_file(file))  # one that is not there is the mistake to speak of
            raise ConfigError(
                f"{TYPED}: --{name} is given {len(files)} times, {listing(files)}, of which one would count: give one "
                "file; further keys go into it, or are flags"
            )
    paths = {name: files[0] for name, files in typed_files.items()}
    typed = [(key, value, TYPED) for key, value in typed_flags(flags, rest, parser, schema)]
    config = merge(schema, [*file_layers(schema, paths), *refuse_two_values(typed)])
    if printed:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def load_config(schema: type[Config], path: Path) -> Config:
    """The configuration that ``to_yaml`` wrote to ``path``."""
    try:
        return merge(schema, flatten(read_yaml(path), schema, str(path)))
    except ConfigError as error:
        raise error if str(path) in str(error) else ConfigError(f"{path}: {error}") from error


def to_yaml(config: Arguments) -> str:
    """All keys of a configuration as YAML, defaults included, in their order."""
    return yaml_text(plain(config))


def plain(config: Arguments) -> dict[str, Any]:
    """All keys and values of a configuration as a YAML file has them, in their order."""
    return config.model_dump(mode="json")
