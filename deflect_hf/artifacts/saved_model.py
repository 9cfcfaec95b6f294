"""The result folder of a run (``best/``): all that evaluation needs besides the base encoder.

``adapter_config.json`` and ``adapter_model.safetensors`` (adapter and head; only ``head.safetensors`` for ``frozen``,
``model.safetensors`` for ``full``), ``config.json`` of the task model, ``preprocessor_config.json`` and
``config.yaml``. What resuming needs is in checkpoints, which are the training's own.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from deflect_hf.config.compose import load_config, to_yaml
from deflect_hf.config.run import RunArguments
from deflect_hf.config.tasks import MODEL_TYPES, TASKS, task_of
from deflect_hf.data.entries import check_entries
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.errors import CheckpointError, ConfigError, DeflectError, brief, listing
from deflect_hf.files import CONFIG as CONFIG
from deflect_hf.files import LOG, REPLACED
from deflect_hf.files import write_json as write_json
from deflect_hf.methods import needed_bands, taken_bands, task_model, trained_projection, unwrapped
from deflect_hf.models import EncoderForImageClassification, EncoderForSemanticSegmentation, load_encoder
from deflect_hf.models.base import EncoderWithHead
from deflect_hf.models.encoders import chosen_gsd, set_gsd
from deflect_hf.models.loading import refuse_broken_weights, refuse_new_weights
from deflect_hf.tuners.deflect.spectral_input import CONTRACT

logger = logging.getLogger(__name__)

RESULTS = "results.json"
ADAPTER = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
HEAD = "head.safetensors"
# what transformers reads first; the folder of a run that has ended holds them as well
DESCRIPTION = ("config.json", "preprocessor_config.json")
# what save_model writes, and PEFT's card of headings
SAVED = (ADAPTER, WEIGHTS, HEAD, "model.safetensors", *DESCRIPTION, CONFIG, "README.md")
PATCH_EMBEDDING = "patch_embedding."
ATTEMPTS = 20

Read = TypeVar("Read")


def save_model(
    folder: Path,
    model: nn.Module,
    config: RunArguments,
    processor: MultispectralImageProcessor,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a result folder: what was trained, and how images and model are to be set up for it.

    Args:
        weights: the model's tensors by name, where ``model`` itself holds only a share of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = unwrapped(model)
    inner = task_model(model)
    if isinstance(model, PeftModel):
        model.save_pretrained(folder, state_dict=weights)
    elif config.finetune == "full":
        inner.save_pretrained(folder, state_dict=weights, save_original_format=True)
    else:
        names = {module: name for name, module in inner.named_modules()}
        whole = inner.state_dict() if weights is None else weights
        tensors = {
            prefix + name: whole[f"{names[part]}.{name}"].contiguous()
            for prefix, part in _frozen_parts(inner, config).items()
            for name in part.state_dict()
        }
        save_file(tensors, folder / HEAD)
    settings = copy.copy(inner.config)
    settings.__dict__.pop("use_cache", None)  # transformers' Trainer sets it on every model, for those of language
    settings.save_pretrained(folder)
    saved = MultispectralImageProcessor.from_dict(processor.to_dict(), needed_bands=needed_bands(model))
    saved.save_pretrained(folder)
    (folder / CONFIG).write_text(to_yaml(config), encoding="utf-8")


def model_class(task: str) -> type[EncoderForImageClassification] | type[EncoderForSemanticSegmentation]:
    """The model of one of the tasks."""
    return EncoderForSemanticSegmentation if TASKS[task].dense else EncoderForImageClassification


def result_folder(folder: Path) -> Path:
    """The result folder that ``folder`` is, or holds as ``best/``."""
    of_run = [folder / "best", folder / ("best" + REPLACED)]
    for candidate in of_run if (folder / LOG).is_file() else [*of_run, folder]:
        if (candidate / CONFIG).is_file() and (candidate / "config.json").is_file():
            return candidate
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give the folder of a run, or its best/ folder.")
    raise CheckpointError(
        f"{folder} is no finished run: neither it nor its best/ folder holds {CONFIG} and config.json. "
        f"It holds {listing(sorted(entry.name for entry in folder.iterdir())[:20])}."
    )


def while_whole(folder: Path, load: Callable[[Path], Read]) -> Read:
    """``load(result_folder(folder))``; once more where a run put a better model there in the meantime."""
    for attempt in range(ATTEMPTS):
        before = None
        try:
            found = result_folder(folder)
            before = _identity(found)
            loaded = load(found)
            if _identity(found) == before:
                return loaded
        except (DeflectError, OSError):
            same = before is not None and found.is_dir() and _identity(found) == before
            if same or attempt == ATTEMPTS - 1 or not (folder.name == "best" or any(folder.glob("best*"))):
                raise
        time.sleep(0.01)
    raise CheckpointError(f"{folder}: a run replaces its best model each time it is read: try again")


def _identity(folder: Path) -> tuple[int, int]:
    # A file system gives the number of a removed folder to the next one: its time tells them apart.
    found = folder.stat()
    return found.st_ino, found.st_mtime_ns


def read_config(folder: Path) -> RunArguments:
    """The resolved configuration of a result folder."""
    return load_config(RunArguments, folder / CONFIG)


def read_results(folder: Path) -> dict[str, Any]:
    """What is known of a result folder's scores: nothing where it holds none."""
    path = folder / RESULTS
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON ({brief(error)}): copy it again, or remove it.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no scores: copy it again, or remove it.")
    return found


