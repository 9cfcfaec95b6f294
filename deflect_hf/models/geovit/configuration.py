"""Configuration of GeoViT: the plain vision transformer that most geospatial encoders are, in its variants."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from deflect_hf.errors import ConfigError, listing, nearest
from deflect_hf.models.configuration import as_pair

# Channels that a position encoding needs in steps of: sine and cosine for each axis, or sixteenths of the width.
POSITION_STEPS = {"learned": 1, "sincos": 4, "sincos_gsd": 4, "sincos_3d": 16}


@strict
class GeoViTConfig(BackboneConfigMixin, PreTrainedConfig):
    """Pre-norm blocks, exact GELU, one class token, no registers; what differs is the position of a patch.

    Args:
        image_size, patch_size: in pixels, a side or (height, width); ``image_size`` is that of the pretraining, images
            of any other size go through as well.
        num_channels: bands of the patch embedding.
        position_embedding: ``learned`` (a table, interpolated for other grids), ``sincos`` (fixed waves, computed for
            any grid), ``sincos_gsd`` (the same, stretched by ``gsd``) or ``sincos_3d`` (waves of column, row and frame;
            the patch embedding is then three-dimensional).
        gsd: of ``sincos_gsd`` only: the ground sampling distance that positions are stretched by, unless a call gives
            another. Scale-MAE's authors evaluate with 1.0; its pretraining saw about 2.2 to 5.0. Not simply the
            sensor's metres per pixel: those made frozen features worse in published tests.
        num_frames: of ``sincos_3d`` only: frames per image in the pretraining; any other number goes through as well.
        apply_layernorm: whether a backbone's feature maps pass the final norm; ``last``: that of the last block alone.
        series: what a backbone makes of the frames of a series: their ``mean``, or ``channels``, frame by frame, of
            ``num_frames``. Prithvi's authors (terratorch) take ``apply_layernorm="last", series="channels"``.
    """

    model_type = "geovit"

    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    num_frames: int = 1
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    position_embedding: str = "sincos"
    gsd: float | int = 1.0
    apply_layernorm: bool | str = False
    series: str = "mean"
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_positions()
        self._check_sizes()
        self.check_maps()
        self.stage_names = ["stem"] + [f"stage{i}" for i in range(1, self.num_hidden_layers + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    @property
    def grid_size(self) -> tuple[int, int, int]:
        """Patches of a pretraining image: (frames, rows, columns)."""
        (height, width), (rows, columns) = as_pair(self.image_size), as_pair(self.patch_size)
        return self.num_frames, height // rows, width // columns

    @property
    def is_temporal(self) -> bool:
        """Whether the patch embedding is three-dimensional, (frame, row, column)."""
        return self.position_embedding == "sincos_3d"

    def check_maps(self) -> None:
        """Refuse what a backbone knows no maps for (ConfigError)."""
        if self.series not in ("mean", "channels") or self.apply_layernorm not in (True, False, "last"):
            raise ConfigError(
                f"series={self.series!r} must be 'mean' or 'channels', apply_layernorm={self.apply_layernorm!r} True, "
                "False or 'last'."
            )

    def _check_positions(self) -> None:
        kind = self.position_embedding
        if kind not in POSITION_STEPS:
            raise ConfigError(
                f"position_embedding={kind!r} is unknown; choose from {listing(POSITION_STEPS)}."
                f"{nearest(kind, POSITION_STEPS)}"
            )
        if self.hidden_size % POSITION_STEPS[kind]:
            raise ConfigError(
                f"hidden_size={self.hidden_size} must be a multiple of {POSITION_STEPS[kind]} for {kind!r} positions."
            )
        if self.gsd != 1.0 and kind != "sincos_gsd":
            raise ConfigError(f"gsd={self.gsd} has no effect on {kind!r} positions: use 'sincos_gsd' or leave it 1.")
        if self.gsd <= 0:
            raise ConfigError(f"gsd={self.gsd} must be positive.")
        if self.num_frames < 1 or (self.num_frames > 1 and not self.is_temporal):
            raise ConfigError(f"num_frames={self.num_frames}: more than one frame needs 'sincos_3d' positions.")

    def _check_sizes(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads}."
            )
        image, patch = as_pair(self.image_size), as_pair(self.patch_size)
        if any(side < 1 for side in patch) or any(side % step for side, step in zip(image, patch, strict=True)):
            raise ConfigError(f"image_size={self.image_size} must be a multiple of patch_size={self.patch_size}.")
