"""What the loop adds to the models' loss."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.run import RunArguments
from deflect_hf.config.tasks import TASKS
from deflect_hf.errors import ConfigError, DataError
from deflect_hf.models.targets import KINDS, AnyClasses, OneClass
from deflect_hf.training.optimization import balanced_weights, focal, tversky, with_terms
from deflect_hf.training.run import run
from tests.tiny_runs import CONF, tiny_run

IGNORE = -1


def test_weighted_means_add_up_to_the_mean_over_all_labels() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 3, 4, 4), torch.randint(3, (6, 4, 4))
    labels[:2, :3] = IGNORE
    weights = [0.5, 1.0, 4.0]
    for given in (None, weights):
        tensor = None if given is None else torch.tensor(given)
        parts = [slice(0, 2), slice(2, 3), slice(3, 6)]
        means = [F.cross_entropy(logits[p], labels[p], tensor, ignore_index=IGNORE) for p in parts]
        sizes = [OneClass(IGNORE, given).weight(labels[p]) for p in parts]
        together = sum(mean * size for mean, size in zip(means, sizes, strict=True)) / sum(sizes)
        torch.testing.assert_close(together, F.cross_entropy(logits, labels, tensor, ignore_index=IGNORE))


def test_dice_of_perfect_and_opposite_predictions() -> None:
    labels = torch.tensor([[[0, 1], [1, IGNORE]]])
    perfect = F.one_hot(labels.clamp(min=0), 3).permute(0, 3, 1, 2) * 50.0
    assert tversky(perfect, labels, OneClass(IGNORE)) == pytest.approx(0.0, abs=1e-6)
    opposite = F.one_hot(1 - labels.clamp(min=0), 3).permute(0, 3, 1, 2) * 50.0
    assert tversky(opposite, labels, OneClass(IGNORE)) == pytest.approx(1.0, abs=1e-6)


def test_dice_does_not_see_ignored_pixels() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
    labels[:, 0] = IGNORE
    changed = logits.clone()
    changed[:, :, 0] = 7 * torch.randn(2, 3, 4)
    target = OneClass(IGNORE)
    torch.testing.assert_close(tversky(logits, labels, target), tversky(changed, labels, target))


def test_focal_loss_is_the_cross_entropy_of_hard_labels() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
    labels[:, 0] = IGNORE
    target = OneClass(IGNORE, [0.5, 1.0, 4.0])
    torch.testing.assert_close(focal(logits, labels, target, gamma=0.0), target.loss(logits, labels))
    known = labels != IGNORE
    p = logits.softmax(dim=1).movedim(1, -1)[known].gather(1, labels[known][:, None])[:, 0]
    weights = torch.tensor([0.5, 1.0, 4.0])[labels[known]]
    expected = (weights * (1 - p) ** 2 * -p.log()).sum() / weights.sum()
    torch.testing.assert_close(focal(logits, labels, target, gamma=2.0), expected)
    several = torch.tensor([[1.0, 0.0, torch.nan]])
    torch.testing.assert_close(
        focal(logits[:1, :, 0, 0], several, AnyClasses(), gamma=0.0), AnyClasses().loss(logits[:1, :, 0, 0], several)
    )
    sure = torch.full((1, 2), 200.0, requires_grad=True)  # the power of 0 has no gradient where the exponent is below 1
    focal(sure, torch.ones(1, 2), AnyClasses(), gamma=0.5).backward()
    assert sure.grad is not None and bool(sure.grad.isfinite().all())


def test_tversky_weighs_misses_and_false_alarms() -> None:
    labels = torch.tensor([[0, 0, 0, 1]])
    logits = F.one_hot(torch.tensor([[0, 0, 1, 1]]), 2).movedim(-1, 1) * 50.0  # one pixel of class 0 taken for class 1
    costs = {alpha: float(tversky(logits, labels, OneClass(IGNORE), alpha)) for alpha in (0.5, 0.1)}
    assert costs[0.5] == pytest.approx(1 - (2 / 2.5 + 1 / 1.5) / 2)
    assert costs[0.1] == pytest.approx(1 - (2 / 2.9 + 1 / 1.1) / 2)
    several = torch.tensor([[1.0, 0.0, torch.nan], [1.0, 0.0, 1.0]])
    sure = torch.tensor([[50.0, -50.0, 50.0], [-50.0, -50.0, 50.0]])  # the first class of the second image is missed
    assert float(tversky(sure, several, AnyClasses(), 0.1)) == pytest.approx((1 - 1 / 1.9) / 2)


TERMS = {"cross_entropy": "0.5", "focal": "1", "dice": "1", "tversky": "1"}
CLASSES_ONLY = {"class_weights": "1 2 3", "label_smoothing": "0.1"}
TAKEN = {"class": {*TERMS, *CLASSES_ONLY}, "labels": {*TERMS}, "value": {"cross_entropy"}}


@pytest.mark.parametrize("key", [*TERMS, *CLASSES_ONLY])
@pytest.mark.parametrize("task", TASKS)
def test_each_term_of_the_loss_trains_a_task_or_is_refused_by_name(task: str, key: str) -> None:
    words = ["--encoder_config", str(CONF / "tiny_vit.yaml"), "--dataset.name", "folder", "--dataset.root", "x"]
    words += ["--dataset.task", task, f"--segmentor.loss.{key}", *(TERMS | CLASSES_ONLY)[key].split()]
    output = TASKS[task].output
    if key not in TAKEN[output]:
        with pytest.raises(ConfigError, match=rf"segmentor\.loss\.{key} is for .*, but the data set's task is {task}"):
            parse_arguments(RunArguments, "test", words)
        return
    weights = parse_arguments(RunArguments, "test", words).segmentor.loss
    target = KINDS[output](IGNORE, weights.class_weights, weights.label_smoothing)
    torch.manual_seed(0)
    sides, count = ((4, 4) if TASKS[task].dense else ()), 1 if output == "value" else 3
    labels = torch.randint(3, (5, *sides)) if output == "class" else torch.rand(5, *sides)
    labels = torch.randint(2, (5, 3)).float() if output == "labels" else labels
    labels[0] = unknown = IGNORE if output == "class" else torch.nan
    for known in (labels, torch.full_like(labels, unknown)):  # some, none
        logits = torch.randn(5, count, *sides, requires_grad=True)
        loss = with_terms(target.loss(logits, known), logits, known, target, weights)
        loss.backward()
        assert logits.grad is not None and bool(logits.grad.isfinite().all())
        assert bool(loss > 0) == bool((logits.grad != 0).any()) == (known is labels)


def test_balanced_weights_average_to_one_over_the_labels() -> None:
    counts = [10, 30, 60]
    weights = balanced_weights(counts, ["a", "b", "c"])
    assert sum(w * n for w, n in zip(weights, counts, strict=True)) / 100 == pytest.approx(1.0)
    assert weights[0] == pytest.approx(6 * weights[2])
    with pytest.raises(DataError, match="no label there is 'b': give a list of weights instead"):
        balanced_weights([1, 0], ["a", "b"])


def test_dice_alone_trains(tmp_path: Path) -> None:
    alone = ("--segmentor.loss.cross_entropy", "0", "--segmentor.loss.dice", "1", "--epochs", "1")
    run(tiny_run("segmentation", *alone, "--segmentor.loss.class_weights", "null", "--work_dir", str(tmp_path)))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    # the cross-entropy of four classes would begin near 1.4
    assert max(losses) <= 1 and losses[-1] < losses[0]