def encoder_source(folder: Path, config: RunArguments) -> str:
    """Where the base encoder of a result folder lies: the Hub id or folder of its configuration.

    A random encoder was written beside the results; a folder that moved with its run is found there too.
    """
    if config.encoder.name_or_path is not None:
        return config.encoder.name_or_path
    beside = [folder / "encoder", folder.parent / "encoder", folder.parent.parent / "encoder"]
    found = next((path for path in beside if (path / "config.json").is_file()), None)
    if found is None:
        raise CheckpointError(
            f"{folder}: the run adapted a random encoder, which was saved as 'encoder' in the run's folder and is "
            "missing there. Fix: copy it beside the results, or give --encoder FOLDER."
        )
    return str(found)


def load_model(folder: Path, config: RunArguments, encoder: str | PreTrainedModel | None = None) -> nn.Module:
    """The trained model of a result folder, in evaluation mode, on the CPU or where a given encoder lies.

    Args:
        encoder: Hub id or folder of the base encoder, where it is not found as the run's configuration says; or the
            loaded base encoder, which is taken over, not copied.
    """
    from transformers import AutoConfig

    if config.finetune == "full":
        kind = model_class(_task(folder))
        model, report = reading(folder, lambda: kind.from_pretrained(folder, output_loading_info=True))
        refuse_new_weights(report["missing_keys"], str(folder))
        refuse_broken_weights(model, str(folder))
        return model.eval()
    if not isinstance(encoder, PreTrainedModel):
        source = encoder if encoder is not None else encoder_source(folder, config)
        revision = config.encoder.revision if encoder is None else None
        encoder = load_encoder(source, revision=revision, quantization=config.encoder.quantization)
    set_gsd(encoder, chosen_gsd(config.encoder, gsd_m=None))
    model_config = reading(folder / "config.json", lambda: AutoConfig.from_pretrained(folder))
    model = reading(folder / "config.json", lambda: model_class(_task(folder))(model_config, encoder))
    if config.finetune == "frozen":
        parts = _frozen_parts(model, config)
        own = {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.state_dict().items()}
        stored = reading(folder / HEAD, lambda: load_file(folder / HEAD))
        refuse_unfit(folder / HEAD, own)
        for name, tensor in own.items():
            tensor.copy_(stored[name])
        return model.eval()
    return _load_adapter(model, folder).eval()


def _frozen_parts(model: EncoderWithHead, config: RunArguments) -> dict[str, nn.Module]:
    """What ``frozen`` trains, by the prefix of its tensors in ``head.safetensors``; the head's have none."""
    wide = config.method.get("patch_embed", "frozen") != "frozen"
    return {**({PATCH_EMBEDDING: trained_projection(model)} if wide else {}), "": model.head}


def load_processor(folder: Path, model: nn.Module) -> MultispectralImageProcessor:
    """The processor of a result folder, which reads images as ``model``, of the same folder, takes them."""
    path = folder / "preprocessor_config.json"
    reading(path, lambda: check_entries(path, json.loads(path.read_text(encoding="utf-8"))))
    processor: MultispectralImageProcessor = reading(path, lambda: MultispectralImageProcessor.from_pretrained(folder))
    try:
        check_bands(model, processor)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error} Fix: put the file back that was saved with it.") from error
    return processor


