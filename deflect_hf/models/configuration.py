"""Configurations of the task models: any vision transformer, one head, and the bands that the encoder takes.

The encoder's own configuration is nested (``encoder_config``), so a saved task model describes itself completely.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig, configuration_utils

from deflect_hf.errors import ArchitectureError, ConfigError, listing, nearest

DEFAULT_BASE_BANDS = ("R", "G", "B")
UPERNET_LEVELS = 4
AUXILIARY = ("upernet", "pixel")  # heads with a second loss in training
OF_BANDS = ("pixel", "unet")  # heads that read the bands of each pixel beside the tokens
# transformers before 5.20 leaves it to a configuration to make the nested ones of what it is given
SubConfigSpec: Any = getattr(configuration_utils, "SubConfigSpec", None)


def as_pair(value: int | Sequence[int]) -> tuple[int, int]:
    """``16`` or ``(16, 16)`` -> ``(16, 16)``: (height, width)."""
    if isinstance(value, int):
        return value, value
    height, width = value
    return height, width


def zoomed(patch_size: tuple[int, int], zoom: int) -> tuple[int, int]:
    """Height and width of a patch in pixels of images that are enlarged ``zoom`` times (ConfigError: not whole)."""
    height, width = patch_size
    if zoom < 1 or height % zoom or width % zoom:
        choices = [number for number in range(1, min(patch_size) + 1) if not height % number and not width % number]
        raise ConfigError(f"zoom={zoom} does not divide patches of {height} x {width} pixels: choose from {choices}.")
    return height // zoom, width // zoom


def evenly_spaced_layers(depth: int, count: int) -> list[int]:
    """Indices of ``count`` blocks spread over ``depth``, the last one included: depth 12 -> [2, 5, 8, 11]."""
    return [math.ceil((step + 1) * depth / count) - 1 for step in range(count)]


@strict
class EncoderWithHeadConfig(PreTrainedConfig):
    """What the classification and segmentation configurations share.

    Args:
        encoder_config: configuration of any transformers vision transformer.
        head: name of the head, one of ``head_choices``.
        output_layers: blocks whose output the head reads, counted from 0, negative ones from the end; the last block
            is read after the encoder's final norm. Default: the last one; four evenly spaced ones for ``upernet``.
        head_channels: hidden width of the head (not of ``linear``); default 256, 512 for
            ``upernet``, 64 for ``pixel``.
        head_dropout: dropout before the classifier; default 0, 0.1 for ``upernet``.
        bands: band codes of the channels of ``pixel_values``, in order. If set, the model picks ``base_bands`` by name
            and normalises them; if None, ``pixel_values`` reach the encoder untouched.
        base_bands: bands the encoder was pretrained on, in its channel order; default R, G, B.
        base_mean, base_std: normalisation of the base bands in reflectance; None leaves the values as they are.
        extra_bands: further bands that the patch embedding takes, behind the base bands. The model widens it for them,
            with a kernel of zeros that is there to be trained. None: the encoder sees the base bands alone.
        extra_mean, extra_std: normalisation of the extra bands; they come with those of the base bands.
        zoom: how many times the encoder is shown images enlarged: a token then stands for 1/zoom of a patch.
        ignore_index: label value that no loss and no metric counts.
        class_weights: one weight per class, for the cross-entropy.
        label_smoothing: of the cross-entropy, in [0, 1).
        target_mean, target_std: of a regression's training labels: the head predicts the deviation from the mean in
            units of ``target_std``; logits and labels are values in their own unit.
        target_unit: that unit, which maps carry.
        initializer_range: standard deviation of the head's initial weights.
    """

    if SubConfigSpec is None:
        sub_configs: ClassVar[dict[str, Any]] = {"encoder_config": AutoConfig}
    else:
        sub_configs_defaults: ClassVar[dict[str, Any]] = {
            "encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="vit")
        }
    head_choices: ClassVar[tuple[str, ...]] = ()
    problem_types: ClassVar[tuple[str, ...]] = ()

    encoder_config: Any = None
    head: str = "linear"
    output_layers: list[int] | None = None
    head_channels: int | None = None
    head_dropout: float | int | None = None
    bands: list[str] | None = None
    base_bands: list[str] | None = None
    base_mean: list[float | int] | None = None
    base_std: list[float | int] | None = None
    extra_bands: list[str] | None = None
    extra_mean: list[float | int] | None = None
    extra_std: list[float | int] | None = None
    zoom: int = 1
    ignore_index: int = -100
    class_weights: list[float | int] | None = None
    label_smoothing: float | int = 0.0
    target_mean: float | int | None = None
    target_std: float | int | None = None
    target_unit: str | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if SubConfigSpec is None and not isinstance(self.encoder_config, PreTrainedConfig):
            fields = {"model_type": "vit", **(self.encoder_config or {})}
            self.encoder_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        super().__post_init__(**kwargs)
        self._check_encoder()
        self._check_head()
        self.check_bands()
        self._check_loss()
        self.take_encoder(self.encoder_config)

    def take_encoder(self, encoder_config: Any) -> None:
        """Describe the model around an encoder of this configuration, which from now on hides no patch from it."""
        self.encoder_config = encoder_config
        # A masked auto-encoder drops patches in every forward; an encoder that feeds a head must see all of them.
        if getattr(encoder_config, "mask_ratio", None):
            encoder_config.mask_ratio = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As transformers does, without the encoder's quantization: the encoder's own folder or the run has it."""
        values = super().to_dict()
        values["encoder_config"].pop("quantization_config", None)
        return values

    @property
    def depth(self) -> int:
        """Number of transformer blocks."""
        return self.encoder_config.num_hidden_layers

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return as_pair(self.encoder_config.patch_size)

    @property
    def token_size(self) -> tuple[int, int]:
        """Height and width in pixels of what a token stands for."""
        return zoomed(self.patch_size, self.zoom)

    @property
    def selected_base_bands(self) -> list[str]:
        """Bands that the encoder was pretrained on, in its channel order; empty if it is handed all channels."""
        return [] if self.bands is None else self.base_bands or list(DEFAULT_BASE_BANDS)

    @property
    def encoder_bands(self) -> list[str]:
        """Bands that the model hands to the encoder, in its channel order: the base bands, then the extra bands."""
        return [*self.selected_base_bands, *(self.extra_bands or [])]

    @property
    def feature_layers(self) -> list[int]:
        """Blocks that the head reads, counted from 0."""
        if self.output_layers is not None:
            return [layer % self.depth for layer in self.output_layers]
        return evenly_spaced_layers(self.depth, UPERNET_LEVELS if self.head == "upernet" else 1)

    @property
    def hidden_channels(self) -> int:
        """Hidden width of the head."""
        usual = {"upernet": 512, "pixel": 64, "unet": 16}.get(self.head, 256)
        return usual if self.head_channels is None else self.head_channels

    @property
    def dropout(self) -> float:
        """Dropout before the classifier."""
        usual = 0.1 if self.head == "upernet" else 0.0
        return usual if self.head_dropout is None else float(self.head_dropout)

    def _check_encoder(self) -> None:
        sizes = ("hidden_size", "num_hidden_layers")
        missing = [name for name in sizes if not isinstance(getattr(self.encoder_config, name, None), int)]
        if getattr(self.encoder_config, "patch_size", None) is None:
            missing.append("patch_size")
        if missing:
            raise ArchitectureError(
                f"{type(self.encoder_config).__name__} has no {', '.join(missing)}: the encoder must be a vision "
                "transformer with one token per patch, such as ViT, ViTMAE, Dinov2 or DINOv3ViT."
            )
        zoomed(self.patch_size, self.zoom)

    def _check_head(self) -> None:
        if self.head not in self.head_choices:
            raise ConfigError(
                f"head={self.head!r} is unknown; choose from {listing(self.head_choices)}."
                + nearest(self.head, self.head_choices)
            )
        if not self.num_labels or not all(isinstance(self.id2label.get(k), str) for k in range(self.num_labels)):
            raise ConfigError(f"id2label={self.id2label}: name one or more classes, numbered from 0.")
        if self.hidden_channels < 1:
            raise ConfigError(f"head_channels={self.head_channels} must be at least 1.")
        layers = self.output_layers
        if layers is not None and not (layers and all(-self.depth <= layer < self.depth for layer in layers)):
            raise ConfigError(
                f"output_layers={layers}: the encoder has {self.depth} blocks, numbered 0 to {self.depth - 1} "
                f"(or -{self.depth} to -1); name at least one of them."
            )
        if self.head == "upernet" and len(self.feature_layers) != UPERNET_LEVELS:
            raise ConfigError(
                f"output_layers={layers}: the upernet head reads exactly {UPERNET_LEVELS} blocks, for example "
                f"{evenly_spaced_layers(self.depth, UPERNET_LEVELS)}."
            )

    def check_bands(self) -> None:
        """Refuse band fields that do not fit each other or the encoder (ConfigError)."""
        for of in ("base", "extra", "pixel"):
            mean, std = getattr(self, f"{of}_mean", None) or [], getattr(self, f"{of}_std", None) or []
            # what they make infinite or NaN would be taken for pixels that were not measured
            if not all(map(math.isfinite, [*mean, *std])) or min(std, default=1) <= 0:
                raise ConfigError(f"{of}_mean={mean}, {of}_std={std}: give finite numbers, and deviations above 0.")
        names = [f"{of}_{what}" for of in ("base", "extra") for what in ("bands", "mean", "std")]
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.bands is None:
            if given:
                raise ConfigError(
                    f"{listing(given)} given without bands: set bands to the band codes of pixel_values in channel "
                    "order, or leave all of them out so that pixel_values reach the encoder untouched."
                )
            return
        if (self.base_mean is None) != (self.base_std is None):
            raise ConfigError("base_mean and base_std go together: give both, or neither for no normalisation.")
        of_extra = [name for name in given if name.startswith("extra")]
        if of_extra and of_extra != ["extra_bands"] + ["extra_mean", "extra_std"] * (self.base_mean is not None):
            raise ConfigError(
                f"{listing(of_extra)} given, but extra_bands come with extra_mean and extra_std if base_mean and "
                "base_std are given, and without them otherwise: all bands are normalised, or none is."
            )
        channels, extra = self.encoder_config.num_channels, len(self.extra_bands or [])
        count = channels - extra if channels == len(self.encoder_bands) else channels  # widened already, or not yet
        for name, value in {"base_bands": self.selected_base_bands, **given}.items():
            if name in of_extra and not 0 < len(value) == extra:
                raise ConfigError(f"{name}={value} must have one entry for each of one or more bands.")
            if name not in of_extra and len(value) != count:
                raise ConfigError(f"{name}={value} has {len(value)} entries, but the encoder takes {count} channels.")

    def _check_loss(self) -> None:
        if self.problem_type not in (None, *self.problem_types):
            raise ConfigError(f"problem_type={self.problem_type!r}: choose from {listing(self.problem_types)}.")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing={self.label_smoothing} must be in [0, 1).")
        weights = self.class_weights
        if weights is not None and (len(weights) != self.num_labels or min(weights) < 0 or max(weights) == 0):
            raise ConfigError(
                f"class_weights={weights}: give one weight >= 0 for each of the {self.num_labels} classes, not all 0."
            )
        if self.problem_type in ("multi_label_classification", "regression") and (weights or self.label_smoothing):
            raise ConfigError(
                "class_weights and label_smoothing belong to the cross-entropy; leave them out for "
                f"problem_type={self.problem_type!r}."
            )
        self._check_target()

    def _check_target(self) -> None:
        given = [name for name in ("target_mean", "target_std", "target_unit") if getattr(self, name) is not None]
        if self.problem_type != "regression":
            if given:
                raise ConfigError(f"{listing(given)} belong to problem_type='regression': leave them out.")
            return
        if self.num_labels != 1:
            raise ConfigError(f"problem_type='regression' predicts one value: num_labels={self.num_labels}.")
        mean, std = self.target_mean, self.target_std
        if (mean is None) != (std is None) or not (std is None or 0 < std < math.inf) or not math.isfinite(mean or 0):
            raise ConfigError(
                f"target_mean={mean}, target_std={std}: give both as numbers, the deviation above 0, or neither."
            )


