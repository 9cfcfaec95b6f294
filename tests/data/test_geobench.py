"""GEO-Bench's classification sets in the published layout: names, units, splits, traps."""

from __future__ import annotations

import ast
import dataclasses
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.data import DatasetArguments
from deflect_hf.config.run import RunArguments
from deflect_hf.data import load_dataset_splits
from deflect_hf.data.processor import MultispectralImageProcessor
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
REPOSITORY = Path(__file__).resolve().parents[2]


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
def test_nothing_is_unpickled(replica: Callable[[str], Path], name: str) -> None:
    root = replica(name)
    for split in load(root, name).values():
        for index in range(len(split)):
            split[index]
    sprung = root / "sprung"
    assert not sprung.exists()
    with h5py.File(root / name / "id_0000.hdf5") as file:  # the trap is set: this is what others do
        pickle.loads(ast.literal_eval(file.attrs["pickle"]))
    assert sprung.exists()
    sprung.unlink()


@pytest.mark.parametrize("name", SETS)
def test_splits_labels_names_and_sizes(replica: Callable[[str], Path], name: str) -> None:
    splits = load(replica(name), name)
    assert {split: images.names for split, images in splits.items()} == {
        "train": ["id_0000", "id_0001", "id_0002", "id_0003"],
        "val": ["id_0004", "id_0005"],
        "test": ["id_0006", "id_0007"],
    }
    assert splits["train"].num_classes == CLASSES[name] and splits["train"].task == "classification"
    for split in splits.values():
        for index, name_of in enumerate(split.names):
            example = split[index]
            assert example["labels"].item() == int(name_of[3:]) % CLASSES[name]
            assert example["pixel_values"].shape == (len(split.bands), SIDE[name], SIDE[name])


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


def test_bands_are_chosen_by_any_of_their_names_and_in_any_order(replica: Callable[[str], Path]) -> None:
    images = load(replica("m-brick-kiln"), "m-brick-kiln", bands=["B12", "nir", "RE3"], image_size=[16, 16])["train"]
    assert images.bands == ["S2", "N", "RE3"] and images[0]["pixel_values"].shape == (3, 16, 16)
    assert images.gsd_m == 40.0
    truth = kiln_stack(0, 0)
    means = images[0]["pixel_values"].mean(dim=(1, 2)).numpy()
    np.testing.assert_allclose(means, [truth[code].mean() * 1e-4 for code in images.bands], rtol=0.02)


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
        (
            "m-brick-kiln",
            r"the channels called B11, B12 have means of \d+ and \d+, no 8-bit values: they are a Sentinel-2",
        ),
        (
            "m-eurosat",
            r"the channel called B9 has a mean of \d+, that called B10 of \d+: cirrus, the dark one, is in its",
        ),
    ],
)
def test_files_whose_names_are_right_are_not_corrected(
    tmp_path: Path, name: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_geobench(tmp_path / name, name, order="genuine")
    with pytest.raises(
        DataError, match=rf"^{name}: {why}.*The names in these files are right as they are: set `band_ord"
    ):
        load(root, name)
    caplog.set_level(logging.WARNING)
    images = load(root, name, band_order="nominal")["train"]
    assert not [record for record in caplog.records if "wrong" in record.message]
    truth = digital_numbers(ALL_13, 0, 0, 64)
    for code, plane in zip(images.bands, images[0]["pixel_values"].numpy(), strict=True):
        np.testing.assert_allclose(plane, truth[code] * 1e-4, rtol=1e-6)


def test_files_of_the_corrected_converter_are_read_by_their_names(tmp_path: Path) -> None:
    root = write_geobench(tmp_path / "m-brick-kiln", "m-brick-kiln", order="corrected")
    truth = kiln_stack(0, 0)
    for order in ("true", "nominal"):
        images = load(root, "m-brick-kiln", band_order=order)["train"]
        assert images.bands == ["A", "B", "G", "R", "RE1", "RE3", "N2", "N", "S1", "S2"]
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


def test_a_trained_model_gets_its_bands_and_refuses_another_unit(replica: Callable[[str], Path]) -> None:
    trained = MultispectralImageProcessor(["N", "R"], gsd_m=10.0)
    splits = load_dataset_splits(DatasetArguments(name="m-so2sat", root=str(replica("m-so2sat"))), trained)
    assert splits["train"].bands == ["N", "R"]
    with pytest.raises(ValueError, match=r"the model was trained on reflectance .* but the images hold 8-bit values"):
        load_dataset_splits(DatasetArguments(name="m-forestnet", root=str(replica("m-forestnet"))), trained)


@pytest.mark.parametrize("name", SETS)
def test_the_configuration_of_the_set_is_complete(replica: Callable[[str], Path], name: str) -> None:
    words = ["--config", "configs/run/default.yaml", "--dataset_config", f"configs/datasets/{name}.yaml"]
    words += ["--encoder_config", "tests/conf/tiny_vit.yaml", "--dataset.root", str(replica(name))]
    words = [str(REPOSITORY / word) if word.endswith(".yaml") else word for word in words]
    args = parse_arguments(RunArguments, "test", words).dataset
    assert args.band_order == "true" and args.partition == "default"  # YAML reads `true` as no text
    images = load_dataset_splits(dataclasses.replace(args, image_size=[16, 16]))["train"]
    assert images[1]["pixel_values"].shape == (len(images.bands), 16, 16)
