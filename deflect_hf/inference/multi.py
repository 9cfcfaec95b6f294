"""Several tasks on one encoder: its frozen weights are in memory once, adapters and heads beside them.

Each task has modules of its own, whose weights are those of the shared encoder wherever they are equal. There is no
state to switch between tasks, so any number of threads may use any of them at once, and each computes what it would
compute on an encoder of its own, bit for bit.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, overload

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

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
from deflect_hf.inference.activations import cache_frozen, caching
from deflect_hf.inference.model import chosen_device
from deflect_hf.inference.predictor import Predictor
from deflect_hf.methods import task_model
from deflect_hf.models import load_encoder
from deflect_hf.models.quantization import as_numbers

logger = logging.getLogger(__name__)

# What adaptation puts into the names of the modules that it wraps.
WRAPPERS = ("base_layer.", "original_module.")
# Entries of a configuration that only describe the encoder, or that each run chooses for itself.
NOT_COMPARED = {
    "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "problem_type", "id2label",
    "label2id", "gsd", "num_channels", "mask_ratio", "norm_pix_loss", "decoder_hidden_size",
    "decoder_intermediate_size", "decoder_num_attention_heads", "decoder_num_hidden_layers",
}  # fmt: skip
Images = Image | Sequence[Image]
Bands = Sequence[str] | None
Source = tuple[str, str | None, str | None]  # Hub id or real path of an encoder, its revision, its quantization


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
        >>> tasks(["water", "burn"], two_images)  # a task for each image
        >>> tasks.predict_all(image)  # {"water": ..., "burn": ...}; what is frozen is computed once
        >>> predict_raster(tasks["burn"], Path("scene.tif"), Path("burn.tif"), SceneArguments())
    """

    def __init__(self, encoder: PreTrainedModel, *, device: str | torch.device | None = None) -> None:
        if any(isinstance(module, BaseTunerLayer) for module in encoder.modules()):
            raise ArchitectureError(f"The {type(encoder).__name__} is adapted already: give the bare encoder.")
        self.device = chosen_device(device)
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
            CheckpointError, UnsupportedOperationError: as :meth:`add`.
        """
        if not folders:
            raise ConfigError("No folder was given: name at least one task and the folder of its run.")
        if isinstance(encoder, PreTrainedModel):
            tasks = cls(encoder, device=device)
        else:
            source: Source = (str(encoder), None, None)
            if encoder is None:
                first = Path(next(iter(folders.values())))
                source = checkpoints.while_whole(first, lambda found: _source(found, _read_run(found)))
            tasks = cls(load_encoder(source[0], revision=source[1], quantization=source[2]), device=device)
            tasks._sources.add(source)
            tasks._given = encoder is not None
        for name, folder in folders.items():
            tasks.add(name, folder)
        return tasks

    def add(self, name: str, model: str | Path | Predictor) -> None:
        """Add a task: the folder of its run, or a loaded predictor, whose own copy of the encoder is given up.

        Raises:
            CheckpointError: the folder is no trained run or broken, or the model adapts another encoder.
            ConfigError: there is a task of that name.
            UnsupportedOperationError: the model shares no encoder, because all of it was trained.
        """
        self._refuse_taken(name)
        if isinstance(model, Predictor):
            self._refuse_another(model)
            predictor = model
        else:
            predictor = self._loaded(model)
        encoder = task_model(predictor.model).encoder
        own = _weights(encoder)
        for weight, tensor in _weights(self.encoder).items():
            if _equal(tensor, own.get(weight)):
                own[weight].data = tensor.detach()  # which frees the memory of its own
        for module in predictor.model.modules():
            if isinstance(module, BaseTunerLayer):
                module.merge = _no_merging
        cache_frozen(encoder, self.encoder)
        with self._changing:
            self._refuse_taken(name)
            self._predictors[name] = predictor

    def remove(self, name: str) -> None:
        """Forget a task; its adapter and head are freed when no request uses them any more."""
        with self._changing:
            self[name]
            del self._predictors[name]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order in which they came."""
        return tuple(self._predictors)

    def __getitem__(self, name: str) -> Predictor:
        """The predictor of a task."""
        predictor = self._predictors.get(name)
        if predictor is None:
            raise ConfigError(f"No task {name!r}: there are {listing(self.tasks)}.{nearest(name, self.tasks)}")
        return predictor

    @overload
    def __call__(
        self, name: str, images: Images, source_bands: Bands = None, valid: Images | None = None, **unit: Any
    ) -> Tensor: ...

    @overload
    def __call__(
        self, name: Sequence[str], images: Images, source_bands: Bands = None, valid: Images | None = None, **unit: Any
    ) -> list[Tensor]: ...

    def __call__(
        self, name: Any, images: Images, source_bands: Bands = None, valid: Images | None = None, **unit: Any
    ) -> Tensor | list[Tensor]:
        """Stored values -> probabilities of one task, (B, K) or (B, K, H, W), as [`Predictor`] gives them.

        Args:
            name: a task, or one for each image; the result is then a list of (K,) or (K, H, W). Images of one task
                are one batch, and may have other classes than those of another.
            valid, unit (`scale`, `offset`): as a predictor; valid with several tasks one for each image, or (H, W).

        Raises:
            DeflectError: as a predictor, with the name of the task where there are several; there is no task of that
                name; or there are not as many names as images.
        """
        if isinstance(name, str):
            return self[name](images, source_bands, valid, **unit)
        if len(name) != len(images) or not (isinstance(images, Sequence) or images.ndim == 4):
            raise ConfigError(
                f"{len(name)} names of tasks, but not as many images: give (B, C, H, W) or a list, and a name for each."
            )
        found: dict[int, Tensor] = {}
        for one in {task: self[task] for task in name}:  # all of them known, before the first predicts
            rows = [row for row, other in enumerate(name) if other == one]
            given = valid if valid is None or getattr(valid, "ndim", 0) == 2 else [valid[row] for row in rows]
            with _naming(one):
                chosen = self[one]([images[row] for row in rows], source_bands, given, **unit)
            found.update(zip(rows, chosen, strict=True))
        return [found[row] for row in range(len(name))]

    def predict_all(
        self,
        images: Image | Sequence[Image],
        source_bands: Sequence[str] | None = None,
        valid: Image | Sequence[Image] | None = None,
        *,
        tasks: Iterable[str] | None = None,
        **unit: Any,
    ) -> dict[str, Tensor]:
        """Stored values -> probabilities of several tasks, by name; each as [`Predictor`] gives them.

        The patch embedding, and the blocks before the first that an adapter deflects, are computed once where tasks
        give them the same pixels: where their processors and base statistics agree.

        Args:
            source_bands: band codes of the channels; None: for each task those of its training images.
            tasks: their names; None: all.
            unit: `scale` and `offset`, as a predictor takes them.

        Raises:
            DeflectError: as a predictor, with the name of the task, or there is no task of that name.
        """
        chosen = {name: self[name] for name in (self.tasks if tasks is None else tasks)}
        found = {}
        with caching() as cache:
            for name, predictor in chosen.items():
                cache.next_task()
                with _naming(name):
                    found[name] = predictor(images, source_bands, valid, **unit)
        return found

    def _refuse_taken(self, name: str) -> None:
        if name in self._predictors:
            raise ConfigError(f"There is a task {name!r} already: remove it first, or choose another name.")

    def _loaded(self, folder: str | Path) -> Predictor:
        """The model of a run, on a copy of the encoder until it is known which weights loading changes."""

        def load(found: Path) -> Predictor:
            config = _read_run(found)
            self._compare_with_recorded(found, config)
            return Predictor.from_result(found, config, encoder=copy.deepcopy(self.encoder), device=self.device)

        return checkpoints.while_whole(Path(folder), load)

    def _compare_with_recorded(self, folder: Path, config: RunArguments) -> None:
        """Refuse a run whose configuration names an encoder with other weights."""
        try:
            source = _source(folder, config)
            if source in self._sources:
                return
            recorded = load_encoder(source[0], revision=source[1], quantization=source[2])
        except CheckpointError as error:
            if not self._given:
                raise
            logger.warning("%s: taken to adapt the encoder that was given, unseen: %s", folder, error)
            return
        differing = differences(self.encoder, recorded)
        if differing:
            raise CheckpointError(
                f"{folder}: was trained on {source[0]!r}, which differs from the shared encoder in {_some(differing)}. "
                "Fix: give models that adapt the same encoder."
            )
        self._sources.add(source)

    def _refuse_another(self, predictor: Predictor) -> None:
        """Refuse a loaded model whose encoder is not the shared one."""
        if predictor.device != self.device:
            raise ConfigError(
                f"The predictor is on {predictor.device}, the shared encoder on {self.device}: load both on one device."
            )
        adapted = _weights(task_model(predictor.model).encoder)
        # the patch embedding is left out, which some methods train
        trained = {id(parameter) for parameter in self.encoder.get_input_embeddings().parameters()}
        shared = {name: tensor for name, tensor in _weights(self.encoder).items() if id(tensor) not in trained}
        differing = [name for name, tensor in shared.items() if not _equal(tensor, adapted.get(name))]
        if differing:
            raise CheckpointError(
                f"The predictor's encoder is not the shared one: it differs in {_some(differing)}. Fix: give a model "
                "that adapts the same encoder, neither merged nor fully fine-tuned, or predict with it alone."
            )


