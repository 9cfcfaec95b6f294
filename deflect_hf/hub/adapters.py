"""What an ``adapter_config.json`` from elsewhere may say, checked before PEFT makes anything of it."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from pydantic import TypeAdapter, ValidationError

from deflect_hf.errors import CheckpointError, nearest
from deflect_hf.hub.safety import is_path, read_json, walk
from deflect_hf.tuners.deflect import DeflectConfig

# Entries through which a configuration makes transformers import or download something.
CODE_KEYS = ("auto_map", "custom_pipelines", "quantization_config", "trust_remote_code")
MAX_FORMULAS = 600
MAX_PATTERN = 500
MAX_NUMBER = 65_536
RANKS = ("r", "rank", "aux_dim")
# Methods that load further adapters or model files by name when they are built.
REFUSED_METHODS = ("XLORA", "CPT", "ADAPTION_PROMPT", "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING")
# Text and lists that a method needs; every other entry is a number, a switch, or as the method's defaults have it.
FREE_KEYS = ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern",
             "base_model_name_or_path", "revision", "peft_type", "peft_version", "auto_mapping")  # fmt: skip
LIBRARIES = re.compile(r"(?:deflect_hf|transformers)(?:\.\w+)*")


def refuse_unknown(path: Path, entries: Mapping[str, Any], known: set[str], kind: str) -> None:
    """Refuse entries that ``kind`` does not have (CheckpointError)."""
    for key in entries:
        if key in CODE_KEYS:
            raise CheckpointError(needs_code(path, key))
        if key not in known:
            raise CheckpointError(f"{path}: unknown entry {key!r:.80} for {kind}.{nearest(key, known)}")


def needs_code(path: Path, key: str) -> str:
    """The sentence about an entry that asks for foreign code."""
    return (
        f"{path}: {key!r} asks for code that is not part of transformers, PEFT or deflect_hf (trust_remote_code): it "
        "is not run. Use a model that transformers builds by itself."
    )


def check_adapter(path: Path, width: int) -> dict[str, Any]:
    """The entries of ``adapter_config.json``.

    Args:
        width: of the encoder; no rank is larger.

    Raises:
        CheckpointError: an unknown method or entry, a path, foreign code, a size beyond the encoder's.
        DeflectError: what the method's own configuration refuses, such as a formula.
    """
    entries = read_json(path)
    kind = entries.get("peft_type")
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING or kind in REFUSED_METHODS:
        raise CheckpointError(f"{path}: peft_type is {kind!r:.80}, which is no method that is loaded from elsewhere.")
    schema = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    refuse_unknown(path, entries, {item.name for item in dataclasses.fields(schema)}, kind)
    _check_mapping(path, entries.get("auto_mapping"))
    for key, value, _ in walk(entries):
        if key not in ("base_model_name_or_path", "formulas") and not key.startswith("formulas.") and is_path(value):
            raise CheckpointError(f"{path}: {key} is {value!r:.80}: a path of some machine has no place here.")
        if isinstance(value, int):
            _check_number(path, key, value, schema, width)
    for key in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save"):
        _check_pattern(path, key, entries.get(key))
    if schema is DeflectConfig:
        _check_deflect(path, entries)
    else:
        _check_method(path, entries, schema)
    return entries


def _check_number(path: Path, key: str, value: int, schema: type[PeftConfig], width: int) -> None:
    """Room is made for adapters by these numbers: ranks up to the encoder's width, others up to MAX_NUMBER."""
    default = getattr(schema, key, None)
    known = default if type(default) is int else 0  # VeRA has r = 256 whatever the width
    if key not in RANKS:
        if abs(value) > max(MAX_NUMBER, known):
            raise CheckpointError(f"{path}: {key[:80]} is {value}; numbers up to {MAX_NUMBER} are meant.")
        return
    least = 1 if schema is DeflectConfig else 0  # OFT has r = 0 where it is told the size of its blocks
    if type(value) is not int or not least <= value <= max(width, known):
        raise CheckpointError(f"{path}: {key} is {value!r:.80}; a whole number up to the encoder's width {width}.")


def _check_mapping(path: Path, mapping: Any) -> None:
    if mapping is None:
        return
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    if not isinstance(library, str) or not LIBRARIES.fullmatch(library):
        raise CheckpointError(needs_code(path, "auto_mapping"))


def _check_pattern(path: Path, key: str, value: Any) -> None:
    """Names of modules, or a regular expression that cannot run for ages."""
    if isinstance(value, str):
        slow = re.search(r"\)\s*[*+{]|\\[1-9]|\(\?P?[=<!]", value) or len(re.findall(r"[*+{]", value)) > 8
        if slow or len(value) > MAX_PATTERN:
            raise CheckpointError(f"{path}: {key} is a pattern that may take for ever to match: {value!r:.80}.")
    elif value is not None and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise CheckpointError(f"{path}: {key} must be names of modules or one pattern, not {value!r:.80}.")


def _check_deflect(path: Path, entries: Mapping[str, Any]) -> None:
    hints = typing.get_type_hints(DeflectConfig)
    formulas = entries.get("formulas")
    if isinstance(formulas, dict) and len(formulas) > MAX_FORMULAS:
        raise CheckpointError(f"{path}: {len(formulas)} formulas; {MAX_FORMULAS} are the most.")
    if entries.get("bands") is not None and formulas is None:
        raise CheckpointError(f"{path}: formulas are not written out, as every saved adapter has them.")
    for key in DeflectConfig.__annotations__.keys() & entries.keys():
        try:
            TypeAdapter(hints[key]).validate_python(entries[key], strict=True)
        except ValidationError:
            expected = DeflectConfig.__annotations__[key]
            raise CheckpointError(f"{path}: {key} must be {expected}, not {entries[key]!r:.80}.") from None
    DeflectConfig(**entries)


def _check_method(path: Path, entries: Mapping[str, Any], schema: type[PeftConfig]) -> None:
    """Only numbers, switches and names of modules may differ from what the method does by default."""
    defaults: dict[str, Any] = {}
    for item in dataclasses.fields(schema):
        factory = item.default_factory
        defaults[item.name] = item.default if factory is dataclasses.MISSING else factory()
    for key, value in entries.items():
        default = defaults.get(key)
        number = type(value) in (int, float, bool) and (default is None or type(default) in (int, float, bool))
        if key in FREE_KEYS or number or value == default or not value:
            continue
        raise CheckpointError(
            f"{path}: {key} is {value!r:.80}; adapters from elsewhere are loaded with {default!r:.80} there only."
        )
