"""A trained folder, ready to predict: stored values in, probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from deflect_hf.artifacts import saved_model as checkpoints
from deflect_hf.artifacts.any_loop import configuration_of
from deflect_hf.config.inference import SceneArguments
from deflect_hf.config.run import RunArguments
from deflect_hf.config.tasks import task_of
from deflect_hf.data.processor import Image, MultispectralImageProcessor
from deflect_hf.errors import ConfigError, listing
from deflect_hf.evaluation.calibration import known_temperature
from deflect_hf.evaluation.protocol import evaluation_window
from deflect_hf.files import atomic_dir
from deflect_hf.inference.mapping import predict_raster
from deflect_hf.inference.trained import TrainedModel
from deflect_hf.methods import task_model


class Predictor(TrainedModel):
    """A trained model, and how images are to be read for it; see :class:`TrainedModel` for what it takes.

    Example:
        >>> predictor = Predictor.from_folder("work-dir/RUN")  # or Predictor(model, processor) after any training loop
        >>> predictor(stored_values, source_bands=["B", "G", "R", "N"])  # (1, K) or (1, K, H, W) probabilities
        >>> predictor(reflectance, scale=1.0)
        >>> predictor.predict_raster("scene.tif", "map.tif")
        >>> predictor.save("my-model")  # for deflect-predict --adapter, evaluate.py, the Hub
    """

    config: RunArguments | None = None  # that of its folder

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        encoder: str | PreTrainedModel | None = None,
        device: str | torch.device | None = None,
    ) -> Self:
        """Load a run's folder, or its ``best/`` folder.

        Args:
            encoder: Hub id or folder of the base encoder, where it is not found as the run's configuration says; or
                the loaded base encoder, which is taken over, not copied.
            device: where to predict; None: the accelerator if there is one, else the CPU.

        Raises:
            CheckpointError: the folder is no trained run, or a file is missing, broken or does not fit.
        """
        return checkpoints.while_whole(
            Path(folder),
            lambda found: cls.from_result(found, checkpoints.read_config(found), encoder=encoder, device=device),
        )

    @classmethod
    def from_result(
        cls,
        found: Path,
        config: RunArguments,
        *,
        encoder: str | PreTrainedModel | None = None,
        device: str | torch.device | None = None,
    ) -> Self:
        """As :meth:`from_folder`, for a result folder whose configuration is read already."""
        model = checkpoints.load_model(found, config, encoder)
        settings = task_model(model).config
        place = torch.device(device) if device is not None else default_device()
        precision = torch.bfloat16 if config.bf16 else None  # as in training
        if config.fp16 and place.type != "cpu":  # which computes in float32 instead
            precision = torch.float16
        task = task_of(settings.model_type, settings.problem_type).name
        predictor = cls(
            model,
            checkpoints.load_processor(found, model),
            task=task,
            window=evaluation_window(config, task),
            device=place,
            precision=precision,
            class_values=config.dataset.class_values if config.dataset is not None else None,
            confusion=_scored(found),
            temperature=known_temperature(found),
        )
        predictor.config = config
        return predictor

    def save(self, folder: str | Path) -> None:
        """Write a result folder, like a run's ``best/``: what was trained, the processor, and how to set both up.

        For a model of any training loop. A model whose weights were all trained is written whole; of an adapted one
        the adapter and the head, and its encoder is named.

        Raises:
            ConfigError: The model could not be loaded again (the message says why), or the folder holds something else.
        """
        path = Path(folder)
        there = [path.name] if path.is_file() else sorted(one.name for one in path.glob("*"))
        foreign = [name for name in there if path.is_file() or name not in checkpoints.SAVED]
        if foreign:
            raise ConfigError(f"{path} holds {listing(foreign[:4])}, which no save wrote: give another folder.")
        config = self.config or configuration_of(
            self.model,
            self.processor,
            window=self.window,
            class_values=self.class_values,
            bf16=self.precision == torch.bfloat16,
            fp16=self.precision == torch.float16,
        )
        with atomic_dir(path) as new:
            checkpoints.save_model(new, self.model, config, self.processor)

    def __call__(
        self,
        images: Image | Sequence[Image],
        source_bands: Sequence[str] | None = None,
        valid: Image | Sequence[Image] | None = None,
        scale: float | Sequence[float] | None = None,
        offset: float | Sequence[float] = 0.0,
    ) -> Tensor:
        """``(C_in, H, W)``, ``(B, C_in, H, W)`` or a list, stored values -> probabilities, as :meth:`probabilities`.

        The processor turns stored values into reflectance, and resizes if training did; H and W are those of its
        result. One call is one batch.

        Args:
            source_bands: Band codes of the channels; None: those of the training images.
            scale: What the values are: reflectance = value * scale + offset, 1.0 for reflectance itself, in which NaN
                alone is no measurement. None: stored as the training images were, with their nodata values.
            offset: See ``scale``.
            valid: Booleans shaped like each image, or (H, W) for all its channels; False: not a measurement.

        Raises:
            BandError: The channels do not fit ``source_bands``, or a needed band is missing.
            UnitError: The images are not in the unit of the training images.
            DataError: Images of different sizes, or with values so large that the model's computation overflows.
        """
        processor = self.processor
        if scale is not None:
            own = {"scale": scale, "offset": offset, "nodata": ()}
            processor = MultispectralImageProcessor.from_dict({**processor.to_dict(), **own})
        elif offset != 0.0:
            raise ConfigError("offset goes with scale: reflectance = value * scale + offset.")
        return self.probabilities(processor(images, source_bands, valid)["pixel_values"])

    def probabilities(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) reflectance -> (B, K) or (B, K, H, W) float32 probabilities on the CPU, NaN where not measured.

        A pixel, or an image, none of whose bands holds a measurement has no probabilities. A regression gives values
        in their unit, K = 1; of several labels per image each has a probability of its own.
        """
        probabilities = self.target.predict(self.logits(pixel_values)).cpu()
        measured = torch.isfinite(pixel_values).any(dim=1, keepdim=True).cpu()
        if probabilities.ndim == 2:
            measured = measured.flatten(1).any(dim=1, keepdim=True)
        return probabilities.masked_fill(~measured, torch.nan)

    def predict_raster(self, source: str | Path, target: str | Path, **options: Any) -> None:
        """Write the map of a georeferenced image of any size, window by window.

        Args:
            options: fields of :class:`~deflect_hf.config.inference.SceneArguments`, such as ``output`` or ``cog``.

        Raises:
            DeflectError: see :func:`~deflect_hf.inference.mapping.predict_raster`.
        """
        predict_raster(self, Path(source), Path(target), SceneArguments(**options))


def _scored(found: Path) -> tuple[str, Any] | None:
    """The split that a result folder was tested on, else validated on, and its confusion matrix."""
    results = checkpoints.read_results(found)
    known = (split for split in ("test", "val") if "confusion_matrix" in (results.get(split) or {}))
    return next(((split, results[split]["confusion_matrix"]) for split in known), None)


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")
