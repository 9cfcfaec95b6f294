"""[`ScaledLoraModel`]: injects scaled low-rank adapters."""

from __future__ import annotations

from torch import nn

from deflect_hf.errors import ArchitectureError, ConfigError
from deflect_hf.tuners.deflect.architectures import block_layers, find_encoder
from deflect_hf.tuners.mergeable import MergeableModel, pattern
from deflect_hf.tuners.scaled_lora.config import ScaledLoraConfig
from deflect_hf.tuners.scaled_lora.layer import ScaledLoraLayer


class ScaledLoraModel(MergeableModel):
    """Adapts linear layers by a scale of their input, a scale of their output, and a low-rank update with biases.

    Source: Scheibenreif, Mommert, Borth, CVPR 2024. Their code also has a convolutional adapter for the patch
    embedding, which does not start at the identity; it is not offered here.

    Args:
        model ([`torch.nn.Module`]): the model.
        config ([`ScaledLoraConfig`]): the configuration.
        adapter_name (`str`): name of the adapter.
        low_cpu_mem_usage (`bool`): create empty adapter weights on the meta device.
    """

    prefix: str = "slr_"
    tuner_layer_cls = ScaledLoraLayer

    def _prepare_adapter_config(self, peft_config: ScaledLoraConfig, model_config: dict) -> ScaledLoraConfig:
        if peft_config.target_modules is None:
            try:
                encoder = find_encoder(self.model)
            except ArchitectureError as error:
                raise ConfigError(
                    f"target_modules=None stands for the linear layers in the blocks of a vision transformer. {error} "
                    "Or name the layers: target_modules=[...]."
                ) from error
            peft_config.target_modules = pattern(block_layers(self.model, encoder, nn.Linear))
        return peft_config

    def _wrap(self, target: nn.Module, name: str) -> ScaledLoraLayer:
        if not isinstance(target, nn.Linear):
            raise ArchitectureError(
                f"SLR adapts linear layers, but target_modules also names {name!r}, which is a {type(target).__name__}."
            )
        return ScaledLoraLayer(target)
