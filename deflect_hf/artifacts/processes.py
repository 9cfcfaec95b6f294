"""The processes, device and precision of a run: what the launcher and the configuration say, in agreement."""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs

from deflect_hf.config.run import RunArguments
from deflect_hf.errors import ConfigError, listing

logger = logging.getLogger(__name__)

# For the others, while the first process publishes a model, say; NCCL's own 10 minutes are short for that.
LONGEST_WAIT = timedelta(minutes=30)


def make_accelerator(config: RunArguments, **trackers: Any) -> Accelerator:
    """The processes, device and precision of the run; ``trackers`` is what accelerate is to know of them."""
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps != "1":
        raise ConfigError(
            f"accelerate launch says gradient_accumulation_steps {steps}: leave it at 1 there, and give --accumulate "
            f"{steps}, which weighs every label the same"
        )
    precision = "fp16" if config.fp16 else "bf16" if config.bf16 else "no"
    # Without being told so, accelerate does not see that it was launched as one of several processes on CPUs, and
    # each of them would train alone and write over the others.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    _forget_precision(precision)
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            cpu=several and not torch.accelerator.is_available(),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)],
            **trackers,
        )
    except ValueError as error:
        raise ConfigError(f"--{precision}: {error}") from error
    _check_sharding(accelerator)
    if config.fp16 and accelerator.device.type == "cpu" and accelerator.is_main_process:  # accelerate says nothing
        logger.warning("--fp16: on a CPU this computes in float32; --bf16 works there")
    return accelerator


def _forget_precision(precision: str) -> None:
    """Let a training of this process have another precision than the one before, which keeps its own."""
    before = AcceleratorState._shared_state
    if not before or before.get("_mixed_precision") == precision:
        return
    if before.get("distributed_type") == DistributedType.FSDP:
        raise ConfigError(
            f"this process has trained in precision {before['_mixed_precision']} with FSDP, which accelerate cannot "
            f"change to {precision} any more: start a new process"
        )
    AcceleratorState._shared_state = {}  # not cleared: an accelerator that is there looks at the one that it has


def launcher_precision(config: RunArguments) -> RunArguments:
    """The configuration with the precision that ``accelerate launch`` was told, so that evaluation knows it too."""
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    own = "fp16" if config.fp16 else "bf16" if config.bf16 else told
    if told == "no" or own == told in ("fp16", "bf16"):
        return config.replace(fp16=own == "fp16", bf16=own == "bf16")
    raise ConfigError(
        f"accelerate launch says --mixed_precision {told}, and the run --{own}: give the run --fp16 or --bf16, and the "
        "launcher no"
    )


def _check_sharding(accelerator: Accelerator) -> None:
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ConfigError(f"{kind.value} is not supported: launch with DDP (--multi_gpu) or FSDP (--use_fsdp)")
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" and kind != DistributedType.FSDP:
        raise ConfigError(
            f"accelerate shards models (FSDP) on accelerators alone, and this runs on {accelerator.device.type} "
            f"({kind.value}): launch with --multi_gpu instead of --use_fsdp, which trains the same with DDP"
        )
    if kind == DistributedType.FSDP:
        from torch.distributed.fsdp import CPUOffloadPolicy

        if not accelerator.is_fsdp2:
            raise ConfigError("only the second version of FSDP is supported: launch with --fsdp_version 2")
        plugin = accelerator.state.fsdp_plugin
        switched_on = {
            "fsdp_offload_params": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
            "fsdp_activation_checkpointing": plugin.activation_checkpointing,
            "fsdp_cpu_ram_efficient_loading": plugin.cpu_ram_efficient_loading,
            "use_parallelism_config": os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() == "true",
        }
        on = [name for name, value in switched_on.items() if value]
        if on:
            raise ConfigError(f"accelerate launch: {listing(on)} not supported; set to false, as fsdp.yaml does")
