"""The tuner layers: the embeddings, where the two streams part, and the blocks, where they meet.

The radiometric stream travels beside the tokens on the feature axis, (B, N, D + width): up to the first deflected
block as the pixel-set features (no parameters, so the frozen prefix keeps no autograd state), from there as
`a = T f`; the last deflected block takes it off.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from deflect_hf.errors import CheckpointError, UnsupportedOperationError, listing
from deflect_hf.tuners.base import TunerLayer
from deflect_hf.tuners.deflect.attention import Deflection, install, uninstall
from deflect_hf.tuners.deflect.deflection import DeflectionUp
from deflect_hf.tuners.deflect.spectral_input import SpectralInput

if TYPE_CHECKING:
    from deflect_hf.tuners.deflect.architectures import Encoder
    from deflect_hf.tuners.deflect.config import DeflectConfig

logger = logging.getLogger(__name__)


class Role(NamedTuple):
    """What a block does for one adapter."""

    deflects: bool
    first: bool
    last: bool


def feature_count(config: DeflectConfig, encoder: Encoder) -> int:
    """Length of a pixel-set vector: mean and standard deviation of each band and index (2F)."""
    bands = encoder.num_channels if config.bands is None else len(config.bands)
    return 2 * (bands + len(config.formulas or {}))


class DeflectLayer(TunerLayer):
    """What both tuner layers share: one active adapter, no merging, and the base layer's attributes shining through."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer" or name.startswith("_"):  # what a library notes down belongs to one module
                raise
            return getattr(self.base_layer, name)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device, torch.dtype]:
        parameter = next(base_layer.parameters())
        return parameter.device, parameter.dtype

    def update_layer(self, adapter_name: str, config: DeflectConfig, encoder: Encoder, name: str) -> None:
        """Add what an adapter needs in this module, which has the `name` in the encoder's model."""

    @property
    def adapter(self) -> str | None:
        """Name of the one active adapter, `None` when there is none (UnsupportedOperationError)."""
        available = self._all_available_adapter_names()
        names = [name for name in self.active_adapters if name in available]  # others may be of LoRA, on layers inside
        if len(names) > 1:
            raise UnsupportedOperationError(
                f"The DEFLECT adapters {listing(names)} are active at once, but each bends the same displacement with "
                "its own bands, so they cannot be combined. Fix: model.set_adapter(name) with one name."
            )
        return names[0] if names else None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for key, value in state_dict.items():
            if key.startswith(f"{prefix}deflect_") and not bool(torch.as_tensor(value).isfinite().all()):
                raise CheckpointError(f"{key!r} holds NaN or infinity: copy the adapter's file again, or train again.")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused (UnsupportedOperationError): see the message."""
        raise UnsupportedOperationError(CANNOT_MERGE)

    def unmerge(self) -> None:
        """Refused (UnsupportedOperationError): see the message."""
        raise UnsupportedOperationError(CANNOT_MERGE)


CANNOT_MERGE = (
    "A DEFLECT adapter cannot be merged into the base weights: it depends on the pixels of the bands that the base "
    "model never sees. Fix: keep the adapter (it is small), or model.unload() to get the base model back."
)


class DeflectEmbeddings(DeflectLayer):
    """Wraps the embeddings: the frozen ones see the base bands, the pixel sets of all bands go beside their tokens."""

    adapter_layer_names: tuple[str, ...] = ()
    other_param_names: tuple[str, ...] = ("deflect_input",)

    def __init__(self, base_layer: nn.Module, encoder: Encoder) -> None:
        super().__init__(base_layer)
        self.deflect_input: Any = nn.ModuleDict()
        self.in_features, self.out_features = encoder.num_channels, encoder.hidden_size

    def update_layer(self, adapter_name: str, config: DeflectConfig, encoder: Encoder, name: str) -> None:
        """Add the input of an adapter: its bands, indices and statistics. It has no parameters."""
        self.deflect_input[adapter_name] = SpectralInput(config, encoder).train(self.training)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        told = any(key.startswith(f"{prefix}deflect_input.") for key in state_dict)
        for name, spectral in self.deflect_input.items():
            # another adapter's weights, or those of an earlier version, whose configuration alone knows
            if f"{prefix}deflect_input.{name}._extra_state" not in state_dict:
                state_dict[f"{prefix}deflect_input.{name}._extra_state"] = spectral.get_extra_state()
                if spectral.has_loaded and not told:
                    logger.warning(
                        "the weights do not say what they assume of their input, as adapters of earlier versions: "
                        "bands, formulas and statistics stay those of the adapter that was loaded before"
                    )
            spectral.has_loaded = True
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, pixel_values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """(B, C, H, W) reflectance -> (B, N, D + 2F) tokens, pixel sets beside them; (B, N, D) when disabled."""
        name = self.adapter
        if name is None:
            return self.base_layer(pixel_values, *args, **kwargs)
        spectral: SpectralInput = self.deflect_input[name]
        output = self.base_layer(spectral.base_pixels(pixel_values), *args, **kwargs)
        if self.disable_adapters:
            return output
        tokens, *rest = output if isinstance(output, tuple) else (output,)
        features = spectral(pixel_values)
        masked = kwargs.get("bool_masked_pos")
        if masked is not None:
            # A masked patch must not be readable through its radiometry.
            features = features.masked_fill(masked.bool().unsqueeze(-1), 0.0)
        if rest:
            features = _kept_patches(features, ids_restore=rest[1], keep=tokens.shape[1] - 1)
        if tokens.dim() == 4:  # timm's with dynamic_img_size
            return torch.cat([tokens, features.view(*tokens.shape[:-1], -1).to(tokens.dtype)], dim=-1)
        tokens = _beside(tokens, features)
        return (tokens, *rest) if rest else tokens


def _beside(tokens: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """(B, P + N, D), (B, N, 2F) -> (B, P + N, D + 2F): the P prefix tokens get the mean of the features."""
    prefix = tokens.shape[1] - features.shape[1]
    if prefix:  # ONNX takes one for none
        features = torch.cat([features.mean(dim=1, keepdim=True).expand(-1, prefix, -1), features], dim=1)
    return torch.cat([tokens, features.to(tokens.dtype)], dim=-1)


def install_positions(model: Any) -> None:
    """Let timm's `_pos_embed`, which stands between its patch embedding and its blocks, see the tokens alone."""
    if hasattr(model, "_pos_embed"):
        model._pos_embed = partial(_positioned, model)


