"""The training loop: exact averages over batches and processes, exact resumption, the best checkpoint by validation."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from deflect_hf.errors import CheckpointError, DataError
from deflect_hf.methods import task_model
from deflect_hf.processing import MultispectralImageProcessor
from deflect_hf.training import checkpoints
from deflect_hf.training.build import Experiment, evaluation_window, rank_of
from deflect_hf.training.evaluation import Protocol, evaluate
from deflect_hf.training.losses import label_weight, soft_dice
from deflect_hf.training.metrics import selection_metric
from deflect_hf.training.optimization import build_optimizer, build_scheduler
from deflect_hf.training.order import evaluation_loader, grouped, steps_of, training_loader
from deflect_hf.training.trackers import RunLog

logger = logging.getLogger(__name__)

KEPT_STATES = 2
NAMED_FILES = 16
TOLD = ("loss", "accuracy", "miou", "f1_macro")  # of each validation

Publish = Callable[[Path, int], None]  # gets the model at a checkpoint as a result folder, and its step


@dataclass
class Progress:
    """How far a run is: ``batch`` batches of ``epoch`` and ``step`` optimizer steps are done."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_score: float | None = None
    best_epoch: int | None = None
    seconds: float = 0.0


class Trainer:
    """Trains what an experiment left trainable and writes checkpoints, log and best result into ``work_dir``."""

    def __init__(
        self, experiment: Experiment, accelerator: Accelerator, work_dir: Path, publish: Publish | None = None
    ) -> None:
        self.config = experiment.config
        self.publish = publish
        self.splits = experiment.splits
        self.accelerator = accelerator
        self.rank = rank_of(accelerator)
        self.work_dir = work_dir
        self.progress = Progress()
        self.log = RunLog(accelerator, work_dir)
        self.plain = experiment.model
        self.processor: MultispectralImageProcessor = experiment.train.processor
        optimizer = build_optimizer(experiment.model, self.config.segmentor.optimizer)
        config, train = self.config, experiment.train
        self.steps_per_epoch = steps_of(len(train), config.batch_size, config.accumulate, self.rank)
        self.total_steps = self.steps_per_epoch * config.epochs
        self.scheduler = build_scheduler(optimizer, config.segmentor.scheduler, self.total_steps)
        self.model, self.optimizer = accelerator.prepare(experiment.model, optimizer)
        # accelerate would step the schedule once per process; ours counts optimizer steps of the whole run
        accelerator.register_for_checkpointing(self.scheduler)
        accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.clear())
        accelerator.register_load_state_pre_hook(lambda models, folder: models.clear())
        self.protocol = Protocol(
            train.classes, train.ignore_index, evaluation_window(config, train.task), config.metrics
        )
        self.class_weights: list[float] | None = task_model(experiment.model).config.class_weights

    def train(self) -> Progress:
        """Run from where ``progress`` stands to the last epoch.

        Raises:
            DataError: the loss is not finite; the files of the batch are named, earlier checkpoints are kept.
        """
        config = self.config
        started = time.monotonic() - self.progress.seconds
        shown = self.accelerator.is_main_process
        with tqdm(total=self.total_steps, initial=self.progress.step, disable=not shown, unit="step") as bar:
            for epoch in range(self.progress.epoch, config.epochs):
                loader = training_loader(
                    self.splits["train"],
                    config.batch_size,
                    config.num_workers,
                    config.seed,
                    epoch,
                    self.rank,
                    skip=self.progress.batch,
                )
                self.model.train()
                for group in grouped(loader, config.accumulate):
                    loss = self._step(group)
                    self.progress.batch += len(group)
                    self.progress.seconds = time.monotonic() - started
                    self._log_step(bar, loss)
                    if config.ckpt_steps and self.progress.step % config.ckpt_steps == 0:
                        self.save_state()
                self.progress.epoch, self.progress.batch = epoch + 1, 0
                last = epoch + 1 == config.epochs
                if last or (epoch + 1) % config.eval_interval == 0:
                    self._validate()
                if last or (epoch + 1) % config.ckpt_interval == 0:
                    self.save_state()
        return self.progress

    def _step(self, group: list[dict[str, Any]]) -> float:
        """One optimizer step over ``group``; returns the mean loss over all its labels in all processes."""
        device = self.accelerator.device
        ignore_index = self.protocol.ignore_index
        weights = [label_weight(batch["labels"], ignore_index, self.class_weights) for batch in group]
        total = self.accelerator.reduce(torch.stack(weights).sum().to(device), reduction="sum").clamp(min=1e-12)
        summed = 0.0
        for position, (batch, weight) in enumerate(zip(group, weights, strict=True)):
            last = position == len(group) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                # distributed training averages gradients over processes: undo its division
                share = weight.to(device) / total
                loss = self._loss(batch) * share
                reduced = self.accelerator.reduce(loss.detach().clone(), reduction="sum").item()
                self._refuse_broken(reduced, batch)
                summed += reduced
                self.accelerator.backward(loss * self.rank.count)
        if self.config.segmentor.optimizer.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.segmentor.optimizer.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        return summed

    def _loss(self, batch: dict[str, Any]) -> Tensor:
        device = self.accelerator.device
        pixel_values = batch["pixel_values"].to(device, non_blocking=True)
        labels = batch["labels"].to(device, non_blocking=True)
        with self.accelerator.autocast():
            outputs = self.model(pixel_values=pixel_values, labels=labels)
        terms = self.config.segmentor.loss
        loss: Tensor = terms.cross_entropy * outputs.loss
        if terms.dice:
            loss = loss + terms.dice * soft_dice(outputs.logits, labels, self.protocol.ignore_index)
        return loss

    def _refuse_broken(self, loss: float, batch: dict[str, Any]) -> None:
        if loss - loss == 0:  # false for NaN and both infinities
            return
        names = [str(name) for name in gather_object(list(batch["name"]))]
        kept = checkpoints.states(self.work_dir)
        raise DataError(
            f"the loss is {loss} in step {self.progress.step + 1} (epoch {self.progress.epoch + 1}), on the images "
            f"{', '.join(names[:NAMED_FILES])}{' ...' if len(names) > NAMED_FILES else ''}. "
            f"Last good checkpoint: {kept[-1] if kept else 'none'}. Look at these images, or lower the learning rate."
        )

    def _log_step(self, bar: tqdm[Any], loss: float) -> None:
        step, rate = self.progress.step, self.scheduler.get_last_lr()[0]
        bar.update()
        bar.set_postfix(loss=f"{loss:.4f}", lr=f"{rate:.1e}", refresh=False)
        if step % self.config.log_interval == 0 or step == self.total_steps:
            line = {"epoch": self.progress.epoch, "loss": loss, "lr": rate}
            self.log.write(step, line, self.progress.seconds)

    def score(self, model: nn.Module, split: str, replicates: int = 0) -> dict[str, Any]:
        """Scores of ``model`` on a split, with intervals where ``replicates`` of the bootstrap are asked for.

        Raises:
            DataError: its outputs are not finite.
        """
        loader = evaluation_loader(self.splits[split], self.config.batch_size, self.config.num_workers, self.rank)
        result = evaluate(model, loader, self.accelerator, self.protocol, replicates)
        if result["loss"] - result["loss"] != 0:
            raise DataError(f"the model's outputs on the {split} split are not finite: lower the learning rate.")
        return result

    def _validate(self) -> None:
        # the plain model: processes may have different numbers of batches, which the distributed wrapper forbids
        scores = self.score(self.plain, "val")
        epoch, task = self.progress.epoch, self.splits["val"].task
        score = scores[selection_metric(task)]
        best = self.progress.best_score is None or score > self.progress.best_score
        told = {name: scores[name] for name in TOLD}
        self.log.write(self.progress.step, {"epoch": epoch, "val": told}, self.progress.seconds)
        if self.accelerator.is_main_process:
            summary = ", ".join(f"{name} {value:.4f}" for name, value in told.items())
            tqdm.write(f"epoch {epoch}: val {summary}{' (best)' if best else ''}")
        if not best:
            return
        self.progress.best_score, self.progress.best_epoch = score, epoch
        if self.accelerator.is_main_process:
            with checkpoints.whole_folder(self.work_dir / "best") as folder:
                checkpoints.save_model(folder, self.plain, self.config, self.processor)
                checkpoints.write_json(folder / checkpoints.RESULTS, {"best_epoch": epoch, "val": scores})
        self.accelerator.wait_for_everyone()

    def save_state(self) -> None:
        """Write ``checkpoints/step-N`` and remove all but the newest ``KEPT_STATES``."""
        state = checkpoints.trained_state(self.plain)
        if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
            raise DataError(f"the weights are not finite after step {self.progress.step}: lower the learning rate.")
        target = self.work_dir / "checkpoints" / f"step-{self.progress.step}"
        partial = target.with_name(target.name + checkpoints.PARTIAL)
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, partial / "trained.safetensors")
        checkpoints.write_json(partial / "progress.json", {**dataclasses.asdict(self.progress), **self._fixed()})
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
        for old in checkpoints.states(self.work_dir)[:-KEPT_STATES]:
            shutil.rmtree(old)
        if self.publish is not None:
            with checkpoints.passing_folder(target.with_name(f"{target.name}.model")) as folder:
                checkpoints.save_model(folder, self.plain, self.config, self.processor)
                told = {"finetune": self.config.finetune, "epochs": self.progress.epoch, "steps": self.progress.step}
                checkpoints.write_json(folder / checkpoints.RESULTS, {**told, "seconds": self.progress.seconds})
                self.publish(folder, self.progress.step)

    def _fixed(self) -> dict[str, Any]:
        """What must not change when a run goes on, or its batches would be others."""
        config = self.config
        return {
            "seed": config.seed,
            "batch_size": config.batch_size,
            "accumulate": config.accumulate,
            "processes": self.rank.count,
            "images": len(self.splits["train"]),
            "total_steps": self.total_steps,
        }

    def resume(self, folder: Path) -> None:
        """Go on from a state folder.

        Raises:
            CheckpointError: it is broken, or belongs to a run with other settings.
        """
        try:
            stored = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
            differing = {name: value for name, value in self._fixed().items() if stored.pop(name) != value}
            progress = Progress(**stored)
            state = load_file(folder / "trained.safetensors")
        except Exception as error:
            raise CheckpointError(f"{folder}: cannot be read: {error}; resume from an earlier checkpoint") from error
        if differing:
            told = ", ".join(f"{name} {value}" for name, value in differing.items())
            raise CheckpointError(f"{folder} belongs to a run with other settings than this one's {told}")
        checkpoints.load_trained_state(self.plain, state, folder)
        self.accelerator.load_state(str(folder))
        self.progress = progress
        self.log.drop_after(progress.step)

    def restore_best(self, state: Path) -> None:
        """Have the best model so far in ``best/`` after resuming from ``state``, whatever became of it.

        It is there still, or copied from the run that wrote ``state``. Where it is gone, the best of what comes takes
        its place, and the resumed model if that is one at the end of an epoch: the same model as without interruption,
        unless the lost one would have stayed the best.
        """
        if self.progress.best_epoch is None:
            return
        own, other = self.work_dir / "best", state.resolve().parent.parent / "best"
        found = next((folder for folder in (own, other) if self._is_best(folder)), None)
        self.accelerator.wait_for_everyone()
        if found is None:
            logger.warning(
                "the best model so far, of epoch %d, is not kept anywhere: the best from here on takes its place",
                self.progress.best_epoch,
            )
            self.progress.best_score = None
            if self.progress.batch == 0:
                self._validate()
        elif found == other and self.accelerator.is_main_process and own.resolve() != other:
            with checkpoints.whole_folder(own) as folder:
                shutil.copytree(other, folder, dirs_exist_ok=True)
        self.accelerator.wait_for_everyone()

    def _is_best(self, folder: Path) -> bool:
        try:
            told = json.loads((folder / checkpoints.RESULTS).read_text(encoding="utf-8"))
            score = told["val"][selection_metric(self.splits["val"].task)]
        except (OSError, ValueError, KeyError):
            return False
        return (told["best_epoch"], score) == (self.progress.best_epoch, self.progress.best_score)
