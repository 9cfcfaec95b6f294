"""Masked-autoencoder pretraining of a small RGB vision transformer on unlabelled chips.

Gives the frozen RGB encoder that the adapters start from when no published geospatial encoder is at hand:

    python -m deflect_hf.benchmark.pretrain --images chips.npz --output encoder_rgb

``encoder_rgb`` is then a plain transformers folder (``ViTModel.from_pretrained``) with a ``normalisation.json``: the
mean and standard deviation of R, G, B in reflectance, which belong into the encoder's configuration.

Source: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022 (arXiv 2111.06377).
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import sys
import time
import zipfile
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from pydantic import Field, model_validator
from torch.utils.data import DataLoader, Dataset
from transformers import ViTMAEConfig, ViTMAEForPreTraining, get_cosine_schedule_with_warmup

from deflect_hf.artifacts.saved_model import reading
from deflect_hf.benchmark.masked_autoencoder import build_masked_autoencoder, random_views, to_vit_encoder
from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.data import Batch, Count, Side
from deflect_hf.config.run import Width
from deflect_hf.config.schema import Arguments, UserPath, option
from deflect_hf.errors import CheckpointError, ConfigError, DataError, data_errors, listing, user_errors
from deflect_hf.files import refuse_used, temp_dir, write_json

logger = logging.getLogger(__name__)

BASE_BANDS = ("R", "G", "B")
NO_CHIPS = (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile)  # of np.load; TypeError: a .npy file
Few = Annotated[int, Field(ge=1, le=1024)]
# What does not change the numbers: a resumed run may differ in it, and an encoder that is passed on need not tell it.
_NOT_IN_RECIPE = {"images", "output", "resume", "save_every_epochs"}


class PretrainArguments(Arguments):
    """Options of ``python -m deflect_hf.benchmark.pretrain``."""

    images: UserPath = Field(description="a .npz file, or a folder of them, with key 'rgb': (N, H, W, 3) integers")
    output: UserPath = Field(description="folder for the encoder, its intermediate versions and the checkpoint")
    scale: float = option(1e-4, "reflectance of one digital number", gt=0)
    image_size: Side = option(64, "side of the square that the encoder sees, in pixels")
    patch_size: Side = option(8, "side of a patch, in pixels")
    hidden_size: Width = option(192, "width of the encoder, a multiple of 4 and of the heads")
    layers: Few = option(6, "blocks of the encoder")
    heads: Few = option(6, "attention heads of the encoder")
    mlp_ratio: Few = option(3, "width of the feed-forward layers over the hidden size")
    decoder_hidden_size: Width = option(96, "width of the decoder, thrown away afterwards")
    decoder_layers: Few = option(2, "blocks of the decoder")
    decoder_heads: Few = option(3, "attention heads of the decoder")
    mask_ratio: float = option(0.75, "share of the patches hidden from the encoder", gt=0, lt=1)
    raw_target: bool = option(False, "reconstruct pixels not standardised per patch")
    smallest_crop: float = option(0.4, "smallest area of a random crop, as a share", gt=0, le=1)
    epochs: Count = option(100, "passes over the chips")
    warmup_epochs: int = option(5, "epochs in which the learning rate rises from 0", ge=0, le=10**6)
    batch_size: Batch = option(64, "chips per step and process")
    learning_rate: float = option(1e-3, "highest learning rate of AdamW", gt=0)
    weight_decay: float = option(0.05, "weight decay of the matrices", ge=0)
    seed: int = option(0, "fixes weights, order, crops and masks", ge=0)
    save_every_epochs: Count = option(10, "also keep the encoder every this many epochs")
    resume: bool = option(False, "go on from the checkpoint in the output folder")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.image_size % self.patch_size:
            raise ConfigError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        for width, heads in (("hidden_size", "heads"), ("decoder_hidden_size", "decoder_heads")):
            if getattr(self, width) % 4 or getattr(self, width) % getattr(self, heads):
                raise ConfigError(f"{width} {getattr(self, width)} must be a multiple of 4 and of {heads}")
        return self

    def mae_config(self) -> ViTMAEConfig:
        """Return the configuration of the masked autoencoder."""
        return ViTMAEConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.mlp_ratio * self.hidden_size,
            decoder_hidden_size=self.decoder_hidden_size,
            decoder_num_hidden_layers=self.decoder_layers,
            decoder_num_attention_heads=self.decoder_heads,
            decoder_intermediate_size=4 * self.decoder_hidden_size,
            layer_norm_eps=1e-6,
            mask_ratio=self.mask_ratio,
            norm_pix_loss=not self.raw_target,
        )


class RGBChips(Dataset):
    """Unlabelled RGB chips held as digital numbers; an item is a standardised float32 tensor (3, H, W).

    Attributes:
        mean: mean reflectance of R, G, B over the set.
        std: standard deviation of R, G, B over the set, in reflectance.
    """

    def __init__(self, digital_numbers: np.ndarray, scale: float) -> None:
        self.digital_numbers = digital_numbers
        self.scale = scale
        # Chip by chip: a float64 copy of the whole set would take four times its memory.
        means = np.stack([chip.mean(axis=(0, 1), dtype=np.float64) for chip in digital_numbers])
        squares = np.stack([np.square(chip, dtype=np.float64).mean(axis=(0, 1)) for chip in digital_numbers])
        mean = means.mean(axis=0)
        self.mean = (mean * scale).tolist()
        self.std = (np.sqrt(squares.mean(axis=0) - mean**2) * scale).tolist()
        if min(self.std) <= 0:
            raise DataError(
                f"A band of {listing(BASE_BANDS)} is constant over all chips: standard deviations {self.std}."
            )

    def __len__(self) -> int:
        return len(self.digital_numbers)

    def __getitem__(self, item: int) -> torch.Tensor:
        reflectance = self.digital_numbers[item].astype(np.float32) * np.float32(self.scale)
        values = (reflectance - np.float32(self.mean)) / np.float32(self.std)
        return torch.from_numpy(values.transpose(2, 0, 1).copy())


def load_chips(path: str | Path) -> np.ndarray:
    """Read chips (N, H, W, 3) of digital numbers, order R, G, B, from a .npz file or a folder of them (DataError)."""
    path = Path(path)
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise DataError(f"{path}: no .npz file here; give a file or a folder of files with the key 'rgb'.")
    stacks: list[np.ndarray] = []
    for file in files:
        unread = data_errors(f"{file}: cannot be read", "give a .npz file with the array 'rgb'.", *NO_CHIPS)
        with unread, np.load(file) as archive:
            if "rgb" not in archive:
                raise ValueError(f"it holds {listing(archive.files)}")
            stack = archive["rgb"]
        if stack.ndim != 4 or stack.shape[-1] != 3 or not len(stack):
            raise DataError(f"{file}: 'rgb' has shape {stack.shape}; expected (N, H, W, 3), order R, G, B.")
        if not np.issubdtype(stack.dtype, np.integer):
            raise DataError(f"{file}: 'rgb' is {stack.dtype}; expected integers (reflectance / --scale).")
        if stack.shape[1:] != (stacks or [stack])[0].shape[1:]:
            raise DataError(f"{file}: chips of {stack.shape[1:3]}, but {files[0]} has {stacks[0].shape[1:3]} pixels.")
        stacks.append(stack)
    return np.concatenate(stacks)


def recipe(args: PretrainArguments) -> dict:
    """Return the options that determine the weights."""
    return args.model_dump(exclude=_NOT_IN_RECIPE)


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay on matrices and kernels only: not on biases, norms and tokens."""
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in trainable if p.ndim > 1 and "token" not in name]
    other = [p for name, p in trainable if p.ndim <= 1 or "token" in name]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": other, "weight_decay": 0.0}]


