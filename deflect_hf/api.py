"""Training from a program: the same configuration, loop and folder as ``train.py``, with data sets of its own."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from deflect_hf.artifacts.saved_model import read_results, result_folder
from deflect_hf.config.compose import Layers, file_layers, flatten, groups_of, merge, plain
from deflect_hf.config.data import DatasetArguments
from deflect_hf.config.run import EvaluateArguments, RunArguments
from deflect_hf.errors import ConfigError
from deflect_hf.evaluation.report import report
from deflect_hf.hub.load import load_predictor
from deflect_hf.hub.push import Publication
from deflect_hf.inference.predictor import Predictor
from deflect_hf.training.distributed_exit import STATUS
from deflect_hf.training.run import run

ORIGIN = "deflect_hf.train"
GIVEN = "python"  # what dataset.name is where a program hands the examples over


@dataclass
class Run:
    """A run that has ended, by its folder.

    Attributes:
        folder: What ``train.py`` leaves behind: ``best/``, ``results.json``, checkpoints, log.
        datasets: Those that it was trained on by split (``"train"``, ``"val"``, ``"test"``), if a program gave them.

    Example:
        >>> run = deflect_hf.Run("work-dir/RUN")
        >>> run.evaluate()["accuracy"], run.predictor(images)
    """

    folder: Path
    datasets: Mapping[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)

    @property
    def results(self) -> dict[str, Any]:
        """What ``results.json`` holds: scores of the best model on ``"val"`` and ``"test"``, parameters, times."""
        return read_results(result_folder(self.folder))

    @cached_property
    def predictor(self) -> Predictor:
        """The best model, ready to predict (CheckpointError: there is none)."""
        return load_predictor(self.folder)

    def evaluate(
        self, dataset: Any = None, *, split: str | None = None, output_dir: str | Path | None = None, **options: Any
    ) -> dict[str, Any]:
        """Scores of the best model, with 95 % intervals, as ``evaluate.py`` computes them.

        Args:
            dataset: Other images with labels, as ``train`` takes them, or keys that replace those of the run's
                configuration, ``{"root": "other"}``; None: those of the run.
            split: ``"train"``, ``"val"`` or ``"test"``; None: ``"test"`` if the run has it, else ``"val"``.
            output_dir: Where scores, confusion matrix and pictures are to be written; None: nowhere.
            options: Further keys of ``evaluate.py``, such as ``batch_size`` or ``drop_bands``.

        Raises:
            DeflectError: There is no such split, or the images are not those that the model takes.
        """
        if isinstance(dataset, Mapping) and {*dataset} <= {*DatasetArguments.model_fields}:
            dataset, options = None, {**options, "dataset": dataset}
        given = self.datasets if dataset is None else {split or "test": dataset}
        split = split or ("test" if dataset is not None or "test" in self.results else "val")
        values = {"eval_dir": str(self.folder), "split": split, "output_dir": output_dir, **options}
        arguments = merge(EvaluateArguments, flatten(values, EvaluateArguments, "Run.evaluate"))
        return report(arguments, given, write=output_dir is not None)[0]


def train(
    config: str | Path | Mapping[str, Any] | RunArguments | None = None,
    *,
    train: Any = None,
    validation: Any = None,
    test: Any = None,
    **keys: Any,
) -> Run:
    """Train as ``train.py`` does, and return the run.

    Args:
        config: A YAML file, or the keys that it would hold, or a configuration; None: the defaults.
        train: Examples: anything with a length whose ``train[index]`` is a dict of ``pixel_values`` or ``image``, (C,
            H, W) numbers, and ``labels``, ``mask`` or ``label``; or what
            :func:`deflect_hf.data.adapt_dataset` makes. None: the data set that the configuration names.
        validation: Examples by which the best model is chosen; None: a share of ``train``,
            ``dataset.val_fraction``, and another for ``test`` if that is not given either.
        test: Examples that the best model is scored on.
        keys: Further keys, which win over ``config``: ``epochs=20``, ``encoder="facebook/dinov2-base"``,
            ``dataset={"bands": ["B", "G", "R", "N"], "classes": ["land", "water"], "scale": 1e-4}``.

    Raises:
        DeflectError: What the configuration or the data got wrong.
        KeyboardInterrupt: After Ctrl-C: everything is saved.
        SystemExit: With status 143, after SIGTERM: everything is saved; with 0 after ``dry_run=True``.

    Example:
        >>> run = deflect_hf.train(
        ...     train=chips, encoder="facebook/dinov2-base", epochs=20,
        ...     dataset={"bands": ["B", "G", "R", "N"], "classes": ["land", "water"], "scale": 1e-4},
        ... )
        >>> run.evaluate()["miou"], run.predictor.predict_raster("scene.tif", "map.tif")
    """
    given = {"train": train, "val": validation, "test": test}
    given = {split: dataset for split, dataset in given.items() if dataset is not None}
    if given and train is None:
        raise ConfigError(f"{ORIGIN}: validation and test go with train, the examples to train on.")
    layers = [*_layers(config), *_layers(keys)]
    if given:
        layers.insert(0, ("dataset.name", GIVEN, ORIGIN))
    resolved = merge(RunArguments, layers)
    if given and resolved.dataset.name != GIVEN:
        raise ConfigError(f"{ORIGIN}: dataset.name is {resolved.dataset.name!r}, but train= gives the examples: one.")
    publication = Publication.of(resolved)
    try:
        _, folder, first = run(resolved, publication.publish, given or None)
    except SystemExit as stopped:
        if stopped.code == STATUS + signal.SIGINT:  # which ends a program, but not somebody's session
            raise KeyboardInterrupt("everything is saved: resume_from='last' goes on") from None
        raise
    if first:
        publication.finish(folder)
    return Run(folder, given or None)


def _layers(config: str | Path | Mapping[str, Any] | RunArguments | None) -> Layers:
    """Keys and values of a configuration in any of its forms."""
    if config is None:
        return []
    if isinstance(config, (str, Path)):
        return file_layers(RunArguments, {"config": str(config)})
    if isinstance(config, RunArguments):
        return flatten(plain(config), RunArguments, ORIGIN)
    if not isinstance(config, Mapping):
        raise ConfigError(
            f"{ORIGIN}: its first argument, the configuration, is a {type(config).__name__}: give a YAML file or a "
            "dict of keys, and examples by name, train=, validation=, test=."
        )
    values = dict(config)
    files = {name: str(values.pop(name)) for name in map("{}_config".format, groups_of(RunArguments)) if name in values}
    if isinstance(values.get("encoder"), (str, Path)):
        values["encoder"] = {"name_or_path": str(values["encoder"])}
    return [*file_layers(RunArguments, files), *flatten(values, RunArguments, ORIGIN)]
