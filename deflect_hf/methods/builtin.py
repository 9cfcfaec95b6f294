"""The methods that `--finetune` names: the options of each, and the PEFT configuration that it makes of them."""

from __future__ import annotations

from typing import Literal

from peft import LNTuningConfig, LoraConfig, PeftConfig
from pydantic import PositiveFloat

from deflect_hf.config.methods import Method, Probability, Rank
from deflect_hf.config.schema import option
from deflect_hf.methods.bands import Bands, EncoderMethod
from deflect_hf.methods.inspect import HEAD, Target, linear_layers, norms
from deflect_hf.models.base import EncoderWithHead
from deflect_hf.tuners.bitfit import BitFitConfig
from deflect_hf.tuners.deflect import DeflectConfig
from deflect_hf.tuners.mergeable import pattern
from deflect_hf.tuners.scaled_lora import ScaledLoraConfig


class Deflect(Method):
    """Fields of [`DeflectConfig`] that are a choice of the user."""

    rank: Rank = option(8, "rank r of the deflection")
    aux_dim: Rank | None = option(None, "width d of the radiometric stream, null: about 64, to fit the attention heads")
    indices: str | list[str] | None = option("default", "'default', 'all', an application domain, names, or null")
    layers_to_transform: int | list[int] | None = option(None, "deflected blocks (-1: the last), null: all")
    band_dropout: Probability = option(0.0, "probability of losing a band in training; above 0, images may lack bands")

    def configure(self, model: EncoderWithHead, bands: Bands) -> PeftConfig:
        bands.refuse_extra_statistics()
        model.set_bands(None)  # the adapter takes them all
        return DeflectConfig(**bands.base_fields(), unit=bands.unit, **self.model_dump(), modules_to_save=[HEAD])


class Lora(EncoderMethod):
    """Low-rank adaptation, by PEFT. Source: Hu et al., arXiv 2106.09685."""

    rank: Rank = option(8, "rank r")
    alpha: PositiveFloat = option(8.0, "the update is scaled by alpha / r")
    dropout: Probability = option(0.0, "dropout before A")
    target: Target = option("qv", "layers of every block")

    def configure(self, model: EncoderWithHead, bands: Bands) -> PeftConfig:
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=linear_layers(model, self.target),
            modules_to_save=self.show_bands(model, bands),
        )


class Slr(EncoderMethod):
    """Scaled low-rank adapters. Source: Scheibenreif et al., CVPR 2024, whose recipe trains the norms, too."""

    rank: Rank = option(8, "rank r")
    target: Target = option("all-linear", "layers of every block")
    train_norms: bool = option(True, "train the encoder's norms in full, as published")

    def configure(self, model: EncoderWithHead, bands: Bands) -> PeftConfig:
        saved = self.show_bands(model, bands) + norms(model) * self.train_norms
        target_modules = linear_layers(model, self.target)
        return ScaledLoraConfig(r=self.rank, target_modules=target_modules, modules_to_save=saved)


class Norm(EncoderMethod):
    """Norm tuning, by PEFT: the encoder's layer norms are trained. Source: Zhao et al., arXiv 2312.11420.

    PEFT's LN tuning is not merged for good: after `merge_and_unload` the model computes the same, but its head, which
    was trained in full, is still in PEFT's wrapper, and a model that is saved then is refused when it is loaded.
    Store the adapter instead.
    """

    def configure(self, model: EncoderWithHead, bands: Bands) -> PeftConfig:
        return LNTuningConfig(target_modules=pattern(norms(model)), modules_to_save=self.show_bands(model, bands))


class BitFit(EncoderMethod):
    """BitFit: biases are trained. Source: Ben Zaken et al., arXiv 2106.10199."""

    target: Literal["all", "query+mlp"] = option("all", "all, or the paper's subset: queries and first MLP layer")

    def configure(self, model: EncoderWithHead, bands: Bands) -> PeftConfig:
        target_modules = None if self.target == "all" else linear_layers(model, self.target)
        return BitFitConfig(target_modules=target_modules, modules_to_save=self.show_bands(model, bands))


class Frozen(EncoderMethod):
    """The head alone is trained, and a wider patch embedding."""

    def configure(self, model: EncoderWithHead, bands: Bands) -> None:
        self.show_bands(model, bands)
        model.encoder.requires_grad_(False)


class Full(EncoderMethod):
    """Everything is trained."""

    def configure(self, model: EncoderWithHead, bands: Bands) -> None:
        self.show_bands(model, bands)
        model.requires_grad_(True)