def train_epoch(accelerator: Accelerator, training: tuple, args: PretrainArguments, epoch: int) -> float:
    """Train for one epoch; return the mean reconstruction loss over all processes (DataError)."""
    model, optimizer, scheduler, loader = training
    model.train()
    loader.set_epoch(epoch)
    patches = (args.image_size // args.patch_size) ** 2
    losses = []
    for step, chips in enumerate(loader):
        # Crops and masks depend on where the run is, not on its past: a resumed run draws what it would have drawn.
        state = np.random.SeedSequence([args.seed, epoch, step, accelerator.process_index]).generate_state(1)
        generator = torch.Generator().manual_seed(int(state[0]))
        views = random_views(chips, args.image_size, args.smallest_crop, generator)
        noise = torch.rand(len(views), patches, generator=generator).to(views.device)
        loss = model(pixel_values=views, noise=noise).loss
        accelerator.backward(loss)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.detach().float())
    loss = accelerator.reduce(torch.stack(losses).mean(), reduction="mean").item()
    if not math.isfinite(loss) or not all(bool(weight.isfinite().all()) for weight in model.parameters()):
        raise DataError(
            f"loss ({loss}) or weights are not finite after epoch {epoch + 1}: give a lower --learning_rate, or "
            "look at the chips. What was saved before this epoch is as it was."
        )
    return loss


