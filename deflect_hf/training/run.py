"""One training run from its configuration to ``results.json``."""

from __future__ import annotations

import errno
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors import SafetensorError
from torch import nn

from deflect_hf.artifacts import saved_model as checkpoints
from deflect_hf.artifacts.environment import environment
from deflect_hf.artifacts.processes import launcher_precision, make_accelerator
from deflect_hf.config.compose import flatten, plain
from deflect_hf.config.run import RunArguments
from deflect_hf.config.yaml import read_yaml
from deflect_hf.errors import CheckpointError, ConfigError
from deflect_hf.evaluation.bootstrap import REPLICATES
from deflect_hf.evaluation.metrics import selection_metric
from deflect_hf.figures import curves_figure
from deflect_hf.files import recover, write_json, write_text
from deflect_hf.methods import encoder_parameters, patch_embedding_parameters, task_model
from deflect_hf.training import preemption, states
from deflect_hf.training.best import BEST, best_epoch
from deflect_hf.training.build import Experiment, build, plain_loader, whole_patches
from deflect_hf.training.loop import TOLD, Publish, Trainer
from deflect_hf.training.prefix import FOLDER as PREFIX
from deflect_hf.training.run_lock import run_lock
from deflect_hf.training.trackers import EVENTS, LOG, finish_trackers, start_trackers, tracker_options
from deflect_hf.tuners.statistics import fit_statistics

logger = logging.getLogger(__name__)

CURVES = "curves.png"
OF_ONE_START = ("resume_from", "overwrite", "work_dir")  # settings that say nothing of a run as a whole
ENVIRONMENT = "environment.json"
WRITTEN = (
    *(BEST, states.FOLDER, "encoder", PREFIX, EVENTS, LOG, CURVES, ENVIRONMENT),
    *(checkpoints.CONFIG, checkpoints.RESULTS),
)


def default_work_dir(config: RunArguments) -> Path:
    """``work-dir/DATASET-ENCODER-FINETUNE-SEED``."""
    data = Path(config.dataset.root).name if config.dataset.root else config.dataset.name
    random = (config.encoder.random or {}).get("model_type")
    encoder = f"random_{random}" if random else Path(str(config.encoder.name_or_path)).name
    return Path("work-dir") / f"{data}-{encoder}-{config.finetune.replace(':', '-')}-{config.seed}"


def refuse_file_in_the_way(work_dir: Path) -> None:
    """Raise ConfigError if ``work_dir`` cannot be a folder."""
    if any(path.exists() and not path.is_dir() for path in (work_dir, *work_dir.parents)):
        raise ConfigError(f"{work_dir} cannot be a folder, a file is in the way: give another --work_dir")


def prepare_work_dir(config: RunArguments, work_dir: Path, accelerator: Accelerator) -> Path | None:
    """Empty the run's folder of what an earlier run left unless that is resumed.

    Returns:
        The state to go on from, None for a run from the beginning.

    Raises:
        ConfigError: it holds an earlier run that is neither resumed nor to be replaced.
        CheckpointError: there is nothing to resume.
    """
    if config.resume_from is not None and accelerator.is_main_process:
        recover(work_dir / BEST)
        states.settle_states(work_dir)
    accelerator.wait_for_everyone()
    state = None
    if config.resume_from is not None:
        state = states.state_to_resume(work_dir, config.resume_from)
    continued = config.resume_from == states.LAST or (
        state is not None and state.resolve().parent.parent == work_dir.resolve()
    )
    if (work_dir / checkpoints.CONFIG).exists() and not continued and not config.overwrite:
        raise ConfigError(
            f"{work_dir} holds a run already: give another --work_dir, continue it with --resume_from last, or "
            "replace it with --overwrite"
        )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and state is None:
        for name in WRITTEN:
            path = work_dir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return state


@contextmanager
def full_disk_told(work_dir: Path) -> Iterator[None]:
    """Say what to do about a full disk, which only a checkpoint can do without.

    Raises:
        CheckpointError: in its place.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        told = re.search(r"os error (\d+)", str(error))  # as safetensors says it
        number = int(told[1]) if told else getattr(error, "errno", None)
        if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise CheckpointError(
            f"{work_dir}: no space is left on the disk. Fix: free some, then go on with --resume_from last."
        ) from error


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
        SystemExit: with status 143, after SIGTERM: everything is saved.
    """
    config = launcher_precision(config)
    work_dir = Path(config.work_dir) if config.work_dir is not None else default_work_dir(config)
    with full_disk_told(work_dir):
        return _run(config, work_dir, publish)


