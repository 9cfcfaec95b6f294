"""YAML from a file or a flag: strict, bounded, and with complaints in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from deflect_hf.errors import ConfigError, listing

TYPED = "the command line"
MERGE = "tag:yaml.org,2002:merge"
MAX_DEPTH = 32
MAX_VALUES = 100_000
MAX_BYTES = 10_000_000
# Numbers as YAML 1.2 has them: PyYAML follows 1.1, where 1e-6 is text, 12:30 is 750, and 010 is 8.
FIRST = list("-+.0123456789")
FLOAT_TAG, INT_TAG = "tag:yaml.org,2002:float", "tag:yaml.org,2002:int"
FLOAT = (FLOAT_TAG, re.compile(r"[-+]?(\.\d+|\d+\.\d*|\d+(?=[eE]))([eE][-+]?\d+)?$"), FIRST)
NOT_FINITE = (FLOAT_TAG, re.compile(r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"), FIRST)
INT = (INT_TAG, re.compile(r"([-+]?(0|[1-9][\d_]*)|0x[\da-fA-F]+)$"), FIRST)
BROKEN = (yaml.YAMLError, TypeError, ValueError, RecursionError)


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML whose duplicate keys are errors: plain PyYAML silently keeps the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping node as a dict, unless a key repeats."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == MERGE:
                continue  # `<<`: keys of another mapping, which those given here replace
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class Dumper(yaml.SafeDumper):
    """Writes what :class:`UniqueKeyLoader` reads: text that it would take for a number is quoted."""


UniqueKeyLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in (FLOAT_TAG, INT_TAG)]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for number in (FLOAT, NOT_FINITE, INT):
    UniqueKeyLoader.add_implicit_resolver(*number)
Dumper.add_implicit_resolver(*FLOAT)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)  # of a device, more would never end
        too_large = len(text) > MAX_BYTES
        content = None if too_large else yaml.load(text.decode("utf-8"), Loader=UniqueKeyLoader)
    except FileNotFoundError:
        known = sorted(file.name for file in path.parent.glob("*.yaml"))
        raise ConfigError(f"{path}: no such file. In that folder: {listing(known)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no text in UTF-8 (byte {error.start + 1}): save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except BROKEN as error:
        raise ConfigError(f"{path}: not valid YAML: {_in_one_line(error)}") from error
    if too_large:
        raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes, as no configuration is: give a YAML file")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines, found {type(content).__name__}")
    odd = [key for key in content if not isinstance(key, str)]
    if odd:
        raise ConfigError(f"{path}: the key {odd[0]!r:.80} is no text: expected 'key: value' lines")
    _refuse_endless(content, str(path))
    return content


def yaml_text(values: Any) -> str:
    """Nested mappings, lists and values as YAML, in their order."""
    return str(yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120))


def yaml_value(text: str, flag: str) -> Any:
    """What a YAML file would read from the text after a flag: numbers, lists, null, text."""
    try:
        value = yaml.load(text, Loader=UniqueKeyLoader)
    except BROKEN as error:
        raise ConfigError(f"{TYPED}: {flag}: cannot read {text!r:.80}: {_in_one_line(error)}") from error
    _refuse_endless(value, f"{TYPED}: {flag}")
    return value


def _in_one_line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        where = f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: "
        return where + "; ".join(" ".join(part.split()) for part in (error.context, error.problem) if part)
    return " ".join(str(error).split()).replace('in "<unicode string>", ', "")


def _refuse_endless(content: Any, origin: str) -> None:
    """Refuse what aliases (``*name``) make endless or larger than any configuration; shared parts count each time."""
    waiting, seen = [(content, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if depth > MAX_DEPTH or seen > MAX_VALUES:
            what = f"is nested more than {MAX_DEPTH} levels deep" if depth > MAX_DEPTH else "holds too many values"
            raise ConfigError(f"{origin}: {what} (is a value within itself, through *name?): write it out")
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            raise ConfigError(f"{origin}: {value!r:.80} holds half a character (a lone surrogate): write it in full")
        parts = (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
        waiting += [(part, depth + 1) for part in parts]
