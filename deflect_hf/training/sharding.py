"""Models whose parameters are spread over the processes (FSDP2); for others these functions change nothing.

Checkpoints and result folders hold whole tensors: they do not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DynamoBackend
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.optim import Optimizer

from deflect_hf.tuners.deflect.architectures import find_encoder


def shard(model: nn.Module, accelerator: Accelerator) -> None:
    """Spread the model's parameters over the processes, in place, if it was launched with FSDP2.

    Units are the modules that accelerate's policy names. Its own preparation would then shard the patch embedding once
    more, inside the unit that holds it. What is computed stays in autocast's hands, as without FSDP: FSDP's own mixed
    precision casts the images too, and in bfloat16 reflectance has two digits.
    """
    if not accelerator.is_fsdp2:
        return
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
    from torch.distributed.fsdp import fully_shard

    plugin = accelerator.state.fsdp_plugin
    plugin.set_auto_wrap_policy(model)
    chosen = fsdp2_prepare_auto_wrap_policy(plugin, model)
    for module in list(model.modules())[:0:-1]:
        if chosen is not None and chosen(module):
            fully_shard(module, reshard_after_forward=plugin.reshard_after_forward)
    fully_shard(model)


def prepared(
    model: nn.Module, optimizer: Optimizer, accelerator: Accelerator
) -> tuple[nn.Module, AcceleratedOptimizer]:
    """``accelerator.prepare``, which is left out for a model that is sharded already; regions are compiled in place."""
    compiler = accelerator.state.dynamo_plugin
    backend = compiler.backend
    if backend != DynamoBackend.NO and compiler.use_regional_compilation:
        # accelerate would copy the model, module by module, which wrappers of PEFT cannot be
        for block in find_encoder(model).blocks:
            model.get_submodule(block).compile(**compiler.to_kwargs())
        compiler.backend = DynamoBackend.NO
    try:
        if is_sharded(model):
            return model, accelerator.prepare_optimizer(optimizer)
        both: tuple[nn.Module, AcceleratedOptimizer] = accelerator.prepare(model, optimizer)
        return both
    finally:  # the state is one for all accelerators of the process
        compiler.backend = backend


def is_sharded(model: nn.Module) -> bool:
    """Whether the processes hold shares of this model's parameters."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def whole_weights(model: nn.Module) -> dict[str, Tensor] | None:
    """The weights by name where each process holds a share of them, else None; every process has to call it."""
    if not is_sharded(model):
        return None
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast(dict[str, Tensor], get_model_state_dict(model, options=options))


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Each process has the whole model for the time of the block, and calls it as often as it likes.

    Otherwise every call gathers parameters, which the processes have to do together: those with fewer images to
    evaluate would leave the others waiting.
    """
    if not is_sharded(model):
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(unit is not model, recurse=False)
