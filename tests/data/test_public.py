"""What is promised of every public data set, on small copies of the published layouts."""

import functools
import io
import logging
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.data import DatasetArguments
from deflect_hf.config.readers import dataset_module, dataset_names, dataset_spec
from deflect_hf.config.run import RunArguments
from deflect_hf.data import ImageDataset, load_dataset_splits
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.errors import BandError, ConfigError, DataError, UnitError
from tests.data.geobench_replica import SIDE, write_geobench
from tests.data.replicas import write_burn_scars, write_eurosat, write_mados, write_sen1floods11
from tests.data.web import serving_hub, serving_zenodo

REPOSITORY = Path(__file__).resolve().parents[2]
REPLICAS: dict[str, Callable[[Path], Path]] = {
    "mados": write_mados,
    "hlsburnscars": write_burn_scars,
    "sen1floods11": write_sen1floods11,
    "eurosat": write_eurosat,
    **{name: functools.partial(write_geobench, name=name) for name in SIDE},
}
of_each = pytest.mark.parametrize("name", REPLICAS)


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a replica, called as the archive unpacks; not to be changed."""
    root = tmp_path_factory.mktemp("replicas")

    @functools.cache
    def write(name: str) -> Path:
        return REPLICAS[name](root / name / dataset_spec(name).folder)

    return write


@pytest.fixture
def copy(replica: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Makes a copy of a replica to break."""
    return lambda name: shutil.copytree(replica(name), tmp_path / replica(name).name)


def load(name: str, root: Path, trained: MultispectralImageProcessor | None = None, **options: Any) -> dict:
    return load_dataset_splits(DatasetArguments(name=name, root=str(root), **options), trained)


def files_of(images: ImageDataset, index: int) -> list[Path]:
    """The files of an example."""
    row = images.table[index]
    return [Path(path) for key in ("image", "bands", "mask") if key in row for path in [*_several(row[key])]]


def _several(paths: str | list[str]) -> list[str]:
    return [paths] if isinstance(paths, str) else paths


def test_every_public_data_set_has_a_replica() -> None:
    assert set(REPLICAS) == {name for name in dataset_names() if dataset_spec(name).public}


@of_each
def test_splits_and_examples(name: str, replica: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "deflect_hf")
    splits, spec = load(name, replica(name)), dataset_module(name).DATASET
    assert list(splits) == ["train", "val", "test"]
    for split, images in splits.items():
        example = images[0]
        assert len(images.names) == len(set(images.names)) >= 2
        assert (images.task, images.classes, images.bands) == (spec.task, list(spec.classes), list(spec.sensor.codes))
        assert example["pixel_values"].shape[0] == len(images.bands)
        assert example["pixel_values"].isfinite().float().mean() > 0.8 and images.gsd_m == spec.gsd_m
        assert {-100, *range(len(spec.classes))} >= set(example["labels"].unique().tolist())
        assert f"in the {split} split, but {spec.counts[split]} are published: results do not compare" in caplog.text
    assert spec.source in caplog.text and f"{spec.citation}. License: {spec.license}" in caplog.text


@pytest.mark.parametrize("name", ["mados", "eurosat", "m-brick-kiln"])
def test_fewer_labels(name: str, replica: Callable[[str], Path]) -> None:
    whole, half = (load(name, replica(name), limited_label=share) for share in (1.0, 0.5))
    assert len(half["train"]) == len(whole["train"]) // 2 and half["test"].names == whole["test"].names


@of_each
def test_bands_are_chosen_by_name_in_any_order(name: str, replica: Callable[[str], Path]) -> None:
    full = load(name, replica(name))["test"]
    few = load(name, replica(name), bands=["nir", full.bands[0]])["test"]
    assert few.bands == ["N", full.bands[0]]
    expected = full[1]["pixel_values"][[full.bands.index(band) for band in few.bands]]
    torch.testing.assert_close(few[1]["pixel_values"], expected, equal_nan=True, rtol=0, atol=0)


