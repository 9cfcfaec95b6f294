"""The keys of a training run and of an evaluation, in YAML files and on the command line.

The names follow the command line of the official code's base (early pangaea-bench): five groups of files, ``run``,
``foundation_models``, ``datasets``, ``segmentors`` and ``augmentations``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from deflect_hf.config.data import AugmentationArguments, Batch, Count, DatasetArguments, Seed, Side
from deflect_hf.config.methods import ADAPTER_RATE, LEARNING_RATES, METHODS, PREFIX, Finetune, options_of
from deflect_hf.config.schema import Arguments, UserPath, group, option
from deflect_hf.config.unused import refuse_unused
from deflect_hf.errors import ConfigError

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Width = Annotated[int, Field(ge=1, le=2**16)]
Workers = Annotated[int, Field(ge=0, le=1024)] | Literal["auto"]
Tracker = Literal["tensorboard", "wandb", "trackio"]
TRACKERS = get_args(Tracker)
# a run whose length nobody gave, as measured on four small sets (docs/results.md)
MAX_STEPS, EVAL_STEPS, PATIENCE = 1000, 50, 8


class EncoderArguments(Arguments):
    """The RGB encoder that is adapted: a Hub id or folder, or a randomly initialised one for tests and demos."""

    name_or_path: UserPath | None = option(None, "Hub id or folder of a transformers ViT")
    revision: str | None = option(None, "commit, tag or branch of the Hub repository")
    random: dict[str, Any] | None = option(
        None, "instead of name_or_path: model_type and config fields of a randomly initialised encoder"
    )
    random_seed: Seed = option(0, "seed of the random encoder's weights")
    quantization: Literal["int8", "bnb_4bit"] | None = option(
        None, "keep the frozen linear layers in few bits: int8 by torchao, bnb_4bit by bitsandbytes"
    )
    base_bands: list[str] = option(["R", "G", "B"], "bands the encoder was pretrained on, in its channel order")
    mean: list[float] | None = option(
        None,
        "mean of the base bands in reflectance; null: normalisation.json beside the encoder, else fitted "
        "on the training split",
    )
    std: list[PositiveFloat] | None = option(None, "deviation of the base bands in reflectance; null: as mean")
    gsd: PositiveFloat | Literal["data"] | None = option(
        None,
        "encoders whose positions know a ground sampling distance (Scale-MAE): that distance; null: the "
        "checkpoint's, 1.0; data: metres per pixel of the images as the encoder gets them",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.name_or_path is None) == (self.random is None):
            raise ConfigError(
                "encoder: give exactly one of 'name_or_path' (a Hub id or folder) and 'random' (a random encoder); "
                "for instance --encoder_config configs/foundation_models/embedded_vit.yaml"
            )
        if self.random is not None and "model_type" not in self.random:
            raise ConfigError("encoder.random needs 'model_type', for instance {model_type: vit, hidden_size: 64}")
        for name in ("revision", "quantization"):
            if getattr(self, name) is not None and self.name_or_path is None:
                raise ConfigError(f"encoder.{name} goes with encoder.name_or_path, not with encoder.random")
        if (self.mean is None) != (self.std is None):
            raise ConfigError("encoder: give both 'mean' and 'std', or neither to have them read or fitted")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.base_bands):
                raise ConfigError(
                    f"encoder.{name} has {len(values)} values for {len(self.base_bands)} base bands {self.base_bands}"
                )
        return self


class LossArguments(Arguments):
    """The loss over the labelled pixels or images: a sum of terms, each with its weight."""

    cross_entropy: NonNegativeFloat = option(
        1.0, "weight of the cross-entropy (binary for multi_label, the squared error for regression); 0: without it"
    )
    class_weights: Literal["balanced"] | list[NonNegativeFloat] | None = option(
        None, "one weight per class, or 'balanced': 1 / share of the class in the training split"
    )
    label_smoothing: Probability = option(0.0, "share of the target spread over all classes")
    focal: NonNegativeFloat = option(0.0, "weight of the focal loss, which counts easy labels less")
    focal_gamma: NonNegativeFloat = option(2.0, "of the focal loss: how much less; 0 is the cross-entropy")
    dice: NonNegativeFloat = option(0.0, "weight of the soft Dice loss")
    tversky: NonNegativeFloat = option(0.0, "weight of the Tversky loss")
    tversky_alpha: Probability = option(
        0.3, "of the Tversky loss: cost of false alarms; that of misses is 1 - alpha; 0.5 is Dice"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.cross_entropy or self.focal or self.dice or self.tversky):
            raise ConfigError(
                "segmentor.loss: cross_entropy, focal, dice and tversky are all 0, which leaves nothing to train on"
            )
        return self


class OptimizerArguments(Arguments):
    """AdamW over every parameter that is not frozen."""

    lr: PositiveFloat | Literal["auto"] | None = option(
        None, "learning rate; null: the method's own; auto: found by a short test before the training"
    )
    weight_decay: NonNegativeFloat = option(0.05, "decoupled weight decay")
    betas: list[Probability] = option([0.9, 0.999], "AdamW's two decay rates", min_length=2, max_length=2)
    decay_vectors: bool = option(
        True, "decay norms and biases too, as the published protocol does; false: matrices only"
    )
    max_grad_norm: PositiveFloat | None = option(None, "clip the gradient's norm to this; null: no clipping")


class SchedulerArguments(Arguments):
    """Learning rate over the iterations of the run."""

    name: Literal["multistep", "cosine", "constant"] = option("multistep", "its shape")
    milestones: list[Fraction] | None = option(
        None, "multistep: shares of all iterations after which the rate changes; null: 0.6 and 0.9"
    )
    gamma: PositiveFloat | None = option(None, "multistep: the factor at each milestone; null: 0.1")
    warmup: Probability = option(0.0, "share of all iterations spent on a linear warm-up")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name == "multistep":
            self.milestones = [0.6, 0.9] if self.milestones is None else self.milestones
            self.gamma = 0.1 if self.gamma is None else self.gamma
        return self


class SegmentorArguments(Arguments):
    """The task head and how it is trained (also for classification; the name is the official code's)."""

    head: Literal["linear", "mlp", "conv", "upernet", "pixel", "unet"] = option(
        "linear", "the head on the encoder's tokens; conv, upernet, pixel and unet are for segmentation"
    )
    output_layers: list[int] | None = option(None, "blocks the head reads; null: the last one, four for upernet")
    channels: Width | None = option(None, "hidden width; null: 256, 512 for upernet, 64 for pixel, 16 for unet")
    dropout: Probability | None = option(None, "before the classifier; null: 0, 0.1 for upernet")
    zoom: Annotated[int, Field(ge=1)] = option(
        1, "how many times the encoder is shown images enlarged: a token is 1/zoom of a patch, at zoom^2 of the time"
    )
    pooling: Literal["cls", "mean"] | None = option(
        None, "classification: class token or mean of the patches; null: cls"
    )
    auxiliary_loss: NonNegativeFloat = option(
        0.0, "weight of upernet's auxiliary head, or of pixel without tokens, in the loss"
    )
    window: Side | None = option(
        None, "segmentation: side of evaluation's sliding windows in pixels; null: the training crop's"
    )
    loss: LossArguments = group()
    optimizer: OptimizerArguments = group()
    scheduler: SchedulerArguments = group()


class RunArguments(Arguments):
    """One training run, complete. ``config.yaml`` in the run's folder holds exactly these keys."""

    finetune: Finetune = option("deflect", f"what is trained besides the head: {', '.join(METHODS)}, {PREFIX}NAME")
    work_dir: UserPath | None = option(None, "folder of the run; null: work-dir/DATASET-ENCODER-FINETUNE-SEED")
    overwrite: bool = option(False, "replace the run that work_dir already holds")
    dry_run: bool = option(False, "print what would be read, trained and written, and how long it takes; write nothing")
    resume_from: UserPath | None = option(None, "'last', or a checkpoint folder: continue exactly where it stopped")
    seed: Seed = option(0, "seed of weights, order and augmentation")
    num_workers: Workers = option(
        "auto", "data loader processes, per process; auto: the cores it may use, shared with its neighbors, at most 4"
    )
    batch_size: Batch = option(8, "images per step and process")
    accumulate: Batch = option(1, "batches whose gradients are added before a step")
    sampler: Literal["shuffle", "balanced"] = option(
        "shuffle", "balanced: training images drawn with replacement, those with rare classes more often"
    )
    epochs: Count | None = option(None, "passes over the training split, instead of max_steps")
    max_steps: PositiveInt | None = option(None, f"optimizer steps in all; null: {MAX_STEPS}, unless epochs is given")
    cache_images: bool = option(
        False, "keep decoded training and validation images on disk, one file each, where reading them takes long"
    )
    cache_prefix: bool = option(
        False, "deflect with a late start: keep on disk what enters the first deflected block, per image"
    )
    gradient_checkpointing: Literal["selective", "full"] | None = option(
        None, "less memory, same gradients: compute blocks again in the backward pass, selective: but for attention"
    )
    fp16: bool = option(False, "mixed precision in float16")
    bf16: bool = option(False, "mixed precision in bfloat16")
    ckpt_interval: PositiveInt = option(1, "epochs between checkpoints to resume from")
    ckpt_steps: PositiveInt | None = option(
        None,
        f"optimizer steps between further checkpoints within an epoch; null: {EVAL_STEPS}, and none where epochs or "
        "max_steps is given",
    )
    ckpt_keep: PositiveInt = option(2, "how many of the newest checkpoints are kept")
    eval_interval: PositiveInt | None = option(
        None, "epochs between evaluations on the val split, instead of eval_steps; null: 5 where epochs is given"
    )
    eval_steps: PositiveInt | None = option(
        None, f"optimizer steps between evaluations; null: {EVAL_STEPS}, unless epochs or eval_interval is given"
    )
    patience: PositiveInt | None = option(
        None,
        f"evaluations in a row without a better score that end the run; null: {PATIENCE}, and none where epochs or "
        "max_steps is given",
    )
    log_interval: PositiveInt = option(10, "optimizer steps between lines of log.jsonl")
    tracker: list[Tracker] = option([], f"where the log goes besides log.jsonl, any of: {', '.join(TRACKERS)}")
    metrics: Literal["present", "pangaea"] = option(
        "present", "means over classes present in target or prediction; pangaea: an absent class counts 0"
    )
    push_to_hub: bool = option(False, "publish the best model on the Hub at the end")
    hub_model_id: str | None = option(None, "its name there, user/name")
    hub_private: bool | None = option(None, "whether only its owner may see it; null: as the account's default")
    hub_revision: str | None = option(None, "branch it goes to; null: main")
    hub_strategy: Literal["best", "every_checkpoint"] = option(
        "best", "every_checkpoint: besides the best, each checkpoint to a branch step-N"
    )
    hub_base_model_id: str | None = option(None, "where an encoder that was loaded from a folder lies on the Hub")
    hub_picture: bool = option(True, "publish a picture of a prediction, which shows one of the images, too")
    encoder: EncoderArguments = group()
    dataset: DatasetArguments = group()
    segmentor: SegmentorArguments = group()
    augmentation: AugmentationArguments = group()
    method: dict[str, Any] = option({}, "options of --finetune's method, e.g. --method.rank 8")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.fp16 and self.bf16:
            raise ConfigError("fp16 and bf16 exclude each other: give one of them")
        for by_epochs, by_steps in (("epochs", "max_steps"), ("eval_interval", "eval_steps")):
            if getattr(self, by_steps) is not None and getattr(self, by_epochs) is not None:
                raise ConfigError(
                    f"{by_epochs} and {by_steps} exclude each other: give one of them, and --{by_epochs} null or "
                    f"--{by_steps} null for one that a file gives"
                )
        if self.epochs is None and self.max_steps is None:
            self.max_steps = MAX_STEPS
            self.patience, self.ckpt_steps = self.patience or PATIENCE, self.ckpt_steps or EVAL_STEPS
        if self.eval_interval is None and self.eval_steps is None:
            self.eval_interval, self.eval_steps = (5, None) if self.epochs else (None, EVAL_STEPS)
        hub = [key for key in type(self).model_fields if key.startswith("hub_")]
        given = [key for key in hub if getattr(self, key) != type(self).model_fields[key].default]
        if given and not self.push_to_hub:
            raise ConfigError(f"{given[0]} is for --push_to_hub true, which is not given")
        if self.push_to_hub and self.hub_model_id is None:
            raise ConfigError("push_to_hub needs hub_model_id, the name on the Hub: --hub_model_id user/name")
        optimizer = self.segmentor.optimizer
        if optimizer.lr is None:
            optimizer = optimizer.replace(lr=LEARNING_RATES.get(self.finetune, ADAPTER_RATE))
            self.segmentor = self.segmentor.replace(optimizer=optimizer)
        if not self.finetune.startswith(PREFIX):  # the others are PEFT's to check, when the run is built
            options_of(self.finetune, self.method)
        refuse_unused(self)
        return self


class EvaluateArguments(Arguments):
    """What ``evaluate.py`` can be told. The trained model's folder says everything else."""

    eval_dir: UserPath = Field(description="folder of a run, or its best/ folder (needed)")
    split: Literal["train", "val", "test"] = option("test", "which images")
    output_dir: UserPath | None = option(None, "where results go; null: the best/ folder")
    encoder: UserPath | None = option(None, "Hub id or folder of the base encoder; null: as in training")
    batch_size: Batch | None = option(None, "images per batch; null: as in training")
    num_workers: Workers | None = option(None, "data loader processes; null: as in training")
    metrics: Literal["present", "pangaea"] | None = option(None, "means over which classes; null: as in training")
    panels: NonNegativeInt = option(4, "prediction panels to draw")
    drop_bands: bool = option(False, "score also with each further band missing in turn")
    dataset: dict[str, Any] = option({}, "keys that differ from training, e.g. --dataset.root FOLDER")
