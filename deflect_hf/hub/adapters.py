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

from deflect_hf.errors import CheckpointError
from deflect_hf.hub.safety import check_keys, is_path, needs_code, read_json, walk
from deflect_hf.tuners.deflect import DeflectConfig

LIBRARIES = re.compile(r"(?:deflect_hf|transformers)(?:\.\w+)*")
MAX_FORMULAS = 600
MAX_PATTERN = 500
MAX_NUMBER = 65_536
RANKS = ("r", "rank", "aux_dim")
# Methods that load further adapters or model files by name when they are built.
REFUSED_METHODS = ("XLORA", "CPT", "ADAPTION_PROMPT", "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING")
MODULE_NAMES = ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save")
# Text and lists that a method needs; every other entry is a number, a switch, or as the method's defaults have it.
FREE_KEYS = (*MODULE_NAMES, "layers_to_transform", "base_model_name_or_path", "revision", "peft_type", "peft_version",
             "auto_mapping")  # fmt: skip


def check_adapter(path: Path, width: int) -> dict[str, Any]:
    """The entries of ``adapter_config.json``, checked before PEFT makes anything of them.

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
    check_keys(path, entries, {item.name for item in dataclasses.fields(schema)}, kind)
    mapping = entries.get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    if mapping is not None and not (isinstance(library, str) and LIBRARIES.fullmatch(library)):
        raise CheckpointError(needs_code(path, "auto_mapping"))
    for key, value, _ in walk(entries):
        if key.partition(".")[0] not in ("base_model_name_or_path", "formulas") and is_path(value):
            raise CheckpointError(f"{path}: {key} is {value!r:.80}: a path of some machine has no place here.")
        if isinstance(value, int):
            _check_number(path, key, value, schema, width)
    for key in MODULE_NAMES:
        _check_names(path, key, entries.get(key))
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
    least = 1 if schema is DeflectConfig else 0  # OFT has r = 0 where it is given the size of its blocks
    if type(value) is not int or not least <= value <= max(width, known):
        raise CheckpointError(f"{path}: {key} is {value!r:.80}; a whole number up to the encoder's width {width}.")


def _check_names(path: Path, key: str, value: Any) -> None:
    """Names of modules, or a regular expression that cannot run for ages."""
    if isinstance(value, str):
        slow = re.search(r"\)\s*[*+{]|\\[1-9]|\(\?P?[=<!]", value) or len(re.findall(r"[*+{]", value)) > 8
        if slow or len(value) > MAX_PATTERN:
            raise CheckpointError(f"{path}: {key} is a pattern that may take for ever to match: {value!r:.80}.")
    elif value is not None and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise CheckpointError(f"{path}: {key} must be names of modules or one pattern, not {value!r:.80}.")


def _check_deflect(path: Path, entries: Mapping[str, Any]) -> None:
    formulas = entries.get("formulas")
    if isinstance(formulas, dict) and len(formulas) > MAX_FORMULAS:
        raise CheckpointError(f"{path}: {len(formulas)} formulas; {MAX_FORMULAS} are the most.")
    if entries.get("bands") is not None and formulas is None:
        raise CheckpointError(f"{path}: formulas are not written out, as every saved adapter has them.")
    hints = typing.get_type_hints(DeflectConfig)
    for key in DeflectConfig.__annotations__.keys() & entries.keys():
        try:
            TypeAdapter(hints[key]).validate_python(entries[key], strict=True)
        except ValidationError:
            expected = DeflectConfig.__annotations__[key]
            raise CheckpointError(f"{path}: {key} must be {expected}, not {entries[key]!r:.80}.") from None
    DeflectConfig(**entries)


def _check_method(path: Path, entries: Mapping[str, Any], schema: type[PeftConfig]) -> None:
    """Only numbers, switches and names of modules may differ from what the method does by default."""
    missing = dataclasses.MISSING
    factories = {item.name: item.default_factory for item in dataclasses.fields(schema)}
    defaults = {item.name: item.default for item in dataclasses.fields(schema)}
    defaults |= {name: factory() for name, factory in factories.items() if factory is not missing}
    for key, value in entries.items():
        default = defaults[key]
        number = type(value) in (int, float, bool) and (default is None or type(default) in (int, float, bool))
        if not (key in FREE_KEYS or number or value == default or not value):
            raise CheckpointError(
                f"{path}: {key} is {value!r:.80}; adapters from elsewhere are loaded with {default!r:.80} there only."
            )
