"""The published encoders: where their checkpoints are, what is in them, and what may be done with them.

Only facts about the files stand here, no code of theirs. Sizes and keys are read from the class definitions named in
``paper`` and ``homepage``; a file that differs is refused by the conversion, never bent into shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from deflect_hf.errors import ConfigError, listing, nearest

HLS_BANDS = ("B", "G", "R", "N2", "S1", "S2")
# Values of HLS are reflectance times this.
HLS_SCALE = 10000.0

DATES_AND_PLACES = ("temporal_embed_enc.", "location_embed_enc.")
NON_COMMERCIAL = "cc-by-nc-4.0"


@dataclass(frozen=True)
class Source:
    """One published encoder."""

    name: str
    title: str
    config: Mapping[str, Any]  # fields of ``GeoViTConfig``
    license: str
    homepage: str
    paper: str
    download: str
    pixels: str  # what its pretraining fed it, in words
    files: tuple[str, ...]
    hub_id: str | None = None
    wrappers: tuple[str, ...] = ()  # keys of the file's outer dictionary under which the weights may lie
    # foreign, own: beginnings of names that a file of this source has not, and has, other than a file of a source of
    # the same shapes
    foreign: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    note: str = ""  # what else a user of the features should know
    base_bands: tuple[str, ...] = ("R", "G", "B")
    # mean, std: normalisation of the base bands in reflectance; None where it saw 8-bit images
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


VIT_S = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
VIT_B = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
VIT_L = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
VIT_H = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "intermediate_size": 5120}

SCALE_MAE = Source(
    name="scale-mae",
    title="Scale-MAE ViT-L/16",
    config={**VIT_L, "position_embedding": "sincos_gsd"},
    license=NON_COMMERCIAL,
    homepage="https://github.com/bair-climate-initiative/scale-mae",
    paper="arXiv 2212.14532",
    download="https://github.com/bair-climate-initiative/scale-mae/releases/download/base-800/scalemae-vitlarge-800.pth",
    pixels="8-bit RGB / 255, mean 0.485 0.456 0.406, std 0.229 0.224 0.225",
    files=("scalemae-vitlarge-800.pth", "vit_large_patch16_224_fmow_rgb_scalemae-98ed9821.pth"),
    hub_id="isaaccorley/vit_large_patch16_224_fmow_rgb_scalemae",
    wrappers=("model",),
    foreign=("decoder_pred.",),  # of every other masked autoencoder
    note=(
        "The pretraining showed its positions ground sampling distances of about 2.2 to 5.0 (2.5 times what cropping "
        "and resizing from 448 to 224 pixels made of them); 1.0, the value here, is what its authors evaluate with."
    ),
)
DINO_MC = Source(
    name="dino-mc",
    title="DINO-MC ViT-S/8",
    config={**VIT_S, "patch_size": 8, "position_embedding": "learned"},
    license="mit",
    homepage="https://github.com/WennyXY/DINO-MC",
    paper="arXiv 2303.06670",
    download="https://drive.google.com/file/d/18RqKqZYzigOjwbyNzLsys8bmwqxrNhyt",
    pixels="8-bit RGB of Sentinel-2 / 255, mean 0.485 0.456 0.406, std 0.229 0.224 0.225",
    files=(),
    wrappers=("teacher",),
    note="Its authors' linear probe reads the class tokens of the last four blocks, each after the final norm.",
)
SATMAE = Source(
    name="satmae",
    title="SatMAE ViT-L/16 (fMoW RGB)",
    config={**VIT_L, "position_embedding": "sincos"},
    license=NON_COMMERCIAL,
    homepage="https://github.com/sustainlab-group/SatMAE",
    paper="arXiv 2207.08051",
    download="https://zenodo.org/record/7369797/files/fmow_pretrain.pth",
    pixels="8-bit RGB / 255, mean 0.4182 0.4215 0.3991, std 0.2877 0.2754 0.2764",
    files=("fmow_pretrain.pth",),
    wrappers=("model",),
    foreign=("fpn.", "fcn_high.", "fcn_low."),  # the decoder of Scale-MAE
)


def _cross_scale_mae(size: str, config: Mapping[str, Any], file_id: str) -> Source:
    return Source(
        name=f"cross-scale-mae-{size}",
        title=f"Cross-Scale MAE ViT-{size[0].upper()}/16",
        config={**config, "image_size": 128, "position_embedding": "sincos"},
        license=NON_COMMERCIAL,
        homepage="https://github.com/aicip/Cross-Scale-MAE",
        paper="arXiv 2401.15855",
        download=f"https://drive.google.com/file/d/{file_id}",
        pixels="8-bit RGB / 255, mean 0.4339 0.4358 0.4074, std 0.1983 0.1925 0.1945",
        files=(f"cross_scale_mae_{size}_pretrain.pth",),
        wrappers=("model",),
        note=(
            "Its authors' features lack the final norm, whose result their code does not assign: they are "
            "`hidden_states[-1]` here. Their linear probe reads the normed tokens, `last_hidden_state`."
        ),
    )


def _prithvi(
    name: str, repository: str, file: str, config: Mapping[str, Any], moments: tuple[tuple[float, ...], ...]
) -> Source:
    mean, std = (tuple(value / HLS_SCALE for value in values) for values in moments)
    first, dated = "1.0" in repository, repository.endswith("-TL")
    # IBM's pretraining code of version 1 has 1e-6. The code published with version 2 builds its norms with torch's
    # default, as terratorch does for both since December 2024: tokens of version 1 differ by 1e-5.
    eps = 1e-6 if first else 1e-5
    return Source(
        name=name,
        title=repository,
        config={"num_channels": 6, "position_embedding": "sincos_3d", "layer_norm_eps": eps, **config},
        license="apache-2.0",
        homepage=f"https://huggingface.co/ibm-nasa-geospatial/{repository}",
        paper="arXiv 2310.18660" if first else "arXiv 2412.02732",
        download=f"https://huggingface.co/ibm-nasa-geospatial/{repository}",
        pixels="HLS surface reflectance: blue, green, red, narrow near-infrared, SWIR 1, SWIR 2",
        files=(file, "Prithvi_100M.pt") if first else (file,),
        hub_id=f"ibm-nasa-geospatial/{repository}",
        # The TL variants were also shown dates and places, and were trained to do without: these are left out.
        foreign=() if dated else DATES_AND_PLACES,
        own=DATES_AND_PLACES if dated else (),
        note=(
            "For images of other sizes than 224 pixels the positions are computed anew, as for an encoder of that "
            "size; terratorch resizes those of 224 pixels bicubically instead, which changes tokens by a tenth."
        ),
        base_bands=HLS_BANDS,
        mean=mean,
        std=std,
    )


PRITHVI_1 = (
    (775.229, 1080.993, 1228.586, 2497.202, 2204.214, 1610.832),
    (1281.526, 1270.030, 1399.480, 1368.345, 1291.676, 1154.505),
)
PRITHVI_2 = ((1087.0, 1342.0, 1433.0, 2734.0, 1958.0, 1363.0), (2248.0, 2179.0, 2178.0, 1850.0, 1242.0, 1049.0))
_300M = {**VIT_L, "num_frames": 4}
_600M = {**VIT_H, "num_frames": 4, "patch_size": 14}

_ALL = (
    SCALE_MAE,
    DINO_MC,
    _cross_scale_mae("base", VIT_B, "17FePR5lAFNL45g7738JMofP2pyC_6hau"),
    _cross_scale_mae("large", VIT_L, "1FBJiQ8Z6J3P8Le7wFQXOicTDX9jTNGnT"),
    SATMAE,
    _prithvi("prithvi-eo-1", "Prithvi-EO-1.0-100M", "Prithvi_EO_V1_100M.pt", {**VIT_B, "num_frames": 3}, PRITHVI_1),
    _prithvi("prithvi-eo-2-300m", "Prithvi-EO-2.0-300M", "Prithvi_EO_V2_300M.pt", _300M, PRITHVI_2),
    _prithvi("prithvi-eo-2-300m-tl", "Prithvi-EO-2.0-300M-TL", "Prithvi_EO_V2_300M_TL.pt", _300M, PRITHVI_2),
    _prithvi("prithvi-eo-2-600m", "Prithvi-EO-2.0-600M", "Prithvi_EO_V2_600M.pt", _600M, PRITHVI_2),
    _prithvi("prithvi-eo-2-600m-tl", "Prithvi-EO-2.0-600M-TL", "Prithvi_EO_V2_600M_TL.pt", _600M, PRITHVI_2),
)
SOURCES: Mapping[str, Source] = MappingProxyType({source.name: source for source in _ALL})


def get_source(name: str) -> Source:
    """The published encoder of that name (ConfigError: there is none; the nearest name is given)."""
    if name not in SOURCES:
        raise ConfigError(f"source {name!r} is unknown; choose from {listing(SOURCES)}.{nearest(name, SOURCES)}")
    return SOURCES[name]


def conversion_hint(folder: str | Path) -> str:
    """How to make the converted encoder ``folder``, where its name is that of a source; else an empty string."""
    source = SOURCES.get(Path(folder).name.replace("_", "-"))
    if source is None:
        return ""
    checkpoint = "" if source.hub_id else " --checkpoint FILE"
    return (
        f" {source.title} is converted once, from {source.download}: python -m deflect_hf.models.geovit.conversion "
        f"--source {source.name}{checkpoint} --output {folder}"
    )
