"""What a run can be told, as typed dataclasses: one field per key of the YAML files and of the command line.

The names follow the command line of the official code's base (early pangaea-bench): five groups of files, ``run``,
``foundation_models``, ``datasets``, ``segmentors`` and ``augmentations``. Importing this file needs neither torch nor
PEFT, so that ``train.py --help`` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from deflect_hf.config.data import AugmentationArguments, DatasetArguments
from deflect_hf.config.paths import UserPath
from deflect_hf.errors import ConfigError

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
# far above what anybody uses: a slip of the keyboard must not fill the memory
Batch = Annotated[int, Field(ge=1, le=2**16)]
Width = Annotated[int, Field(ge=1, le=2**16)]
Workers = Annotated[int, Field(ge=0, le=1024)]
Tracker = Literal["tensorboard", "wandb", "trackio"]
TRACKERS = get_args(Tracker)


def _peft_method(value: str) -> str:
    if not value.removeprefix("peft:") or not value.startswith("peft:"):
        raise ConfigError("peft:NAME with the name of one of PEFT's configurations, such as peft:VeraConfig")
    return value


Finetune = (
    Literal["deflect", "lora", "slr", "norm", "bitfit", "frozen", "full"] | Annotated[str, AfterValidator(_peft_method)]
)


@dataclass
class EncoderArguments:
    """The RGB encoder that is adapted: a Hub id or folder, or a randomly initialised one for tests and demos."""

    name_or_path: UserPath | None = field(default=None, metadata={"help": "Hub id or folder of a transformers ViT"})
    revision: str | None = field(default=None, metadata={"help": "commit, tag or branch of the Hub repository"})
    random: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "instead of name_or_path: model_type and config fields of a randomly initialised encoder"},
    )
    random_seed: Seed = field(default=0, metadata={"help": "seed of the random encoder's weights"})
    base_bands: list[str] = field(
        default_factory=lambda: ["R", "G", "B"],
        metadata={"help": "bands the encoder was pretrained on, in its channel order"},
    )
    mean: list[float] | None = field(
        default=None,
        metadata={
            "help": "mean of the base bands in reflectance; null: normalisation.json beside the encoder, else fitted "
            "on the training split"
        },
    )
    std: list[PositiveFloat] | None = field(
        default=None, metadata={"help": "deviation of the base bands in reflectance; null: as mean"}
    )
    gsd: PositiveFloat | Literal["data"] | None = field(
        default=None,
        metadata={
            "help": "encoders whose positions know a ground sampling distance (Scale-MAE): that distance; null: the "
            "checkpoint's, 1.0; data: metres per pixel of the images as the encoder gets them"
        },
    )

    def __post_init__(self) -> None:
        if (self.name_or_path is None) == (self.random is None):
            raise ConfigError(
                "encoder: give exactly one of 'name_or_path' (a Hub id or folder) and 'random' (a random encoder); "
                "for instance --encoder_config configs/foundation_models/embedded_vit.yaml"
            )
        if self.random is not None and "model_type" not in self.random:
            raise ConfigError("encoder.random needs 'model_type', for instance {model_type: vit, hidden_size: 64}")
        if self.revision is not None and self.name_or_path is None:
            raise ConfigError("encoder.revision goes with encoder.name_or_path, not with encoder.random")
        if (self.mean is None) != (self.std is None):
            raise ConfigError("encoder: give both 'mean' and 'std', or neither to have them read or fitted")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.base_bands):
                raise ConfigError(
                    f"encoder.{name} has {len(values)} values for {len(self.base_bands)} base bands {self.base_bands}"
                )


@dataclass
class LossArguments:
    """Cross-entropy over the labelled pixels or images, optionally weighted, smoothed, or with a Dice term.

    Raises:
        ConfigError: neither of the two terms has a weight.
    """

    cross_entropy: NonNegativeFloat = field(
        default=1.0, metadata={"help": "weight of the cross-entropy; 0 trains on the Dice loss alone"}
    )
    class_weights: Literal["balanced"] | list[NonNegativeFloat] | None = field(
        default=None,
        metadata={"help": "one weight per class, or 'balanced': 1 / share of the class in the training split"},
    )
    label_smoothing: Probability = field(default=0.0, metadata={"help": "share of the target spread over all classes"})
    dice: NonNegativeFloat = field(default=0.0, metadata={"help": "weight of the soft Dice loss that is added"})

    def __post_init__(self) -> None:
        if not self.cross_entropy and not self.dice:
            raise ConfigError("segmentor.loss: cross_entropy and dice are both 0, which leaves nothing to train on")


@dataclass
class OptimizerArguments:
    """AdamW over every parameter that is not frozen."""

    lr: PositiveFloat = field(default=1e-4, metadata={"help": "learning rate"})
    weight_decay: NonNegativeFloat = field(default=0.05, metadata={"help": "decoupled weight decay"})
    betas: tuple[Probability, Probability] = field(default=(0.9, 0.999), metadata={"help": "AdamW's two decay rates"})
    decay_vectors: bool = field(
        default=True,
        metadata={"help": "decay norms and biases too, as the published protocol does; false: matrices only"},
    )
    max_grad_norm: PositiveFloat | None = field(
        default=None, metadata={"help": "clip the gradient's norm to this; null: no clipping"}
    )


@dataclass
class SchedulerArguments:
    """Learning rate over the iterations of the run."""

    name: Literal["multistep", "cosine", "constant"] = field(default="multistep", metadata={"help": "its shape"})
    milestones: list[Fraction] | None = field(
        default=None,
        metadata={"help": "multistep: shares of all iterations after which the rate changes; null: 0.6 and 0.9"},
    )
    gamma: PositiveFloat | None = field(
        default=None, metadata={"help": "multistep: the factor at each milestone; null: 0.1"}
    )
    warmup: Probability = field(default=0.0, metadata={"help": "share of all iterations spent on a linear warm-up"})

    def __post_init__(self) -> None:
        if self.name == "multistep":
            self.milestones = [0.6, 0.9] if self.milestones is None else self.milestones
            self.gamma = 0.1 if self.gamma is None else self.gamma


@dataclass
class SegmentorArguments:
    """The task head and how it is trained (also for classification; the name is the official code's)."""

    head: Literal["linear", "mlp", "conv", "upernet", "pixel"] = field(
        default="linear",
        metadata={"help": "the head on the encoder's tokens; conv, upernet and pixel are for segmentation"},
    )
    output_layers: list[int] | None = field(
        default=None, metadata={"help": "blocks the head reads; null: the last one, four for upernet"}
    )
    channels: Width | None = field(
        default=None, metadata={"help": "hidden width; null: 256, 512 for upernet, 64 for pixel"}
    )
    dropout: Probability | None = field(
        default=None, metadata={"help": "before the classifier; null: 0, 0.1 for upernet"}
    )
    pooling: Literal["cls", "mean"] | None = field(
        default=None, metadata={"help": "classification: class token or mean of the patches; null: cls"}
    )
    auxiliary_loss: NonNegativeFloat = field(
        default=0.0, metadata={"help": "weight of upernet's auxiliary head in the loss; 0: no such head"}
    )
    window: PositiveInt | None = field(
        default=None,
        metadata={"help": "segmentation: side of evaluation's sliding windows in pixels; null: the training crop's"},
    )
    loss: LossArguments = field(default_factory=LossArguments)
    optimizer: OptimizerArguments = field(default_factory=OptimizerArguments)
    scheduler: SchedulerArguments = field(default_factory=SchedulerArguments)


@dataclass
class RunArguments:
    """One training run, complete. ``config.yaml`` in the run's folder holds exactly these keys."""

    finetune: Finetune = field(
        default="deflect",
        metadata={
            "help": "what is trained besides the head: deflect, lora, slr, norm, bitfit, frozen, full, peft:NAME"
        },
    )
    work_dir: UserPath | None = field(
        default=None, metadata={"help": "folder of the run; null: work-dir/DATASET-ENCODER-FINETUNE-SEED"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace the run that work_dir already holds"})
    resume_from: UserPath | None = field(
        default=None, metadata={"help": "'last', or a checkpoint folder: continue exactly where it stopped"}
    )
    seed: Seed = field(default=0, metadata={"help": "seed of weights, order and augmentation"})
    num_workers: Workers = field(default=4, metadata={"help": "data loader processes, per process"})
    batch_size: Batch = field(default=8, metadata={"help": "images per step and process"})
    accumulate: Batch = field(default=1, metadata={"help": "batches whose gradients are added before a step"})
    epochs: PositiveInt = field(default=80, metadata={"help": "passes over the training split"})
    cache_prefix: bool = field(
        default=False,
        metadata={"help": "deflect with a late start: keep on disk what enters the first deflected block, per image"},
    )
    fp16: bool = field(default=False, metadata={"help": "mixed precision in float16"})
    bf16: bool = field(default=False, metadata={"help": "mixed precision in bfloat16"})
    ckpt_interval: PositiveInt = field(default=1, metadata={"help": "epochs between checkpoints to resume from"})
    ckpt_steps: PositiveInt | None = field(
        default=None, metadata={"help": "optimizer steps between further checkpoints within an epoch; null: none"}
    )
    ckpt_keep: PositiveInt = field(default=2, metadata={"help": "how many of the newest checkpoints are kept"})
    eval_interval: PositiveInt = field(default=5, metadata={"help": "epochs between evaluations on the val split"})
    patience: PositiveInt | None = field(
        default=None, metadata={"help": "evaluations in a row without a better score that end the run; null: none do"}
    )
    log_interval: PositiveInt = field(default=10, metadata={"help": "optimizer steps between lines of log.jsonl"})
    tracker: list[Tracker] = field(
        default_factory=list, metadata={"help": f"where the log goes besides log.jsonl, any of: {', '.join(TRACKERS)}"}
    )
    metrics: Literal["present", "pangaea"] = field(
        default="present",
        metadata={"help": "means over classes present in target or prediction; pangaea: an absent class counts 0"},
    )
    push_to_hub: bool = field(default=False, metadata={"help": "publish the best model on the Hub at the end"})
    hub_model_id: str | None = field(default=None, metadata={"help": "its name there, user/name"})
    hub_private: bool | None = field(
        default=None, metadata={"help": "whether only its owner may see it; null: as the account's default"}
    )
    hub_revision: str | None = field(default=None, metadata={"help": "branch it goes to; null: main"})
    hub_strategy: Literal["best", "every_checkpoint"] = field(
        default="best", metadata={"help": "every_checkpoint: besides the best, each checkpoint to a branch step-N"}
    )
    hub_base_model_id: str | None = field(
        default=None, metadata={"help": "where an encoder that was loaded from a folder lies on the Hub"}
    )
    hub_picture: bool = field(
        default=True, metadata={"help": "publish a picture of a prediction, which shows one of the images, too"}
    )
    encoder: EncoderArguments = field(default_factory=EncoderArguments)
    dataset: DatasetArguments = field(default_factory=DatasetArguments)
    segmentor: SegmentorArguments = field(default_factory=SegmentorArguments)
    augmentation: AugmentationArguments = field(default_factory=AugmentationArguments)
    method: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "options of --finetune's method, e.g. --method.rank 8"}
    )

    def __post_init__(self) -> None:
        if self.fp16 and self.bf16:
            raise ConfigError("fp16 and bf16 exclude each other: give one of them")
        hub = [item for item in fields(self) if item.name.startswith("hub_")]
        given = [item.name for item in hub if getattr(self, item.name) != item.default]
        if given and not self.push_to_hub:
            raise ConfigError(f"{given[0]} is for --push_to_hub true, which is not given")
        if self.push_to_hub and self.hub_model_id is None:
            raise ConfigError("push_to_hub needs hub_model_id, the name on the Hub: --hub_model_id user/name")


@dataclass
class EvaluateArguments:
    """What ``evaluate.py`` can be told. The trained model's folder says everything else."""

    eval_dir: UserPath = field(metadata={"help": "folder of a run, or its best/ folder (needed)"})
    split: Literal["train", "val", "test"] = field(default="test", metadata={"help": "which images"})
    output_dir: UserPath | None = field(default=None, metadata={"help": "where results go; null: the best/ folder"})
    encoder: UserPath | None = field(
        default=None, metadata={"help": "Hub id or folder of the base encoder; null: as in training"}
    )
    batch_size: Batch | None = field(default=None, metadata={"help": "images per batch; null: as in training"})
    num_workers: Workers | None = field(default=None, metadata={"help": "data loader processes; null: as in training"})
    metrics: Literal["present", "pangaea"] | None = field(
        default=None, metadata={"help": "means over which classes; null: as in training"}
    )
    panels: NonNegativeInt = field(default=4, metadata={"help": "prediction panels to draw"})
    drop_bands: bool = field(default=False, metadata={"help": "score also with each further band missing in turn"})
    dataset: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "keys that differ from training, e.g. --dataset.root FOLDER"}
    )