def _run(config: RunArguments, work_dir: Path, publish: Publish | None) -> tuple[dict[str, Any], Path, bool]:
    """As :func:`run`, in a folder."""
    accelerator = make_accelerator(config, **tracker_options(config, work_dir))
    refuse_file_in_the_way(work_dir)
    states.require_run(work_dir, config.resume_from)  # before the folder is made
    with run_lock(work_dir, accelerator):
        return _run_alone(config, work_dir, publish, accelerator)


def _run_alone(
    config: RunArguments, work_dir: Path, publish: Publish | None, accelerator: Accelerator
) -> tuple[dict[str, Any], Path, bool]:
    """As :func:`run`, in a folder of its own."""
    state = prepare_work_dir(config, work_dir, accelerator)
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
    set_seed(config.seed, device_specific=True)
    trainer = Trainer(experiment, accelerator, work_dir, publish)
    if state is not None:
        trainer.resume(state)  # may refuse: what is on the disk changes after it alone
    if accelerator.is_main_process:
        if state is not None:
            warn_of_changes(config, work_dir)
            states.drop_states_after(work_dir, trainer.progress.step)
        write_text(work_dir / checkpoints.CONFIG, checkpoints.to_yaml(config))
        write_json(work_dir / ENVIRONMENT, surroundings)
        tell(config, accelerator, parameter_counts(experiment.model))
    accelerator.wait_for_everyone()
    start_trackers(accelerator, config, work_dir, trainer.progress.step)
    if state is not None:
        trainer.restore_best(state)
    if not trainer.train():
        logger.info("stopped by SIGTERM after step %d: --resume_from last goes on", trainer.progress.step)
        finish_trackers(accelerator)
        raise SystemExit(preemption.EXIT_STATUS)
    results = {**score_best(trainer, experiment), "environment": surroundings}
    if accelerator.is_main_process:
        for folder in (checkpoints.result_folder(work_dir), work_dir):
            write_json(folder / checkpoints.RESULTS, results)
        curves_figure(work_dir / CURVES, [work_dir])
    accelerator.wait_for_everyone()
    finish_trackers(accelerator)
    return results, work_dir, accelerator.is_main_process


def warn_of_changes(config: RunArguments, work_dir: Path) -> None:
    """Name the settings of a run that is continued which are not those it had: they hold from here on."""
    path = work_dir / checkpoints.CONFIG
    if not path.is_file():
        return
    now = dict(flatten(plain(config), RunArguments, "this run"))
    try:
        then = dict(flatten(read_yaml(path), RunArguments, str(path)))
    except ConfigError as error:  # of another version, or edited: what counts is in the checkpoint
        logger.warning("settings are not compared with those of the run before: %s", error)
        return
    changed = [
        f"{name} {then.get(name)} -> {value}"
        for name, value in now.items()
        if name not in OF_ONE_START and then.get(name) != value
    ]
    if changed:
        logger.warning("%s goes on with other settings: %s", work_dir, ", ".join(changed))


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
    best = checkpoints.result_folder(trainer.work_dir)
    model = checkpoints.load_model(best, config).to(trainer.accelerator.device)
    task = experiment.train.task
    splits = [name for name in ("val", "test") if name in experiment.splits]
    scores: dict[str, Any] = {split: trainer.score(model, split, replicates=REPLICATES) for split in splits}
    if "test" in scores:
        trainer.log.track(progress.step, {"test": {name: scores["test"][name] for name in TOLD}})
    return {
        "task": task,
        "finetune": config.finetune,
        "seed": config.seed,
        "selected_by": f"val {selection_metric(task)}",
        "best_epoch": best_epoch(best),
        "epochs": config.epochs,
        "steps": progress.step,
        "seconds": round(progress.seconds, 3),
        "images": {name: len(split) for name, split in experiment.splits.items()},
        "parameters": counts,
        **scores,
    }
