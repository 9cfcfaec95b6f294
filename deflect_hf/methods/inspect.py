"""What can be asked of a model: its layers, its bands, its adapter, its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

from peft import PeftModel
from torch import nn
from torch.optim.swa_utils import AveragedModel

from deflect_hf.models.base import EncoderWithHead
from deflect_hf.models.quantization import parameter_size
from deflect_hf.spectral.bands import Unit
from deflect_hf.spectral.selection import select_bands
from deflect_hf.tuners.deflect import DeflectConfig
from deflect_hf.tuners.deflect.architectures import block_layers, find_encoder, outermost_modules
from deflect_hf.tuners.mergeable import pattern

HEAD = "head"
HOLDERS = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)  # of a model, as their `module`
Target = Literal["qv", "qkvo", "all-linear"]
ENDINGS = {
    "qv": ("q_proj", "v_proj"),
    "qkvo": ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj"),
    # queries and the first layer, or both first layers, of the MLPs that the known architectures have
    "query+mlp": ("q_proj", "fc1", "up_proj", "gate_proj", "weights_in"),
}


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of torch.compile, of parallel training and of averages over its steps."""
    # of its own modules: a PeftModel hands on names that it lacks, to a compiled base, say
    while inner := model._modules.get("_orig_mod" if not isinstance(model, HOLDERS) else "module"):
        model = inner
    return model


def task_model(model: nn.Module) -> EncoderWithHead:
    """The task model inside a PEFT model, or the model itself."""
    model = unwrapped(model)
    return cast("EncoderWithHead", model.get_base_model() if isinstance(model, PeftModel) else model)


def deflect_config(model: nn.Module) -> DeflectConfig | None:
    """The configuration of the active DEFLECT adapter, None if the model has none."""
    model = unwrapped(model)
    config = model.peft_config.get(model.active_adapter) if isinstance(model, PeftModel) else None
    return config if isinstance(config, DeflectConfig) else None


def taken_bands(model: nn.Module) -> tuple[list[str] | None, Unit | None]:
    """Bands of `pixel_values` that a model takes, in order, and their unit; None where it does not say."""
    config = deflect_config(model)
    if config is not None and config.bands:
        return config.bands, config.unit
    settings = getattr(task_model(model), "config", None)
    return getattr(settings, "bands", None) or getattr(settings, "pixel_bands", None), None


def needed_bands(model: nn.Module) -> list[str]:
    """Bands without which an adapted model cannot work, by the images' names; the others may be all NaN.

    All of them for a head that reads them, or if a DEFLECT adapter was not trained with band dropout; else those that
    the encoder sees.
    """
    read_by_head = getattr(task_model(model).config, "pixel_bands", None)
    if read_by_head:
        return list(read_by_head)
    config = deflect_config(model)
    if config is not None and config.bands:
        return _named(config.bands, config.base_bands if config.band_dropout else config.bands)
    settings = task_model(model).config
    return _named(settings.bands, settings.encoder_bands)


def _named(bands: Sequence[str] | None, chosen: Sequence[str] | None) -> list[str]:
    """``chosen`` by the names of ``bands``, among which a single near-infrared band stands for either of the two."""
    if not bands or not chosen:
        return list(chosen or [])
    return [bands[position] for position in select_bands(bands, chosen)]


def further_bands(model: nn.Module) -> list[str]:
    """Bands that the model looks at besides its base bands."""
    config = deflect_config(model)
    if config is not None and config.bands:
        base = _named(config.bands, config.base_bands)
        return [band for band in config.bands if band not in base]
    return list(task_model(model).config.extra_bands or [])


def encoder_parameters(model: nn.Module) -> tuple[int, int]:
    """Trainable and total parameters of the encoder side: everything but the head (the paper's "< 1 %")."""
    named = [(name, p) for name, p in model.named_parameters() if f".{HEAD}." not in f".{name}"]
    return sum(p.numel() for _, p in named if p.requires_grad), sum(parameter_size(p) for _, p in named)


def patch_embedding_parameters(model: nn.Module) -> int:
    """How many of the trainable parameters of the encoder side belong to the patch embedding."""
    embedding = task_model(model).get_input_embeddings()
    return sum(parameter.numel() for parameter in embedding.parameters() if parameter.requires_grad)


def linear_layers(model: nn.Module, target: str) -> str:
    """A pattern of the linear layers that a target such as "qv" names in the blocks of the encoder.

    Raises:
        ArchitectureError: the model holds no encoder that is known.
    """
    names: Sequence[str] = block_layers(model, find_encoder(model), nn.Linear)
    if target in ENDINGS:
        names = [name for name in names if name.rpartition(".")[2] in ENDINGS[target]]
    return pattern(names)


def norms(model: EncoderWithHead) -> list[str]:
    """Names of the encoder's layer norms, the final one included."""
    modules = outermost_modules(model.encoder)
    return [f"encoder.{name}" for name, module in modules.items() if isinstance(module, nn.LayerNorm)]