def check_bands(model: nn.Module, processor: MultispectralImageProcessor, *, needed: bool = True) -> None:
    """Refuse (ConfigError) a processor that gives a model other bands than it takes, or lets images lack `needed`."""
    bands, unit = taken_bands(model)
    unit, needs = unit or processor.unit, needed_bands(model) if needed else []
    if not bands:
        raise ConfigError(
            "The model does not say which bands it takes. Fix: deflect_hf.adapt, model.set_bands([...]), or "
            "DeflectConfig(bands=[...])."
        )
    if (processor.bands, processor.unit) != (bands, unit) or not {*needs} <= {*processor.needed_bands}:
        raise ConfigError(
            f"the processor gives the bands {listing(processor.bands)} in {processor.unit}, of which every image must "
            f"have {listing(processor.needed_bands)}; but the model takes {listing(bands)} in {unit} and needs "
            f"{listing(needs or bands)}."
        )


def _task(folder: Path) -> str:
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind, problem_type = settings.get("model_type"), settings.get("problem_type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: cannot be read: {brief(error)}") from error
    if kind not in MODEL_TYPES:
        raise CheckpointError(f"{folder / 'config.json'}: describes a {kind!r}, not a model that was trained here")
    return task_of(kind, problem_type).name


def reading(path: Path, load: Callable[[], Read]) -> Read:
    """Run ``load``; whatever the libraries raise for a missing, truncated or foreign file becomes a CheckpointError."""
    try:
        return load()
    except CheckpointError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, DeflectError) else brief(error)
        raise CheckpointError(f"{path}: cannot be loaded: {reason}") from error


def refuse_unfit(path: Path, expected: Mapping[str, Tensor]) -> None:
    """Refuse stored tensors that are not those of the model: what is missing or left over is passed by silently.

    Args:
        expected: the model's tensors by their names in the file.
    """
    stored = load_file(path)
    for name, tensor in stored.items():
        own = expected.get(name)
        if own is None:
            raise CheckpointError(f"{path} holds {name!r}, which the model has no place for: it is of another model")
        if name.endswith("_extra_state"):
            continue  # which its module has judged, that of earlier versions too
        if tensor.shape != own.shape or tensor.is_floating_point() != own.is_floating_point() or tensor.is_complex():
            raise CheckpointError(
                f"{path}: {name!r} is {tensor.dtype} {list(tensor.shape)}, in the model {own.dtype} {list(own.shape)}"
            )
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{path}: {name!r} holds NaN or infinity: copy the file again, or train again")
    missing = sorted(expected.keys() - stored.keys())
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} tensors of the model, first {listing(missing[:2])}: copy the file again"
        )


def _load_adapter(model: nn.Module, folder: Path) -> PeftModel:
    """``model`` with the adapter in ``folder``, whole."""
    settings = reading(folder / ADAPTER, lambda: PeftConfig.from_pretrained(str(folder)))
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder / WEIGHTS} is missing: copy the folder again")

    written = reading(folder / ADAPTER, lambda: json.loads((folder / ADAPTER).read_text(encoding="utf-8")))
    unknown = sorted(written.keys() - {field.name for field in dataclasses.fields(settings)})
    if unknown:
        raise CheckpointError(
            f"{folder / ADAPTER}: {listing(unknown[:4])} is no entry of {settings.peft_type}, and would do nothing: "
            "put the file back that was saved with the weights, or use the versions that saved it."
        )
    stated = settings.to_dict()

    def load() -> PeftModel:
        try:
            return PeftModel.from_pretrained(model, str(folder), config=settings)
        except CheckpointError as error:
            raise CheckpointError(f"{folder / WEIGHTS}: {error}") from error
        except DeflectError as error:
            raise CheckpointError(f"{folder / ADAPTER}: does not fit the model: {error}") from error

    adapted = reading(folder / WEIGHTS, load)
    refuse_unfit(folder / WEIGHTS, get_peft_model_state_dict(adapted, save_embedding_layers=False))
    trained = adapted.peft_config[adapted.active_adapter].to_dict()
    edited = [name for name in CONTRACT if name in stated and stated[name] != trained[name]]
    if edited:
        raise CheckpointError(
            f"{folder / ADAPTER}: {listing(edited)} are not those that the weights in {WEIGHTS} were trained with. "
            "Fix: put the file back that was saved with them."
        )
    return adapted
