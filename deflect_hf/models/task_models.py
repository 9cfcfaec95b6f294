"""The task models: classes, labels or a value of an image, and classes or a value of each pixel."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import ImageClassifierOutput, SemanticSegmenterOutput
from transformers.utils.generic import can_return_tuple

from deflect_hf.errors import ArchitectureError
from deflect_hf.models.base import EncoderFeatures, EncoderWithHead
from deflect_hf.models.configuration import (
    OF_BANDS,
    EncoderForImageClassificationConfig,
    EncoderForSemanticSegmentationConfig,
)
from deflect_hf.models.heads import TokenHead, segmentation_head
from deflect_hf.models.rivals import resized


class EncoderForImageClassification(EncoderWithHead):
    """A vision transformer with a ``linear`` or ``mlp`` head on its class token or on the mean of its patch tokens."""

    config_class = EncoderForImageClassificationConfig
    config: EncoderForImageClassificationConfig
    make_head = TokenHead

    @can_return_tuple
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> ImageClassifierOutput:
        """(B, C, H, W) reflectance -> logits (B, K)

        Args:
            labels: (B,) int64 class indices, ``config.ignore_index`` where unknown; for multi-label classification
                (B, K) with 0, 1, or NaN where unknown; for regression (B,) values, NaN where unknown.
            kwargs: go to the encoder.

        Raises:
            DataError: image size or label shape do not fit.
            BandError: the number of channels is not that of ``config.bands``.
        """
        features = self.encode(pixel_values, **kwargs)
        logits = self.in_units(self.head(self._pool(features)))
        return ImageClassifierOutput(
            loss=None if labels is None else self.label_loss(logits, labels),
            logits=logits,
            hidden_states=features.outputs.hidden_states if kwargs.get("output_hidden_states") else None,
            attentions=features.outputs.attentions,
        )

    def _pool(self, features: EncoderFeatures) -> list[Tensor]:
        if self.config.pooling == "mean":
            return [maps.mean(dim=(1, 2)) for maps in features.patch_maps()]
        if features.layers[0].shape[1] == features.grid[0] * features.grid[1]:
            raise ArchitectureError(
                f"{type(self.encoder).__name__} has no class token: use pooling='mean'"
                " (segmentor.pooling: mean in a run's configuration)."
            )
        return [layer[:, 0] for layer in features.layers]


class EncoderForSemanticSegmentation(EncoderWithHead):
    """A vision transformer with a ``linear``, ``mlp``, ``conv``, ``upernet``, ``pixel`` or ``unet`` head."""

    config_class = EncoderForSemanticSegmentationConfig
    config: EncoderForSemanticSegmentationConfig
    make_head = staticmethod(segmentation_head)

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
        features = self.encode(pixel_values, **kwargs)
        seen = (pixel_values,) if self.config.head in OF_BANDS else ()
        coarse = self.head(features.patch_maps(), *seen)
        logits = resized(self.in_units(coarse.logits), pixel_values)
        loss = None
        if labels is not None:
            loss = self.label_loss(logits, labels)
            if coarse.auxiliary is not None:
                auxiliary = resized(self.in_units(coarse.auxiliary), pixel_values)
                loss = loss + self.config.auxiliary_loss_weight * self.label_loss(auxiliary, labels)
        return SemanticSegmenterOutput(
            loss=loss,
            logits=logits,
            hidden_states=features.outputs.hidden_states if kwargs.get("output_hidden_states") else None,
            attentions=features.outputs.attentions,
        )