@contextmanager
def _naming(task: str) -> Iterator[None]:
    try:
        yield
    except DeflectError as error:
        raise type(error)(f"task {task!r}: {error}") from error


def differences(encoder: PreTrainedModel, other: PreTrainedModel) -> list[str]:
    """Names of settings and weights in which two bare encoders differ."""
    own, others = encoder.config.to_dict(), other.config.to_dict()
    settings = sorted(name for name in (own.keys() & others.keys()) - NOT_COMPARED if own[name] != others[name])
    here, there = _weights(encoder), _weights(other)
    return settings + sorted(name for name in here.keys() | there.keys() if not _equal(here.get(name), there.get(name)))


def _no_merging(*_: Any, **__: Any) -> None:
    raise UnsupportedOperationError(
        "The encoder's weights are shared with other tasks, and merging would write into them. Fix: load this model "
        "alone (Predictor.from_folder), and merge that."
    )


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by the names that they have in the bare encoder."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for wrapper in WRAPPERS:
        named = {name.replace(wrapper, ""): tensor for name, tensor in named.items()}
    return {name: tensor for name, tensor in named.items() if not name.startswith("pooler.")}


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return (
        one.shape == other.shape
        and one.dtype == other.dtype
        and torch.equal(as_numbers(one), as_numbers(other.to(one.device)))
    )


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} settings or weights, first {names[0]!r}"


def _read_run(found: Path) -> RunArguments:
    """The configuration of a result folder."""
    config = checkpoints.read_config(found)
    if config.finetune == "full":
        raise UnsupportedOperationError(
            f"{found}: --finetune full trained the encoder itself, so there is nothing to share. Fix: predict with "
            "it alone, or train an adapter."
        )
    return config


def _source(folder: Path, config: RunArguments) -> Source:
    """Where the encoder of a run lies: folders by their real path, a name on the Hub as it is."""
    name = checkpoints.encoder_source(folder, config)
    where = str(Path(name).resolve()) if Path(name).is_dir() else name
    return where, config.encoder.revision, config.encoder.quantization
