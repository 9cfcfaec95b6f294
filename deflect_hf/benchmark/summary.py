"""What the runs of a benchmark say together: means with intervals, gains of the first row, table and plots."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student

from deflect_hf.benchmark.flags import markdown
from deflect_hf.benchmark.runs import Row
from deflect_hf.config.run import RunArguments
from deflect_hf.config.tasks import SCORES, TITLES
from deflect_hf.errors import ConfigError, listing, nearest
from deflect_hf.evaluation.metrics import scores
from deflect_hf.figures.colors import new_figure, plain, save
from deflect_hf.figures.results import COLORS


@dataclass(frozen=True)
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
            return base.replace(seed=self.seed)
        dataset = base.dataset.replace(num_folds=self.folds, fold=self.fold, seed=self.seed)
        return base.replace(seed=self.seed, dataset=dataset)


def cross_validation(folds: int, repeats: int) -> tuple[Trial, ...]:
    """Every fold of every repeat, one repeat after the other."""
    return tuple(Trial(repeat, fold, folds) for repeat in range(repeats) for fold in range(folds))


@dataclass(frozen=True)
class Design:
    """What is repeated and reported: `metric` is of all classes (`miou`, `ece`) or of one (`iou:water`)."""

    trials: tuple[Trial, ...]
    folds: int | None  # of the cross-validation; None where the trials are seeds
    metric: str

    @property
    def of_confusion(self) -> bool:
        """Whether the confusion matrix has the metric."""
        return ":" in self.metric or self.metric in SCORES["class"]

    @property
    def title(self) -> str:
        """The metric in words."""
        name, _, kind = self.metric.partition(":")
        return f"{TITLES.get(name, name)} of {kind}" if kind else TITLES.get(name, name)


def score(test: dict[str, Any], metric: str) -> float:
    """The score that `metric` names, of what was found on the test images (ConfigError)."""
    if not test:
        raise ConfigError("the data set has no test images to report on: give it a test split (dataset.test_fraction).")
    name, _, kind = metric.partition(":")
    if not kind:
        means = [key for key in test if isinstance(test[key], float) and key not in ("loss", "temperature")]
        if name not in means:
            raise ConfigError(f"--report {metric!r} is no mean; there are {listing(means)}.{nearest(name, means)}")
        return test[name]
    if kind not in test["per_class"]:
        raise ConfigError(f"--report {metric!r}: no class {kind!r}; there are {listing(test['per_class'])}.")
    row = test["per_class"][kind]
    if name not in row:
        raise ConfigError(f"--report {metric!r}: no score {name!r} of a class; there are {listing(row)}.")
    if row[name] is None:
        raise ConfigError(
            f"--report {metric!r}: the test images of a run have no {kind!r} in label or prediction, so it has no "
            f"{name}: report a mean, or use fewer folds."
        )
    return row[name]


def summarise(
    row: Row, lr: float, results: Sequence[dict[str, Any]], design: Design, first: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Mean over the trials with its 95 % interval, what they took and where, and the gain of the ``first`` row.

    With folds also the scores of each repeat's confusion matrix, added up over its folds.
    """
    found = [score(one["test"], design.metric) for one in results]
    summary = {
        "row": row.text,
        "method": row.method,
        "bands": results[0]["bands"],
        "trains_patch_embedding": results[0]["parameters"]["patch_embedding_trainable"] > 0,
        "lr": lr,
        "trials": [trial.name for trial in design.trials],
        "scores": found,
        "mean": statistics.fmean(found),
        "half_interval": half_interval(found, design.folds),
        "bytes": results[0]["bytes"],
        "seconds_per_step": statistics.median(one["seconds_per_step"] for one in results),
        "memory": memory([one["memory"] for one in results]),
        **results[0]["parameters"],
        **{name: distinct(results, name) for name in ("packages", "git_revision", "device")},
    }
    tests = [one["test"] for one in results]
    if design.folds is not None and "confusion_matrix" in tests[0] and design.of_confusion:
        starts = range(0, len(tests), design.folds)
        summary["pooled"] = [score(pooled(tests[start : start + design.folds]), design.metric) for start in starts]
    if first is not None:
        gains = [ours - theirs for ours, theirs in zip(first["scores"], found, strict=True)]
        summary |= {"gain_of_first": statistics.fmean(gains), "gain_half_interval": half_interval(gains, design.folds)}
    return summary


def distinct(results: Sequence[dict[str, Any]], name: str) -> list[Any]:
    """What the environments of the runs say, each thing once."""
    found: list[Any] = []
    for one in results:
        value = one["environment"][name]
        found += [] if value in found else [value]
    return found


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
    return float(student.ppf(0.975, len(scores) - 1)) * math.sqrt(
        (1 / len(scores) + overlap) * statistics.variance(scores)
    )


