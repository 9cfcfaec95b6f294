"""The bands of the images, what the encoder sees of them, and how a wider patch embedding starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from deflect_hf.config.methods import Method
from deflect_hf.config.schema import option
from deflect_hf.errors import BandError, ConfigError, listing
from deflect_hf.methods.inspect import HEAD, task_model
from deflect_hf.models.base import EncoderWithHead
from deflect_hf.models.patch_embedding import Projection, patch_projection
from deflect_hf.spectral.bands import Unit
from deflect_hf.spectral.selection import resolve_bands, select_bands
from deflect_hf.tuners.deflect.config import refuse_digital_mean


@dataclass(frozen=True)
class Bands:
    """Bands of `pixel_values`, which of them the encoder was pretrained on, and the unit of all."""

    bands: Sequence[str]
    base_bands: Sequence[str]
    # base_mean, base_std: per base band, what the encoder subtracts and divides by
    base_mean: Sequence[float] | None
    base_std: Sequence[float] | None
    # extra_mean, extra_std: the same of the other bands, in the order of `bands`, for a patch embedding that takes them
    extra_mean: Sequence[float] | None
    extra_std: Sequence[float] | None
    unit: Unit

    def __post_init__(self) -> None:
        for names in (self.bands, self.base_bands):
            if isinstance(names, str):
                raise BandError(f"The bands must be a list of names, not the single string {names!r:.80}.")
        refuse_digital_mean(self.base_mean, self.unit)

    def base_fields(self) -> dict[str, Any]:
        """The lists of bands and numbers as plain lists, as configurations want them."""
        names = ("bands", "base_bands", "base_mean", "base_std")
        return {name: None if getattr(self, name) is None else list(getattr(self, name)) for name in names}

    def refuse_extra_statistics(self) -> None:
        """Refuse mean and deviation of bands that the encoder will not see (ConfigError)."""
        if self.extra_mean is not None or self.extra_std is not None:
            raise ConfigError("extra_mean and extra_std are for a patch embedding that takes all bands: patch_embed.")


def extra_bands(bands: Sequence[str], base_bands: Sequence[str]) -> list[str]:
    """The bands that are no base bands, in order; one near-infrared band may stand for the other (BandError)."""
    codes = resolve_bands(list(bands), settled=True)
    base = select_bands(codes, resolve_bands(list(base_bands)))
    return [code for position, code in enumerate(codes) if position not in base]


def trained_projection(model: nn.Module) -> Projection:
    """The convolution that embeds the patches; of one that PEFT trains in full, the trained copy."""
    embedding = task_model(model).get_input_embeddings()
    for module in embedding.modules():
        if isinstance(module, ModulesToSaveWrapper):
            return cast(Projection, module.modules_to_save[module.active_adapters[0]])
    return patch_projection(embedding)


class EncoderMethod(Method):
    """A method that changes the encoder alone, or nothing: which bands the encoder sees.

    `frozen`: the base bands, through the pretrained patch embedding. Otherwise all bands enter a wider patch embedding,
    which is trained in full and counted: the base bands first, then the others in the order of the images, each
    normalised by its own mean and standard deviation. Its kernel starts as follows.

    - `repeat`: channel j gets the pretrained kernel of base channel j mod n (n base bands), divided by the number of
      channels that share it. For 3k channels this is the RGB kernel k times, as published baselines have it, over k;
      images whose bands all equal the base band that they share a kernel with are embedded as by the pretrained one.
    - `rgb+random`: the base bands keep their pretrained kernel, the others start as normal noise with its standard
      deviation.
    """

    patch_embed: Literal["frozen", "repeat", "rgb+random"] = option(
        "frozen", "frozen: the base bands; otherwise all bands, trained"
    )

    def show_bands(self, model: EncoderWithHead, bands: Bands) -> list[str]:
        """Let the model take the bands, and hand its encoder those that `patch_embed` says.

        Returns:
            Names of the modules that are trained in full: the head, and a patch embedding that takes all bands.

        Raises:
            ConfigError: there is no band to take in, or statistics are missing or do nothing.
        """
        if self.patch_embed == "frozen":
            bands.refuse_extra_statistics()
            model.set_bands(**bands.base_fields())
            return [HEAD]
        further = extra_bands(bands.bands, bands.base_bands)
        if not further and self.patch_embed == "rgb+random":
            raise ConfigError(
                f"method.patch_embed=rgb+random has no band to start at random: {listing(bands.bands)} are all base "
                "bands."
            )
        extra: dict[str, Any] = {}
        if further:
            extra = {"extra_bands": further, "extra_mean": bands.extra_mean, "extra_std": bands.extra_std}
        model.set_bands(**bands.base_fields(), **extra)
        projection = patch_projection(model.get_input_embeddings())
        return [HEAD, next(name for name, module in model.named_modules() if module is projection)]

    def start_patch_embedding(self, model: nn.Module) -> None:
        """Give a patch embedding that takes all bands the kernel it starts with, and let it be trained."""
        if self.patch_embed == "frozen":
            return
        projection = trained_projection(model).requires_grad_(True)
        pretrained = projection.weight.detach()[:, : len(task_model(model).config.selected_base_bands)]
        with torch.no_grad():
            projection.weight.copy_(starting_kernel(pretrained, projection.in_channels, self.patch_embed))


def starting_kernel(pretrained: Tensor, channels: int, kind: str) -> Tensor:
    """(D, n, *) kernel of the base bands -> (D, channels, *): see [`EncoderMethod`]."""
    base = pretrained.shape[1]
    if kind == "rgb+random":
        noise = torch.randn_like(pretrained[:, :1].expand(-1, channels - base, *pretrained.shape[2:]))
        return torch.cat([pretrained, pretrained.std() * noise], dim=1)
    source = torch.arange(channels, device=pretrained.device) % base
    sharing = torch.tensor([len(range(j, channels, base)) for j in range(base)], device=pretrained.device)
    shape = (1, channels, *(1 for _ in pretrained.shape[2:]))
    return pretrained[:, source] / sharing[source].to(pretrained.dtype).view(shape)
