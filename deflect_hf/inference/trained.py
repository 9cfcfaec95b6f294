"""A trained model and how images are read for it: what windows over a scene need, and nothing that needs them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deflect_hf.config.tasks import MODEL_TYPES, TASKS, task_of
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.errors import ConfigError, DataError, UnsupportedOperationError, listing
from deflect_hf.evaluation.evaluate import predict_logits
from deflect_hf.methods import task_model
from deflect_hf.models.configuration import as_pair
from deflect_hf.models.targets import KINDS


class TrainedModel:
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
        self.unit: str | None = getattr(settings, "target_unit", None)
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

    def _outputs(self, pixel_values: Tensor) -> Any:
        """(B, C, H, W) reflectance -> ``.logits`` (B, K) or (B, K, H, W); a coarser map is brought to the pixels."""
        outputs = self.model(pixel_values)
        logits = outputs if isinstance(outputs, Tensor) else outputs.logits
        if logits.ndim == 4 and logits.shape[-2:] != pixel_values.shape[-2:]:
            logits = F.interpolate(logits, size=pixel_values.shape[-2:], mode="bilinear", align_corners=False)
        return SimpleNamespace(logits=logits)


def refuse_overflow(logits: Tensor, pixel_values: Tensor, where: str, fix: str) -> None:
    """Refuse logits that are no numbers, which would pass for those of pixels that were not measured."""
    if bool(logits.isfinite().all()):
        return
    known = torch.where(pixel_values.isfinite(), pixel_values, 0.0)
    raise DataError(
        f"{where}: the model's computation overflows on values from {known.min():.9g} to {known.max():.9g} (after "
        f"scale and offset): {fix}"  # 9 digits are a whole float32, to be given as a fill value
    )
