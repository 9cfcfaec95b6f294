"""Runs whose adapter, head, processor or configuration is broken or does not fit, met in evaluation."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from tests.faults.fault import Damage, Fault, changed, table
from tests.faults.files import (
    ADAPTER,
    CONFIG,
    HEADERS,
    JSONS,
    NAN,
    PROCESSOR,
    TASK,
    TENSORS,
    WEIGHTS,
    Change,
    bytes_,
    entries,
    tensors,
    too_many,
)
from tests.faults.inputs import change_json, cut, junk


def result(name: str, change: Change) -> Damage:
    """Evaluation of a run with one file of best/ changed."""
    return trained("run", name, change)


def trained(run: str, name: str, change: Change) -> Damage:
    """The same of a run of another method, `frozen` or `full`."""
    return changed(
        lambda place: place.copy(run) / "best" / name, change, lambda place: place.evaluate(run=place.copy(run))
    )


def all_nan(values: dict[str, torch.Tensor]) -> None:
    values |= {name: value * NAN for name, value in values.items() if value.is_floating_point()}


def edit(old: str, new: str) -> Change:
    """Replaces text."""

    def change(path: Path) -> None:
        text = path.read_text()
        assert old in text, text
        path.write_text(text.replace(old, new))

    return change


def adapter(*says: str, **changes: Any) -> Fault:
    """Evaluation with entries of adapter_config.json changed."""
    (key, value), *_ = changes.items()
    return Fault(
        f"{ADAPTER}: {key} is {value!r:.40}", result(ADAPTER, entries(**changes)), (ADAPTER, *says), "evaluate.py"
    )


ADAPTERS = [
    adapter("peft_type", peft_type=...),
    adapter("LORAA", peft_type="LORAA"),
    adapter("no entry 3", peft_type=3),
    adapter("rank", rank=0),
    adapter("rank", rank="8"),
    adapter("rank", rank=10**9),
    adapter("rank", rank=NAN),
    adapter("bands", bands="BGRN"),
    adapter("'Q'", bands=["B", "G", "R", "Q"]),
    adapter("band", bands=["B", "G", "R", "R"]),
    adapter("band", bands=[1, 2, 3, 4]),
    adapter("band", bands=["B", "G", "R"]),
    adapter("bands", bands=None),
    adapter("band", bands={"B": 1}),
    adapter("'Q'", base_bands=["R", "G", "Q"]),
    adapter("base_mean", base_mean=[0.1, 0.1]),
    adapter("base_mean", base_mean=[NAN] * 3),
    adapter("base_mean", base_mean="0.1"),
    adapter("base_std", base_std=[0.0, 0.1, 0.1]),
    adapter("base_std", base_std=None),
    adapter("unit", unit="radiance"),
    adapter("formulas", formulas=["N - R"]),
    adapter("holds Call", formulas={"NDVI": "__import__('os').getcwd()"}, index_bounds={"NDVI": 1.0}),
    adapter("formula", formulas={"NDVI": "N ** R ** (R"}, index_bounds={"NDVI": 1.0}),
    adapter("S1", formulas={"NDVI": "S1 - R"}, index_bounds={"NDVI": 1.0}),
    adapter("formula", formulas={"NDVI": 3}, index_bounds={"NDVI": 1.0}),
    adapter("index_bounds", index_bounds={}),
    adapter("index_bounds", index_bounds={"NDVI": -1}),
    adapter("feature_mean", feature_mean=[0.0]),
    adapter("feature_std", feature_std=None),
    adapter("band_dropout", band_dropout=2),
    adapter("band_dropout", band_dropout="some"),
    adapter("aux_dim", aux_dim=7),
    adapter("aux_dim", aux_dim=-8),
    adapter("layers_to_transform", layers_to_transform=[9]),
    adapter("layers_to_transform", layers_to_transform="last"),
    adapter("target_modules", target_modules=["query"]),
]

RESULTS = table(
    "evaluate.py",
    *((f"{WEIGHTS}: {name}", result(WEIGHTS, bytes_(data)), [WEIGHTS]) for name, data in HEADERS),
    *(
        (f"{WEIGHTS}: {name}", result(WEIGHTS, change), [WEIGHTS])
        for name, change in [*TENSORS, ("a tensor more", tensors(too_many))]
    ),
    (f"{WEIGHTS}: NaN", result(WEIGHTS, tensors(all_nan)), [f"{WEIGHTS}: '", "holds NaN"]),
    (f"{WEIGHTS} missing", result(WEIGHTS, os.unlink), [WEIGHTS]),
    (f"{WEIGHTS} truncated", result(WEIGHTS, lambda p: cut(p, 0.9)), [WEIGHTS]),
    *((f"{ADAPTER}: {name}", result(ADAPTER, bytes_(data)), [ADAPTER]) for name, data in JSONS),
    (f"{ADAPTER} truncated", result(ADAPTER, lambda p: cut(p, 0.5)), [ADAPTER]),
    (
        f"{ADAPTER}: bands in another order",
        result(ADAPTER, entries(bands=["G", "B", "R", "N"])),
        [ADAPTER, "'bands'"],
    ),
    (
        f"{ADAPTER}: fewer blocks than weights",
        result(ADAPTER, entries(layers_to_transform=[0])),
        [WEIGHTS, "layers_to_transform"],
    ),
    (f"{ADAPTER} missing", result(ADAPTER, os.unlink), [ADAPTER]),
    *(
        (f"head.safetensors: {name}", trained("frozen", "head.safetensors", bytes_(data)), ["head.safetensors"])
        for name, data in HEADERS[:3]
    ),
    *(
        (f"head.safetensors: {name}", trained("frozen", "head.safetensors", change), ["head.safetensors"])
        for name, change in TENSORS
    ),
    ("head.safetensors missing", trained("frozen", "head.safetensors", os.unlink), ["head.safetensors"]),
    *(
        (f"model.safetensors: {name}", trained("full", "model.safetensors", change), ["full/best"])
        for name, change in TENSORS[:5]
    ),
    *((f"{TASK}: {name}", result(TASK, bytes_(data)), [TASK]) for name, data in JSONS),
    (f"{TASK} truncated", result(TASK, lambda p: cut(p, 0.5)), [TASK]),
    (f"{TASK} missing", result(TASK, os.unlink), [TASK]),
    (f"{TASK}: another model", result(TASK, entries(model_type="vit")), [TASK, "vit"]),
    (f"{TASK}: an unknown head", result(TASK, entries(head="linea")), [TASK, "linea"]),
    (f"{TASK}: no classes", result(TASK, entries(id2label=...)), ["classes"]),
    (f"{TASK}: three classes", result(TASK, entries(id2label={"0": "a", "1": "b", "2": "c"})), ["best"]),
    (f"{TASK}: classes as a list", result(TASK, entries(id2label=["a", "b"])), [TASK]),
    (f"{TASK}: a layer that is not there", result(TASK, entries(output_layers=[12])), ["output_layers", "12"]),
    *((f"{PROCESSOR}: {name}", result(PROCESSOR, bytes_(data)), [PROCESSOR]) for name, data in JSONS),
    *((f"results.json: {name}", result("results.json", bytes_(data)), ["results.json"]) for name, data in JSONS),
    (f"{PROCESSOR} missing", result(PROCESSOR, os.unlink), [PROCESSOR]),
    (
        f"{PROCESSOR}: another kind",
        result(PROCESSOR, entries(image_processor_type="ViTImageProcessor")),
        [PROCESSOR, "ViT"],
    ),
    (f"{PROCESSOR}: an unknown entry", result(PROCESSOR, entries(scael=3)), [PROCESSOR, "scael", "scale"]),
    (f"{PROCESSOR}: no bands", result(PROCESSOR, entries(bands=...)), [PROCESSOR, "bands"]),
    (f"{PROCESSOR}: other bands", result(PROCESSOR, entries(bands=["G", "B", "R", "N"])), [PROCESSOR]),
    (f"{PROCESSOR}: bands as numbers", result(PROCESSOR, entries(bands=[1, 2])), [PROCESSOR]),
    (f"{PROCESSOR}: a scale of zero", result(PROCESSOR, entries(scale=0)), [PROCESSOR, "scale"]),
    (f"{PROCESSOR}: a scale of NaN", result(PROCESSOR, entries(scale=NAN)), [PROCESSOR, "scale"]),
    (f"{PROCESSOR}: a scale in words", result(PROCESSOR, entries(scale="small")), [PROCESSOR]),
    (f"{PROCESSOR}: two scales", result(PROCESSOR, entries(scale=[1, 2])), [PROCESSOR, "scale"]),
    (f"{PROCESSOR}: another unit", result(PROCESSOR, entries(unit="8bit")), [PROCESSOR, "8bit"]),
    (f"{PROCESSOR}: a negative size", result(PROCESSOR, entries(size=[-1, 4])), [PROCESSOR, "size"]),
    (f"{PROCESSOR}: nodata in words", result(PROCESSOR, entries(nodata=["none"])), [PROCESSOR]),
    (f"{PROCESSOR}: fewer needed bands", result(PROCESSOR, entries(needed_bands=["B", "R"])), [PROCESSOR]),
    (f"{CONFIG} missing", result(CONFIG, os.unlink), [CONFIG]),
    (f"{CONFIG} truncated", result(CONFIG, lambda p: cut(p, 0.02)), [CONFIG]),
    (f"{CONFIG}: random bytes", result(CONFIG, bytes_(junk(13))), [CONFIG]),
    (
        f"{CONFIG}: another method",
        result(CONFIG, edit("finetune: deflect", "finetune: frozen")),
        [CONFIG, "method.rank"],
    ),
    (
        f"{CONFIG}: an unknown method",
        result(CONFIG, edit("finetune: deflect", "finetune: defect")),
        [CONFIG, "finetune"],
    ),
    (f"{CONFIG}: an unknown key", result(CONFIG, edit("epochs:", "epoch:")), [CONFIG, "'epoch'"]),
    (f"{CONFIG}: a wrong type", result(CONFIG, edit("batch_size: 2", "batch_size: two")), [CONFIG, "batch_size"]),
    ("the encoder missing", lambda p: (shutil.rmtree(p.run / "encoder"), p.evaluate())[1], ["encoder"]),
    (
        "the encoder truncated",
        lambda p: (cut(p.run / "encoder" / "model.safetensors", 0.5), p.evaluate())[1],
        ["encoder"],
    ),
    (
        "another encoder",
        lambda p: (change_json(p.encoder / TASK, hidden_size=32), p.evaluate("--encoder", str(p.encoder)))[1],
        ["encoder"],
    ),
    ("an encoder that is not there", lambda p: p.evaluate("--encoder", "/nonexistent/vit"), ["/nonexistent/vit"]),
    ("no such run", lambda p: ["--eval_dir", str(p.folder / "absent")], ["absent"]),
    ("a file for a run", lambda p: ["--eval_dir", str(p.data / "train.txt")], ["train.txt"]),
    ("an empty folder for a run", lambda p: ["--eval_dir", str(p.folder)], ["no finished run"]),
    ("eval_dir left out", lambda p: ["--split", "test"], ["eval_dir"]),
    ("an unknown split", lambda p: p.evaluate("--split", "dev"), ["split", "dev"]),
    ("bands told again", lambda p: p.evaluate("--dataset.bands", "R", "G"), ["--dataset.bands"]),
    ("other classes", lambda p: p.evaluate("--dataset.classes", "water", "land"), ["'water', 'land'"]),
    ("data that is gone", lambda p: p.evaluate("--dataset.root", "/nonexistent"), ["/nonexistent"]),
    ("an unknown key of the data", lambda p: p.evaluate("--dataset.rot", "x"), ["rot"]),
    ("panels in words", lambda p: p.evaluate("--panels", "few"), ["panels"]),
)
