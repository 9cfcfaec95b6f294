"""What a published model's configurations say, checked before anything is built of them.

They may come from anybody. What the user of this machine trained may be all that transformers and PEFT take.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, TaskType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from pydantic import TypeAdapter, ValidationError
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel

from deflect_hf.artifacts import saved_model as checkpoints
from deflect_hf.artifacts.saved_model import model_class
from deflect_hf.config.run import RunArguments
from deflect_hf.config.tasks import MODEL_TYPES, task_of
from deflect_hf.data.entries import ProcessorEntries, check_entries
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.errors import CheckpointError, DeflectError, listing
from deflect_hf.hub import safety
from deflect_hf.hub.client import check_repo_id
from deflect_hf.methods import method_options
from deflect_hf.methods.adaptation import PeftMethod
from deflect_hf.models.encoders import encoder_config
from deflect_hf.models.loading import ENCODERS
from deflect_hf.models.rivals import PixelNetConfig, UNetConfig
from deflect_hf.tuners.deflect import DeflectConfig

REVISION = re.compile(r"(?!.*\.\.)[\w][\w./-]{0,199}")
# The largest published vision transformer (22 B parameters) has 48 blocks of width 6144.
LARGEST = {
    "num_hidden_layers": 128,
    "hidden_size": 16_384,
    "intermediate_size": 65_536,
    "image_size": 16_384,
    "levels": 10,
}
# The networks without an encoder, too, which a benchmark or --encoder.random.model_type trains from scratch.
KNOWN = (*ENCODERS, PixelNetConfig.model_type, UNetConfig.model_type)
MAX_CLASSES = 10_000
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


def check_own(folder: Path) -> RunArguments:
    """The configuration of a trained model on this machine, which no code from the Hub is run for (CheckpointError)."""
    path = folder / "config.json"
    encoder = safety.read_json(path).get("encoder_config")
    _refuse_kernels(path, encoder if isinstance(encoder, dict) else {}, "encoder_config.")
    return checkpoints.read_config(folder)


def check_plan(config: RunArguments) -> None:
    """Refuse (CheckpointError) a run whose model nobody else could load afterwards."""
    encoder = encoder_config(config.encoder)
    check_encoder(Path("encoder"), encoder.to_dict())
    options = method_options(config.finetune, config.method)
    if isinstance(options, PeftMethod):
        _check_fields(Path("method"), options.fields, options._schema, encoder.hidden_size)


def check_folder(folder: Path, *, published: bool) -> RunArguments:
    """Refuse a trained model whose files are not what they should be; returns its configuration.

    One that is ``published`` comes from the Hub: its encoder must be a repository there. A CheckpointError says what
    is dangerous or does not fit; a wrong entry has the error that it always has.
    """
    names = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    safety.check_trained_listing(str(folder), names)
    config = check_configs(folder, published=published)
    check_weights(folder, config)
    return config


def check_configs(folder: Path, *, published: bool) -> RunArguments:
    """The part of :func:`check_folder` that needs no weights."""
    width = check_task(folder / "config.json")
    check_processor(folder / "preprocessor_config.json")
    own_encoder, adapter = folder / safety.ENCODER / "config.json", folder / "adapter_config.json"
    if own_encoder.is_file():
        check_encoder(own_encoder, safety.read_json(own_encoder))
    entries = check_adapter(adapter, width) if adapter.is_file() else None
    safety.check_yaml(folder / checkpoints.CONFIG)
    config = checkpoints.read_config(folder)
    if published and config.finetune != "full" and config.encoder.name_or_path is not None:
        _check_source(folder / checkpoints.CONFIG, "encoder.name_or_path", config.encoder.model_dump())
    if config.finetune in ("frozen", "full"):
        return config
    if entries is None:
        raise CheckpointError(f"{adapter} is missing, but config.yaml says --finetune {config.finetune}.")
    if (config.finetune == "deflect") != (entries["peft_type"] == "DEFLECT"):
        raise CheckpointError(
            f"{adapter}: peft_type is {entries['peft_type']!r}, but config.yaml says --finetune {config.finetune}."
        )
    if published:
        _check_source(adapter, "base_model_name_or_path", entries)
        stated = entries.get("base_model_name_or_path") or None, entries.get("revision")
        if stated != (config.encoder.name_or_path, config.encoder.revision):  # PEFT reads one, we the other
            raise CheckpointError(
                f"{adapter} names the base {stated[0]!r} (revision {stated[1]!r}), config.yaml "
                f"{config.encoder.name_or_path!r} (revision {config.encoder.revision!r}): they must be the same."
            )
    return config


def _check_source(path: Path, key: str, entries: Mapping[str, Any]) -> None:
    """Refuse a base model that is no repository of the Hub, or a revision that can be none."""
    name, revision = entries.get(key.rpartition(".")[2]) or None, entries.get("revision")
    try:
        if name is not None and (not isinstance(name, str) or safety.is_path(name)):
            raise CheckpointError("not a name")
        if name is not None:
            check_repo_id(name)
    except DeflectError:
        raise CheckpointError(
            f"{path}: {key} is {name!r:.100}, which is no repository of the Hub (user/name): nothing is read from a "
            "path that somebody else chose."
        ) from None
    if revision is not None and not (isinstance(revision, str) and REVISION.fullmatch(revision)):
        raise CheckpointError(f"{path}: the revision {revision!r:.100} is no branch, tag or commit.")


def _refuse_kernels(path: Path, entries: Mapping[str, Any], prefix: str) -> None:
    """Refuse an attention that may name a kernel on the Hub, which would be downloaded and run (CheckpointError)."""
    for key, value in entries.items():
        if value and key.lstrip("_").startswith(("attn_implementation", "experts_impl")):
            raise CheckpointError(safety.needs_code(path, prefix + key))


def check_encoder(path: Path, entries: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse (CheckpointError) an encoder's configuration that needs foreign code, or is larger than any there is."""
    _refuse_kernels(path, entries, prefix)
    for key in entries:
        if key in safety.CODE_KEYS:
            raise CheckpointError(safety.needs_code(path, prefix + key))
    kind = entries.get("model_type")
    if kind not in KNOWN:
        raise CheckpointError(
            f"{path}: {prefix}model_type is {kind!r:.80}, which is none of the encoders that are loaded from the Hub: "
            f"{listing(KNOWN)}."
        )
    defaults = CONFIG_MAPPING[str(kind)]().to_dict()
    for key in {*LARGEST, *(name for name, value in defaults.items() if type(value) is int)} & entries.keys():
        values = entries[key] if isinstance(entries[key], list) else [entries[key]]
        limit = LARGEST.get(key, max(LARGEST.values()))
        fits = all(value is None or (type(value) is int and 0 <= value <= limit) for value in values)
        if len(values) > 3 or not fits:
            raise CheckpointError(
                f"{path}: {prefix}{key} is {entries[key]!r:.80}; a whole number up to {limit} is meant."
            )
    if type(entries.get("hidden_size")) is not int or type(entries.get("num_hidden_layers")) is not int:
        raise CheckpointError(f"{path}: {prefix}hidden_size and {prefix}num_hidden_layers must be whole numbers.")


