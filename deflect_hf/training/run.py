"""One training run from its configuration to ``results.json``."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from torch import nn

from deflect_hf.artifacts import saved_model
from deflect_hf.artifacts.environment import environment
from deflect_hf.artifacts.processes import launcher_precision, make_accelerator
from deflect_hf.config.compose import flatten, plain
from deflect_hf.config.run import RunArguments
from deflect_hf.config.yaml import read_yaml
from deflect_hf.data.places import write_regions
from deflect_hf.data.scene_reader import SceneReader
from deflect_hf.errors import CheckpointError, ConfigError, counted
from deflect_hf.evaluation.bootstrap import REPLICATES
from deflect_hf.figures import curves_figure, rates_figure
from deflect_hf.files import CONFIG, atomic_dir, write_json, write_text
from deflect_hf.methods import encoder_parameters, patch_embedding_parameters
from deflect_hf.models.encoders import random_encoder
from deflect_hf.training import checkpoint
from deflect_hf.training import work_dir as run_folder
from deflect_hf.training.build import ENCODER, Experiment, build
from deflect_hf.training.distributed_exit import STATUS
from deflect_hf.training.loop import Publish, TrainingLoop
from deflect_hf.training.rehearsal import choose_rate, preview
from deflect_hf.training.trackers import finish_trackers, start_trackers, tracker_options
from deflect_hf.tuners.check import check

logger = logging.getLogger(__name__)

OF_ONE_START = ("resume_from", "overwrite", "dry_run", "work_dir")  # settings that say nothing of a run as a whole


def run(
    config: RunArguments, publish: Publish | None = None, given: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], Path, bool]:
    """Train, keep the best checkpoint by validation, reload it from its folder and test it.

    Nothing in the run's folder changes before everything that can be refused was checked.

    Args:
        publish: gets the model at each checkpoint, as a result folder, in the first process.
        given: data sets of a program by split, in place of the one that the configuration names.

    Returns:
        What ``results.json`` holds, the run's folder, and whether this is the first of the processes.

    Raises:
        DeflectError: what the user's configuration or data got wrong.
        SystemExit: with 143 after SIGTERM, 130 after Ctrl-C: everything is saved; with 0 at the end of a dry run.
    """
    config = launcher_precision(config)
    work_dir = Path(config.work_dir) if config.work_dir is not None else run_folder.default_work_dir(config)
    accelerator = make_accelerator(config, **tracker_options(config, work_dir))
    if config.resume_from == checkpoint.LAST and not work_dir.is_dir():
        raise CheckpointError(f"{work_dir} is not there, so there is nothing to resume; start without --resume_from.")
    with run_folder.full_disk_explained(work_dir), run_folder.run_lock(work_dir, accelerator, config.dry_run):
        # Load
        source = None
        if config.resume_from is not None:
            if accelerator.is_main_process and not config.dry_run and run_folder.read_manifest(work_dir)["files"]:
                checkpoint.recover_checkpoints(work_dir)
            accelerator.wait_for_everyone()
            source = checkpoint.find_checkpoint(work_dir, config.resume_from)
        continued = source is not None and source.parent.resolve() == (work_dir / checkpoint.FOLDER).resolve()
        run_folder.refuse_loss(config, work_dir, continued)

        # Build
        set_seed(config.seed)
        statistics = None if source is None else checkpoint.read_progress(source)["statistics"]
        experiment = build(config, work_dir, accelerator, continued, statistics, given)
        config = experiment.config
        if config.finetune == "deflect":
            check(experiment.model)
        experiment.model.to(accelerator.device)
        rate_test = None if config.dry_run and source is None else choose_rate(experiment, accelerator, source)
        config = experiment.config
        set_seed(config.seed, device_specific=True)
        if config.dry_run:
            text = preview(experiment, accelerator, work_dir, source, parameter_counts(experiment.model))
            accelerator.print(text)
            raise SystemExit(0)
        # what is saved of the run trains again as a run of its own: it neither replaces nor continues this one
        config = experiment.config = config.replace(resume_from=None, overwrite=False)
        loop = TrainingLoop(experiment, accelerator, work_dir, publish)
        if source is not None:
            loop.resume(source)
        surroundings = environment(accelerator.device, accelerator.num_processes)
        accelerator.wait_for_everyone()  # nobody has refused anything
        if accelerator.is_main_process:
            run_folder.claim(config, work_dir, continued)
            begin(config, work_dir, loop, source)
            write_json(work_dir / run_folder.ENVIRONMENT, surroundings)
            if rate_test is not None:
                rates_figure(work_dir / run_folder.RATES, **vars(rate_test))
            if isinstance(reader := experiment.train.reader, SceneReader):
                write_regions(work_dir / run_folder.PLACES, reader.regions, reader.infos, reader.classes)
            log_start(config, loop, parameter_counts(experiment.model))
        accelerator.wait_for_everyone()

        # Train
        start_trackers(accelerator, config, work_dir, loop.progress.step)
        if source is not None:
            loop.restore_best(source)
        if not loop.train():
            told = loop.preemption.signal
            logger.info("stopped by %s after step %d: --resume_from last goes on", told.name, loop.progress.step)
            finish_trackers(accelerator)
            raise SystemExit(STATUS + told)

        if loop.progress.step < loop.total_steps:
            logger.info(
                "stopped early after step %d of %d: %d evaluations in a row brought nothing better than step %s",
                *(loop.progress.step, loop.total_steps, loop.progress.waited, loop.progress.best_step),
            )

        # Score
        results = {**score_best(loop, experiment), "environment": surroundings}

        # Save
        if accelerator.is_main_process:
            best = saved_model.result_folder(work_dir)
            for folder in (best, work_dir):
                write_json(folder / saved_model.RESULTS, results)
            for name in saved_model.DESCRIPTION:
                write_text(work_dir / name, (best / name).read_text(encoding="utf-8"))
            curves_figure(work_dir / run_folder.CURVES, [work_dir])
            run_folder.drop_former(work_dir)
        accelerator.wait_for_everyone()
        finish_trackers(accelerator)
        return results, work_dir, accelerator.is_main_process


def begin(config: RunArguments, work_dir: Path, loop: TrainingLoop, source: Path | None) -> None:
    """Write what a run begins with: its configuration, its encoder if that is random, and the log up to here."""
    if source is not None:
        warn_of_changes(config, work_dir, source)
        checkpoint.drop_checkpoints_after(work_dir, loop.progress.step)
        loop.log.drop_after(loop.progress.step, loop.progress.evaluated)
    if config.encoder.random is not None and not (work_dir / ENCODER / "config.json").is_file():
        with atomic_dir(work_dir / ENCODER) as folder:
            random_encoder(config.encoder).save_pretrained(folder)
    write_text(work_dir / CONFIG, saved_model.to_yaml(config))


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


def warn_of_changes(config: RunArguments, work_dir: Path, source: Path) -> None:
    """Name the settings which are not those of the run that wrote the checkpoint ``source``: they hold from here on."""
    path = source.absolute().parent.parent / CONFIG
    if not path.is_file():
        return
    now = {key: value for key, value, _ in flatten(plain(config), RunArguments, "this run")}
    try:
        then = {key: value for key, value, _ in flatten(read_yaml(path), RunArguments, str(path))}
    except ConfigError as error:  # of another version, or edited: what counts is in the checkpoint
        logger.warning("settings are not compared with those of the run before: %s", error)
        return
    changed = [name for name in now if name not in OF_ONE_START and then.get(name) != now[name]]
    if changed:
        named = ", ".join(f"{name} {then.get(name)} -> {now[name]}" for name in changed)
        logger.warning("%s goes on with other settings: %s", work_dir, named)


def log_start(config: RunArguments, loop: TrainingLoop, counts: Mapping[str, Any]) -> None:
    """Log what is trained, where and for how long; a warning where that is not even one pass over the images."""
    options = ", ".join(f"{name} {value}" for name, value in config.method.items())
    logger.info(
        "%s (%s) on %s: %d of %d encoder parameters are trained (%.2f %%), %d of them in the patch embedding, and %d "
        "of the head",
        *(config.finetune, options, loop.accelerator.device),
        *counts.values(),
    )
    passes = loop.total_steps / loop.epoch_steps
    logger.log(
        logging.INFO if passes >= 1 else logging.WARNING,
        "%s (max_steps, epochs), passes over the training split: %.3g; evaluated every %s%s",
        *(counted(loop.total_steps, "optimizer step"), passes, counted(loop.eval_steps, "step")),
        f", at most {config.patience} times in a row without a better score" if config.patience else "",
    )


def score_best(loop: TrainingLoop, experiment: Experiment) -> dict[str, Any]:
    """Reload the best model from its folder and score it: what ``results.json`` holds besides the environment."""
    config, progress = experiment.config, loop.progress
    counts = parameter_counts(experiment.model)
    best = saved_model.result_folder(loop.work_dir)
    model = saved_model.load_model(best, config).to(loop.accelerator.device)
    task = loop.protocol.task
    splits = [name for name in ("val", "test") if name in experiment.splits]
    found = saved_model.read_results(best)
    scores: dict[str, Any] = {}
    for split in splits:  # validation first, whose temperature holds for the others
        scores[split] = loop.score(model, split, replicates=REPLICATES)
        loop.protocol = dataclasses.replace(loop.protocol, temperature=scores[split].get("temperature"))
    if "test" in scores:
        loop.log.track(progress.step, {"test": task.logged(scores["test"])})
    return {
        "task": task.name,
        "finetune": config.finetune,
        "seed": config.seed,
        "learning_rate": config.segmentor.optimizer.lr,
        "selected_by": f"val {task.metric}",
        "best_epoch": found["best_epoch"],
        "best_step": found.get("best_step"),
        "epochs": progress.epoch,
        "steps": progress.step,
        "stopped_early": progress.step < loop.total_steps,
        "seconds": round(progress.seconds, 3),
        "images": {name: len(split) for name, split in experiment.splits.items()},
        "parameters": counts,
        **scores,
    }
