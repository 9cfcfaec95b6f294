"""Learning curves: what is read from a run's log, and what is drawn of it."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from deflect_hf.figures import curves_figure
from deflect_hf.figures.results import read_curves, running_mean


def write_run(folder: Path, steps: int = 6, best_epoch: int | None = 2) -> Path:
    """The log of a run with an epoch of two steps, and its best result."""
    lines: list[dict] = []
    for step in range(1, steps + 1):
        lines.append({"step": step, "epoch": (step - 1) // 2, "loss": 1 / step, "lr": 1e-3, "seconds": 1.0})
        if step % 2 == 0:
            scores = {"loss": 2 / step, "accuracy": 0.5, "miou": 0.1 * step, "f1_macro": 0.3}
            lines.append({"step": step, "epoch": step // 2, "val": scores, "seconds": 1.0})
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if best_epoch is not None:
        (folder / "best").mkdir()
        (folder / "best" / "results.json").write_text(json.dumps({"best_epoch": best_epoch}))
    return folder


def test_curves_are_those_of_the_log(tmp_path: Path) -> None:
    values, best = read_curves(write_run(tmp_path / "run"))
    assert best == 4
    np.testing.assert_allclose(values["loss"], [(step, 1 / step) for step in range(1, 7)])
    np.testing.assert_allclose(values["val.miou"], [(2, 0.2), (4, 0.4), (6, 0.6)])
    (tmp_path / "run" / "best" / "results.json").write_text(json.dumps({"best_epoch": 2, "best_step": 6}))
    assert read_curves(tmp_path / "run")[1] == 6  # epochs may have several evaluations
    going_on = write_run(tmp_path / "going on", steps=3, best_epoch=None)
    assert read_curves(going_on)[1] is None
    (going_on / "best").mkdir()
    (going_on / "best" / "results.json").write_text("[]")
    assert read_curves(going_on)[1] is None


def test_runs_are_overlaid_also_those_before_their_first_validation(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", steps=1, best_epoch=None), write_run(tmp_path / "b", steps=2, best_epoch=1)]
    runs += [write_run(tmp_path / str(number) / "run", steps=60) for number in range(2)]
    one, all_of_them = (Image.open(curves_figure(tmp_path / f"{k}.png", runs[:k])) for k in (1, 4))
    assert one.size[0] > 1000 and all_of_them.size[1] > one.size[1]  # the legend has more lines
    assert not np.array_equal(np.asarray(one), np.asarray(all_of_them)[: one.size[1]])


def test_the_smooth_line_is_a_mean_that_keeps_constants_to_the_ends() -> None:
    np.testing.assert_allclose(running_mean(np.full(50, 3.0), 7), 3.0)
    noisy = np.random.default_rng(0).normal(size=200)
    assert running_mean(noisy, 10).std() < 0.5 * noisy.std()
