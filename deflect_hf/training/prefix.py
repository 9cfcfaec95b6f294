"""What enters the first deflected block, kept on disk: with a late start, frozen blocks before it run once per image.

A model is trained as a copy of its module tree, with the same parameters, in which one module stands for embeddings and
frozen blocks. It takes the same pixels, so the training loop does not know of it. Its files are found by a hash of
everything their content depends on (the pixels and the frozen weights among it), so none of them can be stale.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deflect_hf.config.data import AugmentationArguments
from deflect_hf.data.kept import keep, read_kept
from deflect_hf.errors import ConfigError, listing
from deflect_hf.methods import deflect_config, task_model
from deflect_hf.tuners.deflect.architectures import find_encoder

logger = logging.getLogger(__name__)

FOLDER = "prefix"
# Fields of encoders' configurations that make their first blocks random in training.
RANDOM_FIELDS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "drop_path_rate", "mask_ratio"),
    *("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"),
)


class StoredPrefix(nn.Module):
    """Stands for the embeddings and the blocks before the first deflected one; computes each image once."""

    def __init__(self, embeddings: nn.Module, blocks: Sequence[nn.Module], folder: Path) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.blocks = nn.ModuleList(blocks)
        self.folder = folder

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "embeddings":
                raise
            return getattr(self.embeddings, name)

    @torch.no_grad()
    def forward(self, pixel_values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(B, C, H, W) reflectance -> (B, N, D + 2F) what enters the first deflected block."""
        device = pixel_values.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else pixel_values.dtype
        paths = [self.folder / f"{_hash([image], (precision, args, kwargs))}.safetensors" for image in pixel_values]
        tokens = [None if known is None else known["tokens"] for known in map(read_kept, paths)]
        missing = [index for index, known in enumerate(tokens) if known is None]
        if missing:
            states = self.embeddings(pixel_values[missing], *args, **kwargs)
            for block in self.blocks:
                states = block(states)
            for index, state in zip(missing, states, strict=True):
                keep(paths[index], {"tokens": state})
                tokens[index] = state
        return torch.stack([known.to(pixel_values.device) for known in tokens if known is not None])


def _hash(tensors: Sequence[Tensor], how: Any) -> str:
    """Of the tensors and of what says how they are used."""
    total = hashlib.sha256(repr(how).encode())
    for tensor in tensors:
        total.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:24]


def refuse_changing_prefix(model: nn.Module, augmentation: AugmentationArguments) -> None:
    """Refuse what makes the tokens before the first deflected block differ from epoch to epoch, or needs them later."""
    adapter, encoder, task = deflect_config(model), find_encoder(model), task_model(model)
    if adapter is None or encoder.targeted_blocks(adapter.layers_to_transform)[0] == 0:
        raise ConfigError(
            "cache_prefix keeps what enters the first deflected block, but there is no frozen block before it. Fix: "
            "--finetune deflect with --method.layers_to_transform, the last third of the blocks say; or leave it out."
        )
    fields = [name for name in RANDOM_FIELDS if getattr(task.encoder.config, name, None)]
    other_layers = [layer for layer in task.config.feature_layers if layer != task.config.depth - 1]
    drawn = {
        "augmentation.random_crop": augmentation.crop is not None,
        "augmentation.horizontal_flip": augmentation.horizontal_flip > 0,
        "augmentation.vertical_flip": augmentation.vertical_flip > 0,
        "augmentation.rot90": augmentation.rot90,
        "augmentation.band_gain": augmentation.band_gain > 0,
        "augmentation.band_offset": augmentation.band_offset > 0,
        "augmentation.band_noise": augmentation.band_noise > 0,
        "method.band_dropout": adapter.band_dropout > 0,
        f"an encoder with {listing(fields)}": bool(fields),
        "an encoder with rotary positions": encoder.architecture.rotary,
        f"a head that reads the blocks {list(task.config.feature_layers)}, not the last one alone": bool(other_layers),
    }
    found = [name for name, given in drawn.items() if given]
    if found:
        raise ConfigError(
            "cache_prefix needs first blocks that give the same in each epoch and are read by the next block alone, "
            f"which does not go with {'; '.join(found)}. Fix: switch this off, or leave cache_prefix out."
        )


def with_stored_prefix(model: nn.Module, augmentation: AugmentationArguments, folder: Path) -> nn.Module:
    """The model to train in place of ``model``: the same parameters, but its frozen prefix is kept in ``folder``."""
    refuse_changing_prefix(model, augmentation)
    adapter, names = deflect_config(model), find_encoder(model)
    assert adapter is not None
    first = names.targeted_blocks(adapter.layers_to_transform)[0]
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    copied: nn.Module = copy.deepcopy(model, memo=dict(shared))
    container = names.blocks[0].rpartition(".")[0]
    blocks = list(copied.get_submodule(container).children())
    embeddings = copied.get_submodule(names.embeddings)
    frozen = nn.ModuleList([embeddings, *blocks[:first]])
    configs = [adapter.to_dict(), task_model(model).encoder.config.to_dict()]
    how = json.dumps([torch.__version__, configs, [name for name, _ in frozen.named_parameters()]], default=str)
    own = folder / _hash([*frozen.parameters(), *frozen.buffers()], how)
    copied.set_submodule(names.embeddings, StoredPrefix(embeddings, blocks[:first], own))
    copied.set_submodule(container, nn.ModuleList(blocks[first:]))
    logger.info("what enters block %d is kept in %s, one file per image", first, own)
    return copied
