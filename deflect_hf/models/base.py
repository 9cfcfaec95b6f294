"""What the task models share: the encoder inside, band selection, and tokens as patch maps."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import ModelOutput, output_capturing
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from deflect_hf.errors import (
    ArchitectureError,
    BandError,
    ConfigError,
    DataError,
    UnsupportedOperationError,
    brief,
    listing,
    nearest,
)
from deflect_hf.models.configuration import EncoderWithHeadConfig, as_pair
from deflect_hf.models.loading import adopt_encoder, load_encoder, refuse_new_weights, without_pooler
from deflect_hf.models.patch_embedding import widen
from deflect_hf.models.quantization import is_quantised
from deflect_hf.models.targets import target_of
from deflect_hf.spectral.selection import normalise_base_bands, select_bands

# transformers before 5.23 returns all hidden states or none, and takes a list of them for another thing
COUNTS_CHOSEN_STATES = hasattr(output_capturing, "resolve_hidden_states_indices")


class EncoderFeatures(NamedTuple):
    """Tokens of the chosen layers, each (B, prefix + h * w, D), the patch grid (h, w), and all the encoder returned."""

    layers: list[Tensor]
    grid: tuple[int, int]
    outputs: ModelOutput

    def patch_maps(self) -> list[Tensor]:
        """Patch tokens of each layer as channels-last maps (B, h, w, D)."""
        height, width = self.grid
        return [layer[:, layer.shape[1] - height * width :].unflatten(1, self.grid) for layer in self.layers]


class EncoderWithHead(PreTrainedModel):
    """Any vision transformer of transformers (``.encoder``) and a task head (``.head``).

    ``modules_to_save=["head"]`` of a PEFT configuration trains and saves the head beside the adapter.
    """

    config_class = EncoderWithHeadConfig
    config: EncoderWithHeadConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # What the encoder inside does not support, it refuses itself.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # The loss is a mean over the batch, so Trainer has to divide it by its number of accumulation steps.
    accepts_loss_kwargs = False
    make_head: Any  # the configuration -> its head

    def __init__(self, config: EncoderWithHeadConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if encoder is None:
            encoder = AutoModel.from_config(config.encoder_config, **without_pooler(config.encoder_config))
        config.take_encoder(encoder.config)
        self.encoder = encoder
        parameters = inspect.signature(encoder.forward).parameters
        needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
        needed = [name for name in needed if name not in ("pixel_values", "kwargs")]
        if needed:
            raise ArchitectureError(
                f"{type(encoder).__name__} needs {listing(needed)} beside the images: the encoder must take "
                "(batch, channels, height, width) alone."
            )
        self._takes_noise = "noise" in parameters
        self._takes_interpolation = "interpolate_pos_encoding" in parameters
        # Hidden state i + 1 is the output of block i; the last block's goes through the encoder's final norm instead.
        self._hidden_layers = [layer + 1 for layer in config.feature_layers if layer + 1 < config.depth]
        if self._hidden_layers:
            # transformers installs its hooks in the first forward, under a lock that torch.compile cannot trace.
            maybe_install_capturing_hooks(encoder)
        self._take_bands()
        image_size = as_pair(getattr(config.encoder_config, "image_size", None) or (0, 0))
        self._pretraining_size = image_size
        if image_size[0] != image_size[1] and hasattr(getattr(encoder, "embeddings", None), "interpolate_pos_encoding"):
            raise ArchitectureError(
                f"{type(encoder).__name__} was pretrained on rectangular images ({image_size[0]} x {image_size[1]}), "
                "whose position embeddings transformers cannot interpolate; use an encoder pretrained on square ones."
            )
        self.head = self.make_head(config)
        self.post_init()

    def in_units(self, predictions: Tensor) -> Tensor:
        """(B, K, ...) outputs of the head -> logits, or values in the unit of the labels."""
        mean, std = self.config.target_mean, self.config.target_std
        if mean is None or std is None:
            return predictions
        return predictions.float() * std + mean  # half precision has too few digits for some units

    def label_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K, ...) logits and the labels of the task -> scalar."""
        target = target_of(self.config)
        expected = target.label_shape(logits)
        if labels.shape != expected:
            raise DataError(
                f"labels have the shape {tuple(labels.shape)} instead of {tuple(expected)}"
                f"{', batch x height x width of the image' * (len(expected) == 3)}."
            )
        return target.loss(logits, labels)

    @classmethod
    def from_encoder(
        cls,
        encoder: str | Path | PreTrainedModel,
        *,
        num_labels: int | None = None,
        id2label: Mapping[int, str] | None = None,
        revision: str | None = None,
        attn_implementation: str | None = None,
        local_files_only: bool = False,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> Self:
        """Put a new head on a pretrained encoder; the model comes in evaluation mode, as from ``from_pretrained``.

        Args:
            encoder: a folder, a name on the Hub, or a loaded encoder. A loaded one is taken over, not copied, and the
                arguments about loading do not apply to it.
            num_labels: number of classes; or give ``id2label``, their names.
            options: fields of the configuration, such as ``head``, ``output_layers`` or ``bands``.

        Raises:
            CheckpointError: the encoder cannot be read or lacks weights.
            ConfigError: an option is unknown or does not fit.
        """
        if (num_labels is None) == (id2label is None):
            raise ConfigError("Give either num_labels, the number of classes, or id2label, their names.")
        if id2label is not None and not isinstance(id2label, Mapping):
            raise ConfigError(f"id2label is a {type(id2label).__name__}: give a dict, the names by number, {{0: ...}}.")
        known = {field.name for field in dataclasses.fields(cls.config_class)}
        for name in options:
            if name not in known:
                raise ConfigError(f"{name!r} is no field of {cls.config_class.__name__}." + nearest(name, known))
        if isinstance(encoder, PreTrainedModel):
            if revision or attn_implementation or local_files_only or dtype != torch.float32:
                raise ConfigError(
                    "revision, attn_implementation, local_files_only and dtype are for loading an encoder; this one is "
                    "loaded."
                )
            encoder = adopt_encoder(encoder)
        else:
            where: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
            encoder = load_encoder(encoder, attn_implementation=attn_implementation, dtype=dtype, **where)
        labels: dict[str, Any] = {"num_labels": num_labels}
        if id2label is not None:
            labels = {"id2label": dict(id2label), "label2id": {name: index for index, name in id2label.items()}}
        config = cls.config_class(
            encoder_config=encoder.config,
            # A configuration hands its own attention implementation down, so it must start from the encoder's.
            attn_implementation=encoder.config._attn_implementation,
            **labels,
            **options,
        )
        model = cls(config, encoder)
        model.head.to(device=encoder.device, dtype=encoder.dtype)
        return model.eval()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """As in transformers, but a checkpoint that lacks weights is refused (CheckpointError) instead of filled up."""
        model, report = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        refuse_new_weights(report["missing_keys"], f"The checkpoint {str(pretrained_model_name_or_path)!r}")
        return (model, report) if output_loading_info else model

    def save_pretrained(self, save_directory: str | Path, save_original_format: bool = False, **kwargs: Any) -> None:
        """As in transformers; one with an adapter or a quantised encoder is refused (UnsupportedOperationError).

        Tensors keep the model's own names: under those of the encoder's first releases, transformers' default, its
        Trainer does not find them again when it resumes or loads the best model.
        """
        if is_quantised(self.encoder):
            raise UnsupportedOperationError(
                "A task model around a quantised encoder cannot be saved whole. Fix: save what was trained, adapter "
                "and head (save_pretrained of the PeftModel), and load the encoder with the same quantization again."
            )
        own_adapter = getattr(self, "_hf_peft_config_loaded", False)  # of add_adapter, which transformers saves alone
        if not own_adapter and any(isinstance(module, BaseTunerLayer) for module in self.modules()):
            raise UnsupportedOperationError(
                "A task model with an adapter inside is not saved whole. Fix: its PeftModel saves what was trained; "
                "deflect_hf.load_predictor(FOLDER).save(ANOTHER) copies a trained model."
            )
        super().save_pretrained(save_directory, save_original_format=save_original_format, **kwargs)

    def set_bands(
        self,
        bands: Sequence[str] | None,
        base_bands: Sequence[str] | None = None,
        base_mean: Sequence[float] | None = None,
        base_std: Sequence[float] | None = None,
        extra_bands: Sequence[str] | None = None,
        extra_mean: Sequence[float] | None = None,
        extra_std: Sequence[float] | None = None,
    ) -> None:
        """Take (B, C, H, W) reflectance in the order of `bands`, and hand the encoder the base bands, normalised.

        None: hand it all channels, untouched.

        `extra_bands` widen the encoder's patch embedding for good: it takes them behind the base bands, and they have
        no influence until their kernel is set or trained.

        Raises:
            BandError: a band is unknown, missing or named twice.
            ConfigError: the lists do not fit the encoder's channels.
        """
        values = {"bands": bands, "base_bands": base_bands, "base_mean": base_mean, "base_std": base_std}
        values |= {"extra_bands": extra_bands, "extra_mean": extra_mean, "extra_std": extra_std}
        config = copy.copy(self.config)  # shallow: the encoder keeps sharing its configuration
        for name, value in values.items():
            plain = float if name.endswith(("mean", "std")) else str  # of numpy's numbers, too, as files hold them
            setattr(config, name, None if value is None else [plain(item) for item in value])
        config.check_bands()
        select_bands(config.bands or [], config.encoder_bands)
        self.config = config
        self._take_bands()

    def _take_bands(self) -> None:
        """Follow the configuration: where the encoder's bands are, and as many channels in its patch embedding."""
        config = self.config
        self._positions = select_bands(config.bands or [], config.encoder_bands)
        if config.extra_bands and self.encoder.config.num_channels < len(config.encoder_bands):
            widen(self.encoder, len(config.encoder_bands))

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's patch embedding (UnsupportedOperationError: its class does not say which module that is)."""
        try:
            return self.encoder.get_input_embeddings()
        except NotImplementedError as error:
            raise UnsupportedOperationError(
                f"{type(self.encoder).__name__} does not say where its patches are embedded, which training asks for. "
                "Fix: give an encoder of the guide's table, or a subclass of it with get_input_embeddings()."
            ) from error

    def encode(self, pixel_values: Tensor, **kwargs: Any) -> EncoderFeatures:
        """(B, C, H, W) reflectance -> tokens of the output layers, each (B, prefix + N, D)

        ``kwargs`` go to the encoder.

        Raises:
            DataError: the image is not a multiple of the patch size.
            BandError: the number of channels is not that of ``config.bands``.
            ArchitectureError: the encoder does not return one token per patch, or not the hidden states.
        """
        grid = self._patch_grid(pixel_values)
        if (zoom := self.config.zoom) > 1:
            # the nearest pixel, not a mean of some: what was not measured stays where it was, and no pixel set changes
            pixel_values = F.interpolate(pixel_values, scale_factor=zoom, mode="nearest")
        pixel_values = self._encoder_input(pixel_values)
        hidden = self._hidden_layers
        if hidden and not kwargs.get("output_hidden_states"):
            kwargs["output_hidden_states"] = hidden if COUNTS_CHOSEN_STATES else True
        try:
            outputs = self.encoder(pixel_values, **self._encoder_arguments(pixel_values, grid), **kwargs)
        except RuntimeError as error:
            size = tuple(pixel_values.shape[-2:])
            # torch's words for tensors of other sizes; memory, devices and precisions have errors of their own
            if size == self._pretraining_size or "must match" not in str(error):
                raise
            height, width = self._pretraining_size
            raise ArchitectureError(
                f"{type(self.encoder).__name__} takes no images of {size[0]} x {size[1]} pixels ({brief(error)}): give "
                f"it {height} x {width}, as in its pretraining (image_size: encoder)."
            ) from error
        if hidden and outputs.hidden_states is None:
            raise ArchitectureError(
                f"{type(self.encoder).__name__} returns no hidden states: use its last layer only, output_layers=[-1]."
            )
        layers = [
            outputs.hidden_states[layer + 1] if layer + 1 in hidden else outputs.last_hidden_state
            for layer in self.config.feature_layers
        ]
        if layers[0].ndim != 3 or layers[0].shape[1] < grid[0] * grid[1]:
            raise ArchitectureError(
                f"{type(self.encoder).__name__} returns tokens of shape {tuple(layers[0].shape)} for a grid of "
                f"{grid[0]} x {grid[1]} patches: it must return one token per patch."
            )
        return EncoderFeatures(layers, grid, outputs)

    def _patch_grid(self, pixel_values: Tensor) -> tuple[int, int]:
        if pixel_values.ndim != 4:
            raise DataError(f"pixel_values must be (batch, bands, height, width), not {tuple(pixel_values.shape)}.")
        height, width = pixel_values.shape[-2:]
        rows, columns = self.config.patch_size
        if height % rows or width % columns or not height or not width:
            raise DataError(
                f"The image is {height} x {width} pixels (height x width), no multiple of the encoder's patch size "
                f"{rows} x {columns}: crop it to {height // rows * rows} x {width // columns * columns} or resize "
                f"it to {-(-height // rows) * rows} x {-(-width // columns) * columns}."
            )
        return height // rows * self.config.zoom, width // columns * self.config.zoom

    def _encoder_input(self, pixel_values: Tensor) -> Tensor:
        config = self.config
        bands = config.bands
        if bands is None:
            return pixel_values
        if pixel_values.shape[1] != len(bands):
            raise BandError(
                f"pixel_values has {pixel_values.shape[1]} channels, but the model was configured for {len(bands)} "
                f"bands: {listing(bands)}."
            )
        mean, std = config.base_mean, config.base_std
        if mean is not None and std is not None:
            mean, std = [*mean, *(config.extra_mean or [])], [*std, *(config.extra_std or [])]
        return normalise_base_bands(pixel_values, self._positions, mean, std)

    def _encoder_arguments(self, pixel_values: Tensor, grid: tuple[int, int]) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        # At the pretraining size nothing is interpolated, so that the frozen encoder is itself, bit for bit.
        if self._takes_interpolation and tuple(pixel_values.shape[-2:]) != self._pretraining_size:
            arguments["interpolate_pos_encoding"] = True
        # ViTMAE sorts its patches by random noise even if it drops none; rising "noise" leaves them in place.
        if self._takes_noise:
            noise = torch.arange(grid[0] * grid[1], device=pixel_values.device, dtype=torch.float32)
            arguments["noise"] = noise.expand(pixel_values.shape[0], -1)
        return arguments
