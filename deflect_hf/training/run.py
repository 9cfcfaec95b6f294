"""One training run from its configuration to ``results.json``."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from deflect_hf.errors import ConfigError
from deflect_hf.methods import encoder_parameters
from deflect_hf.statistics import fit_statistics
from deflect_hf.training import checkpoints
from deflect_hf.training.arguments import RunArguments
from deflect_hf.training.bootstrap import REPLICATES
from deflect_hf.training.build import build, plain_loader
from deflect_hf.training.environment import environment
from deflect_hf.training.loop import LOG, Trainer
from deflect_hf.training.metrics import selection_metric

logger = logging.getLogger(__name__)

WRITTEN = ("best", "checkpoints", "encoder", LOG, checkpoints.CONFIG, checkpoints.RESULTS)


def make_accelerator(config: RunArguments) -> Accelerator:
    """The processes, device and precision of the run.

    Raises:
        ConfigError: the machine cannot do the precision.
    """
    precision = "fp16" if config.fp16 else "bf16" if config.bf16 else None
    # Without being told so, accelerate does not see that it was launched as one of several processes on CPUs, and
    # each of them would train alone and write over the others.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    try:
        return Accelerator(mixed_precision=precision, cpu=several and not torch.accelerator.is_available())
    except ValueError as error:
        raise ConfigError(f"--{precision}: {error}") from error


def default_work_dir(config: RunArguments) -> Path:
    """``work-dir/DATASET-ENCODER-FINETUNE-SEED``."""
    data = Path(config.dataset.root).name if config.dataset.root else config.dataset.name
    random = (config.encoder.random or {}).get("model_type")
    encoder = f"random_{random}" if random else Path(str(config.encoder.name_or_path)).name
    return Path("work-dir") / f"{data}-{encoder}-{config.finetune}-{config.seed}"


def prepare_work_dir(config: RunArguments, accelerator: Accelerator) -> Path:
    """The run's folder, empty of an earlier run unless that is resumed.

    Raises:
        ConfigError: it holds an earlier run that is neither resumed nor to be replaced.
    """
    work_dir = Path(config.work_dir) if config.work_dir is not None else default_work_dir(config)
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
    return work_dir


def parameter_counts(model: nn.Module) -> dict[str, Any]:
    """Trainable and total parameters, and the encoder's trainable share: the paper's "< 1 %", without the head."""
    trainable, total = encoder_parameters(model)
    everything = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {
        "encoder_trainable": trainable,
        "encoder_total": total,
        "encoder_trainable_percent": 100 * trainable / total,
        "head_trainable": everything - trainable,
    }


def run(config: RunArguments) -> tuple[dict[str, Any], Path, bool]:
    """Train, keep the best checkpoint by validation, reload it from its folder and test it.

    Returns:
        What ``results.json`` holds, the run's folder, and whether this is the first of the processes.

    Raises:
        DeflectError: what the user's configuration or data got wrong.
    """
    accelerator = make_accelerator(config)
    resumed = config.resume_from
    work_dir = prepare_work_dir(config, accelerator)
    state = checkpoints.state_to_resume(work_dir, resumed) if resumed is not None else None
    set_seed(config.seed)
    experiment = build(config, work_dir, accelerator)
    config = experiment.config
    counts = parameter_counts(experiment.model)
    experiment.model.to(accelerator.device)
    if config.finetune == "deflect":
        fit_statistics(
            experiment.model,
            plain_loader(config, experiment.train, accelerator),
            accelerator=accelerator,
            unit_check=config.dataset.unit_check,
        )
    if accelerator.is_main_process:
        (work_dir / checkpoints.CONFIG).write_text(checkpoints.to_yaml(config), encoding="utf-8")
        logger.info(
            "%s on %s: %d of %d encoder parameters are trained (%.2f %%), and %d of the head",
            config.finetune,
            accelerator.device,
            counts["encoder_trainable"],
            counts["encoder_total"],
            counts["encoder_trainable_percent"],
            counts["head_trainable"],
        )
    set_seed(config.seed, device_specific=True)
    trainer = Trainer(experiment, accelerator, work_dir)
    if state is not None:
        trainer.resume(state)
    progress = trainer.train()
    best = checkpoints.result_folder(work_dir)
    model = checkpoints.load_model(best, config).to(accelerator.device)
    task = experiment.train.task
    results: dict[str, Any] = {
        "task": task,
        "finetune": config.finetune,
        "seed": config.seed,
        "selected_by": f"val {selection_metric(task)}",
        "best_epoch": progress.best_epoch,
        "epochs": config.epochs,
        "steps": progress.step,
        "seconds": round(progress.seconds, 1),
        "parameters": counts,
        **{split: trainer.score(model, split, REPLICATES) for split in ("val", "test") if split in experiment.splits},
        "environment": environment(accelerator.device, accelerator.num_processes),
    }
    if accelerator.is_main_process:
        checkpoints.write_json(best / checkpoints.RESULTS, results)
        checkpoints.write_json(work_dir / checkpoints.RESULTS, results)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return results, work_dir, accelerator.is_main_process
