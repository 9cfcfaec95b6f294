"""Several tasks on one encoder: its frozen weights are in memory once, adapters and heads beside them."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from deflect_hf.artifacts import saved_model as checkpoints
from deflect_hf.config.run import RunArguments
from deflect_hf.data.processor import Image
from deflect_hf.errors import (
    ArchitectureError,
    CheckpointError,
    ConfigError,
    DeflectError,
    UnsupportedOperationError,
    listing,
    nearest,
)
from deflect_hf.inference.predictor import Predictor, default_device
from deflect_hf.inference.shared import (
    differences,
    differing_settings,
    refuse_merging,
    replay_frozen,
    replaying,
    share_weights,
    twin,
    unlike,
)
from deflect_hf.methods import task_model
from deflect_hf.models import load_encoder

logger = logging.getLogger(__name__)

# Methods whose adapters only add to the encoder: loading one writes into none of its weights.
ADDING_METHODS = ("deflect", "lora", "slr", "norm", "bitfit", "frozen")
Source = tuple[str, str | None]  # Hub id or folder of an encoder, and its revision


class AdapterRun(NamedTuple):
    """A result folder and its configuration."""

    folder: Path
    config: RunArguments


class MultiAdapterPredictor:
    """Trained models of several tasks over one base encoder, chosen by name at each request.

    The models may differ in task, bands, indices, ranks, layers, heads and methods; they share the weights of the
    encoder. Each gives what it gives alone, bit for bit. Nothing is switched between requests, so several threads may
    predict at once, also while models are added or removed.

    Args:
        encoder: the bare base encoder, loaded. Its weights must not be changed afterwards.
        device: where to predict; None: the accelerator if there is one, else the CPU.

    Raises:
        ArchitectureError: the encoder is adapted already.

    Example:
        >>> tasks = MultiAdapterPredictor.from_folders({"water": "work-dir/WATER", "burn": "work-dir/BURN"})
        >>> tasks("water", image)  # probabilities, as a Predictor gives them
        >>> tasks.predict_all(image)  # {"water": ..., "burn": ...}; what is frozen is computed once
        >>> predict_raster(tasks["burn"], Path("scene.tif"), Path("burn.tif"), SceneArguments())
    """

    def __init__(self, encoder: PreTrainedModel, *, device: str | torch.device | None = None) -> None:
        if any(isinstance(module, BaseTunerLayer) for module in encoder.modules()):
            raise ArchitectureError(f"The {type(encoder).__name__} is adapted already: give the bare encoder.")
        self.device = torch.device(device) if device is not None else default_device()
        self.encoder = encoder.to(self.device)
        self._sources: set[Source] = set()  # of encoders known to be this one
        self._given = True  # by the user, who vouches for it where a run's own encoder is out of reach
        self._predictors: dict[str, Predictor] = {}
        self._changing = threading.Lock()

    @classmethod
    def from_folders(
        cls,
        folders: Mapping[str, str | Path],
        *,
        encoder: str | Path | PreTrainedModel | None = None,
        device: str | torch.device | None = None,
    ) -> Self:
        """Load the folders of several runs (or their ``best/`` folders) by task name.

        Args:
            encoder: the base encoder, where it is not found as the first run's configuration says: loaded, a folder,
                or a Hub id.
            device: where to predict; None: the accelerator if there is one, else the CPU.

        Raises:
            CheckpointError: a folder is no trained run or broken, or adapts another encoder.
            UnsupportedOperationError: a model shares no encoder, because all of it was trained.
        """
        if not folders:
            raise ConfigError("No folder was given: name at least one task and the folder of its run.")
        runs = {name: _adapter_run(Path(folder)) for name, folder in folders.items()}
        if isinstance(encoder, PreTrainedModel):
            tasks = cls(encoder, device=device)
        else:
            source = _source(next(iter(runs.values()))) if encoder is None else (str(encoder), None)
            tasks = cls(load_encoder(source[0], revision=source[1]), device=device)
            tasks._sources.add(_resolved(source))
            tasks._given = encoder is not None
        for name, run in runs.items():
            tasks._enter(name, tasks._loaded(run))
        return tasks

    def add(self, name: str, model: str | Path | Predictor) -> None:
        """Add a task: the folder of its run, or a loaded predictor, whose own copy of the encoder is given up.

        Raises:
            CheckpointError: the folder is no trained run or broken, or the model adapts another encoder.
            ConfigError: there is a task of that name.
            UnsupportedOperationError: the model shares no encoder, because all of it was trained.
        """
        self._refuse_taken(name)
        self._enter(
            name, self._adopted(model) if isinstance(model, Predictor) else self._loaded(_adapter_run(Path(model)))
        )

    def remove(self, name: str) -> None:
        """Forget a task; its adapter and head are freed when no request uses them any more.

        Raises:
            ConfigError: there is none of that name.
        """
        with self._changing:
            self[name]
            del self._predictors[name]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order in which they came."""
        return tuple(self._predictors)

    def __getitem__(self, name: str) -> Predictor:
        """The predictor of a task.

        Raises:
            ConfigError: there is none of that name.
        """
        predictor = self._predictors.get(name)
        if predictor is None:
            raise ConfigError(f"No task {name!r}: there are {listing(self.tasks)}.{nearest(name, self.tasks)}")
        return predictor

    def __call__(
        self,
        name: str,
        images: Image | Sequence[Image],
        source_bands: Sequence[str] | None = None,
        valid: Image | Sequence[Image] | None = None,
    ) -> Tensor:
        """Stored values -> probabilities of one task, (B, K) or (B, K, H, W), as [`Predictor`] gives them."""
        return self[name](images, source_bands, valid)

    def predict_all(
        self,
        images: Image | Sequence[Image],
        source_bands: Sequence[str] | None = None,
        valid: Image | Sequence[Image] | None = None,
        *,
        tasks: Iterable[str] | None = None,
    ) -> dict[str, Tensor]:
        """Stored values -> probabilities of several tasks, by name; each as [`Predictor`] gives them.

        The patch embedding, and the blocks before the first that an adapter deflects, are computed once where tasks
        give them the same pixels: where their processors and base statistics agree.

        Args:
            images: as for a predictor; all tasks find their bands in them by name.
            source_bands: band codes of the channels; None: for each task those of its training images.
            valid: see [`Predictor`].
            tasks: their names; None: all.

        Raises:
            ConfigError: there is no task of that name.
            DeflectError: as a predictor, with the name of the task.
        """
        chosen = {name: self[name] for name in (self.tasks if tasks is None else tasks)}
        found = {}
        with replaying() as replay:
            for name, predictor in chosen.items():
                replay.next_task()
                try:
                    found[name] = predictor(images, source_bands, valid)
                except DeflectError as error:
                    raise type(error)(f"task {name!r}: {error}") from error
        return found

    def _enter(self, name: str, predictor: Predictor) -> None:
        refuse_merging(predictor.model)
        replay_frozen(task_model(predictor.model).encoder, self.encoder)
        with self._changing:
            self._refuse_taken(name)
            self._predictors[name] = predictor

    def _refuse_taken(self, name: str) -> None:
        if name in self._predictors:
            raise ConfigError(f"There is a task {name!r} already: remove it first, or choose another name.")

    def _loaded(self, run: AdapterRun) -> Predictor:
        folder = run.folder
        try:
            saved = AutoConfig.from_pretrained(folder).encoder_config.to_dict()
        except (OSError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{folder / 'config.json'}: cannot be read: {error}") from error
        differing = differing_settings(saved, self.encoder.config.to_dict())
        if differing:
            raise CheckpointError(
                f"{folder}: was trained on an encoder that differs from the shared one in {listing(differing)}. "
                "Fix: give models that adapt the same encoder."
            )
        self._compare_with_recorded(run)
        config = run.config
        if config.finetune in ADDING_METHODS and config.method.get("patch_embed", "frozen") == "frozen":
            return Predictor.from_result(folder, config, encoder=twin(self.encoder), device=self.device)
        # A copy of the weights, until it is known which of them loading changes.
        predictor = Predictor.from_result(folder, config, encoder=copy.deepcopy(self.encoder), device=self.device)
        share_weights(task_model(predictor.model).encoder, self.encoder)
        return predictor

    def _compare_with_recorded(self, run: AdapterRun) -> None:
        """Refuse a run whose configuration names an encoder with other weights."""
        folder = run.folder
        try:
            source = _source(run)
            if _resolved(source) in self._sources:
                return
            recorded = load_encoder(source[0], revision=source[1])
        except CheckpointError as error:
            if not self._given:
                raise
            logger.warning("%s: taken to adapt the encoder that was given, unseen: %s", folder, error)
            return
        differing = differences(self.encoder, recorded)
        if differing:
            raise CheckpointError(
                f"{folder}: was trained on {source[0]!r}, which differs from the shared encoder in {len(differing)} "
                f"weights, first {differing[0]!r}. Fix: give models that adapt the same encoder."
            )
        self._sources.add(_resolved(source))

    def _adopted(self, predictor: Predictor) -> Predictor:
        if predictor.device != self.device:
            raise ConfigError(
                f"The predictor is on {predictor.device}, the shared encoder on {self.device}: load both on one device."
            )
        adapted = task_model(predictor.model).encoder
        differing = unlike(adapted, self.encoder)
        if differing:
            raise CheckpointError(
                f"The predictor's encoder is not the shared one: {len(differing)} weights differ, first "
                f"{differing[0]!r}. Fix: give a model that adapts the same encoder, neither merged nor fully "
                "fine-tuned, or predict with it alone."
            )
        share_weights(adapted, self.encoder)
        return predictor


def _adapter_run(folder: Path) -> AdapterRun:
    found = checkpoints.result_folder(folder)
    config = checkpoints.read_config(found)
    if config.finetune == "full":
        raise UnsupportedOperationError(
            f"{found}: --finetune full trained the encoder itself, so there is nothing to share. Fix: predict with "
            "it alone, or train an adapter."
        )
    return AdapterRun(found, config)


def _source(run: AdapterRun) -> Source:
    return checkpoints.encoder_source(run.folder, run.config), run.config.encoder.revision


def _resolved(source: Source) -> Source:
    """Folders by their real path; a name on the Hub as it is."""
    name, revision = source
    return (str(Path(name).resolve()) if Path(name).is_dir() else name), revision