@strict
class EncoderForImageClassificationConfig(EncoderWithHeadConfig):
    """Configuration of ``EncoderForImageClassification``; see ``EncoderWithHeadConfig`` for the shared fields.

    Args:
        pooling: ``cls`` reads the class token, ``mean`` the mean of the patch tokens.
        problem_type: ``single_label_classification`` (default), ``multi_label_classification``, or ``regression`` (one
            value per image, num_labels=1).
    """

    model_type = "deflect_image_classification"
    head_choices: ClassVar[tuple[str, ...]] = ("linear", "mlp")
    problem_types: ClassVar[tuple[str, ...]] = (
        "single_label_classification",
        "multi_label_classification",
        "regression",
    )

    pooling: str = "cls"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.pooling not in ("cls", "mean"):
            raise ConfigError(f"pooling={self.pooling!r} is unknown; choose from 'cls', 'mean'.")


@strict
class EncoderForSemanticSegmentationConfig(EncoderWithHeadConfig):
    """Configuration of ``EncoderForSemanticSegmentation``; see ``EncoderWithHeadConfig`` for the shared fields.

    Args:
        auxiliary_loss_weight: weight of a second loss in training: of an auxiliary FCN head on the third output layer
            (``upernet``; 0: no such head), or of what the ``pixel`` head says without tokens (more than 0: the logits
            are then the mean of both).
        pixel_bands, pixel_mean, pixel_std: of the heads ``pixel`` and ``unet``: codes of all channels of
            ``pixel_values``, in order, and what is subtracted from and divides each of them, in reflectance.
        problem_type: ``single_label_classification`` (default) or ``regression`` (one value per pixel, num_labels=1).
    """

    model_type = "deflect_semantic_segmentation"
    head_choices: ClassVar[tuple[str, ...]] = ("linear", "mlp", "conv", "upernet", "pixel", "unet")
    problem_types: ClassVar[tuple[str, ...]] = ("single_label_classification", "regression")

    auxiliary_loss_weight: float | int = 0.0
    pixel_bands: list[str] | None = None
    pixel_mean: list[float | int] | None = None
    pixel_std: list[float | int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self._check_pixel_bands()
        if self.auxiliary_loss_weight < 0 or (self.auxiliary_loss_weight and self.head not in AUXILIARY):
            raise ConfigError(
                f"auxiliary_loss_weight={self.auxiliary_loss_weight} with head={self.head!r}: it must be >= 0, and "
                f"is for the heads {listing(AUXILIARY)}."
            )

    def _check_pixel_bands(self) -> None:
        fields = [self.pixel_bands, self.pixel_mean, self.pixel_std]
        sizes = {len(values or ()) for values in fields}
        if self.head not in OF_BANDS:
            if any(values is not None for values in fields):
                raise ConfigError(f"pixel_bands, pixel_mean, pixel_std are of {listing(OF_BANDS)}, not {self.head!r}.")
        elif len(sizes) > 1 or not self.pixel_bands:
            raise ConfigError(
                f"head={self.head!r} reads all bands: give pixel_bands, and as many pixel_mean and pixel_std, not "
                f"{self.pixel_bands}, {self.pixel_mean}, {self.pixel_std}."
            )
        elif self.bands is not None and self.bands != self.pixel_bands:
            raise ConfigError(f"pixel_bands={self.pixel_bands} are the bands of pixel_values, like bands={self.bands}.")
