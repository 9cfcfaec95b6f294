"""The masked autoencoder of transformers with the starting weights of the paper, and its encoder as a plain ViTModel.

Source: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022 (arXiv 2111.06377), appendix A.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViTConfig, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

from deflect_hf.models.geovit.embeddings import plane_positions

# What an encoder's configuration shares between ViTMAEConfig and ViTConfig: all that its forward depends on.
_SHARED = ("image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads",
           "intermediate_size", "hidden_act", "layer_norm_eps", "qkv_bias")  # fmt: skip


def fixed_positions(side: int, width: int) -> Tensor:
    """-> (1, 1 + side * side, width): zeros for CLS, then the waves of the published MAE weights, row by row."""
    return F.pad(plane_positions(side, side, width, torch.ones(1)), (0, 0, 1, 0))


def build_masked_autoencoder(config: ViTMAEConfig) -> ViTMAEForPreTraining:
    """Return a masked autoencoder with the paper's starting weights; seed torch before for a reproducible one.

    transformers (seen in 5.23) leaves both position embeddings and all tokens of a *new* model at zero, which are
    frozen: neither encoder nor decoder could tell where a patch is. It also draws linear weights with a fixed
    deviation that is too small for narrow models. Both are set here.
    """
    model = ViTMAEForPreTraining(config)
    embeddings, decoder = model.vit.embeddings, model.decoder
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    with torch.no_grad():
        nn.init.xavier_uniform_(embeddings.patch_embeddings.projection.weight.flatten(1))
        side = config.image_size // config.patch_size
        embeddings.position_embeddings.copy_(fixed_positions(side, config.hidden_size))
        decoder.decoder_pos_embed.copy_(fixed_positions(side, config.decoder_hidden_size))
        nn.init.normal_(embeddings.cls_token, std=config.initializer_range)
        nn.init.normal_(decoder.mask_token, std=config.initializer_range)
    return model


def to_vit_encoder(model: ViTMAEForPreTraining) -> ViTModel:
    """Return the encoder as a ``ViTModel`` without pooler: same numbers as the autoencoder's with nothing masked."""
    encoder = ViTModel(ViTConfig(**{key: getattr(model.config, key) for key in _SHARED}), add_pooling_layer=False)
    encoder.load_state_dict(model.vit.state_dict())
    return encoder.eval()


def random_views(chips: Tensor, size: int, smallest_crop: float, generator: torch.Generator) -> Tensor:
    """(B, C, H, W) -> (B, C, size, size): a random square crop of each chip under one of the square's eight symmetries.

    Nothing in a nadir image is up, hence all eight; colours are left alone, since they are measurements.

    Args:
        smallest_crop: smallest area of a crop, as a share of the chip's.
        generator: on the CPU, so that the same seed gives the same views on any device.
    """
    count = len(chips)
    side = (smallest_crop + (1 - smallest_crop) * torch.rand(count, generator=generator)).sqrt()
    shift = (2 * torch.rand(count, 2, generator=generator) - 1) * (1 - side)[:, None]
    axes = torch.diag_embed(2.0 * torch.randint(0, 2, (count, 2), generator=generator) - 1)
    transposed = torch.randint(0, 2, (count,), generator=generator).bool()
    axes[transposed] = axes[transposed].flip(1)
    affine = torch.cat([axes * side[:, None, None], shift[:, :, None]], dim=2).to(chips.device)
    grid = nn.functional.affine_grid(affine, [count, chips.shape[1], size, size], align_corners=False)
    return nn.functional.grid_sample(chips, grid, padding_mode="border", align_corners=False)
