"""What `test_distributed.py` launches in two processes: the same training under DDP, FSDP1 and FSDP2, and statistics.

Each kind writes its losses, the gradients of the first step and its adapter folder below the folder it is given. Both
kinds of FSDP checkpoint their blocks, each in its own way.
"""

import json
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from peft import PeftModel, get_peft_model
from peft.utils.other import fsdp_auto_wrap_policy
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from deflect_hf.tuners.statistics import fit_statistics
from tests.tuners.test_statistics import INDICES, images
from tests.tuners.tiny import BANDS, IMAGE, adapted, make_encoder, randomise, spectral_config

KINDS = ("ddp", "fsdp1", "fsdp2")
STEPS = 3
BATCH = 4


def make_model() -> PeftModel:
    base = make_encoder("vit", model="ViTForImageClassification", num_labels=4)
    model = get_peft_model(base, spectral_config(modules_to_save=["classifier"]))
    return randomise(model).train()


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = 0.02 + 0.4 * torch.rand(BATCH, len(BANDS), IMAGE, IMAGE, generator=generator)
    return images, torch.randint(4, (BATCH,), generator=generator)


def clean(name: str) -> str:
    """The parameter's name in the model itself."""
    return re.sub(r"(^module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.", "", name)


def shard_fsdp1(model: PeftModel) -> nn.Module:
    policy = fsdp_auto_wrap_policy(model)
    sharded = FullyShardedDataParallel(
        model, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu")
    )
    wrapper = partial(checkpoint_wrapper, checkpoint_impl=CheckpointImpl.NO_REENTRANT)
    names = model._no_split_modules
    apply_activation_checkpointing(
        sharded, checkpoint_wrapper_fn=wrapper, check_fn=lambda module: type(module).__name__ in names
    )
    return sharded


def shard_fsdp2(model: PeftModel) -> nn.Module:
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    policy = fsdp2_prepare_auto_wrap_policy(plugin, model)
    mesh = init_device_mesh("cpu", (2,))
    for module in list(model.modules())[::-1]:
        if policy(module):
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def fit(accelerator: Accelerator) -> dict[str, Any]:
    """The statistics of this process' share of the images, reduced over both."""
    model = adapted("vit", indices=INDICES)
    own = images()[accelerator.process_index :: accelerator.num_processes]
    moments = fit_statistics(model, [image[None] for image in own], accelerator=accelerator)
    config = model.peft_config["default"]
    return {"mean": config.feature_mean, "std": config.feature_std, "count": moments.count.tolist()}


def full(model: nn.Module, of: Any) -> dict[str, torch.Tensor]:
    """`of(parameter)` of every parameter that has one, in full on each process, under its plain name."""
    found = {clean(name): of(parameter) for name, parameter in model.named_parameters()}
    return {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()
        for name, value in found.items()
        if value is not None
    }


def read(model: nn.Module, of: Any) -> dict[str, torch.Tensor]:
    if isinstance(model, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(model, with_grads=True, writeback=False):
            return full(model, of)
    return full(model, of)


def train(model: nn.Module, accelerator: Accelerator) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The loss of each step over all processes, and the gradients of the first step."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    losses: list[float] = []
    gradients: dict[str, torch.Tensor] = {}
    for step in range(STEPS):
        images, labels = batch(step)
        loss = nn.functional.cross_entropy(model(images[share]).logits, labels[share])
        loss.backward()
        gradients = gradients or read(model, lambda parameter: parameter.grad)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(accelerator.reduce(loss.detach(), "mean").item())
    return losses, gradients


def save(model: nn.Module, folder: Path, is_main: bool) -> None:
    """The adapter, from the full state dict, by PEFT's own `save_pretrained`, which all processes have to call."""
    if isinstance(model, FullyShardedDataParallel):
        state = read(model, lambda parameter: parameter.data)
    else:
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    peft_model = model if isinstance(model, PeftModel) else model.module
    peft_model.save_pretrained(folder, state_dict=state, is_main_process=is_main)


def main(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    (folder / f"{accelerator.process_index}.json").write_text(json.dumps(fit(accelerator)))
    shard = {"ddp": accelerator.prepare, "fsdp1": shard_fsdp1, "fsdp2": shard_fsdp2}
    for kind in KINDS:
        model = shard[kind](make_model())
        losses, gradients = train(model, accelerator)
        save(model, folder / kind, accelerator.is_main_process)
        if accelerator.is_main_process:
            torch.save({"losses": losses, "gradients": gradients, "class": type(model).__name__}, folder / f"{kind}.pt")
        accelerator.wait_for_everyone()
    accelerator.end_training()


def launched(words: Sequence[str], log: Path) -> None:
    """One of the two processes; its first word is the folder."""
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    main(Path(words[0]))
    # Everything is on disk. At a normal exit gloo's threads can abort the process while the interpreter is torn down.
    sys.stderr.flush()
    os._exit(0)
