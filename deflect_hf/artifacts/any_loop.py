"""A result folder's configuration for a model that another training loop has made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from deflect_hf.artifacts.saved_model import check_bands
from deflect_hf.config.run import RunArguments
from deflect_hf.config.tasks import task_of
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.errors import ConfigError, listing
from deflect_hf.methods import HEAD, deflect_config, task_model, unwrapped
from deflect_hf.methods.builtin import Deflect
from deflect_hf.models.base import EncoderWithHead


def configuration_of(
    model: nn.Module,
    processor: MultispectralImageProcessor,
    *,
    window: int | None = None,
    class_values: Sequence[int] | None = None,
    **precision: bool,
) -> RunArguments:
    """What ``config.yaml`` has to say of a model, for it to be loaded, evaluated and mapped with like that of a run."""
    model = unwrapped(model)
    inner = task_model(model)
    if not isinstance(inner, EncoderWithHead):
        raise ConfigError(
            f"A {type(inner).__name__} cannot be saved as a result folder: make the model with deflect_hf."
            "EncoderForSemanticSegmentation.from_encoder, or EncoderForImageClassification, and deflect_hf.adapt."
        )
    check_bands(model, processor, needed=False)
    name, settings = str(inner.encoder.name_or_path or ""), inner.config
    finetune, revision = "full", None
    method: dict[str, Any] = {}
    if isinstance(model, PeftModel):
        finetune, method, revision = _adapter_of(model)
        if not name:
            raise ConfigError(
                "The encoder has no name, by which the adapter would find it again: load it with from_pretrained, or "
                "save it once, encoder.save_pretrained(FOLDER), and set encoder.name_or_path = FOLDER."
            )
    adapter = deflect_config(model)
    means = adapter if adapter is not None and adapter.bands else settings
    encoder: dict[str, Any] = {"name_or_path": name, "revision": revision}
    if not name:
        encoder = {"random": {"model_type": inner.encoder.config.model_type}}
    if means.base_mean is not None and means.base_std is not None:
        encoder |= {"mean": [float(value) for value in means.base_mean], "std": [*map(float, means.base_std)]}
    if getattr(inner.encoder.config, "position_embedding", None) == "sincos_gsd":
        encoder["gsd"] = inner.encoder.config.gsd
    if base_bands := means.base_bands or settings.selected_base_bands:
        encoder["base_bands"] = list(base_bands)
    task = task_of(settings.model_type, settings.problem_type)
    data: dict[str, Any] = {"name": "python", "task": task.name, "bands": list(processor.bands)}
    data["source_bands"] = list(processor.source_bands or processor.bands)
    if task.output == "value":
        data |= {"target": settings.id2label[0], "target_unit": settings.target_unit}
    else:
        data["classes"] = [settings.id2label[number] for number in range(settings.num_labels)]
        data["class_values"] = None if class_values is None else list(class_values)
    return RunArguments.from_values(
        {
            "finetune": finetune,
            "method": method,
            "encoder": encoder,
            "dataset": data,
            "segmentor": {"head": settings.head, "window": window if task.dense else None},
            **precision,
        },
        {},
    )


def in_another_folder(config: RunArguments | None, model: nn.Module) -> RunArguments | None:
    """The configuration of a run for a copy of its model elsewhere: it names the random encoder in the run's folder."""
    name = str(getattr(getattr(task_model(model), "encoder", None), "name_or_path", None) or "")
    if config is None or config.encoder.random is None or config.finetune == "full" or not name:
        return config
    return config.replace(encoder=config.encoder.replace(name_or_path=str(Path(name).resolve()), random=None))


def _adapter_of(model: PeftModel) -> tuple[str, dict[str, Any], str | None]:
    """Name and options of the method, and the encoder's revision."""
    if list(model.peft_config) != ["default"]:
        raise ConfigError(
            f"The model has the adapters {listing(model.peft_config)}: one of the name 'default' is saved. Fix: "
            "model.delete_adapter(NAME) for the others, or model.save_pretrained, which saves all of them."
        )
    adapter = model.peft_config["default"]
    if HEAD not in (getattr(adapter, "modules_to_save", None) or []):
        raise ConfigError(
            "The head is not saved with the adapter, and a model with another head predicts at random: give the PEFT "
            "configuration modules_to_save=['head'], or make the model with deflect_hf.adapt."
        )
    if deflect_config(model) is None:
        return f"peft:{type(adapter).__name__}", {}, adapter.revision
    return "deflect", {key: getattr(adapter, key) for key in Deflect.model_fields}, adapter.revision
