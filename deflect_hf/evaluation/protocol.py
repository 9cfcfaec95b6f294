"""How a run's model is evaluated: what its labels mean, and the windows that large images are cut into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from deflect_hf.config.run import RunArguments
from deflect_hf.config.tasks import TASKS, Task
from deflect_hf.errors import ConfigError
from deflect_hf.evaluation.metrics import Convention
from deflect_hf.methods import task_model
from deflect_hf.models.targets import Target, target_of

if TYPE_CHECKING:
    from deflect_hf.data import ImageDataset


@dataclass(frozen=True)
class Protocol:
    """How a model is evaluated.

    Attributes:
        target: what the labels mean.
        window: side of the sliding windows; None for whole images.
        convention: of the means over classes.
        patch_size: height and width of the encoder's patches, to whole ones of which images are filled up.
        batch_size: of images whose windows are predicted together.
        mean, unit: of the training labels of a regression.
        temperature: what logits are divided by for the confidence in a class; None: it is fitted to these images.
    """

    task: Task
    classes: list[str]
    target: Target
    window: int | None
    convention: Convention
    patch_size: tuple[int, int] = (1, 1)
    batch_size: int = 1
    mean: float = 0.0
    unit: str | None = None
    temperature: float | None = None

    @classmethod
    def of(cls, config: RunArguments, images: ImageDataset, model: nn.Module) -> Protocol:
        """How a run's configuration has its model evaluated on these images."""
        settings = task_model(model).config
        window, patch_size = evaluation_window(config, images.task), settings.patch_size
        if window is not None and any(window % side for side in patch_size):
            name = (
                "segmentor.window" if config.segmentor.window is not None else "the window of augmentation.random_crop"
            )
            side = max(1, round(window / patch_size[0])) * patch_size[0]
            raise ConfigError(
                f"{name} is {window}, no multiple of the encoder's patches, {patch_size[0]} x {patch_size[1]} pixels: "
                f"give {side}"
            )
        return cls(
            TASKS[images.task],
            images.classes,
            target_of(settings),
            window,
            config.metrics,
            patch_size,
            config.batch_size,
            settings.target_mean or 0.0,
            settings.target_unit,
        )


def evaluation_window(config: RunArguments, task: str) -> int | None:
    """Side of segmentation's sliding windows: as configured, else the training crop's, so that both see one scale."""
    if not TASKS[task].dense or config.segmentor.window is not None:
        return config.segmentor.window
    crop = config.augmentation.crop
    return max(crop) if crop is not None and config.augmentation.center_crop is None else None
