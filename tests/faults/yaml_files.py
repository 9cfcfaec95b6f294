"""Configuration files that are broken as files, or hold keys and values that do not exist or fit."""

from pathlib import Path
from typing import Any

from tests.faults.fault import Damage, Fault, given, table
from tests.faults.inputs import ENCODER, Place, Words, junk

BILLION = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def written(content: bytes | str) -> Damage:
    """A run file of this content."""
    return given("run.yaml", content, lambda place: ["--config", str(place.folder / "run.yaml")])


def group(content: bytes | str, name: str = "dataset") -> Damage:
    """A group file of this content beside a valid run file."""
    return given("group.yaml", content, at(f"--{name}_config", "DIR/group.yaml"))


def at(*words: str) -> Damage:
    """A valid run file and further words, ``DIR`` being the place."""
    return lambda place: [*place.train(), *(word.replace("DIR", str(place.folder)) for word in words)]


def folder_as_file(place: Place) -> Words:
    (place.folder / "run.yaml").mkdir()
    return ["--config", str(place.folder / "run.yaml")]


def loop(place: Place) -> Words:
    path: Path = place.folder / "run.yaml"
    path.symlink_to(path)
    return ["--config", str(path)]


FILES = table(
    "train.py",
    ("truncated list", written("epochs: 3\ntracker: [tensorboard, wan"), ["run.yaml", "line 2"]),
    ("truncated text", written('work_dir: "out'), ["run.yaml", "line 1"]),
    ("tab", written("encoder:\n\tname_or_path: x"), ["run.yaml", "line 2"]),
    ("indentation", written("epochs: 3\n  batch_size: 2"), ["run.yaml", "line 2"]),
    ("colon without space", written("epochs:3"), ["run.yaml", "key: value"]),
    ("key given twice", written("epochs: 3\nepochs: 4"), ["run.yaml", "'epochs' is given twice"]),
    ("random bytes", written(junk(1)), ["run.yaml"]),
    ("further random bytes", written(junk(2)), ["run.yaml"]),
    ("zero bytes", written(b"\0" * 200), ["run.yaml"]),
    ("UTF-16", written("epochs: 3\n".encode("utf-16")), ["run.yaml", "UTF-8"]),
    ("Latin-1", written("work_dir: Z\xfcrich\n".encode("latin-1")), ["run.yaml", "UTF-8"]),
    ("list", written("- epochs\n- 3"), ["run.yaml", "key: value"]),
    ("number", written("3"), ["run.yaml", "key: value"]),
    ("sentence", written("please train"), ["run.yaml", "key: value"]),
    ("number as key", written("3: epochs"), ["run.yaml", "3"]),
    ("list as key", written("[a]: 3"), ["run.yaml"]),
    ("unknown anchor", written("epochs: *three"), ["run.yaml", "three"]),
    ("value within itself", written("method: &m {rank: *m}"), ["run.yaml"]),
    ("billion laughs", written(BILLION + "method: {rank: *i}"), ["run.yaml"]),
    ("Python object", written("epochs: !!python/object/apply:os.getcwd []"), ["run.yaml", "python/object"]),
    ("unknown tag", written("epochs: !ref 3"), ["run.yaml", "!ref"]),
    ("two documents", written("epochs: 3\n---\nepochs: 4"), ["run.yaml", "line 2"]),
    ("600 levels", written("method: " + "[" * 600 + "]" * 600), ["run.yaml"]),
    ("impossible date", written("work_dir: 2026-13-41"), ["run.yaml"]),
    ("missing", at("--config", "DIR/absent.yaml"), ["absent.yaml", "no such file"]),
    ("a folder", folder_as_file, ["run.yaml"]),
    ("a link to itself", loop, ["run.yaml"]),
    ("an image", lambda p: ["--config", str(p.data / "images" / "a0.tif")], ["a0.tif"]),
    ("unknown key", written("epoch: 3"), ["run.yaml", "'epoch'", "'epochs'"]),
    ("unknown key in a group", written("dataset: {roots: x}"), ["run.yaml", "'dataset.roots'", "'dataset.root'"]),
    ("unknown key two levels down", written("segmentor: {optimizer: {rate: 1}}"), ["run.yaml", "optimizer.rate"]),
    ("a group as one value", written("encoder: vit"), ["run.yaml", "'encoder'"]),
    ("a group as a list", written("dataset: [a, b]"), ["run.yaml", "'dataset'"]),
    ("an empty group", written("segmentor:\nepochs: 3"), ["run.yaml", "'segmentor'"]),
    ("a key of the launcher", written("local_rank: 0"), ["run.yaml", "accelerate"]),
    ("group file missing", at("--dataset_config", "DIR/absent.yaml"), ["absent.yaml", "no such file"]),
    ("group file that the run names missing", written("dataset_config: absent.yaml"), ["absent.yaml"]),
    ("group file as a list", written("dataset_config: [a.yaml]"), ["run.yaml", "dataset_config"]),
    ("group file as a mapping", written("encoder_config: {a: b}"), ["run.yaml", "encoder_config"]),
    ("group file truncated", group("name: folder\nbands: [B, "), ["group.yaml"]),
    ("group file of another group", group("head: linear"), ["group.yaml", "'dataset.head'"]),
    ("a run's file as a group's", group("dataset: {name: folder}\nepoch: 3"), ["group.yaml", "'epoch'", "'epochs'"]),
    ("group file of random bytes", group(junk(3)), ["group.yaml"]),
    ("a wrong type in a group file", group("num_folds: few"), ["group.yaml", "dataset.num_folds", "whole number"]),
    ("a nonsense choice in a group file", group("head: linaer", "segmentor"), ["group.yaml", "head", "linear"]),
    ("a contradiction across files", group("name: synthetic"), ["root", "synthetic", "run.yaml"]),
)


