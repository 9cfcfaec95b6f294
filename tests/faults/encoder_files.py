"""Folders of encoders whose files are broken or do not fit, met in training."""

import os
import shutil

from tests.faults.fault import Damage, changed, given, table
from tests.faults.files import HEADERS, JSONS, TASK, TENSORS, Change, bytes_, entries
from tests.faults.inputs import cut, junk


def train_on(encoder: str) -> Damage:
    """Training on this encoder, `DIR` being the place."""
    return lambda place: place.train(
        "--encoder.name_or_path", encoder.replace("DIR", str(place.folder)), "--encoder.random", "null"
    )


def encoder(name: str, change: Change) -> Damage:
    """Training on an encoder's folder with one file changed."""
    return changed(lambda place: place.encoder / name, change, train_on("DIR/encoder"))


def normalisation(text: str) -> Damage:
    return encoder("normalisation.json", lambda path: path.write_text(text))


ENCODERS = table(
    "train.py",
    ("weights missing", encoder("model.safetensors", os.unlink), ["encoder", "model.safetensors"]),
    ("configuration missing", encoder(TASK, os.unlink), ["encoder", TASK]),
    ("no folder", encoder(".", shutil.rmtree), ["encoder"]),
    ("a file for a folder", given("file.txt", "", train_on("DIR/file.txt")), ["file.txt"]),
    ("a name for a path", train_on("not a name!"), ["not a name!"]),
    ("weights truncated", encoder("model.safetensors", lambda p: cut(p, 0.7)), ["encoder", "model.safetensors"]),
    (
        "pickles instead of weights",
        encoder("model.safetensors", lambda p: (p.unlink(), p.with_name("pytorch_model.bin").write_bytes(junk(5)))),
        ["encoder"],
    ),
    (
        "a list of parts without the parts",
        encoder("model.safetensors", lambda p: p.rename(p.with_name("model.safetensors.index.json"))),
        ["encoder"],
    ),
    *(
        (f"weights: {name}", encoder("model.safetensors", change), ["encoder"])
        for name, change in TENSORS[:6]
        if name != "whole numbers"
    ),
    *(
        (f"weights: {name}", encoder("model.safetensors", bytes_(data)), ["encoder", "model.safetensors"])
        for name, data in HEADERS
        if name != "no tensors"
    ),
    *((f"configuration: {name}", encoder(TASK, bytes_(data)), ["encoder", TASK]) for name, data in JSONS),
    ("an unknown model type", encoder(TASK, entries(model_type="vitt")), ["encoder", "vitt"]),
    ("no model type", encoder(TASK, entries(model_type=...)), ["encoder"]),
    ("another width", encoder(TASK, entries(hidden_size=32)), ["encoder"]),
    ("a width in words", encoder(TASK, entries(hidden_size="16")), ["encoder", "hidden_size"]),
    ("more blocks than weights", encoder(TASK, entries(num_hidden_layers=3)), ["encoder"]),
    ("another patch", encoder(TASK, entries(patch_size=4)), ["encoder"]),
    ("a patch of zero", encoder(TASK, entries(patch_size=0)), ["encoder"]),
    ("no heads", encoder(TASK, entries(num_attention_heads=0)), ["encoder"]),
    (
        "code of its own",
        encoder(TASK, entries(model_type="mine", auto_map={"AutoModel": "modeling.Mine"})),
        ["encoder"],
    ),
    ("normalisation: no JSON", normalisation("mean: 1"), ["normalisation.json", "encoder.mean"]),
    ("normalisation: other bands", normalisation('{"bands": ["N"], "mean": [1], "std": [1]}'), ["normalisation.json"]),
    (
        "normalisation: two means",
        normalisation('{"bands": ["R", "G", "B"], "mean": [1, 1], "std": [1, 1]}'),
        ["normalisation.json"],
    ),
    (
        "normalisation: NaN",
        normalisation('{"bands": ["R", "G", "B"], "mean": [NaN, 1, 1], "std": [1, 1, 1]}'),
        ["normalisation.json"],
    ),
    (
        "normalisation: zero deviation",
        normalisation('{"bands": ["R", "G", "B"], "mean": [1, 1, 1], "std": [0, 1, 1]}'),
        ["normalisation.json"],
    ),
)
