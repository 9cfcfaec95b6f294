"""What processes of `test_distributed.py` do besides training; each is a process of its own, so patches end with it."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ASKED_AFTER = 3  # steps, of the second process; in the next step the processes agree on it
STOP_AFTER = 4


def told_to_stop(words: Sequence[str], log: Path | None) -> None:
    """Train; the second process alone gets SIGTERM after a step."""
    from deflect_hf.training.loop import TrainingLoop
    from tests.benchmarks.resume import train

    plain = TrainingLoop._log_step

    def log_step(self: TrainingLoop, *arguments: Any) -> None:
        plain(self, *arguments)
        if os.environ["RANK"] == "1" and self.progress.step == ASKED_AFTER:
            signal.raise_signal(signal.SIGTERM)

    TrainingLoop._log_step = log_step
    train(words, log)


def sharded(words: Sequence[str], log: Path | None) -> None:
    """Train with FSDP2 through Accelerate, which does not offer it on CPUs: it is told that these are accelerators."""
    import torch
    from accelerate import DistributedType, PartialState
    from torch.distributed.fsdp import FSDPModule

    from deflect_hf.training.loop import TrainingLoop
    from tests.benchmarks.resume import train

    plain = TrainingLoop.train

    def train_in_shards(self: TrainingLoop) -> bool:
        units = [module for module in self.plain.modules() if isinstance(module, FSDPModule)]
        assert len(units) == 4 and self.model is self.plain  # embeddings, two blocks, the rest
        return plain(self)

    TrainingLoop.train = train_in_shards
    options = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
    options |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
    os.environ.update(options, ACCELERATE_TORCH_DEVICE="cpu")
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    torch.distributed.init_process_group("gloo")
    train(words, log)
