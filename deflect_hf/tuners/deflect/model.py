"""[`DeflectModel`]: injects DEFLECT into a vision transformer, and refuses what DEFLECT cannot do."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import torch
from peft.tuners import tuners_utils
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from deflect_hf.errors import (
    ArchitectureError,
    BandError,
    ConfigError,
    DataError,
    UnitError,
    UnsupportedOperationError,
)
from deflect_hf.tuners.base import Tuner
from deflect_hf.tuners.deflect.architectures import Encoder, find_encoder, outermost_modules
from deflect_hf.tuners.deflect.config import DeflectConfig
from deflect_hf.tuners.deflect.layer import (
    CANNOT_MERGE,
    DeflectBlock,
    DeflectEmbeddings,
    DeflectLayer,
    DeflectNorm,
    install_positions,
    uninstall_positions,
)
from deflect_hf.tuners.deflect.spectral_input import OTHER_BASE

logger = logging.getLogger(__name__)

SAMPLES = 16  # values of each tensor in a fingerprint, evenly spread
WRAPPER_INFIX = re.compile(r"(?<![^.])_(?:fsdp|checkpoint)_wrapped_module\.")


class DeflectModel(Tuner):
    """Adapts an RGB vision transformer to multispectral images by embedding deflection.

    Source: arXiv 2503.09493; the equations are this project's definition (README, "The method").

    Example:
        ```py
        >>> import deflect_hf
        >>> from peft import get_peft_model
        >>> from transformers import ViTModel

        >>> base = ViTModel.from_pretrained("google/vit-base-patch16-224")
        >>> config = deflect_hf.DeflectConfig(bands=["B", "G", "R", "N", "S1", "S2"])
        >>> model = get_peft_model(base, config)
        >>> model.print_trainable_parameters()
        ```
    """

    prefix: str = "deflect_"
    tuner_layer_cls = DeflectLayer

    def _prepare_adapter_config(self, peft_config: DeflectConfig, model_config: dict) -> DeflectConfig:
        """Find the encoder and refuse what does not fit it, before anything in the model is touched."""
        encoder = find_encoder(self.model)
        if peft_config.target_modules not in (None, encoder.target_modules):
            raise ConfigError(
                f"target_modules={peft_config.target_modules!r} does not fit this {type(self.model).__name__}: DEFLECT "
                "adapts its embeddings and all its blocks. Either the adapter was made for another architecture, or "
                "target_modules was given by hand: leave it None, and choose blocks with layers_to_transform."
            )
        if peft_config.aux_dim is None:
            peft_config.aux_dim = encoder.default_aux_dim
        if peft_config.aux_dim % encoder.num_heads or peft_config.aux_dim > encoder.hidden_size:
            raise ConfigError(
                f"aux_dim={peft_config.aux_dim} must be a multiple of the {encoder.num_heads} attention heads and at "
                f"most the hidden size {encoder.hidden_size}."
            )
        if peft_config.base_bands is not None and len(peft_config.base_bands) != encoder.num_channels:
            raise BandError(
                f"The patch embedding takes {encoder.num_channels} channels, but base_bands names "
                f"{len(peft_config.base_bands)}: {peft_config.base_bands}. Fix: name the bands it was pretrained on."
            )
        self._refuse_saved_parts(peft_config, encoder)
        encoder.targeted_blocks(peft_config.layers_to_transform)
        peft_config.target_modules = encoder.target_modules
        self._name_other_sizes(peft_config, encoder)
        fingerprint = base_fingerprint(self.model, encoder)
        if None not in (pair := {fingerprint, peft_config.base_fingerprint}) and len(pair) > 1:
            logger.warning(OTHER_BASE)
        if peft_config.base_fingerprint is None or not peft_config.inference_mode:
            peft_config.base_fingerprint = fingerprint
        return peft_config

    def _refuse_saved_parts(self, peft_config: DeflectConfig, encoder: Encoder) -> None:
        """What PEFT cannot train in full: a wrapped module, what lies right inside one, a name that reaches beyond."""
        wrapped = (encoder.embeddings, *encoder.blocks, encoder.between or encoder.embeddings)
        for name in (name.replace(".base_layer", "") for name, _ in self.model.named_modules()):
            outer = next((one for one in wrapped if f"{name}.".startswith(f"{one}.")), None)
            inside = name[len(outer) + 1 :] if outer is not None else ""
            for saved in peft_config.modules_to_save or ():
                if outer is not None and name.endswith(saved) and ("." not in inside or len(saved) > len(inside)):
                    raise ConfigError(
                        f"modules_to_save={saved!r} stands for {name!r}, at the edge of what DEFLECT wraps, where PEFT "
                        "cannot train it in full. Fix: name what lies deeper in a block (q_proj, fc1, ...) by its last "
                        "part, or outside of the blocks (the last norm, the head)."
                    )

    def _name_other_sizes(self, peft_config: DeflectConfig, encoder: Encoder) -> None:
        """Refuse an encoder whose weights are of another width than the stored ones, warn of other sizes."""
        own, theirs = encoder.sizes, peft_config.base_sizes
        known = theirs if isinstance(theirs, dict) else {}  # it may come from a file that anybody wrote
        differing = [name for name in own if known.get(name, own[name]) != own[name]]
        text = ", ".join(f"{name} {str(known[name])[:20]} (here {own[name]})" for name in differing)
        if "hidden_size" in differing and peft_config.inference_mode:
            raise ArchitectureError(
                f"The adapter was made for an encoder of other sizes: {text}. Load it onto its base."
            )
        if differing:
            logger.warning(
                "the adapter was made for an encoder of other sizes: %s; its results will be worse, if not wrong", text
            )
        if not known or not peft_config.inference_mode:
            peft_config.base_sizes = own

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Wrap the embeddings and the blocks of `model` for the adapter; see [`BaseTuner.inject_adapter`]."""
        # The keys of a state dict do not name the layers that carry the stream without parameters of their own; the
        # configuration always does.
        super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage)

    def _with_adapter(
        self, target: nn.Module, name: str, adapter_name: str, config: DeflectConfig
    ) -> DeflectLayer | None:
        encoder = find_encoder(self.model)
        kinds = {encoder.embeddings: DeflectEmbeddings, encoder.between: DeflectNorm}
        kinds |= dict.fromkeys(encoder.blocks, DeflectBlock)
        if name not in kinds:
            return None  # a module of the same name outside the encoder, in a head say
        layer = target if isinstance(target, kinds[name]) else kinds[name](target, encoder)
        layer.update_layer(adapter_name, config, encoder, name)
        return layer

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        super()._replace_module(parent, child_name, new_module, child)
        self._rename_unit(type(child).__name__, type(new_module).__name__)
        if isinstance(new_module, DeflectEmbeddings):
            install_positions(parent)
        if isinstance(child, DeflectEmbeddings):
            uninstall_positions(parent)
        if isinstance(child, DeflectBlock):
            child.uninstall()

    def _rename_unit(self, old: str, new: str) -> None:
        """Name `new` in place of `old` as the class whose modules FSDP and device maps must keep in one piece.

        A block and its adapter are one unit: gathered, checkpointed and placed on a device together.
        """
        for module in self.model.modules():
            if isinstance(module, PreTrainedModel) and old in (module._no_split_modules or ()):
                module._no_split_modules = {new if name == old else name for name in module._no_split_modules}

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: DeflectConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        """Select the adapter's entries, in a model that FSDP or activation checkpointing have wrapped inside, too.

        They put an infix into the names of the modules but not into the keys of the state dict; PEFT 0.21 looks for
        the one at the root alone, and would save an empty adapter.
        """
        # PEFT 0.20 has neither these helpers nor a call of this method
        prefixes = tuners_utils._get_tuner_state_dict_key_prefixes(model)
        clean = {WRAPPER_INFIX.sub("", prefix) for prefix in prefixes}
        return tuners_utils._filter_state_dict_by_key_prefixes(state_dict, clean)

    def _check_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Refuse (UnitError) whole numbers, no reflectance, before transformers casts them; and what is no tensor."""
        pixels = kwargs.get("pixel_values", args[0] if args else None)
        if isinstance(pixels, (np.ndarray, list, tuple)):
            raise DataError(f"pixel_values are a {type(pixels).__name__}: give one torch tensor (B, C, H, W).")
        whole = isinstance(pixels, torch.Tensor) and not pixels.is_floating_point()
        if whole and any(config.bands for config in self.peft_config.values()):
            raise UnitError(
                f"pixel_values are whole numbers ({pixels.dtype}), and the adapter takes reflectance (1.0 = 100 %) in "
                "floats. Fix: pixel_values.float() * scale + offset."
            )

    def _check_merge_allowed(self) -> None:
        raise UnsupportedOperationError(CANNOT_MERGE)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused (UnsupportedOperationError): see the message."""
        raise UnsupportedOperationError(
            "DEFLECT adapters cannot be averaged: each bends the displacements in its own spectral space. "
            "Fix: train one adapter on both data sets, or switch with model.set_adapter(name)."
        )


@torch.no_grad()
def base_fingerprint(model: nn.Module, encoder: Encoder) -> str | None:
    """A hash over a sample of each frozen tensor of the embeddings and blocks; cheap whatever the model's size.

    Values are rounded to bfloat16, so that a base has one fingerprint in float32 and bfloat16. None where it cannot be
    told: other dtypes, quantised, sharded or empty weights, or other adapters inside.
    """
    modules = outermost_modules(model)
    digest = hashlib.sha256()
    for name in (encoder.embeddings, *encoder.blocks):
        if any(isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper) for part in modules[name].modules()):
            return None
        for key, value in modules[name].named_parameters():
            if "mask_token" in key:  # no part of the forward, and drawn at random where a checkpoint has none
                continue
            if type(value) is not nn.Parameter or value.dtype not in (torch.float32, torch.bfloat16):
                return None
            if value.is_meta or not value.numel():
                return None
            flat = value.detach().flatten()
            sample = flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES].to("cpu", torch.bfloat16)
            digest.update(f"{key} {tuple(value.shape)}".encode() + sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
