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
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deflect_hf.config.data import AugmentationArguments
from deflect_hf.config.run import RunArguments
from deflect_hf.errors import ConfigError, listing
from deflect_hf.methods import deflect_config, task_model
from deflect_hf.tuners.deflect.architectures import find_encoder

logger = logging.getLogger(__name__)

FOLDER = "prefix"
PARTIAL = ".partial"  # ending of a file that is being written
TOKENS = "tokens"
DIGITS = 24  # of a file's or folder's hash
# Fields of encoders' configurations that make their first blocks random in training.
RANDOM_FIELDS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "drop_path_rate", "mask_ratio"),
    *("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"),
)


def trained_model(model: nn.Module, config: RunArguments, work_dir: Path, accelerator: Accelerator) -> nn.Module:
    """What the training loop runs: ``model`` itself, or with ``cache_prefix`` its stand-in that keeps the prefix.

    Raises:
        ConfigError: ``cache_prefix`` does not go with the rest of the configuration.
    """
    if not config.cache_prefix:
        return model
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ConfigError("cache_prefix needs whole parameters in each process, without FSDP or DeepSpeed: use DDP.")
    return with_stored_prefix(model, config.augmentation, work_dir / FOLDER)


class StoredPrefix(nn.Module):
    """Stands for the embeddings and the blocks before the first deflected one; computes each image once.

    Attributes:
        folder: where the files are, one per image; made with the first one.
    """

    def __init__(self, embeddings: nn.Module, blocks: list[nn.Module], folder: Path) -> None:
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
        paths = [self._path(image, args, kwargs) for image in pixel_values]
        tokens = [self._read(path) for path in paths]
        missing = [index for index, known in enumerate(tokens) if known is None]
        if missing:
            states = self.embeddings(pixel_values[missing], *args, **kwargs)
            for block in self.blocks:
                states = block(states)
            for index, state in zip(missing, states, strict=True):
                self._write(paths[index], state)
                tokens[index] = state
        return torch.stack([known.to(pixel_values.device) for known in tokens if known is not None])

    def _path(self, image: Tensor, *how: Any) -> Path:
        """The file of an image; ``how`` it goes in and the precision belong to its name."""
        device = image.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else image.dtype
        told = hashlib.sha256(repr((tuple(image.shape), image.dtype, precision, how)).encode())
        told.update(_bytes(image))
        return self.folder / f"{told.hexdigest()[:DIGITS]}.safetensors"

    def _read(self, path: Path) -> Tensor | None:
        if not path.is_file():
            return None
        try:
            return load_file(path)[TOKENS]
        except (SafetensorError, KeyError) as error:
            logger.warning("%s cannot be read (%s): it is computed again", path, error)
            return None

    def _write(self, path: Path, state: Tensor) -> None:
        partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            save_file({TOKENS: state.detach().cpu().contiguous()}, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def refuse_changing_prefix(model: nn.Module, augmentation: AugmentationArguments) -> None:
    """Refuse what makes the tokens before the first deflected block differ from epoch to epoch, or needs them later.

    Raises:
        ConfigError: naming it and the fix.
    """
    adapter, encoder = deflect_config(model), find_encoder(model)
    if adapter is None or encoder.targeted_blocks(adapter.layers_to_transform)[0] == 0:
        raise ConfigError(
            "cache_prefix keeps what enters the first deflected block, but there is no frozen block before it. Fix: "
            "--finetune deflect with --method.layers_to_transform, the last third of the blocks say; or leave it out."
        )
    if adapter.band_dropout:
        raise ConfigError(
            "cache_prefix: --method.band_dropout draws other bands each time. Fix: leave one of them out."
        )
    drawn = {
        "random_crop": augmentation.crop is not None,
        "horizontal_flip": augmentation.horizontal_flip > 0,
        "vertical_flip": augmentation.vertical_flip > 0,
        "rot90": augmentation.rot90,
    }
    random = [name for name, given in drawn.items() if given]
    if random:
        raise ConfigError(
            f"cache_prefix needs images that are the same in each epoch, but augmentation has {listing(random)}. Fix: "
            "--augmentation.random_crop null, flips 0 and rot90 false; or leave cache_prefix out."
        )
    task = task_model(model)
    fields = [name for name in RANDOM_FIELDS if getattr(task.encoder.config, name, None)]
    if fields or encoder.architecture.rotary:
        raise ConfigError(
            f"cache_prefix cannot keep the first blocks of this {type(task.encoder).__name__}: "
            + (f"its {listing(fields)} makes them random in training." if fields else "its positions are rotary.")
        )
    if any(layer != task.config.depth - 1 for layer in task.config.feature_layers):
        raise ConfigError(
            f"cache_prefix: the head reads the blocks {list(task.config.feature_layers)}, not the last one alone. Fix: "
            "--segmentor.head linear, or leave cache_prefix out."
        )


def with_stored_prefix(model: nn.Module, augmentation: AugmentationArguments, folder: Path) -> nn.Module:
    """The model to train in place of ``model``: the same parameters, but its frozen prefix is kept in ``folder``.

    Raises:
        ConfigError: the prefix changes from epoch to epoch, or there is none.
    """
    refuse_changing_prefix(model, augmentation)
    adapter = deflect_config(model)
    assert adapter is not None
    names = find_encoder(model)
    first = names.targeted_blocks(adapter.layers_to_transform)[0]
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    copied: nn.Module = copy.deepcopy(model, memo=dict(shared))
    container = names.blocks[0].rpartition(".")[0]
    blocks = list(copied.get_submodule(container).children())
    embeddings = copied.get_submodule(names.embeddings)
    own = folder / _hash([embeddings, *blocks[:first]], [adapter.to_dict(), task_model(model).encoder.config.to_dict()])
    _replace(copied, names.embeddings, StoredPrefix(embeddings, blocks[:first], own))
    _replace(copied, container, nn.ModuleList(blocks[first:]))
    logger.info("what enters block %d is kept in %s, one file per image", first, own)
    return copied


def _hash(modules: list[nn.Module], configs: list[dict[str, Any]]) -> str:
    """Of the weights and of all that says how they are used."""
    told = hashlib.sha256(json.dumps([torch.__version__, configs], sort_keys=True, default=str).encode())
    for module in modules:
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            told.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            told.update(_bytes(tensor))
    return told.hexdigest()[:DIGITS]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
