"""GEO-Bench's classification sets in the published layout: names, units, splits, traps."""

import ast
import json
import logging
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data import load_dataset_splits
from deflect_hf.errors import ConfigError, DataError
from tests.data.geobench_replica import (
    ALL_13,
    CLASSES,
    SENTINEL2,
    SIDE,
    digital_numbers,
    kiln_stack,
    stored_arrays,
    write_geobench,
)

SCALE = {"m-so2sat": 1.0, "m-brick-kiln": 1e-4, "m-forestnet": 1 / 255, "m-eurosat": 1e-4}
SETS = tuple(SIDE)


def load(root: Path, name: str, **options: Any) -> dict[str, Any]:
    return dict(load_dataset_splits(DatasetArguments(name=name, root=str(root), **options)))


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder that holds the replica of a set; not to be changed."""
    root = tmp_path_factory.mktemp("geobench")

    def make(name: str) -> Path:
        if not (root / name).exists():
            write_geobench(root / name, name, sprung=root / "sprung")
        return root

    return make


@pytest.mark.parametrize("name", SETS)
def test_splits_and_labels_are_read_and_nothing_is_unpickled(replica: Callable[[str], Path], name: str) -> None:
    root = replica(name)
    splits = load(root, name)
    assert {split: images.names for split, images in splits.items()} == {
        "train": ["id_0000", "id_0001", "id_0002", "id_0003"],
        "val": ["id_0004", "id_0005"],
        "test": ["id_0006", "id_0007"],
    }
    for split in splits.values():
        for name_of, example in zip(split.names, split, strict=True):
            assert example["labels"].item() == int(name_of[3:]) % CLASSES[name]
            assert example["pixel_values"].shape == (len(split.bands), SIDE[name], SIDE[name])
    sprung = root / "sprung"
    assert not sprung.exists()
    with h5py.File(root / name / "id_0000.hdf5") as file:  # the trap is set: this is what others do
        pickle.loads(ast.literal_eval(file.attrs["pickle"]))
    assert sprung.exists()
    sprung.unlink()


def stored_truth(name: str, seed: int) -> dict[str, np.ndarray]:
    """What the bands of an image really are, stored values by band code."""
    label = seed % CLASSES[name]
    if name == "m-brick-kiln":
        return {code: values for code, values in kiln_stack(label, seed).items() if code in ALL_13}
    if name == "m-eurosat":
        return digital_numbers((*ALL_13[:8], *ALL_13[9:], "N2"), label, seed, SIDE[name])
    arrays = stored_arrays(name, label, seed, "published")
    if name == "m-so2sat":
        return {code: arrays[key] for code, key in zip(ALL_13, SENTINEL2, strict=True) if key in arrays}
    codes = {"Blue": "B", "Green": "G", "Red": "R", "NIR": "N", "SWIR1": "S1", "SWIR2": "S2"}
    return {codes[key.split(" - ")[1].split("_")[0]]: values for key, values in arrays.items()}


@pytest.mark.parametrize("name", SETS)
def test_every_band_is_what_its_name_says_down_to_the_pixel(replica: Callable[[str], Path], name: str) -> None:
    images = load(replica(name), name)["val"]
    truth = stored_truth(name, seed=4)
    assert set(images.bands) == set(truth)
    pixels = images[0]["pixel_values"].numpy()
    for code, plane in zip(images.bands, pixels, strict=True):
        np.testing.assert_allclose(plane, truth[code] * SCALE[name], rtol=1e-6, err_msg=code)
    assert images.processor.unit == ("8bit" if name == "m-forestnet" else "reflectance")
    assert images.gsd_m == (15.0 if name == "m-forestnet" else 10.0)


def test_the_nominal_order_takes_the_names_of_the_files_and_warns(
    replica: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("m-brick-kiln", "m-eurosat"):
        caplog.clear()
        images = load(replica(name), name, band_order="nominal")["train"]
        arrays = stored_arrays(name, 0, 0, "published")
        assert set(images.bands) == set(ALL_13)
        for code, plane in zip(images.bands, images[0]["pixel_values"].numpy(), strict=True):
            np.testing.assert_allclose(plane, arrays[SENTINEL2[ALL_13.index(code)]] * 1e-4, rtol=1e-6)
        warning = next(record.message for record in caplog.records if "band_order: nominal takes" in record.message)
        assert warning.startswith(f"{name}: band_order: nominal takes bands by names that are wrong")
        if name == "m-brick-kiln":
            assert "stay within 8 bits" in warning and "0.10" in warning


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("m-brick-kiln", r"the channels called B11, B12 have means of \d+ and \d+, no 8-bit values"),
        ("m-eurosat", r"the channel called B9 has a mean of \d+, that called B10 of \d+: cirrus, the dark one"),
    ],
)
def test_files_whose_names_are_right_are_not_corrected(
    tmp_path: Path, name: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_geobench(tmp_path / name, name, order="genuine")
    with pytest.raises(DataError, match=rf"^{name}: {why}.*The names in these files are right as they are"):
        load(root, name)
    caplog.set_level(logging.WARNING)
    images = load(root, name, band_order="nominal")["train"]
    assert not [record for record in caplog.records if "wrong" in record.message]
    truth = digital_numbers(ALL_13, 0, 0, 64)
    for code, plane in zip(images.bands, images[0]["pixel_values"].numpy(), strict=True):
        np.testing.assert_allclose(plane, truth[code] * 1e-4, rtol=1e-6)


def test_values_that_tell_nothing_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_geobench(tmp_path / "m-eurosat", "m-eurosat")
    for path in root.glob("*.hdf5"):
        with h5py.File(path, "r+") as file:
            for key in SENTINEL2:
                file[key][:] = 500
    load(root, "m-eurosat")
    assert caplog.messages[0] == (
        "m-eurosat: the values do not tell the band order: the channel called B9 has a mean of 500, that called B10 of "
        "500"
    )


def test_partitions_and_counts(replica: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    root = replica("m-so2sat")
    assert len(load(root, "m-so2sat", partition="0.50x_train")["train"]) == 2
    assert not [message for message in caplog.messages if "train split, but" in message]
    assert (
        "m-so2sat: 2 images in the test split, but 986 are published: results do not compare with published ones"
        in (caplog.messages)
    )
    assert any(
        message.startswith("m-so2sat: train split, 2 images, Compact high rise 1") for message in caplog.messages
    )
    with pytest.raises(DataError) as caught:
        load(root, "m-so2sat", partition="0.5x_train")
    assert str(caught.value) == (
        f"{root / 'm-so2sat'} has no partition '0.5x_train': it has '0.50x_train', '1.00x_train', 'default'. "
        "Did you mean '0.50x_train'?"
    )
    with pytest.raises(ConfigError, match="`partition` does nothing for the data set 'eurosat': remove it"):
        DatasetArguments(name="eurosat", root="x", partition="0.01x_train")


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
        (
            lambda root: (root / "id_0003.hdf5").write_bytes((root / "id_0003.hdf5").read_bytes()[:5000]),
            "id_0003.hdf5 is cut off or no HDF5 file (",
        ),
        (lambda root: rename_band(root / "id_0003.hdf5"), "id_0003.hdf5 has no band '08 - NIR', only '01 - VH.Real', "),
        (lambda root: shrink_band(root / "id_0003.hdf5"), "id_0003.hdf5 has '04 - Red' in the shape (32, 31)"),
        (lambda root: repeat_band(root / "id_0003.hdf5"), "id_0003.hdf5 has band '04 - Red' of several dates ("),
        (lambda root: edit_json(root / "label_map.json", lambda labels: labels.pop("3")), "'id_0003' has no label"),
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
        load(root, "m-so2sat")
    assert str(caught.value).startswith(f"{root} is not m-so2sat as published, 1 problem(s): ")
    assert text in str(caught.value)


def test_all_that_is_broken_is_named_together_and_later_damage_when_read(tmp_path: Path) -> None:
    root = write_geobench(tmp_path / "m-so2sat", "m-so2sat")
    images = load(root, "m-so2sat")["train"]
    for number in (0, 3):
        (root / f"id_000{number}.hdf5").unlink()
    with pytest.raises(DataError, match=r"2 problem\(s\): m-so2sat/id_0000.hdf5 is missing; .*0003.hdf5 is missing\."):
        load(root, "m-so2sat")
    with pytest.raises(DataError, match=r"id_0003\.hdf5 is missing"):
        images[3]
    for content in (b"{", b'["0"]', b'{"0": [1]}', None):
        (root / "label_map.json").unlink()
        if content is not None:
            (root / "label_map.json").write_bytes(content)
        with pytest.raises(DataError, match=r"label_map.json is missing or damaged \(.*\): copy it again"):
            load(root, "m-so2sat")


def test_without_h5py_the_error_says_what_to_install(
    replica: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError, match=r"m-so2sat is stored in HDF5 files: install h5py \(pip install deflect"):
        load(replica("m-so2sat"), "m-so2sat")
