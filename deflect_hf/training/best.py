"""Where the best model of an interrupted run is."""

from __future__ import annotations

import json
from pathlib import Path

from deflect_hf.artifacts.saved_model import RESULTS
from deflect_hf.files import REPLACED
from deflect_hf.training.states import Progress

BEST = "best"


def kept_best(work_dir: Path, state: Path, progress: Progress, metric: str) -> Path | None:
    """The folder of the model that ``progress``, read from ``state``, calls the best; None if it is kept nowhere.

    It is in ``work_dir``, or in the run that wrote ``state``. In ``work_dir`` it may also be one of an epoch after
    ``state``: the run comes to that model again, and it has beaten the one of ``progress``.
    """
    own, run = work_dir / BEST, state.resolve().parent.parent
    told = _epoch_and_score(own, metric)
    if told is not None and told[0] > progress.epoch:
        return own
    places = (own, run / BEST, run / (BEST + REPLACED))
    wanted = (progress.best_epoch, progress.best_score)
    return next((folder for folder in places if _epoch_and_score(folder, metric) == wanted), None)


def best_epoch(folder: Path) -> int:
    """The epoch that a result folder is of."""
    epoch: int = json.loads((folder / RESULTS).read_text(encoding="utf-8"))["best_epoch"]
    return epoch


def _epoch_and_score(folder: Path, metric: str) -> tuple[int, float] | None:
    try:
        told = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        return told["best_epoch"], told["val"][metric]
    except (OSError, ValueError, KeyError):
        return None