def check_task(path: Path) -> int:
    """Check a task model's ``config.json``; returns the width of its encoder (CheckpointError)."""
    entries = safety.read_json(path)
    kind = entries.get("model_type")
    if kind not in [*MODEL_TYPES]:  # anything may stand there
        raise CheckpointError(f"{path}: model_type is {kind!r:.80}; {listing(MODEL_TYPES)} are loaded.")
    known = {item.name for item in dataclasses.fields(CONFIG_MAPPING[str(kind)])}
    safety.check_keys(path, entries, {*known, "model_type", "transformers_version", "_name_or_path"}, "a task model")
    encoder = entries.get("encoder_config")
    if not isinstance(encoder, dict):
        raise CheckpointError(f"{path}: encoder_config must describe the encoder, not be {encoder!r:.80}.")
    check_encoder(path, encoder, prefix="encoder_config.")
    classes, channels = entries.get("id2label"), entries.get("head_channels")
    if classes is not None and not (isinstance(classes, dict) and 0 < len(classes) <= MAX_CLASSES):
        raise CheckpointError(f"{path}: id2label must name 1 to {MAX_CLASSES} classes.")
    if not {*(classes or ())} <= {str(number) for number in range(len(classes or ()))}:
        raise CheckpointError(f"{path}: id2label must number its classes from 0.")
    if channels is not None and not (type(channels) is int and 0 < channels <= LARGEST["hidden_size"]):
        raise CheckpointError(f"{path}: head_channels is {channels!r:.80}; up to {LARGEST['hidden_size']} are meant.")
    return int(encoder["hidden_size"])


