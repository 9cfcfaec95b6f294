"""GEO-Bench folders that are damaged, incomplete or not there."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data import load_dataset_splits
from deflect_hf.errors import DataError
from tests.data.geobench_replica import write_geobench
from tests.data.web import serving_hub


def load(root: Path, **options: Any) -> dict[str, Any]:
    return dict(load_dataset_splits(DatasetArguments(name="m-so2sat", root=str(root), **options)))


def rename_band(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.move("08 - NIR", "NIR")


def shrink_band(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["04 - Red"]
        file.create_dataset("04 - Red", data=np.zeros((32, 31), np.float32))


def repeat_band(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        for date in ("2015-01-01", "2016-01-01"):
            file.create_dataset(f"04 - Red_{date}", data=file["04 - Red"][:])


def edit_json(path: Path, change: Callable[[dict[str, list[str]]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda root: (root / "id_0003.hdf5").unlink(), "id_0003.hdf5 is missing"),
        (lambda root: (root / "id_0003.hdf5").write_bytes(b""), "id_0003.hdf5 is empty"),
        (
            lambda root: (root / "id_0003.hdf5").write_bytes((root / "id_0003.hdf5").read_bytes()[:5000]),
            "id_0003.hdf5 is cut off or no HDF5 file (",
        ),
        (lambda root: (root / "id_0003.hdf5").write_bytes(b"<html>"), "id_0003.hdf5 is cut off or no HDF5 file ("),
        (lambda root: rename_band(root / "id_0003.hdf5"), "id_0003.hdf5 has no band '08 - NIR', only '01 - VH.Real', "),
        (
            lambda root: shrink_band(root / "id_0003.hdf5"),
            "id_0003.hdf5 has '04 - Red' in the shape (32, 31), but (32, 32) is published",
        ),
        (lambda root: repeat_band(root / "id_0003.hdf5"), "id_0003.hdf5 has band '04 - Red' of several dates ("),
        (
            lambda root: edit_json(root / "label_map.json", lambda labels: labels.pop("3")),
            "'id_0003' has no label in label_map.json",
        ),
        (
            lambda root: edit_json(root / "label_map.json", lambda labels: labels["2"].append("id_0003")),
            "label_map.json lists 'id_0003' twice",
        ),
        (
            lambda root: edit_json(root / "label_map.json", lambda labels: labels.update({"17": []})),
            "label_map.json has a class '17', but the classes are 0 to 16",
        ),
        (
            lambda root: edit_json(root / "default_partition.json", lambda ids: ids["test"].append("id_0003")),
            "default_partition.json lists 'id_0003' 2 times",
        ),
        (
            lambda root: edit_json(root / "default_partition.json", lambda ids: ids.update(extra=[])),
            "default_partition.json has a split 'extra'",
        ),
    ],
)
def test_what_is_broken_is_named(tmp_path: Path, damage: Callable[[Path], object], text: str) -> None:
    root = write_geobench(tmp_path / "m-so2sat", "m-so2sat")
    damage(root)
    with pytest.raises(DataError) as caught:
        load(root)
    assert str(caught.value).startswith(f"{root} is not m-so2sat as published, 1 problem(s): ")
    assert text in str(caught.value)


def test_all_that_is_broken_is_named_together_and_later_damage_when_read(tmp_path: Path) -> None:
    root = write_geobench(tmp_path / "m-so2sat", "m-so2sat")
    images = load(root)["train"]
    for number in (0, 3):
        (root / f"id_000{number}.hdf5").unlink()
    with pytest.raises(
        DataError, match=r"2 problem\(s\): m-so2sat/id_0000.hdf5 is missing; .*0003.hdf5 is missing\. Copy"
    ):
        load(root)
    with pytest.raises(DataError, match=r"id_0003\.hdf5 is missing"):
        images[3]
    (root / "label_map.json").write_text("{")
    with pytest.raises(DataError, match=r"label_map.json is damaged \(.*\): copy it again"):
        load(root)
    (root / "label_map.json").write_text('["0"]')
    with pytest.raises(DataError, match=r"label_map.json does not hold lists of ids"):
        load(root)
    (root / "label_map.json").unlink()
    with pytest.raises(DataError, match=r"label_map.json is missing"):
        load(root)


def test_what_is_missing_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_geobench(tmp_path / "source" / "m-so2sat", "m-so2sat")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"m-so2sat/{path.name}")
    root = tmp_path / "data"
    with pytest.raises(DataError, match=r"does not hold m-so2sat \(default_partition\.json or label_map\.json\)"):
        load(root)
    archive = "classification_v1.0/m-so2sat.zip"
    with serving_hub({f"recursix/geo-bench-1.0/main/{archive}": packed.getvalue()}, monkeypatch) as hub:
        for _ in range(2):
            assert len(load(root, download=True)["train"]) == 4
        assert hub.asked.count(f"/datasets/recursix/geo-bench-1.0/resolve/main/{archive}") == 1
    assert not list(root.rglob("*.zip"))
    assert load(root / "m-so2sat")["train"].names == ["id_0000", "id_0001", "id_0002", "id_0003"]