def save_encoder(model: ViTMAEForPreTraining, chips: RGBChips, record: dict, folder: Path) -> None:
    """Write the encoder, ``normalisation.json`` and ``pretraining.json``; ``folder`` never holds half of a file."""
    with temp_dir(folder.with_name(folder.name + ".partial")) as partial:
        to_vit_encoder(model).save_pretrained(partial)
        normalisation = {"bands": BASE_BANDS, "unit": "reflectance", "mean": chips.mean, "std": chips.std}
        write_json(partial / "normalisation.json", normalisation)
        write_json(partial / "pretraining.json", record)
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(partial.iterdir()):
            os.replace(file, folder / file.name)


def checkpoints_of(output: Path) -> list[Path]:
    """The checkpoints in an output folder, the newest last."""
    return sorted(path for path in output.glob("checkpoint_*") if path.name.removeprefix("checkpoint_").isdecimal())


def save_checkpoint(accelerator: Accelerator, record: dict, output: Path) -> None:
    """Write ``checkpoint_EPOCH`` under a name of its own, then remove the one before it."""
    target = output / f"checkpoint_{record['epoch']:04d}"
    partial = output / "checkpoint.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (partial / "pretraining.json").write_text(json.dumps(record))
        earlier = checkpoints_of(output)
        os.replace(partial, target)
        for folder in earlier:
            shutil.rmtree(folder)


def load_checkpoint(accelerator: Accelerator, args: PretrainArguments) -> dict | None:
    """Restore the newest checkpoint of the output folder and return its record; None when a run starts afresh.

    A CheckpointError says that there is one that was not asked for, or none of these options that can be read.
    """
    output = Path(args.output)
    found = checkpoints_of(output)
    if not args.resume:
        if found:
            raise CheckpointError(f"{output} holds {found[-1].name}: add --resume to go on, or take another --output.")
        return None
    if not found:
        raise CheckpointError(f"{output} holds no checkpoint: leave out --resume, or correct --output.")
    path = found[-1] / "pretraining.json"
    record: dict = reading(path, lambda: json.loads(path.read_text(encoding="utf-8")))
    current = recipe(args)
    changed = [key for key in current if record["arguments"].get(key) != current[key]]
    if changed:
        was = ", ".join(f"{key}={record['arguments'].get(key)!r}" for key in changed)
        raise CheckpointError(f"{found[-1]} was made with {was}: resume with the same options.")
    reading(found[-1], lambda: accelerator.load_state(str(found[-1])))
    return record


def pretrain(args: PretrainArguments) -> Path:
    """Pretrain as ``args`` say and return the folder of the encoder.

    The folder also gets ``epoch_NNN`` (the encoder every ``save_every_epochs``) and one ``checkpoint_NNNN``.
    """
    accelerator = Accelerator(
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed),
    )
    set_seed(args.seed)
    output = Path(args.output)
    refuse_used(output, [path.name for path in checkpoints_of(output)])
    chips = RGBChips(load_chips(args.images), args.scale)
    model = build_masked_autoencoder(args.mae_config())
    optimizer = torch.optim.AdamW(parameter_groups(model, args.weight_decay), args.learning_rate, betas=(0.9, 0.95))
    loader = DataLoader(chips, args.batch_size, shuffle=True)
    scheduler = get_cosine_schedule_with_warmup(optimizer, args.warmup_epochs * len(loader), args.epochs * len(loader))
    training = accelerator.prepare(model, optimizer, scheduler, loader)
    record = load_checkpoint(accelerator, args) or {"epoch": 0, "losses": []}
    record |= {
        "arguments": recipe(args),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    for epoch in range(record["epoch"], args.epochs):
        start = time.perf_counter()
        loss = train_epoch(accelerator, training, args, epoch)
        record |= {"epoch": epoch + 1, "losses": [*record["losses"], loss]}
        if accelerator.is_main_process:
            seconds = time.perf_counter() - start
            logger.info("epoch %d/%d: loss %.4f, %.1f s", epoch + 1, args.epochs, loss, seconds)
            if (epoch + 1) % args.save_every_epochs == 0:
                save_encoder(accelerator.unwrap_model(training[0]), chips, record, output / f"epoch_{epoch + 1:03d}")
        save_checkpoint(accelerator, record, output)
    if accelerator.is_main_process:
        save_encoder(accelerator.unwrap_model(training[0]), chips, record, output)
    return output


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and pretrain; what a user can correct is printed without a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stdout)
    logger.setLevel(logging.INFO)
    words = sys.argv[1:] if argv is None else list(argv)
    with user_errors(words):
        pretrain(parse_arguments(PretrainArguments, __doc__ or "", words))


if __name__ == "__main__":
    main()