@of_each
def test_a_trained_model_says_bands_unit_and_size(
    name: str, replica: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    spec = dataset_module(name).DATASET
    unit = spec.sensor.unit
    trained = MultispectralImageProcessor(["N", "B"], scale=1e-5, size=12, gsd_m=90.0, unit=unit)
    images = load(name, replica(name), trained)["train"]
    resized = load(name, replica(name), bands=["N", "B"], image_size=[12, 12])["train"]
    torch.testing.assert_close(images[0]["pixel_values"], resized[0]["pixel_values"], equal_nan=True)
    assert images.gsd_m == resized.gsd_m and images[0]["pixel_values"].shape == (2, 12, 12)
    assert f"{spec.title}: pixels of {spec.gsd_m:g} m, but the model was trained on 90 m" in caplog.text
    with pytest.raises(BandError, match=rf"{spec.title}: the images lack the band\(s\) 'T1'"):
        load(name, replica(name), MultispectralImageProcessor(["B", "T1"], unit=unit))
    other = MultispectralImageProcessor(["R"], unit="reflectance" if unit == "8bit" else "8bit")
    with pytest.raises(UnitError, match=f"{spec.title}: the model was trained on "):
        load(name, replica(name), other)


@of_each
def test_another_level_of_the_folder_is_recognised(name: str, replica: Callable[[str], Path], tmp_path: Path) -> None:
    folder, title = replica(name), dataset_spec(name).title
    assert len(load(name, folder.parent)["train"])
    with pytest.raises(DataError, match=rf"`root` is one level too high, set it to {folder.parent}\."):
        load(name, folder.parent.parent)
    (folder / "deep").mkdir(exist_ok=True)
    with pytest.raises(DataError, match=rf"`root` is too deep, set it to {folder}\."):
        load(name, folder / "deep")
    with pytest.raises(DataError, match=rf"does not hold {title} \(.*\): there is no such folder\. Set `root`"):
        load(name, tmp_path / "nowhere")
    (tmp_path / "published.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"unpack 'published.zip' first"):
        load(name, tmp_path)


@of_each
def test_missing_and_empty_files_are_listed_one_by_one(name: str, copy: Callable[[str], Path]) -> None:
    root = copy(name)
    splits = load(name, root)
    gone, empty = files_of(splits["train"], 0)[-1], files_of(splits["test"], 0)[0]
    gone.unlink()
    empty.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        load(name, root)
    message = str(caught.value)
    title, source = dataset_spec(name).title, dataset_module(name).DATASET.source
    assert message.startswith(f"{root} is not {title} as published, 2 problem(s): ") and message.endswith(f"{source}.")
    assert f"{gone.name} is missing" in message and f"{empty.name} is empty" in message


@of_each
def test_a_damaged_file_is_named_when_it_is_read(name: str, copy: Callable[[str], Path]) -> None:
    images = load(name, copy(name))["test"]
    for path in files_of(images, 0)[::-1]:
        content = path.read_bytes()
        path.write_bytes(content[:100])
        with pytest.raises(DataError, match=re.escape(str(path))):
            images[0]
        path.write_bytes(content)


def archive_of(folder: Path, name: str) -> bytes:
    """The folder in an archive of this name."""
    packed = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(packed, "w") as archive:
            for path in sorted(folder.rglob("*")):
                archive.write(path, path.relative_to(folder.parent))
    else:
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            tar.add(folder, folder.name)
    return packed.getvalue()


# EuroSAT is fetched file by file, each with its checksum: see its own test
@pytest.mark.parametrize("name", [name for name in REPLICAS if name not in ("sen1floods11", "eurosat")])
def test_what_is_missing_is_downloaded_once(
    name: str, replica: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, archive = dataset_module(name).DATASET.fetch.args
    packed, root = archive_of(replica(name), archive), tmp_path / "data"
    if where.startswith("10."):
        serving = serving_zenodo({archive: packed}, monkeypatch)
    else:
        serving = serving_hub({f"{where}/main/{archive}": packed}, monkeypatch)
    with serving as server:
        for _ in range(2):
            assert load(name, root, download=True)["test"].names == load(name, replica(name))["test"].names
        assert sum(path.endswith(archive) for path in server.asked) == 1
    folder = root / replica(name).name
    assert not list(root.rglob(Path(archive).name))
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(DataError, match=rf"{folder} is there, but holds no .*: remove it, and it is downloaded again"):
        load(name, root, download=True)


def test_a_bucket_cannot_be_downloaded_here(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Remove `download` and fetch it with: mkdir -p .*; gsutil -m rsync -r"):
        load("sen1floods11", tmp_path, download=True)


@of_each
def test_the_configuration_of_the_set_is_complete(name: str, replica: Callable[[str], Path]) -> None:
    conf = {"config": "run/default", "dataset_config": f"datasets/{name}", "segmentor_config": "segmentors/linear"}
    words = [word for key, file in conf.items() for word in (f"--{key}", str(REPOSITORY / f"configs/{file}.yaml"))]
    words += ["--encoder_config", str(REPOSITORY / "tests/conf/tiny_vit.yaml"), "--dataset.root", str(replica(name))]
    args = parse_arguments(RunArguments, "test", words).dataset
    assert args.band_order == "true" and args.partition == "default"  # YAML reads `true` as no text
    images = load_dataset_splits(args.replace(image_size=[16, 16]))["train"]
    assert images[1]["pixel_values"].shape == (len(images.bands), 16, 16)
