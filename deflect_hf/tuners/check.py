"""Self-check of an adapted model, before it is trained: it starts as the frozen one, and all of it can learn."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from peft import PeftModel

from deflect_hf.errors import ArchitectureError, ConfigError
from deflect_hf.models.configuration import as_pair
from deflect_hf.tuners.deflect.architectures import Encoder, find_encoder, outermost_modules

NOISE = 1e-2  # added for the gradients alone: those of what is multiplied by a zero at the start are zero, too


def check(model: PeftModel, pixel_values: torch.Tensor | None = None) -> None:
    """Prove that the adapted model equals the frozen one bit for bit, and that each trained tensor gets a gradient.

    Both hold at the start of training alone. The model, its gradients and torch's random state stay as they are.

    Args:
        model: what `get_peft_model` or `deflect_hf.adapt` made, in any mode.
        pixel_values: (B, C, H, W) reflectance. None: one random image.

    Raises:
        ConfigError: the model has no adapter, or trains nothing.
        ArchitectureError: names the first block that differs, or the tensors that get no gradient.
    """
    if not isinstance(model, PeftModel):
        raise ConfigError("check(model) is for adapted models: get_peft_model(model, config) or deflect_hf.adapt.")
    encoder, training = find_encoder(model), model.training
    # an auxiliary head takes part in the loss alone
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad and "auxiliary" not in n}
    if not trained:
        raise ConfigError(
            "Nothing of the model is trained. Fix: load the adapter with is_trainable=True, and enable it "
            "(model.base_model.enable_adapter_layers())."
        )
    with torch.random.fork_rng(range(torch.cuda.device_count())), torch.enable_grad():
        torch.manual_seed(0)
        images = _random_image(model, encoder) if pixel_values is None else pixel_values
        images = images.to(next(model.parameters()).device)
        try:
            model.eval()
            _check_start(model, encoder, images)
            _check_gradients(model, images, trained)
        finally:
            model.train(training)


def _random_image(model: PeftModel, encoder: Encoder) -> torch.Tensor:
    """(1, C, H, W) reflectance from 0.02 to 0.42, of the encoder's size."""
    base = getattr(model.get_base_model(), "config", None)
    bands = getattr(model.active_peft_config, "bands", None) or getattr(base, "bands", None)
    config = getattr(base, "encoder_config", base)
    fixed = getattr(config, "image_size", None) or getattr(
        outermost_modules(model)[encoder.embeddings], "img_size", None
    )
    height, width = as_pair(fixed or tuple(4 * side for side in encoder.patch_size))
    return 0.02 + 0.4 * torch.rand(1, len(bands or range(encoder.num_channels)), height, width)


@torch.no_grad()
def _check_start(model: PeftModel, encoder: Encoder, images: torch.Tensor) -> None:
    modules = outermost_modules(model)
    outputs: dict[str, list[torch.Tensor]] = {name: [] for name in encoder.blocks}
    handles = [
        modules[name].register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
        for name, seen in outputs.items()
    ]
    try:
        for state in (contextlib.nullcontext(), model.disable_adapter()):
            with state:
                torch.manual_seed(0)  # a masked autoencoder draws its mask
                model(images)
    finally:
        for handle in handles:
            handle.remove()
        torch.clear_autocast_cache()  # weights that were cast without autograd would be taken again with it
    for name, (adapted, frozen) in outputs.items():
        if not torch.equal(adapted, frozen):
            raise ArchitectureError(
                f"{name} is the first block whose output is not that of the frozen model: it differs by up to "
                f"{(adapted - frozen).abs().max().item():.3g}. Was the adapter trained before?"
            )


def _check_gradients(model: PeftModel, images: torch.Tensor, trained: dict[str, torch.nn.Parameter]) -> None:
    kept = {name: (parameter.detach().clone(), parameter.grad) for name, parameter in trained.items()}
    try:
        for parameter in trained.values():
            parameter.data.add_(NOISE * torch.randn(parameter.shape).to(parameter))
            parameter.grad = None
        output: Any = model(images)
        values = output if torch.is_tensor(output) else next(value for value in output.values() if value is not None)
        (values * torch.linspace(-1, 2, values.numel()).to(values).view(values.shape)).sum().backward()
        without = [n for n, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0]
    finally:
        for name, (value, gradient) in kept.items():
            trained[name].data.copy_(value)
            trained[name].grad = gradient
    if without:
        raise ArchitectureError(f"These trained tensors get no gradient, or one that is not finite: {without}.")
