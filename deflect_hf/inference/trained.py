"""A trained model and how images are read for it: what windows over a scene need, and nothing that needs them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from deflect_hf.config.tasks import MODEL_TYPES, TASKS, task_of
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.errors import ConfigError, UnsupportedOperationError, listing
from deflect_hf.evaluation.evaluate import predict_logits
from deflect_hf.inference.model import Facts, MapModel, refuse_overflow
from deflect_hf.methods import task_model
from deflect_hf.models.configuration import as_pair
from deflect_hf.models.targets import KINDS

# in configurations, what says where something came from and not what it is
PLACES = {"_name_or_path", "name_or_path", "base_model_name_or_path", "revision", "peft_version"}
PLACES |= {"transformers_version"}


class TrainedModel(MapModel):
    """(B, C, H, W) reflectance -> logits, for a model of any training loop.

    Args:
        model: called with ``pixel_values``; gives ``.logits`` or the logits themselves, (B, K) or (B, K, h, w). It is
            put into evaluation mode.
        processor: stored values -> reflectance, as in training.
        task: one of :data:`~deflect_hf.config.tasks.TASKS`; None: as the model's configuration says.
        classes: their names, in the order of the logits; None: as the model's configuration says.
        window: larger images go through sliding windows of this side in pixels (of ``pixel_values``), as in
            evaluation; None: images are taken whole.
        device: where to predict; None: where the model lies.
        precision: of mixed precision, None for float32.
        class_values: what the training masks stored for each class, where that was not its number.
        confusion: name of a split it was scored on, and its counts (rows are targets, columns predictions).
        temperature: what logits are divided by for the confidence in a class; None: it is not calibrated.

    Raises:
        ConfigError: neither the model nor an argument says what the task and the classes are.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: MultispectralImageProcessor,
        *,
        task: str | None = None,
        classes: Sequence[str] | None = None,
        window: int | None = None,
        device: str | torch.device | None = None,
        precision: torch.dtype | None = None,
        class_values: Sequence[int] | None = None,
        confusion: tuple[str, Any] | None = None,
        temperature: float | None = None,
    ) -> None:
        settings = getattr(task_model(model), "config", None)
        if task is None and getattr(settings, "model_type", None) in MODEL_TYPES:
            task = task_of(settings.model_type, settings.problem_type).name  # type: ignore[union-attr]
        elif task is None:
            kind = f"{getattr(settings, 'model_type', '')} {type(task_model(model)).__name__}".lower().replace("_", "")
            task = next((name for name in ("classification", "segmentation") if name in kind), None)
        names = getattr(settings, "id2label", None) if classes is None else dict(enumerate(classes))
        if task not in TASKS or not names:
            raise ConfigError(
                f"The {type(model).__name__} does not say what it predicts: give task='segmentation' "
                f"(or {listing(TASKS)}), and classes=[...], their names in the order of the logits."
            )
        parameter = next(model.parameters(), None)
        found = parameter.device if parameter is not None else torch.device("cpu")
        self.device = torch.device(device) if device is not None else found
        self.model = model.to(self.device).eval()
        self.processor = processor
        self.task = task
        self.classes = tuple(names[number] for number in range(len(names)))
        self.window = window
        self.patch_size = as_pair(getattr(settings, "patch_size", None) or 1)
        self.precision = precision
        self.target = KINDS[TASKS[task].output]()
        pretrained = getattr(getattr(settings, "encoder_config", None), "image_size", None)
        self.pretrained_size = None if pretrained is None else as_pair(pretrained)
        self.unit = getattr(settings, "target_unit", None)
        self.confusion = confusion
        self.temperature = temperature
        self.class_values = None if class_values is None else tuple(class_values)

    @torch.no_grad()
    def forward(self, pixel_values: Tensor, window: int | None) -> Tensor:
        """(B, C, H, W) reflectance -> (B, K) or (B, K, H, W) float32 logits on ``device``, larger images in windows."""
        images = pixel_values.to(self.device)
        with nullcontext() if self.precision is None else torch.autocast(self.device.type, dtype=self.precision):
            return torch.stack(predict_logits(self._outputs, images, window, self.patch_size))  # type: ignore[arg-type]

    @property
    def embedding_size(self) -> int:
        """Length D of a token of the encoder."""
        settings = getattr(task_model(self.model), "config", None)
        size = getattr(getattr(settings, "encoder_config", None), "hidden_size", None)
        if not isinstance(size, int) or self.patch_size == (1, 1):
            raise UnsupportedOperationError(
                f"{type(task_model(self.model)).__name__} has no encoder of image patches, so there are no embeddings "
                "to write: give the folder of a model around a vision transformer."
            )
        return size

    @torch.no_grad()
    def embeddings(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) reflectance -> (B, D, h, w) float32 patch tokens of the encoder's last layer, on ``device``."""
        found: list[Tensor] = []
        encoder = task_model(self.model).encoder
        hook = encoder.register_forward_hook(lambda _module, _inputs, outputs: found.append(outputs.last_hidden_state))
        try:
            with nullcontext() if self.precision is None else torch.autocast(self.device.type, dtype=self.precision):
                self.model(pixel_values.to(self.device))
        finally:
            hook.remove()
        grid = [length // step for length, step in zip(pixel_values.shape[-2:], self.patch_size, strict=True)]
        (tokens,) = found
        return tokens[:, tokens.shape[1] - grid[0] * grid[1] :].float().mT.unflatten(2, grid)

    def logits(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) reflectance -> (B, K) or (B, K, H, W) float32 logits on ``device``."""
        logits = self.forward(pixel_values, self.window)
        refuse_overflow(logits, pixel_values, "the images", "set to NaN, or by `valid`, what is no measurement.")
        return logits

    def digest(self) -> str:
        """Checksum of all that predicts: weights, statistics, and what the configurations say (formulas, for example).

        Not of the head with random weights that PEFT keeps beside the trained one, nor of names of places and versions.
        """
        model, digest = self.model, hashlib.blake2b(digest_size=16)
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if ".original_module." in f".{name}":
                continue
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        adapters: Any = getattr(model, "peft_config", {})
        for settings in (getattr(task_model(model), "config", None), *(adapters[name] for name in sorted(adapters))):
            described = settings.to_dict() if hasattr(settings, "to_dict") else None
            digest.update(json.dumps(_without_places(described), sort_keys=True, default=str).encode())
        return digest.hexdigest()

    def origin(self) -> Facts:
        """Method and base encoder."""
        encoder: Any = getattr(getattr(task_model(self.model), "encoder", None), "name_or_path", None)
        method, revision = "no adapter", None
        if isinstance(self.model, PeftModel):
            saved = self.model.active_peft_config
            # what the adapter was trained on; it may have been loaded from another place
            method, encoder, revision = saved.peft_type.value, saved.base_model_name_or_path, saved.revision
        return [
            ("Method", method),
            ("Base encoder", (encoder or "unnamed") + (f", revision {revision}" if revision else "")),
        ]

    def _outputs(self, pixel_values: Tensor) -> Any:
        """(B, C, H, W) reflectance -> ``.logits`` (B, K) or (B, K, H, W); a coarser map is brought to the pixels."""
        outputs = self.model(pixel_values)
        logits = outputs if isinstance(outputs, Tensor) else outputs.logits
        if logits.ndim == 4 and logits.shape[-2:] != pixel_values.shape[-2:]:
            logits = F.interpolate(logits, size=pixel_values.shape[-2:], mode="bilinear", align_corners=False)
        return SimpleNamespace(logits=logits)


def _without_places(settings: Any) -> Any:
    if isinstance(settings, dict):
        return {str(name): _without_places(value) for name, value in settings.items() if name not in PLACES}
    return sorted(map(str, settings)) if isinstance(settings, set) else settings
