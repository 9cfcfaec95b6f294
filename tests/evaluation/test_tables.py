"""What the scripts print of scores."""

from pathlib import Path
from typing import Any

from deflect_hf.evaluation.tables import results_text, score_table

ROW = {"iou": 0.5, "f1": 0.25, "precision": None, "recall": 1.0, "support": 12}
SCORES: dict[str, Any] = {
    "accuracy": 0.75,
    "miou": 0.5,
    "f1_macro": 0.25,
    "convention": "present",
    "per_class": {"sea": ROW, "marsh": {**ROW, "iou": None}},
}
INTERVALS = {
    "level": 0.95,
    "images": 7,
    "accuracy": [0.7, 0.8],
    "miou": [0.45, 0.551],
    "f1_macro": None,
    "iou": {"sea": [0.4, 0.6], "marsh": None},
}


def test_scores_are_told_with_their_intervals() -> None:
    assert score_table({**SCORES, "intervals": INTERVALS}).splitlines() == [
        "accuracy 0.7500 [0.7000, 0.8000], miou 0.5000 [0.4500, 0.5510], f1_macro 0.2500 (means over classes present)",
        "class       iou        f1 precision    recall   support   interval of iou",
        "sea      0.5000    0.2500         -    1.0000        12     0.4000-0.6000",
        "marsh         -    0.2500         -    1.0000        12                 -",
        "intervals: 95%, bootstrap over 7 images; they say nothing of other places or other seeds",
    ]


def test_boundaries_have_a_column_and_a_line() -> None:
    rows = {
        "sea": {"iou": 0.5, "boundary_f1": 0.75, "support": 12},
        "marsh": {"iou": None, "boundary_f1": None, "support": 0},
    }
    assert score_table({**SCORES, "per_class": rows, "boundary_f1": 0.75}).splitlines()[1:] == [
        "class       iou boundary_f1   support",
        "sea      0.5000      0.7500        12",
        "marsh         -           -         0",
        "boundaries: F1 0.7500, found within 2 pixels",
    ]


def test_results_without_intervals_are_told_too() -> None:
    assert score_table({**SCORES, "convention": "pangaea"}).splitlines() == [
        "accuracy 0.7500, miou 0.5000, f1_macro 0.2500 (means over all classes)",
        "class       iou        f1 precision    recall   support",
        "sea      0.5000    0.2500         -    1.0000        12",
        "marsh         -    0.2500         -    1.0000        12",
    ]


def test_a_run_ends_with_the_scores_of_each_split_and_where_the_model_is() -> None:
    assert results_text({}, Path("my runs/1")).endswith("python evaluate.py --eval_dir 'my runs/1'")
    told = results_text({"test": SCORES, "val": SCORES, "seed": 0}, Path("runs/one"))
    table = score_table(SCORES)
    where = "runs/one: best/ holds the trained model. Look at it: python evaluate.py --eval_dir runs/one"
    assert told == f"\nval: {table}\n\ntest: {table}\n\n{where}"
