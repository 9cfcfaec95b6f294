"""transformers' pipelines for this package's models, on GeoTIFF paths or arrays of stored values; the image processor.

Both pipelines stand in transformers' registry for their task, and leave the models of others to transformers' class.
What reads and predicts is imported when a pipeline does so.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.image_classification import ImageClassificationPipeline
from transformers.pipelines.image_segmentation import ImageSegmentationPipeline

from deflect_hf.data.processor import MultispectralImageProcessor, resize
from deflect_hf.errors import ConfigError, DataError, listing
from deflect_hf.models import EncoderForImageClassificationConfig, EncoderForSemanticSegmentationConfig
from deflect_hf.models.base import EncoderWithHead

# of transformers' pipelines, for images of the web and for instances
WITHOUT_USE = {"timeout", "threshold", "mask_threshold", "overlap_mask_area_threshold", "function_to_apply"}


def read_image(image: Any, processor: MultispectralImageProcessor) -> tuple[Tensor, tuple[int, int]]:
    """A GeoTIFF's path or (C_in, H, W) stored values -> (1, C, h, w) reflectance, and the image's own (H, W)."""
    if isinstance(image, (np.ndarray, Tensor)):
        pixels, (height, width) = processor.convert(image), image.shape[-2:]
    elif isinstance(image, (str, os.PathLike)):
        from deflect_hf.config.inference import SceneArguments
        from deflect_hf.inference.scenes import Scene
        from deflect_hf.raster.read import open_raster

        with open_raster(os.fspath(image)) as file:
            scene = Scene.of(file, processor, SceneArguments())
            height, width = scene.info.height, scene.info.width
            pixels = scene.read(0, 0, height, width)
        if processor.size is not None:
            pixels = resize(pixels, (processor.size["height"], processor.size["width"]))
    else:
        raise DataError(
            f"{type(image).__name__}: give a GeoTIFF's path, an array (channels, height, width), or a list."
        )
    return pixels[None], (height, width)


class _OfMultispectralImages:
    """What the pipelines of both tasks do for a model of this package."""

    model: Any
    image_processor: Any
    device: Any
    tasks: tuple[str, ...]  # of models that it takes
    _load_image_processor = None  # where there is one: of a Hub id, transformers looks beside the encoder

    def __new__(cls, model: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The model of another gets transformers' own pipeline; a copy of one is made without a model."""
        if model is None or isinstance(model, EncoderWithHead):
            return super().__new__(cls)
        if kwargs.get("image_processor") is None:
            kwargs["image_processor"] = AutoImageProcessor.from_pretrained(model.name_or_path)  # says what it lacks
        return cls.__bases__[1](model, *args, **kwargs)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.image_processor = getattr(self.model, "trained_processor", self.image_processor)
        if not isinstance(self.image_processor, MultispectralImageProcessor):
            raise ConfigError("The model takes the images of a MultispectralImageProcessor: give image_processor=.")
        from deflect_hf.inference.predictor import Predictor

        window = getattr(self.model, "evaluation_window", None)
        self.predictor = Predictor(self.model, self.image_processor, window=window, device=self.device)
        if self.predictor.task not in self.tasks:
            raise ConfigError(
                f"This pipeline is for {listing(self.tasks)}, and the model was trained for {self.predictor.task}: "
                "deflect_hf.load_predictor(FOLDER) takes any task."
            )

    def check_model_type(self, supported_models: Any) -> None:
        """Nothing to say of a model of this package, which transformers' lists do not name."""

    def _sanitize_parameters(self, **options: Any) -> Any:
        without_use = sorted(WITHOUT_USE & options.keys())
        if options.get("subtask") not in (None, "semantic"):
            without_use.append("subtask")
        if without_use:
            raise ConfigError(f"{listing(without_use)} would do nothing here: leave it out.")
        return super()._sanitize_parameters(**options)  # type: ignore[misc]

    def preprocess(self, image: Any, **options: Any) -> Any:
        pixels, size = read_image(image, self.image_processor)
        return {"pixel_values": pixels.to(self.model.dtype), "size": torch.tensor([size])}

    def _forward(self, inputs: Any, **options: Any) -> Any:
        """(B, C, h, w) reflectance -> (B, K) or (B, K, h, w) probabilities, NaN where nothing was measured."""
        return {"probabilities": self.predictor.probabilities(inputs["pixel_values"]).float(), "size": inputs["size"]}


class MultispectralClassificationPipeline(_OfMultispectralImages, ImageClassificationPipeline):
    """``pipeline("image-classification")``: each image -> [{label, score}], the best first; a regression's value."""

    tasks = ("classification", "multi_label", "regression")

    def postprocess(self, outputs: Any, top_k: int = 5, **options: Any) -> Any:
        """(1, K) probabilities -> at most ``top_k`` of {label, score} (DataError: no pixel was measured)."""
        scores = outputs["probabilities"][0]
        if scores.isnan().any():
            raise DataError("An image without one measured pixel has no class: leave it out.")
        best = scores.argsort(descending=True, stable=True)[:top_k].tolist()
        return [{"label": self.predictor.classes[number], "score": scores[number].item()} for number in best]


class MultispectralSegmentationPipeline(_OfMultispectralImages, ImageSegmentationPipeline):
    """``pipeline("image-segmentation")``: each image -> [{label, score, mask}], one for each class that it shows."""

    tasks = ("segmentation",)

    def postprocess(self, outputs: Any, **options: Any) -> Any:
        """(1, K, h, w) probabilities -> masks of the image's own size, scored by the mean probability inside.

        Pixels that were not measured are in no mask.
        """
        (probabilities,), ((height, width),) = outputs["probabilities"], outputs["size"].tolist()
        score, number = probabilities.nan_to_num(-1.0).max(dim=0)
        number = number.masked_fill(score < 0, -1)
        found = []
        for known in number[number >= 0].unique().tolist():
            mask = Image.fromarray((number == known).numpy().astype(np.uint8) * 255, mode="L")
            mask = mask.resize((width, height), Image.Resampling.NEAREST)
            mean = score[number == known].mean().item()
            found.append({"label": self.predictor.classes[known], "score": mean, "mask": mask})
        return found


for _task, _pipeline, _config in (
    ("image-classification", MultispectralClassificationPipeline, EncoderForImageClassificationConfig),
    ("image-segmentation", MultispectralSegmentationPipeline, EncoderForSemanticSegmentationConfig),
):
    AutoImageProcessor.register(_config, image_processor_classes={"pil": MultispectralImageProcessor}, exist_ok=True)
    # register_pipeline would warn at each import, and mark the classes as code to be saved with a model
    PIPELINE_REGISTRY.supported_tasks[_task] = {**PIPELINE_REGISTRY.supported_tasks[_task], "impl": _pipeline}