def uninstall_positions(model: Any) -> None:
    """Undo [`install_positions`]."""
    model.__dict__.pop("_pos_embed", None)


def _positioned(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """(B, N, D + 2F) or (B, h, w, D + 2F) patches -> (B, P + N, D + 2F), with prefix tokens and positions."""
    width = model.patch_embed.out_features
    positioned = type(model)._pos_embed(model, tokens[..., :width].contiguous())
    if tokens.shape[-1] == width:
        return positioned
    return _beside(positioned, tokens[..., width:].flatten(1, -2))


def _kept_patches(features: torch.Tensor, ids_restore: torch.Tensor, keep: int) -> torch.Tensor:
    """(B, N, 2F) in image order -> (B, keep, 2F): the patches a masked autoencoder kept, in its shuffled order."""
    ids_keep = torch.argsort(ids_restore, dim=1)[:, :keep]
    return torch.gather(features, 1, ids_keep.unsqueeze(-1).expand(-1, -1, features.shape[-1]))


class DeflectNorm(DeflectLayer):
    """Wraps a norm between embeddings and blocks (CLIP has one): it sees the tokens alone. It has no parameters."""

    adapter_layer_names: tuple[str, ...] = ()
    other_param_names: tuple[str, ...] = ()

    def __init__(self, base_layer: nn.Module, encoder: Encoder) -> None:
        super().__init__(base_layer)
        self.in_features = self.out_features = encoder.hidden_size

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, N, D + width) tokens and stream -> the same, or (B, N, D) -> (B, N, D): the tokens normalised"""
        tokens, stream = hidden_states[..., : self.out_features], hidden_states[..., self.out_features :]
        return torch.cat([self.base_layer(tokens), stream], dim=-1)


class DeflectBlock(DeflectLayer):
    """Wraps a block: takes the stream off the tokens, hands it to the attention inside, and puts it back."""

    adapter_layer_names: tuple[str, ...] = ("deflect_spectral", "deflect_down", "deflect_up")
    other_param_names: tuple[str, ...] = ("deflect_role",)

    def __init__(self, base_layer: nn.Module, encoder: Encoder) -> None:
        super().__init__(base_layer)
        self.deflect_spectral: Any = nn.ModuleDict()  # T, on the first deflected block alone
        self.deflect_down: Any = nn.ModuleDict()  # G
        self.deflect_up: Any = nn.ModuleDict()  # U
        self.deflect_role: dict[str, Role] = {}
        self.in_features = self.out_features = encoder.hidden_size
        self.architecture = encoder.architecture
        install(self.get_base_layer(), self.architecture)

    def update_layer(self, adapter_name: str, config: DeflectConfig, encoder: Encoder, name: str) -> None:
        """Add the parameters of an adapter that belong to this block."""
        position, targeted = encoder.blocks.index(name), encoder.targeted_blocks(config.layers_to_transform)
        role = Role(position in targeted, position == targeted[0], position == targeted[-1])
        self.deflect_role[adapter_name] = role
        aux_dim = config.aux_dim or encoder.default_aux_dim
        if role.first:
            self.deflect_spectral[adapter_name] = nn.Linear(feature_count(config, encoder), aux_dim)
        if role.deflects:
            self.deflect_down[adapter_name] = nn.Linear(2 * aux_dim, config.rank)
            self.deflect_up[adapter_name] = DeflectionUp(config.rank, encoder.hidden_size)
            if config.init_weights:  # U of zeros: the adapted model then equals the frozen one exactly
                for parameter in self.deflect_up[adapter_name].parameters():
                    nn.init.zeros_(parameter)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        install(self.get_base_layer(), self.architecture)  # pickle finds the forward of the block's class

    def uninstall(self) -> None:
        """Give the wrapped block its own forward back."""
        uninstall(self.get_base_layer(), self.architecture)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(B, N, D + width) tokens and stream -> (B, N, D + width), or (B, N, D) behind the last deflected block."""
        if getattr(self, "_is_replica", False):
            # torch's DataParallel copies attributes: what was installed would run the layers of the original
            install(self.get_base_layer(), self.architecture)
        if hidden_states.shape[-1] == self.out_features:
            return self.base_layer(hidden_states, *args, **kwargs)
        name = self.adapter
        if name is None:
            raise UnsupportedOperationError("A stream arrives, but no adapter is active: activate one on all layers.")
        role = self.deflect_role[name]
        tokens, stream = hidden_states.split([self.out_features, hidden_states.shape[-1] - self.out_features], dim=-1)
        if role.first:
            spectral = self.deflect_spectral[name]
            stream = spectral(stream.to(spectral.weight.dtype))
        if role.deflects:
            kwargs["deflect"] = Deflection(stream, self.deflect_down[name], self.deflect_up[name], self.architecture)
        # Not `self.base_layer(...)`: its class may checkpoint in `__call__`, and `deflected_block` does that itself.
        tokens = nn.Module.__call__(self.base_layer, tokens, *args, **kwargs)
        return tokens if role.last else torch.cat([tokens, stream.to(tokens.dtype)], dim=-1)
