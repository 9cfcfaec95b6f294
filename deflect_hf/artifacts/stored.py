"""What is stored in a result folder, read with complaints that name the file, and compared with what the model has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor, nn

from deflect_hf.errors import CheckpointError, DeflectError, brief, listing

ADAPTER = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
Read = TypeVar("Read")


def reading(path: Path, load: Callable[[], Read]) -> Read:
    """Run ``load``; whatever the libraries raise for a missing, truncated or foreign file becomes a CheckpointError."""
    try:
        return load()
    except CheckpointError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, DeflectError) else brief(error)
        raise CheckpointError(f"{path}: cannot be loaded: {reason}") from error


def refuse_unfit(files: Sequence[Path], expected: Mapping[str, Tensor]) -> None:
    """Refuse stored tensors that are not those of the model: what is missing or left over is passed by silently.

    Args:
        files: safetensors files that hold the tensors together.
        expected: the model's tensors by their names in the files.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape or dtype, or not finite.
    """
    found: set[str] = set()
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                tensor = file.get_tensor(name)
                _refuse(path, name, tensor, expected.get(name))
                found.add(name)
    missing = sorted(expected.keys() - found)
    if missing:
        where = files[0] if files else "the folder"
        raise CheckpointError(
            f"{where} lacks {len(missing)} tensors of the model, first {listing(missing[:2])}: copy the file again"
        )


def _refuse(path: Path, name: str, tensor: Tensor, own: Tensor | None) -> None:
    if own is None:
        raise CheckpointError(f"{path} holds {name!r}, which the model has no place for: it belongs to another model")
    if tensor.shape != own.shape or tensor.is_floating_point() != own.is_floating_point() or tensor.is_complex():
        raise CheckpointError(
            f"{path}: {name!r} is {tensor.dtype} {list(tensor.shape)}, in the model {own.dtype} {list(own.shape)}"
        )
    if not bool(tensor.isfinite().all()):
        raise CheckpointError(f"{path}: {name!r} holds NaN or infinity: copy the file again, or train again")


def load_adapter(model: nn.Module, folder: Path) -> PeftModel:
    """``model`` with the adapter in ``folder``, whole.

    Raises:
        CheckpointError: a file is missing or broken, or does not fit; the message names it.
    """
    settings = reading(folder / ADAPTER, lambda: PeftConfig.from_pretrained(str(folder)))
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder / WEIGHTS} is missing: copy the folder again")

    def load() -> PeftModel:
        try:
            return PeftModel.from_pretrained(model, str(folder), config=settings)
        except DeflectError as error:
            raise CheckpointError(f"{folder / ADAPTER}: does not fit the model: {error}") from error

    adapted = reading(folder / WEIGHTS, load)
    refuse_unfit([folder / WEIGHTS], get_peft_model_state_dict(adapted, save_embedding_layers=False))
    return adapted