def check_processor(path: Path) -> None:
    """Refuse a ``preprocessor_config.json`` that is another processor's, of other types, or resizes beyond reason."""
    entries = safety.read_json(path)
    safety.check_keys(path, entries, {*ProcessorEntries.model_fields}, "preprocessor_config.json")
    check_entries(path, entries)
    try:
        MultispectralImageProcessor.from_dict(entries)
    except DeflectError as error:
        raise type(error)(f"{path}: {error}") from error


def check_adapter(path: Path, width: int) -> dict[str, Any]:
    """The entries of ``adapter_config.json``, checked before PEFT makes anything of them.

    A CheckpointError names an unknown method or entry, a path, foreign code, or a rank beyond the encoder's ``width``;
    what the method's own configuration refuses, such as a formula, has its own error.
    """
    entries = safety.read_json(path)
    kind = entries.get("peft_type")
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING or kind in REFUSED_METHODS:
        raise CheckpointError(f"{path}: peft_type is {kind!r:.80}, which is no method that is loaded from elsewhere.")
    schema = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    safety.check_keys(path, entries, {item.name for item in dataclasses.fields(schema)}, kind)
    mapping = entries.get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    if mapping is not None and not (isinstance(library, str) and LIBRARIES.fullmatch(library)):
        raise CheckpointError(safety.needs_code(path, "auto_mapping"))
    _check_fields(path, entries, schema, width)
    return entries


def _check_fields(path: Path, entries: Mapping[str, Any], schema: type[PeftConfig], width: int) -> None:
    """What the fields of a method's configuration may be."""
    for key, value, _ in safety.walk(entries):
        if key.partition(".")[0] not in ("base_model_name_or_path", "formulas") and safety.is_path(value):
            raise CheckpointError(f"{path}: {key} is {value!r:.80}: a path of some machine has no place here.")
        if isinstance(value, int):
            _check_number(path, key, value, schema, width)
    for key in MODULE_NAMES:
        _check_names(path, key, entries.get(key))
    if (task := entries.get("task_type")) not in [None, *TaskType]:
        raise CheckpointError(f"{path}: task_type is {task!r:.80}, which is none of PEFT's.")
    if schema is DeflectConfig:
        _check_deflect(path, entries)
    else:
        _check_method(path, entries, schema)


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
    defaults = {
        item.name: item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        for item in dataclasses.fields(schema)
    }
    for key, value in entries.items():
        default = defaults[key]
        number = type(value) in (int, float, bool) and (default is None or type(default) in (int, float, bool))
        if not (key in FREE_KEYS or number or value == default or not value):
            raise CheckpointError(
                f"{path}: {key} is {value!r:.80}; adapters from elsewhere are loaded with {default!r:.80} there only."
            )


def check_weights(folder: Path, config: RunArguments) -> None:
    """Refuse weights that are broken or smaller than what the configuration would make room for (CheckpointError)."""
    encoder = folder / safety.ENCODER
    if (encoder / "config.json").is_file():
        check_encoder_weights(encoder)
    model = _without_weights(folder, lambda task: model_class(task_of(task.model_type, None).name)(task))
    if config.finetune == "full":
        _check_count(folder, model, _model_files(folder))
        return
    name = "head.safetensors" if config.finetune == "frozen" else "adapter_model.safetensors"
    _check_count(folder, model.head, [folder / name])


def check_encoder_weights(folder: Path) -> None:
    """The same for an encoder's folder."""
    model = _without_weights(folder, AutoModel.from_config)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # no head reads it, and many checkpoints lack it
    _check_count(folder, model, _model_files(folder))


def _without_weights(folder: Path, build: Callable[[Any], Any]) -> Any:
    """The model that ``config.json`` describes (CheckpointError: it cannot be built)."""
    with torch.device("meta"):
        return checkpoints.reading(folder / "config.json", lambda: build(AutoConfig.from_pretrained(folder)))


def _model_files(folder: Path) -> list[Path]:
    return sorted(path for pattern in safety.MODEL_WEIGHTS[::2] for path in folder.glob(pattern))


def _check_count(folder: Path, model: torch.nn.Module, files: list[Path]) -> None:
    needed = sum(parameter.numel() for parameter in model.parameters())
    stored = sum(math.prod(shape) for shape in safety.tensor_shapes(files).values())
    if needed > stored:
        raise CheckpointError(
            f"{folder}: the configuration describes {needed:,} weights, but only {stored:,} are stored: it is "
            "incomplete, or was changed."
        )
