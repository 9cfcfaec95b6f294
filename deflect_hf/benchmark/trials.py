"""What a row of the accuracy benchmark is repeated over: seeds, or the folds of repeated cross-validation."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from deflect_hf.config.data import DatasetArguments
from deflect_hf.config.readers import dataset_spec
from deflect_hf.config.run import RunArguments
from deflect_hf.data.splits import SPLITS
from deflect_hf.errors import ConfigError, listing

NORMAL = 1.959964  # 97.5 % quantile
# Student's 97.5 % quantile for 1 to 9 degrees of freedom
STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a row: a seed, and with folds which fold is the test set of which repeat (its dataset.seed)."""

    seed: int
    fold: int | None = None
    folds: int | None = None

    @property
    def name(self) -> str:
        """As in file names."""
        return f"seed{self.seed}" if self.fold is None else f"repeat{self.seed}-fold{self.fold}"

    def settings(self, base: RunArguments) -> RunArguments:
        """The configuration of this trial's run."""
        if self.fold is None:
            return dataclasses.replace(base, seed=self.seed)
        dataset = dataclasses.replace(base.dataset, num_folds=self.folds, fold=self.fold, seed=self.seed)
        return dataclasses.replace(base, seed=self.seed, dataset=dataset)


def cross_validation(folds: int, repeats: int) -> tuple[Trial, ...]:
    """Every fold of every repeat, one repeat after the other."""
    return tuple(Trial(repeat, fold, folds) for repeat in range(repeats) for fold in range(folds))


def refuse_fixed_split(dataset: DatasetArguments) -> None:
    """Refuse folds where the data says itself what is for training and what for the test.

    Raises:
        ConfigError: naming the files, or the data set.
    """
    if "num_folds" not in dataset_spec(dataset.name).keys:
        raise ConfigError(
            f"--folds: the data set {dataset.name!r} has a published split, which is the one to report on: "
            "leave --folds out and repeat with --seeds."
        )
    if dataset.name != "folder":
        return
    names = [getattr(dataset, f"{split}_split") or f"{split}.txt" for split in SPLITS]
    found = [name for name in names if (Path(str(dataset.root)) / name).is_file()]
    if found:
        raise ConfigError(
            f"--folds: {dataset.root} has split files ({listing(found)}), which random folds would mix, and with them "
            "perhaps images of one place: leave --folds out, or move the files away if any image may be in any fold."
        )


def student(degrees: int) -> float:
    """Student's 97.5 % quantile, to 0.001.

    Source: M. Abramowitz and I. Stegun, Handbook of Mathematical Functions, 26.7.5, beyond the table.
    """
    if degrees <= len(STUDENT):
        return STUDENT[degrees - 1]
    z = NORMAL
    terms = (z, (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return sum(term / degrees**power for power, term in enumerate(terms))


def half_interval(scores: Sequence[float], folds: int | None = None) -> float | None:
    """Half the 95 % interval of the mean of ``scores`` over trials; None for a single one.

    With ``folds``, the variance is the corrected resampled one: training sets that overlap give scores that are not
    independent, so that s²/J becomes (1/J + test/training) s² with J scores and the sizes of a fold and of its rest.

    Source: C. Nadeau and Y. Bengio, "Inference for the generalization error", Machine Learning 52 (2003); R. Bouckaert
    and E. Frank, "Evaluating the replicability of significance tests", PAKDD 2004, for repeated cross-validation.
    """
    if len(scores) < 2:
        return None
    overlap = 0.0 if folds is None else 1 / (folds - 1)
    return student(len(scores) - 1) * math.sqrt((1 / len(scores) + overlap) * statistics.variance(scores))
