"""Checkpoints to resume from, scenes to map, and what the other programs read."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deflect_hf.raster.write import write_raster
from tests.faults.fault import Damage, changed, given, table
from tests.faults.files import ADAPTER, HEADERS, JSONS, TENSORS, WEIGHTS, Change, bytes_, entries
from tests.faults.inputs import BANDS, Place, Words, cut, digital_numbers, junk
from tests.faults.rasters import LENGTH, WIDTH, patch

PROGRESS, TRAINING = "progress.json", "training.pt"


def state(name: str, change: Change) -> Damage:
    """Going on from a checkpoint with one file changed."""
    return changed(lambda place: place.run / "checkpoints" / "step-1" / name, change, Place.resume)


STATES = table(
    "train.py",
    *((f"{PROGRESS}: {name}", state(PROGRESS, bytes_(data)), ["step-1"]) for name, data in JSONS),
    (f"{PROGRESS} missing", state(PROGRESS, os.unlink), ["step-1", PROGRESS]),
    (f"{PROGRESS} truncated", state(PROGRESS, lambda p: cut(p, 0.6)), ["step-1"]),
    (f"{PROGRESS}: no epoch", state(PROGRESS, entries(epoch=...)), ["step-1"]),
    (f"{PROGRESS}: an epoch in words", state(PROGRESS, entries(epoch="one")), ["step-1", PROGRESS]),
    (f"{PROGRESS}: a negative batch", state(PROGRESS, entries(batch=-3)), ["step-1", PROGRESS]),
    (f"{PROGRESS}: an unknown entry", state(PROGRESS, entries(moon=3)), ["step-1", PROGRESS]),
    (f"{PROGRESS}: another seed", state(PROGRESS, entries(seed=7)), ["step-1", PROGRESS]),
    *(
        (f"{TRAINING} {how}", state(TRAINING, change), ["step-1", TRAINING])
        for how, change in (
            ("missing", os.unlink),
            ("truncated", lambda p: cut(p, 0.5)),
            ("of random bytes", bytes_(junk(6))),
        )
    ),
    ("no checkpoint of that name", lambda p: p.resume("--resume_from", str(p.folder / "step-9")), ["step-9"]),
    ("the run instead of a checkpoint", lambda p: p.resume("--resume_from", str(p.run)), ["run", PROGRESS]),
    ("no run to go on from", lambda p: p.resume("--resume_from", "last"), ["out", "--resume_from"]),
    ("another batch size", lambda p: p.resume("--batch_size", "4"), ["step-1", "batch_size"]),
    ("another rank", lambda p: p.resume("--method.rank", "3"), ["step-1"]),
    ("overwriting at once", lambda p: p.resume("--overwrite"), ["overwrite", "resume_from"]),
)


def scene(change: Callable[[Path], Any], *words: str) -> Damage:
    """A map of a scene that ``change`` has written or damaged."""

    def damage(place: Place) -> Words:
        path = place.folder / "scene.tif"
        shutil.copy(place.valid.folder / "segments" / "images" / "a0.tif", path)
        change(path)
        return place.predict(*words, scene=path)

    return damage


def same(path: Path) -> None:
    """Leaves it."""


def written(values: np.ndarray, **options: Any) -> Callable[[Path], None]:
    return lambda path: write_raster(path, values, **{"descriptions": BANDS, **options})


def of_run(name: str, change: Change) -> Damage:
    """A map with a run, one of whose files is changed."""
    return changed(lambda place: place.run / "best" / name, change, Place.predict)


SCENES = table(
    "deflect-predict",
    *(
        (f"truncated to {share:.0%}", scene(lambda p, share=share: cut(p, share)), ["scene.tif"])
        for share in (0.0, 0.1, 0.7)
    ),
    ("random bytes", scene(bytes_(junk(7))), ["scene.tif"]),
    ("gone", scene(os.unlink), ["scene.tif"]),
    ("a huge header", scene(lambda p: (patch(p, WIDTH, 2**31 - 1), patch(p, LENGTH, 2**31 - 1))), ["scene.tif"]),
    ("complex values", scene(written(digital_numbers(0).astype(np.complex64))), ["scene.tif", "complex"]),
    ("a band fewer", scene(written(digital_numbers(0, 3), descriptions=BANDS[:3])), ["scene.tif", "'N'"]),
    ("no band names", scene(written(digital_numbers(0), descriptions=())), ["scene.tif", "source_bands"]),
    ("reflectance already", scene(written(digital_numbers(0).astype(np.float32) / 10_000)), ["scene.tif"]),
    ("too few source bands", scene(same, "--source_bands", "B", "G"), ["scene.tif", "source_bands"]),
    ("an unknown sensor", scene(same, "--sensor", "sentinel9"), ["sentinel9"]),
    ("a scale of NaN", scene(same, "--scale", ".nan"), ["scale"]),
    ("a scale of zero", scene(same, "--scale", "0"), ["scale"]),
    ("a quality layer that is absent", scene(same, "--qa_band", "SCL", "--qa_values", "3"), ["scene.tif", "SCL"]),
    ("a quality layer without values", scene(same, "--qa_band", "SCL"), ["qa_band and qa_values go together"]),
    (
        "an overlap of 0.9",
        scene(same, "--overlap", "0.9"),
        ["the command line: 'overlap' must be at most 0.5, not 0.9"],
    ),
    ("a window that is no multiple of the patch", scene(same, "--window", "12"), ["12"]),
    ("a window of zero", scene(same, "--window", "0"), ["window"]),
    (
        "a type of probabilities for classes",
        scene(same, "--dtype", "uint8"),
        ["dtype='uint8' is for probabilities: add"],
    ),
    ("an unknown output", scene(same, "--output", "logits"), ["output", "logits"]),
    ("an unknown flag", scene(same, "--outputs", "x"), ["unknown option '--outputs'. Did you mean '--output'?"]),
    ("a map that is there", given("map.tif", "", Place.predict), ["map.tif", "--overwrite"]),
    ("the image as its own map", lambda p: [str(p.data / "images/a0.tif")] * 2 + ["--adapter", str(p.run)], ["a0.tif"]),
    ("no map", lambda p: [str(p.data / "images" / "a0.tif"), "--adapter", str(p.run)], ["--predict"]),
    (
        "a pattern that fits nothing",
        lambda p: [str(p.data / "*.jp2"), str(p.folder / "m"), "--adapter", str(p.run)],
        ["*.jp2"],
    ),
    (
        "no adapter",
        lambda p: [str(p.data / "images" / "a0.tif"), str(p.folder / "map.tif")],
        ["give one model: --adapter RUN, or --model FILE"],
    ),
    ("an adapter that is not there", lambda p: p.predict("--adapter", "/nonexistent/run"), ["/nonexistent/run"]),
    ("an empty folder as adapter", lambda p: p.predict("--adapter", str(p.folder)), ["no finished run"]),
    *((f"{WEIGHTS}: {name}", of_run(WEIGHTS, bytes_(data)), [WEIGHTS]) for name, data in HEADERS[:3]),
    *((f"{ADAPTER}: {name}", of_run(ADAPTER, bytes_(data)), [ADAPTER]) for name, data in JSONS[:2]),
    ("an adapter's tensor of NaN", of_run(WEIGHTS, TENSORS[3][1]), [WEIGHTS]),
)


def log(text: str) -> Damage:
    """Curves of a run with this log."""
    return changed(
        lambda place: place.run / "log.jsonl",
        lambda path: path.write_text(text),
        lambda place: ["curves", str(place.run), "--output", str(place.folder / "curves.png")],
    )


def pretrain(place: Place) -> Words:
    return ["--images", str(place.folder / "chips.npz"), "--output", str(place.folder / "encoder")]


def chips(**arrays: np.ndarray) -> Damage:
    """Pretraining on these arrays."""
    return changed(lambda place: place.folder / "chips.npz", lambda path: np.savez(path, **arrays), pretrain)


def published(data: bytes, name: str = "model.pth") -> Damage:
    """Conversion of a file of this content."""
    words = ["--source", "scale-mae", "--checkpoint"]
    return given(name, data, lambda p: [*words, str(p.folder / name), "--output", str(p.folder / "encoder")])


def checked(name: str, change: Change) -> Damage:
    """A look at a run, one of whose files is changed, before it is published."""
    return changed(lambda place: place.run / "best" / name, change, lambda place: ["check", str(place.run)])


RGB = np.random.default_rng(0).integers(0, 3000, (4, 64, 64, 3))

FIGURES = table(
    "figures",
    ("an unknown picture", lambda p: ["histogram"], ["histogram", "dataset"]),
    ("no run", lambda p: ["curves"], ["RUN"]),
    ("a folder without a log", lambda p: ["curves", str(p.data)], ["log.jsonl"]),
    ("an empty log", log(""), ["log.jsonl"]),
    ("a log that is no JSON", log("step 1: 0.3"), ["log.jsonl"]),
    ("a log of lists", log("[1, 2]"), ["log.jsonl"]),
    ("a truncated log", log('{"step": 1, "loss": 0.4, "epoch": 0}\n{"step": 2, "lo'), ["log.jsonl"]),
    ("a loss in words", log('{"step": 1, "loss": "low", "epoch": 0}'), ["log.jsonl"]),
    (
        "a data set that is not there",
        lambda p: ["dataset", "--dataset.name", "folder", "--dataset.root", "/nonexistent", "--output", str(p.folder)],
        ["/nonexistent"],
    ),
    (
        "pictures of a split that is not there",
        lambda p: ["dataset", "--split", "dev", "--output", str(p.folder)],
        ["dev"],
    ),
)
PRETRAINING = table(
    "pretrain",
    ("no images", lambda p: ["--images", str(p.folder / "no.npz"), "--output", str(p.folder / "e")], ["no.npz"]),
    ("random bytes", given("chips.npz", junk(8), pretrain), ["chips.npz"]),
    ("an empty file", given("chips.npz", b"", pretrain), ["chips.npz"]),
    (
        "one array",
        changed(lambda place: place.folder / "chips.npz", lambda path: np.save(path.open("wb"), RGB), pretrain),
        ["chips.npz", "'rgb'"],
    ),
    ("another key", chips(images=RGB), ["chips.npz", "'rgb'", "'images'"]),
    ("four channels", chips(rgb=np.concatenate([RGB, RGB[..., :1]], axis=-1)), ["chips.npz", "(N, H, W, 3)"]),
    ("channels first", chips(rgb=RGB.transpose(0, 3, 1, 2)), ["chips.npz", "(N, H, W, 3)"]),
    ("no chips", chips(rgb=RGB[:0]), ["chips.npz"]),
    ("reflectance", chips(rgb=RGB / 10_000), ["chips.npz", "integers"]),
    ("objects", chips(rgb=np.array([[1], None], dtype=object)), ["chips.npz"]),
    ("one value", chips(rgb=np.full_like(RGB, 900)), ["constant"]),
)
CONVERSION = table(
    "conversion",
    ("random bytes", published(junk(14)), ["model.pth"]),
    ("empty", published(b""), ["model.pth"]),
    ("broken safetensors", published(junk(15), "model.safetensors"), ["model.safetensors"]),
    ("a pickle that runs a program", published(b"cposix\nsystem\n(S'true'\ntR."), ["model.pth"]),
    (
        "no such file",
        lambda p: ["--source", "scale-mae", "--checkpoint", "/nonexistent.pth", "--output", str(p.folder / "e")],
        ["/nonexistent.pth"],
    ),
    (
        "an unknown source",
        lambda p: ["--source", "scalemae", "--output", str(p.folder / "e")],
        ["scalemae", "scale-mae"],
    ),
)
HUB = table(
    "hub",
    ("no such folder", lambda p: ["check", "/nonexistent/run"], ["/nonexistent/run"]),
    ("an empty folder", lambda p: ["check", str(p.folder)], ["no finished run"]),
    ("a broken adapter", checked(ADAPTER, entries(rank=-1)), ["rank"]),
    ("truncated weights", checked(WEIGHTS, lambda p: cut(p, 0.5)), [WEIGHTS]),
    ("no processor", checked("preprocessor_config.json", os.unlink), ["preprocessor_config.json"]),
    ("an unknown command", lambda p: ["publish", str(p.folder)], ["publish"]),
    (
        "whether is a word",
        lambda p: ["push", str(p.run), "a/b", "--private", "perhaps"],
        ["'private'", "true or false"],
    ),
    ("a card of no run", lambda p: ["card", str(p.folder)], ["no finished run"]),
)
BENCHMARK = table(
    "benchmark",
    ("an unknown benchmark", lambda p: ["acuracy"], ["'acuracy'", "'accuracy'"]),
)
