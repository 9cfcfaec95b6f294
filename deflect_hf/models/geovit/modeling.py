"""GeoViT: Scale-MAE, DINO-MC, Cross-Scale MAE, SatMAE (RGB) and Prithvi as one transformers model.

The blocks are those of transformers' ViT, so that attention kernels, LoRA targets and DEFLECT apply unchanged; the
embeddings are this project's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling
from transformers.models.vit.modeling_vit import ViTAttention, ViTLayer
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from deflect_hf.errors import DataError
from deflect_hf.models.geovit.configuration import GeoViTConfig
from deflect_hf.models.geovit.embeddings import GeoViTEmbeddings


class GeoViTPreTrainedModel(PreTrainedModel):
    """Initial weights, and what transformers has to know."""

    config_class = GeoViTConfig
    config: GeoViTConfig
    base_model_prefix = "geovit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ("GeoViTEmbeddings", "ViTLayer")
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": ViTLayer, "attentions": ViTAttention}  # noqa: RUF012 (transformers' own form)
    embeddings: GeoViTEmbeddings

    def _build(self, config: GeoViTConfig) -> None:
        self.embeddings = GeoViTEmbeddings(config)
        self.layers = nn.ModuleList(ViTLayer(config) for _ in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The patch embedding."""
        return self.embeddings.patch_embeddings

    def _tokens(self, pixel_values: Tensor, gsd: float | Tensor | None, **kwargs: Any) -> Tensor:
        """(B, C, [T,] H, W) -> (B, 1 + N, D) before the final norm"""
        hidden_states = self.embeddings(pixel_values, gsd=gsd)
        for layer in self.layers:
            hidden_states = layer(hidden_states, None, **kwargs)
        return hidden_states

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GeoViTEmbeddings):
            init.trunc_normal_(module.cls_token, std=self.config.initializer_range)
            if module.position_embeddings is not None:
                init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)


class GeoViTModel(GeoViTPreTrainedModel):
    """The encoder alone.

    Example:
        ```py
        >>> import deflect_hf
        >>> from transformers import AutoModel

        >>> encoder = AutoModel.from_pretrained("encoders/scale_mae")  # see deflect_hf.models.geovit.conversion
        >>> tokens = encoder(pixel_values, gsd=1.0).last_hidden_state
        ```
    """

    def __init__(self, config: GeoViTConfig) -> None:
        super().__init__(config)
        self._build(config)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: Tensor, gsd: float | Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """(B, C, H, W) normalised -> last_hidden_state (B, 1 + N, D), pooler_output (B, D): the class token's

        Args:
            pixel_values: base bands; for ``sincos_3d`` also (B, C, T, H, W), with tokens frame by frame.
            gsd: of ``sincos_gsd`` positions: a number, or a (B,) tensor with one per image; default ``config.gsd``.
            kwargs: go to the attention.

        Raises:
            DataError: the shape does not fit the patch size.
            BandError: the number of channels does not fit.
            ConfigError: ``gsd`` was given to an encoder that does not use it.
        """
        tokens = self.layernorm(self._tokens(pixel_values, gsd, **kwargs))
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens[:, 0])


class GeoViTBackbone(BackboneMixin, GeoViTPreTrainedModel):
    """The encoder as feature maps of the stages ``config.out_indices``: "stem", then one per block.

    Which of them pass the final norm says ``config.apply_layernorm``, what becomes of frames ``config.series``.
    """

    def __init__(self, config: GeoViTConfig) -> None:
        super().__init__(config)
        config.check_maps()  # `from_pretrained` sets fields behind their checks
        frames = config.num_frames if config.series == "channels" else 1
        self.num_features = [frames * config.hidden_size] * (config.num_hidden_layers + 1)
        self._build(config)

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: Tensor, gsd: float | Tensor | None = None, **kwargs: Any) -> BackboneOutput:
        """(B, C, H, W) normalised -> feature_maps, each (B, D, h, w), or (B, T * D, h, w) of series as channels

        Arguments and errors as of ``GeoViTModel.forward``.

        Raises:
            DataError: a series as channels has another number of frames than ``config.num_frames``.
        """
        frames, rows, columns = self.embeddings.patch_embeddings.grid(pixel_values)
        stacked, norm = self.config.series == "channels", self.config.apply_layernorm
        if stacked and frames != self.config.num_frames:
            raise DataError(
                f"the series has {frames} frames, but the backbone gives the channels of num_frames="
                f"{self.config.num_frames}: load it with num_frames={frames}, or with series='mean'."
            )
        kwargs["output_hidden_states"] = True
        output = self._encode(pixel_values, gsd, **kwargs)
        maps = []
        for stage, tokens in zip(self.stage_names, output.hidden_states, strict=True):
            if stage in self.out_features:
                if norm is True or (norm == "last" and stage == self.stage_names[-1]):
                    tokens = self.layernorm(tokens)
                volume = tokens[:, 1:].unflatten(1, (frames, rows, columns)).permute(0, 1, 4, 2, 3)
                maps.append(volume.flatten(1, 2) if stacked else volume.mean(dim=1).contiguous())
        return BackboneOutput(
            feature_maps=tuple(maps), hidden_states=output.hidden_states, attentions=output.attentions
        )

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def _encode(
        self, pixel_values: Tensor, gsd: float | Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=self._tokens(pixel_values, gsd, **kwargs))
