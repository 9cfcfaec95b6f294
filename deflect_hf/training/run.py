"""One training run from its configuration to ``results.json``."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from torch import nn

from deflect_hf.errors import ConfigError
from deflect_hf.figures import curves_figure
from deflect_hf.methods import encoder_parameters, patch_embedding_parameters, task_model
from deflect_hf.statistics import fit_statistics
from deflect_hf.training import checkpoints
from deflect_hf.training.arguments import RunArguments
from deflect_hf.training.bootstrap import REPLICATES
from deflect_hf.training.build import Experiment, build, plain_loader, whole_patches
from deflect_hf.training.environment import environment
from deflect_hf.training.loop import TOLD, Publish, Trainer
from deflect_hf.training.metrics import selection_metric
from deflect_hf.training.trackers import EVENTS, LOG, require_trackers, start_trackers

logger = logging.getLogger(__name__)

CURVES = "curves.png"
ENVIRONMENT = "environment.json"
WRITTEN = (
    *("best", "checkpoints", "encoder", EVENTS, LOG, CURVES, ENVIRONMENT),
    *(checkpoints.CONFIG, checkpoints.RESULTS),
)


def make_accelerator(config: RunArguments, tracked: Path | None = None) -> Accelerator:
    """The processes, device and precision of the run.

    Args:
        tracked: folder of a run whose trackers are to be told how it goes.

    Raises:
        ConfigError: the machine cannot do the precision, or a tracker is not installed.
    """
    precision = "fp16" if config.fp16 else "bf16" if config.bf16 else None
    # Without being told so, accelerate does not see that it was launched as one of several processes on CPUs, and
    # each of them would train alone and write over the others.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    trackers: dict[str, Any] = {}
    if tracked is not None:
        require_trackers(config.tracker)
        folders = ProjectConfiguration(project_dir=str(tracked), logging_dir=str(tracked / EVENTS))
        trackers = {"log_with": list(config.tracker) or None, "project_config": folders}
    try:
        return Accelerator(mixed_precision=precision, cpu=several and not torch.accelerator.is_available(), **trackers)
    except ValueError as error:
        raise ConfigError(f"--{precision}: {error}") from error


def default_work_dir(config: RunArguments) -> Path:
    """``work-dir/DATASET-ENCODER-FINETUNE-SEED``."""
    data = Path(config.dataset.root).name if config.dataset.root else config.dataset.name
    random = (config.encoder.random or {}).get("model_type")
    encoder = f"random_{random}" if random else Path(str(config.encoder.name_or_path)).name
    return Path("work-dir") / f"{data}-{encoder}-{config.finetune.replace(':', '-')}-{config.seed}"


def prepare_work_dir(config: RunArguments, work_dir: Path, accelerator: Accelerator) -> None:
    """Make the run's folder, and empty it of an earlier run unless that is resumed.

    Raises:
        ConfigError: it holds an earlier run that is neither resumed nor to be replaced.
    """
    if config.resume_from is None:
        if (work_dir / checkpoints.CONFIG).exists() and not config.overwrite:
            raise ConfigError(
                f"{work_dir} holds a run already: give another --work_dir, continue it with --resume_from last, or "
                "replace it with --overwrite"
            )
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            for name in WRITTEN:
                path = work_dir / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    work_dir.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()


def parameter_counts(model: nn.Module) -> dict[str, Any]:
    """Trainable and total parameters, and the encoder's trainable share: the paper's "< 1 %", without the head."""
    trainable, total = encoder_parameters(model)
    everything = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {
        "encoder_trainable": trainable,
        "encoder_total": total,
        "encoder_trainable_percent": 100 * trainable / total,
        "patch_embedding_trainable": patch_embedding_parameters(model),
        "head_trainable": everything - trainable,
    }


def run(config: RunArguments, publish: Publish | None = None) -> tuple[dict[str, Any], Path, bool]:
    """Train, keep the best checkpoint by validation, reload it from its folder and test it.

    Args:
        publish: gets the model at each checkpoint, as a result folder, in the first process.

    Returns:
        What ``results.json`` holds, the run's folder, and whether this is the first of the processes.

    Raises:
        DeflectError: what the user's configuration or data got wrong.
    """
    work_dir = Path(config.work_dir) if config.work_dir is not None else default_work_dir(config)
    accelerator = make_accelerator(config, tracked=work_dir)
    resumed = config.resume_from
    prepare_work_dir(config, work_dir, accelerator)
    state = checkpoints.state_to_resume(work_dir, resumed) if resumed is not None else None
    set_seed(config.seed)
    experiment = build(config, work_dir, accelerator)
    config = experiment.config
    experiment.model.to(accelerator.device)
    if config.finetune == "deflect":
        patch_size = task_model(experiment.model).config.patch_size
        fit_statistics(
            experiment.model,
            whole_patches(plain_loader(config, experiment.train, accelerator), patch_size),
            accelerator=accelerator,
            unit_check=config.dataset.unit_check,
        )
    surroundings = environment(accelerator.device, accelerator.num_processes)
    if accelerator.is_main_process:
        checkpoints.write_text(work_dir / checkpoints.CONFIG, checkpoints.to_yaml(config))
        checkpoints.write_json(work_dir / ENVIRONMENT, surroundings)
        tell(config, accelerator, parameter_counts(experiment.model))
    set_seed(config.seed, device_specific=True)
    trainer = Trainer(experiment, accelerator, work_dir, publish)
    if state is not None:
        trainer.resume(state)
    start_trackers(accelerator, config, work_dir, trainer.progress.step)
    if state is not None:
        trainer.restore_best(state)
    trainer.train()
    results = {**score_best(trainer, experiment), "environment": surroundings}
    if accelerator.is_main_process:
        for folder in (checkpoints.result_folder(work_dir), work_dir):
            checkpoints.write_json(folder / checkpoints.RESULTS, results)
        curves_figure(work_dir / CURVES, [work_dir])
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return results, work_dir, accelerator.is_main_process


def tell(config: RunArguments, accelerator: Accelerator, counts: Mapping[str, Any]) -> None:
    """Log what is trained, and where."""
    logger.info(
        "%s (%s) on %s: %d of %d encoder parameters are trained (%.2f %%), %d of them in the patch embedding, and %d "
        "of the head",
        config.finetune,
        ", ".join(f"{name} {value}" for name, value in config.method.items()),
        accelerator.device,
        counts["encoder_trainable"],
        counts["encoder_total"],
        counts["encoder_trainable_percent"],
        counts["patch_embedding_trainable"],
        counts["head_trainable"],
    )


def score_best(trainer: Trainer, experiment: Experiment) -> dict[str, Any]:
    """Reload the best model from its folder and score it: what ``results.json`` holds besides the environment."""
    config, progress = experiment.config, trainer.progress
    counts = parameter_counts(experiment.model)
    model = checkpoints.load_model(checkpoints.result_folder(trainer.work_dir), config).to(trainer.accelerator.device)
    task = experiment.train.task
    splits = [name for name in ("val", "test") if name in experiment.splits]
    scores: dict[str, Any] = {split: trainer.score(model, split, REPLICATES) for split in splits}
    if "test" in scores:
        trainer.log.track(progress.step, {"test": {name: scores["test"][name] for name in TOLD}})
    return {
        "task": task,
        "finetune": config.finetune,
        "seed": config.seed,
        "selected_by": f"val {selection_metric(task)}",
        "best_epoch": progress.best_epoch,
        "epochs": config.epochs,
        "steps": progress.step,
        "seconds": round(progress.seconds, 3),
        "images": {name: len(split) for name, split in experiment.splits.items()},
        "parameters": counts,
        **scores,
    }