def memory(measured: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """The highest peak of the runs and the mean of their means; None if it was not measured in all of them."""
    known = [one for one in measured if one is not None]
    if len(known) < len(measured) or len({one["of"] for one in known}) > 1:
        return None
    peak, mean = max(one["peak_bytes"] for one in known), statistics.fmean(one["mean_bytes"] for one in known)
    return {"of": known[0]["of"], "peak_bytes": peak, "mean_bytes": round(mean)}


def pooled(tests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The scores of the images of several tests taken together."""
    matrix = torch.tensor([one["confusion_matrix"] for one in tests]).sum(dim=0)
    return scores(matrix, list(tests[0]["per_class"]), tests[0]["convention"])


def as_markdown(summary: Sequence[dict[str, Any]], design: Design) -> str:
    """One line per row, times and memory as ratios to the first row."""
    first = summary[0]
    columns = {
        "method": lambda one: one["row"],
        "bands": lambda one: one["bands"],
        "lr": lambda one: f"{one['lr']:g}",
        f"test {design.title} (95 %)": lambda one: f"{one['mean']:.3f}{plus_minus(one['half_interval'])}",
        "pooled": lambda one: f"{statistics.fmean(one['pooled']):.3f}",
        f"gain of {first['row']} (95 %)": gain,
        "encoder parameters": lambda one: f"{one['encoder_trainable']:,}",
        "share": lambda one: f"{one['encoder_trainable_percent']:.2f} %",
        "patch embedding": lambda one: f"{one['patch_embedding_trainable']:,}",
        "head": lambda one: f"{one['head_trainable']:,}",
        "file kB": lambda one: f"{one['bytes'] / 1e3:,.0f}",
        "step time": lambda one: f"{one['seconds_per_step'] / first['seconds_per_step']:.2f}",
        "peak memory": lambda one: f"{one['memory']['peak_bytes'] / first['memory']['peak_bytes']:.2f}",
    }
    idle = {"pooled": "pooled" not in first, "peak memory": any(one["memory"] is None for one in summary)}
    shown = {name: cell for name, cell in columns.items() if not idle.get(name, False)}
    rows = [[cell(one) for cell in shown.values()] for one in summary]
    return markdown(" | ".join(shown), rows, footnote(summary, design))


def gain(one: dict[str, Any]) -> str:
    """Of the first row over this one; nothing for the first row itself."""
    return f"{one['gain_of_first']:+.3f}{plus_minus(one['gain_half_interval'])}" if "gain_of_first" in one else ""


def plus_minus(half: float | None) -> str:
    """An interval's half, where there is one."""
    return "" if half is None else f" ± {half:.3f}"


def footnote(summary: Sequence[dict[str, Any]], design: Design) -> str:
    """What the means are over, which interval is given, and what the ratios are of."""
    trials = design.trials
    if design.folds is None:
        note = f"{len(trials)} seed(s): {', '.join(str(trial.seed) for trial in trials)}. Gain: seed by seed."
    else:
        note = (
            f"{len(trials) // design.folds} x {design.folds}-fold cross-validation: mean over the folds, 95 % interval "
            "by the corrected resampled variance (Nadeau & Bengio 2003). Gain: fold by fold."
        )
        if "pooled" in summary[0]:
            note += " Pooled: of each repeat's test images together, mean over the repeats."
    note += (
        " Step time: median in training, loading included, ratio to the first row; it depends on the machine's load."
    )
    if all(one["memory"] is not None for one in summary):
        place = "the GPU's" if summary[0]["memory"]["of"] == "gpu" else "this process, Python and libraries included"
        note += f" Peak memory: {place}, ratio to the first row."
    devices = list(dict.fromkeys(device for one in summary for device in one["device"]))
    if len(devices) > 1:
        note += f" The runs were on different devices ({', '.join(devices)}): times and memory do not compare."
    return note


MARKERS = "osD^vPX*<>"


def metric_over_parameters(path: Path, summary: Sequence[dict[str, Any]], title: str) -> Path:
    """Score over trained encoder parameters, logarithmic; a method without any stands at the left edge."""
    counts = [one["encoder_trainable"] for one in summary]
    trained = [count for count in counts if count]
    label = "trained parameters of the encoder"
    return _scatter(path, summary, counts, label, title, linear_below=min(trained) / 4 if trained else None)


def metric_over_time(
    path: Path, summary: Sequence[dict[str, Any]], title: str, ratios: Mapping[str, float] | None = None
) -> Path:
    """Score over step time as a ratio to the first row: ``ratios`` where they were measured apart, else in training."""
    first = summary[0]
    how = "measured apart, in turns" if ratios is not None else "median in training, with loading and other load"
    found = ratios or {one["row"]: one["seconds_per_step"] / first["seconds_per_step"] for one in summary}
    label = f"step time, ratio to {first['row']} ({how})"
    return _scatter(path, summary, [found[one["row"]] for one in summary], label, title)


def _scatter(
    path: Path,
    summary: Sequence[dict[str, Any]],
    costs: Sequence[float],
    label: str,
    title: str,
    linear_below: float | None = None,
) -> Path:
    """A point per row, named in the legend: color by method, marker by row, filled with a trained patch embedding."""
    figure = new_figure(9, 5)
    axes = plain(figure.subplots())
    methods = list(dict.fromkeys(one["method"] for one in summary))
    for number, (one, cost) in enumerate(zip(summary, costs, strict=True)):
        color = COLORS[methods.index(one["method"]) % len(COLORS)]
        axes.errorbar(
            cost,
            one["mean"],
            yerr=one["half_interval"],
            color=color,
            marker=MARKERS[number % len(MARKERS)],
            markersize=8,
            markerfacecolor=color if one["trains_patch_embedding"] else "white",
            linestyle="none",
            capsize=3,
            label=short(one["row"]),
        )
    if linear_below is not None:
        axes.set_xscale("symlog", linthresh=linear_below, linscale=0.3)
    axes.set_xlabel(label)
    axes.set_ylabel(f"test {title}, 95 % interval" if any(one["half_interval"] for one in summary) else f"test {title}")
    axes.margins(x=0.12, y=0.08)
    if linear_below is not None:  # the margin of a count of 0 is no place for ticks
        axes.set_xticks([tick for tick in axes.get_xticks() if tick >= 0])
        axes.set_xticks([], minor=True)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False, title="filled: trained patch embedding")
    return save(figure, path)


def short(row: str) -> str:
    """A row's name for a label: `lora:rank=4,target=qv,patch_embed=repeat` -> `lora rank=4 target=qv repeat`."""
    return row.removeprefix("peft:").replace("patch_embed=", "").replace(":", " ").replace(",", " ")
