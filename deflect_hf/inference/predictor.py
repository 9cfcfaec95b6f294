"""A trained model and how images are read for it: stored values in, probabilities out, maps of whole scenes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from deflect_hf.artifacts import saved_model as checkpoints
from deflect_hf.artifacts.any_loop import configuration_of, in_another_folder
from deflect_hf.config.inference import SceneArguments
from deflect_hf.config.run import RunArguments
from deflect_hf.config.tasks import MODEL_TYPES, TASKS, task_of
from deflect_hf.data.processor import Image, MultispectralImageProcessor
from deflect_hf.errors import ConfigError, UnsupportedOperationError, listing
from deflect_hf.evaluation.calibration import kept_scores, known_confusion, known_temperature
from deflect_hf.evaluation.evaluate import sliding_logits
from deflect_hf.evaluation.task_metrics import evaluation_window
from deflect_hf.files import atomic_dir
from deflect_hf.inference.mapping import predict_raster
from deflect_hf.inference.model import Facts, MapModel, chosen_device, in_unit, measured_only, refuse_overflow
from deflect_hf.methods import taken_bands, task_model, unwrapped
from deflect_hf.models.configuration import as_pair
from deflect_hf.models.targets import KINDS

# in configurations, what says where something came from and not what it is
PLACES = {"_name_or_path", "name_or_path", "base_model_name_or_path", "revision", "peft_version",
          "transformers_version"}  # fmt: skip


class Predictor(MapModel):
    """(B, C, H, W) reflectance -> logits, for a model of any training loop; images as stored -> probabilities.

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
        ConfigError: neither the model nor an argument says what the task and the classes are, or the processor gives
            other bands than the model takes.

    Example:
        >>> predictor = Predictor.from_folder("work-dir/RUN")  # or Predictor(model, processor) after any training loop
        >>> predictor(stored_values, source_bands=["B", "G", "R", "N"])  # (1, K) or (1, K, H, W) probabilities
        >>> predictor(reflectance, scale=1.0)
        >>> predictor.predict_raster("scene.tif", "map.tif")
        >>> predictor.save("my-model")  # for deflect-predict --adapter, evaluate.py, the Hub
    """

    config: RunArguments | None = None  # that of its folder

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
        if not isinstance(model, nn.Module) or not isinstance(processor, MultispectralImageProcessor):
            raise ConfigError(
                f"Predictor takes a model and its MultispectralImageProcessor, not {type(model).__name__} and "
                f"{type(processor).__name__}; of a folder or a name on the Hub: deflect_hf.load_predictor(NAME)."
            )
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
        if taken_bands(model)[0]:
            checkpoints.check_bands(model, processor, needed=False)
        parameter = next(model.parameters(), None)
        found = parameter.device if parameter is not None else torch.device("cpu")
        self.device = chosen_device(device if device is not None else found)
        self.model = model.to(self.device).eval()
        self.processor = processor
        self.task = task
        self.classes = tuple(names[number] for number in range(len(names)))
        self.window = window
        self.patch_size = as_pair(getattr(settings, "patch_size", None) or 1)
        self.token_size = as_pair(getattr(settings, "token_size", None) or self.patch_size)
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
            return torch.stack(sliding_logits(self.whole_logits, list(images), window, self.patch_size))

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
                # not as it was compiled, perhaps, before there was a hook
                unwrapped(self.model)(pixel_values.to(self.device))
        finally:
            hook.remove()
        grid = [length // step for length, step in zip(pixel_values.shape[-2:], self.token_size, strict=True)]
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
        model, digest = unwrapped(self.model), hashlib.blake2b(digest_size=16)
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
        model = unwrapped(self.model)
        if isinstance(model, PeftModel):
            saved = model.active_peft_config
            # what the adapter was trained on; it may have been loaded from another place
            method, encoder, revision = saved.peft_type.value, saved.base_model_name_or_path, saved.revision
        return [
            ("Method", method),
            ("Base encoder", (encoder or "unnamed") + (f", revision {revision}" if revision else "")),
        ]

    def whole_logits(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) reflectance -> logits (B, K) or (B, K, H, W); a coarser map is brought to the pixels."""
        outputs = self.model(pixel_values)
        logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs.logits
        if logits.ndim == 4 and logits.shape[-2:] != pixel_values.shape[-2:]:
            logits = F.interpolate(logits, size=pixel_values.shape[-2:], mode="bilinear", align_corners=False)
        return logits

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
        place = chosen_device(device)
        precision = torch.bfloat16 if config.bf16 else None  # as in training
        if config.fp16 and place.type != "cpu":  # which computes in float32 instead
            precision = torch.float16
        task, results = task_of(settings.model_type, settings.problem_type).name, checkpoints.read_results(found)
        predictor = cls(
            model,
            checkpoints.load_processor(found, model),
            task=task,
            window=evaluation_window(config, task),
            device=place,
            precision=precision,
            class_values=config.dataset.class_values if config.dataset is not None else None,
            confusion=known_confusion(results, found, len(settings.id2label)),
            temperature=known_temperature(results, found),
        )
        predictor.config = config
        predictor.colors = config.dataset.colors if config.dataset is not None else ()
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
        ours = {*checkpoints.SAVED}
        if "finetune" not in checkpoints.read_results(path):  # those of a run are not replaced
            ours.add(checkpoints.RESULTS)
        foreign = [name for name in there if path.is_file() or name not in ours]
        if foreign:
            raise ConfigError(f"{path} holds {listing(foreign[:4])}, which no save wrote: give another folder.")
        config = in_another_folder(self.config, self.model) or configuration_of(
            self.model,
            self.processor,
            window=self.window,
            class_values=self.class_values,
            bf16=self.precision == torch.bfloat16,
            fp16=self.precision == torch.float16,
        )
        scores = kept_scores(self.confusion, self.temperature)
        with atomic_dir(path) as new:
            checkpoints.save_model(new, self.model, config, self.processor)
            if scores:
                checkpoints.write_json(new / checkpoints.RESULTS, scores)

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
                A list has one for each channel of the images, in their order.
            offset: See ``scale``.
            valid: Booleans shaped like each image, or (H, W) for all its channels; False: not a measurement.

        Raises:
            BandError: The channels do not fit ``source_bands``, or a needed band is missing.
            UnitError: The images are not in the unit of the training images.
            DataError: Images of different sizes, or with values so large that the model's computation overflows.
        """
        processor = self.processor
        if scale is not None:
            processor = in_unit(processor, source_bands, scale, offset)
        elif offset != 0.0:
            raise ConfigError("offset goes with scale: reflectance = value * scale + offset.")
        return self.probabilities(processor(images, source_bands, valid)["pixel_values"])

    def probabilities(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) reflectance -> (B, K) or (B, K, H, W) float32 probabilities on the CPU, NaN where not measured.

        A pixel, or an image, none of whose bands holds a measurement has no probabilities. A regression gives values
        in their unit, K = 1; of several labels per image each has a probability of its own.
        """
        return measured_only(self.target.predict(self.logits(pixel_values)).cpu(), pixel_values)

    def predict_raster(self, source: str | Path, target: str | Path, **options: Any) -> None:
        """Write the map of a georeferenced image of any size, window by window.

        Args:
            source: a file, a scene folder, or the address of a COG or STAC item.
            options: fields of :class:`~deflect_hf.config.inference.SceneArguments`, such as ``output`` or ``cog``.

        Raises:
            DeflectError: see :func:`~deflect_hf.inference.mapping.predict_raster`.
        """
        predict_raster(self, source, Path(target), SceneArguments(**options))


def _without_places(settings: Any) -> Any:
    if isinstance(settings, dict):
        return {str(name): _without_places(value) for name, value in settings.items() if name not in PLACES}
    return sorted(map(str, settings)) if isinstance(settings, set) else settings
