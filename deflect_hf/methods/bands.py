"""The bands of the images, what the encoder sees of them, and how a wider patch embedding starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from deflect_hf.config.methods import EncoderOptions
from deflect_hf.errors import ConfigError, listing
from deflect_hf.methods.inspect import HEAD, task_model
from deflect_hf.models.patch_embedding import Projection, patch_projection
from deflect_hf.spectral.bands import Unit
from deflect_hf.spectral.selection import resolve_bands, select_bands

if TYPE_CHECKING:
    from deflect_hf.models.base import EncoderWithHead


@dataclass(frozen=True)
class Bands:
    """Bands of `pixel_values`, which of them the encoder was pretrained on, and the unit of all.

    Attributes:
        base_mean, base_std: per base band, what the encoder subtracts and divides by.
        extra_mean, extra_std: the same of the other bands, in the order of `bands`, for a patch embedding that takes
            them.
    """

    bands: Sequence[str]
    base_bands: Sequence[str]
    base_mean: Sequence[float] | None
    base_std: Sequence[float] | None
    extra_mean: Sequence[float] | None
    extra_std: Sequence[float] | None
    unit: Unit

    def base_fields(self) -> dict[str, Any]:
        """The lists of bands and numbers as plain lists, as configurations want them."""
        names = ("bands", "base_bands", "base_mean", "base_std")
        return {name: None if getattr(self, name) is None else list(getattr(self, name)) for name in names}

    def refuse_extra_statistics(self) -> None:
        """Refuse mean and deviation of bands that the encoder will not see (ConfigError)."""
        if self.extra_mean is not None or self.extra_std is not None:
            raise ConfigError("extra_mean and extra_std are for a patch embedding that takes all bands: patch_embed.")


def extra_bands(bands: Sequence[str], base_bands: Sequence[str]) -> list[str]:
    """The bands that are no base bands, in order; one near-infrared band may stand for the other.

    Raises:
        BandError: a base band is missing.
    """
    codes = resolve_bands(list(bands), settled=True)
    base = select_bands(codes, resolve_bands(list(base_bands)))
    return [code for position, code in enumerate(codes) if position not in base]


def show_bands(model: EncoderWithHead, options: EncoderOptions, bands: Bands) -> list[str]:
    """Let the model take the bands, and hand its encoder those that `options.patch_embed` says.

    Returns:
        Names of the modules that are trained in full: the head, and a patch embedding that takes all bands.

    Raises:
        ConfigError: there is no band to take in, or statistics are missing or do nothing.
    """
    if options.patch_embed == "frozen":
        bands.refuse_extra_statistics()
        model.set_bands(**bands.base_fields())
        return [HEAD]
    further = extra_bands(bands.bands, bands.base_bands)
    if not further and options.patch_embed == "rgb+random":
        raise ConfigError(
            f"method.patch_embed=rgb+random has no band to start at random: {listing(bands.bands)} are all base bands."
        )
    extra: dict[str, Any] = {}
    if further:
        extra = {"extra_bands": further, "extra_mean": bands.extra_mean, "extra_std": bands.extra_std}
    model.set_bands(**bands.base_fields(), **extra)
    return [HEAD, projection_name(model)]


def projection_name(model: EncoderWithHead) -> str:
    """The name of the convolution that embeds the patches."""
    projection = patch_projection(model.get_input_embeddings())
    return next(name for name, module in model.named_modules() if module is projection)


def trained_projection(model: nn.Module) -> Projection:
    """The convolution that embeds the patches; of one that PEFT trains in full, the trained copy."""
    embedding = task_model(model).get_input_embeddings()
    for module in embedding.modules():
        if isinstance(module, ModulesToSaveWrapper):
            return cast(Projection, module.modules_to_save[module.active_adapters[0]])
    return patch_projection(embedding)


def start_patch_embedding(model: nn.Module, options: EncoderOptions) -> None:
    """Give a patch embedding that takes all bands the kernel it starts with, and let it be trained."""
    if options.patch_embed == "frozen":
        return
    projection = trained_projection(model).requires_grad_(True)
    pretrained = projection.weight.detach()[:, : len(task_model(model).config.selected_base_bands)]
    with torch.no_grad():
        projection.weight.copy_(starting_kernel(pretrained, projection.in_channels, options.patch_embed))


def starting_kernel(pretrained: Tensor, channels: int, kind: str) -> Tensor:
    """(D, n, *) kernel of the base bands -> (D, channels, *): see [`EncoderOptions`]."""
    base = pretrained.shape[1]
    if kind == "rgb+random":
        noise = torch.randn_like(pretrained[:, :1].expand(-1, channels - base, *pretrained.shape[2:]))
        return torch.cat([pretrained, pretrained.std() * noise], dim=1)
    source = torch.arange(channels, device=pretrained.device) % base
    sharing = torch.tensor([len(range(j, channels, base)) for j in range(base)], device=pretrained.device)
    shape = (1, channels, *(1 for _ in pretrained.shape[2:]))
    return pretrained[:, source] / sharing[source].to(pretrained.dtype).view(shape)