def values(**changes: Any) -> Damage:
    """A run file with these top-level keys."""
    return lambda place: ["--config", str(place.config(changes))]


def dataset(**changes: Any) -> Damage:
    """A run file with these keys of the data set."""
    return lambda place: place.train(**changes)


def encoder(**changes: Any) -> Damage:
    """A run file with these fields of the random encoder."""
    fields = {key: value for key, value in {**ENCODER, **changes}.items() if value is not ...}
    return values(encoder={"random": fields})


def _told(key: str, *values_: Any) -> list[Fault]:
    """A run file with a key, dotted below its group, at each of these values."""
    faults = []
    for value in values_:
        *parents, last = key.split(".")
        nested: Any = {last: value}
        for parent in reversed(parents):
            nested = {parent: nested}
        shown = repr(value)[:30]
        faults.append(Fault(f"{key} is {shown}", values(**nested), ("run.yaml", *key.split("."))))
    return faults


VALUES = [
    *_told("epochs", "many", -1, 0, 1.5, True, [3], {"a": 1}, float("inf")),
    *_told("batch_size", 0, "2 images", False, 10**12),
    *_told("seed", -1, 2**70, "lucky"),
    *_told("num_workers", -1, 10**6),
    *_told("fp16", "perhaps", 3),
    *_told("finetune", "lorra", "peft:", ["deflect"], None),
    *_told("tracker", ["tensorbord"], "tensorboard", [3]),
    *_told("metrics", "torch"),
    *_told("work_dir", 3, ["a"]),
    *_told("method", [3], "rank"),
    *_told("hub_strategy", "all"),
    *_told("segmentor.head", "upnet"),
    *_told("segmentor.output_layers", "last", [0.5], [True]),
    *_told("segmentor.channels", -4, 10**12),
    *_told("segmentor.dropout", 1.0, -0.1, float("nan")),
    *_told("segmentor.window", 0),
    *_told("segmentor.optimizer.lr", 0, -1e-3, "fast", float("inf"), float("nan"), True),
    *_told("segmentor.optimizer.weight_decay", -1, float("inf")),
    *_told("segmentor.optimizer.betas", [0.9], [0.9, 1.0], 0.9, [0.9, 0.99, 0.999]),
    *_told("segmentor.optimizer.max_grad_norm", 0, float("inf")),
    *_told("segmentor.scheduler.name", "polynomial"),
    *_told("segmentor.scheduler.milestones", [0.0], [2.0], 0.6),
    *_told("segmentor.scheduler.gamma", float("nan")),
    *_told("segmentor.loss.class_weights", "balance", [1.0, -1.0], [1.0, float("inf")]),
    *_told("segmentor.loss.dice", float("inf")),
    *_told("augmentation.random_crop", [8], "full", [0, 8], [8, 8, 8]),
    *_told("augmentation.horizontal_flip", 1.5, float("nan"), "always"),
    *_told("augmentation.center_crop", [-1, 8]),
]
