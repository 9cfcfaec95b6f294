"""Semantic segmentation and per-pixel regression with any vision transformer."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils.generic import can_return_tuple

from deflect_hf.models.base import EncoderWithHead
from deflect_hf.models.configuration import EncoderForSemanticSegmentationConfig
from deflect_hf.models.heads import segmentation_head


class EncoderForSemanticSegmentation(EncoderWithHead):
    """A vision transformer with a ``linear``, ``mlp``, ``conv``, ``upernet`` or ``pixel`` head."""

    config_class = EncoderForSemanticSegmentationConfig
    config: EncoderForSemanticSegmentationConfig

    def __init__(self, config: EncoderForSemanticSegmentationConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config, encoder)
        self.head = segmentation_head(config)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> SemanticSegmenterOutput:
        """(B, C, H, W) reflectance -> logits (B, K, H, W)

        Args:
            labels: (B, H, W) int64 class indices, ``config.ignore_index`` where unknown; for regression the values,
                NaN where unknown.
            kwargs: go to the encoder.

        Raises:
            DataError: image size or label shape do not fit, or the upernet head trains on a batch of one image.
            BandError: the number of channels is not that of ``config.bands``.
        """
        size = pixel_values.shape[-2:]
        features = self.encode(pixel_values, **kwargs)
        seen = (pixel_values,) if self.config.head == "pixel" else ()
        coarse = self.head(features.patch_maps(), *seen)
        logits = F.interpolate(self.in_units(coarse.logits), size=size, mode="bilinear", align_corners=False)
        loss = None
        if labels is not None:
            loss = self.label_loss(logits, labels)
            if coarse.auxiliary is not None:
                auxiliary = F.interpolate(
                    self.in_units(coarse.auxiliary), size=size, mode="bilinear", align_corners=False
                )
                loss = loss + self.config.auxiliary_loss_weight * self.label_loss(auxiliary, labels)
        return SemanticSegmenterOutput(
            loss=loss,
            logits=logits,
            hidden_states=features.outputs.hidden_states if kwargs.get("output_hidden_states") else None,
            attentions=features.outputs.attentions,
        )
