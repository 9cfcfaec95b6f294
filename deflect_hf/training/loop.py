"""The training loop: exact averages over batches and processes, exact resumption, the best checkpoint by validation."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from deflect_hf.artifacts import saved_model
from deflect_hf.data.collate import fill_up, refuse_beyond_memory
from deflect_hf.data.kept import IMAGES
from deflect_hf.data.order import Rank, evaluation_loader, grouped, steps_of, training_loader
from deflect_hf.errors import ConfigError, DataError, listing
from deflect_hf.evaluation.evaluate import NAMED, Interrupted, evaluate
from deflect_hf.evaluation.task_metrics import Protocol
from deflect_hf.files import atomic_dir, temp_dir, write_json
from deflect_hf.training import prefix
from deflect_hf.training.build import Experiment
from deflect_hf.training.checkpoint import BEST, FOLDER, Checkpoints, Progress, kept_best, list_checkpoints
from deflect_hf.training.distributed_exit import Preemption
from deflect_hf.training.optimization import build_optimizer, build_scheduler, with_terms
from deflect_hf.training.sharding import is_sharded, prepared, shard, unsharded, whole_weights
from deflect_hf.training.trackers import RunLog

logger = logging.getLogger(__name__)

Publish = Callable[[Path, int], None]  # gets the model at a checkpoint as a result folder, and its step
Batch = dict[str, Any]


class TrainingLoop:
    """Trains what an experiment left trainable and writes checkpoints, log and best result into ``work_dir``.

    An optimizer step asks the device for nothing and, in one process, reduces nothing; several processes add up the
    weight of their labels, and gradients. Losses stay on the device until a line of the log, a checkpoint or the end
    of an epoch reads them.
    """

    def __init__(
        self, experiment: Experiment, accelerator: Accelerator, work_dir: Path, publish: Publish | None = None
    ) -> None:
        self.config = config = experiment.config
        self.publish = publish
        self.splits = experiment.splits
        self.accelerator = accelerator
        self.rank = Rank.of(accelerator)
        self.work_dir = work_dir
        self.progress = Progress()
        self.image_weights = experiment.statistics.image_weights()
        self.preemption = Preemption()
        self.log = RunLog(accelerator, work_dir)
        self.plain = experiment.model
        train = experiment.train
        shard(experiment.model, accelerator)
        optimizer = build_optimizer(experiment.model, config.segmentor.optimizer)
        self.epoch_steps = steps_of(len(train), config.batch_size, config.accumulate, self.rank)
        # one of each pair is given
        self.total_steps = config.max_steps or self.epoch_steps * (config.epochs or 1)
        self.eval_steps = config.eval_steps or self.epoch_steps * (config.eval_interval or 1)
        # not prepared: accelerate would step it once per process; it counts optimizer steps of the whole run
        self.scheduler = build_scheduler(optimizer, config.segmentor.scheduler, self.total_steps)
        trained = self.plain
        if config.cache_prefix:
            if is_sharded(trained):
                raise ConfigError("cache_prefix needs whole parameters in each process, without FSDP: use DDP.")
            trained = prefix.with_stored_prefix(trained, config.augmentation, work_dir / prefix.FOLDER)
        self.model, self.optimizer = prepared(trained, optimizer, accelerator)
        self.protocol = Protocol.of(config, train, experiment.model)
        refuse_beyond_memory("batch_size", config.batch_size, train[0]["pixel_values"].shape)
        if config.cache_images:  # of what is read more than once
            read_often = {split: self.splits[split].kept_in(work_dir / IMAGES) for split in ("train", "val")}
            self.splits = {**self.splits, **read_often}
        # on the device, since the last line of the log; and what the loss was of, since it was last looked at
        self.loss_sum, self.loss_steps = torch.zeros((), device=accelerator.device), 0
        self.unread: list[tuple[int, list[str], Tensor]] = []
        self.stop_flag: tuple[Tensor, Any] | None = None
        settings = {f"segmentor.optimizer.{name}": value for name, value in vars(config.segmentor.optimizer).items()}
        del settings["segmentor.optimizer.max_grad_norm"]
        fixed = {
            "seed": config.seed,
            "batch_size": config.batch_size,
            "accumulate": config.accumulate,
            "processes": self.rank.count,
            "sampler": None if config.sampler == "shuffle" else config.sampler,
            "images": len(train),
            "total_steps": self.total_steps,
            "encoder.random": config.encoder.random,
            "encoder.random_seed": config.encoder.random_seed,
            **settings,
        }
        also, keep = {"statistics": experiment.statistics.state()}, config.ckpt_keep
        self.checkpoints = Checkpoints(accelerator, work_dir, self.plain, optimizer, self.scheduler, fixed, keep, also)

    def train(self) -> bool:
        """Run from where ``progress`` stands to the end.

        Returns:
            Whether the end was reached: not if any process was told to stop, after which everything is saved.
        """
        config, progress = self.config, self.progress
        started = time.monotonic() - progress.seconds
        bar = tqdm(
            total=self.total_steps, initial=progress.step, disable=not self.accelerator.is_main_process, unit="step"
        )
        with self.preemption, bar:
            while not self.is_over():
                if not self._train_epoch(bar, started):
                    self.save_state()
                    break
                if self.is_over() or progress.epoch % config.ckpt_interval == 0:
                    self.save_state()
            # it may have come after the last validation; and nobody leaves before the first process has saved
            return self._summed(torch.tensor(float(self.preemption.asked))).item() == 0

    def is_over(self) -> bool:
        """Whether all steps are done and evaluated, or ``patience`` evaluations in a row brought nothing better."""
        progress, patience = self.progress, self.config.patience
        done = progress.step >= self.total_steps and progress.evaluated == progress.step
        return done or (patience is not None and progress.waited >= patience)

    def _train_epoch(self, bar: tqdm[Any], started: float) -> bool:
        """The rest of an epoch or of the run, with its evaluations; False if any process was told to stop."""
        config, progress = self.config, self.progress
        if not self._evaluate():  # a resumed run may stand before an evaluation
            return False
        loader = self.loader(progress.epoch, config.num_workers, progress.batch)
        batches = progress.batch + len(loader)
        self.model.train()
        for group in grouped(loader, config.accumulate):
            if self.is_over():
                return True
            if not self.step(group):
                return False
            progress.batch += len(group)
            progress.seconds = time.monotonic() - started
            self._log_step(bar)
            if progress.batch == batches:
                self._read_losses()
                progress.epoch, progress.batch = progress.epoch + 1, 0
            if config.ckpt_steps and progress.step % config.ckpt_steps == 0:
                self.save_state()
            if not self._evaluate():
                return False
        return True

    def loader(self, epoch: int, workers: Any, skip: int = 0) -> Any:
        """The batches of an epoch of the training split after the first ``skip``."""
        how = self.config.batch_size, workers, self.config.seed, epoch, self.rank
        return training_loader(self.splits["train"], *how, skip=skip, weights=self.image_weights)

    def _evaluate(self) -> bool:
        """Validate if it is time to; False if any process was told to stop.

        So the state that is saved is the one before the validation, which a resumed run repeats as a whole.
        """
        progress = self.progress
        due = progress.step == self.total_steps or progress.step % self.eval_steps == 0
        if due and progress.evaluated != progress.step:
            self._read_losses()
            try:
                scores = self.score(self.plain, "val", asked_to_stop=lambda: self.preemption.asked)
            except Interrupted:
                return False
            self._take(scores)
            self.model.train()
        return True

    def _summed(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, on this one's device."""
        total: Tensor = self.accelerator.reduce(tensor.to(self.accelerator.device), reduction="sum")
        return total

    def step(self, group: list[Batch]) -> bool:
        """One optimizer step on the mean loss over all labels of ``group`` in all processes.

        False, and no step, if any of the processes was told to stop: they agree on it before they compute.
        """
        labels = [self.protocol.target.weight(batch["labels"]) for batch in group]
        weights = torch.stack(labels)  # on the CPU, as labels come from the loader: to read it costs nothing
        total, stop = weights.sum(), self.preemption.asked
        if self.rank.count > 1:
            total, stop = self._agreed(total)
        if stop:
            return False
        total = total.clamp(min=1e-12)
        for batch, weight in zip(group, weights.tolist(), strict=True):
            with contextlib.nullcontext() if batch is group[-1] else self.accelerator.no_sync(self.model):
                loss = self._loss(batch) * (weight / total)
                self.loss_sum += loss.detach()
                self.unread.append((self.progress.step + 1, batch["name"], loss.detach()))
                # distributed training averages gradients over processes: undo its division
                self.accelerator.backward(loss * self.rank.count)
        if self.config.segmentor.optimizer.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.segmentor.optimizer.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        self.loss_steps += 1
        return True

    def _agreed(self, weight: Tensor) -> tuple[Tensor, bool]:
        """The labels' weight in all processes, on the device, and whether any was told to stop by the step before.

        What they say in this step is read in the next: to wait for it would let the device run dry.
        """
        shared = self._summed(torch.stack([weight, torch.tensor(float(self.preemption.asked))]))
        before, done = self.stop_flag, None
        copy = shared[1].to("cpu", non_blocking=True)
        if shared.device.type != "cpu":
            done = torch.get_device_module(shared.device).Event()
            done.record()
        self.stop_flag = copy, done
        if before is None:
            return shared[0], False
        if before[1] is not None:
            before[1].synchronize()
        return shared[0], bool(before[0])

    def _loss(self, batch: Batch) -> Tensor:
        device = self.accelerator.device
        sides = zip(batch["pixel_values"].shape[-2:], self.protocol.patch_size, strict=True)
        height, width = (-(-side // step) * step for side, step in sides)
        target = self.protocol.target
        batch = fill_up(batch, height, width, target.ignore_index)
        pixel_values = batch["pixel_values"].to(device, non_blocking=True)
        labels = batch["labels"].to(device, non_blocking=True)
        with self.accelerator.autocast():
            outputs = self.model(pixel_values=pixel_values, labels=labels)
        return with_terms(outputs.loss, outputs.logits, labels, target, self.config.segmentor.loss)

    def _read_losses(self) -> float:
        """The mean over the steps since the last line of the log, in all processes: waits for the device."""
        mean = self._summed(self.loss_sum).item() / max(1, self.loss_steps)
        if not math.isfinite(mean):
            broken = [
                (step, str(loss.item()), [str(name) for name in names])
                for step, names, loss in self.unread
                if not math.isfinite(loss.item())
            ]
            step, loss, names = min(gather_object(broken))
            kept = list_checkpoints(self.work_dir)
            raise DataError(
                f"the loss is {loss} in step {step} (epoch {self.progress.epoch + 1}), on the images "
                f"{listing(names, NAMED)}. Last good checkpoint: {kept[-1] if kept else 'none'}. Look at these images, "
                "or lower the learning rate."
            )
        self.unread.clear()
        return mean

    def _log_step(self, bar: tqdm[Any]) -> None:
        step, rate = self.progress.step, self.scheduler.get_last_lr()[0]
        bar.update()
        if step % self.config.log_interval == 0 or step == self.total_steps:
            loss = self._read_losses()
            self.loss_sum, self.loss_steps = torch.zeros_like(self.loss_sum), 0
            bar.set_postfix(loss=f"{loss:.4f}", lr=f"{rate:.1e}", refresh=False)
            self.log.write(step, {"epoch": self.progress.epoch, "loss": loss, "lr": rate}, self.progress.seconds)

    def score(self, model: nn.Module, split: str, **options: Any) -> dict[str, Any]:
        """Scores of ``model`` on a split; ``options`` are those of ``evaluate``."""
        # the plain model: processes may have different numbers of batches, which the distributed wrapper forbids
        loader = evaluation_loader(self.splits[split], self.config.batch_size, self.config.num_workers, self.rank)
        with unsharded(model):
            return evaluate(model, loader, self.accelerator, self.protocol, **options)

    def _take(self, scores: dict[str, Any]) -> None:
        """Log the scores of a validation, and keep the model if it is the best so far."""
        progress = self.progress
        task = self.protocol.task
        score = task.preference(scores)
        best = progress.best_score is None or score > progress.best_score
        progress.evaluated = progress.step
        progress.waited = 0 if progress.best_score is None or score[0] > progress.best_score[0] else progress.waited + 1
        logged = task.logged(scores)
        self.log.write(progress.step, {"epoch": progress.epoch, "val": logged}, progress.seconds)
        if self.accelerator.is_main_process:
            summary = ", ".join(f"{name} {value:.4f}" for name, value in logged.items())
            tqdm.write(f"epoch {progress.epoch}, step {progress.step}: val {summary}{' (best)' if best else ''}")
        if not best:
            return
        progress.best_score, progress.best_epoch, progress.best_step = score, progress.epoch, progress.step
        weights = whole_weights(self.plain)
        if self.accelerator.is_main_process:
            with atomic_dir(self.work_dir / BEST) as folder:
                saved_model.save_model(folder, self.plain, self.config, self.splits["train"].processor, weights)
                found = {"best_epoch": progress.epoch, "best_step": progress.step, "val": scores}
                write_json(folder / saved_model.RESULTS, found)
        self.accelerator.wait_for_everyone()

    def save_state(self) -> None:
        """Write ``checkpoints/step-N``, and publish the model as it is now where that was asked for."""
        self._read_losses()
        self.checkpoints.save(self.progress, {"loss_sum": self.loss_sum.cpu(), "loss_steps": self.loss_steps})
        if self.publish is None:
            return
        weights = whole_weights(self.plain)
        if self.accelerator.is_main_process:
            step = self.progress.step
            with temp_dir(self.work_dir / FOLDER / f"step-{step}.model") as folder:
                saved_model.save_model(folder, self.plain, self.config, self.splits["train"].processor, weights)
                results = {"finetune": self.config.finetune, "epochs": self.progress.epoch, "steps": step}
                write_json(folder / saved_model.RESULTS, {**results, "seconds": self.progress.seconds})
                self.publish(folder, step)

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        self.progress, own = self.checkpoints.load(folder)
        self.loss_sum, self.loss_steps = own["loss_sum"].to(self.accelerator.device), own["loss_steps"]

    def restore_best(self, state: Path) -> None:
        """Have the best model so far in ``best/`` after resuming from ``state``, whatever became of it.

        It is there still, or copied from the run that wrote ``state``. Where it is gone, the best of what comes takes
        its place, and the resumed model if it was evaluated: the same model as without interruption,
        unless the lost one would have stayed the best.
        """
        if self.progress.best_epoch is None:
            return
        own = self.work_dir / BEST
        found = kept_best(self.work_dir, state, self.progress, self.protocol.task)
        self.accelerator.wait_for_everyone()
        if found is None:
            logger.warning(
                "the best model so far, of epoch %d, is not kept anywhere: the best from here on takes its place",
                self.progress.best_epoch,
            )
            self.progress.best_score = None
            if self.progress.evaluated == self.progress.step:
                self._take(self.score(self.plain, "val"))
        elif found != own and self.accelerator.is_main_process:
            with atomic_dir(own) as folder:
                shutil.copytree(found, folder, dirs_exist_ok=True)
        self.accelerator.wait_for_everyone()
