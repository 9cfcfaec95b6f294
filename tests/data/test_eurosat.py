"""EuroSAT as it unpacks, with made-up and with real images."""

import dataclasses
import functools
import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data import load_dataset_splits
from deflect_hf.data.sets import eurosat
from deflect_hf.data.sets.eurosat import ARCHIVE_MD5, DATASET, IMAGES, REPO_ID, REVISION, SPLITS
from deflect_hf.errors import DataError
from deflect_hf.raster.read import read_raster
from tests.data.replicas import eurosat_image, write_eurosat
from tests.data.web import serving_hub


def load(root: Path, **options: Any) -> dict[str, Any]:
    return dict(load_dataset_splits(DatasetArguments(name="eurosat", root=str(root), **options)))


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return write_eurosat(tmp_path_factory.mktemp("data") / "eurosat")


def test_splits_labels_and_pixels(replica: Path, caplog: pytest.LogCaptureFixture) -> None:
    splits = load(replica)
    assert {split: len(images) for split, images in splits.items()} == {"train": 20, "val": 10, "test": 10}
    images = splits["train"]
    assert images.names[:3] == ["AnnualCrop_1", "AnnualCrop_2", "Forest_1"] and images.gsd_m == 10.0
    assert images.classes == list(DATASET.classes)
    assert images.bands == ["A", "B", "G", "R", "RE1", "RE2", "RE3", "N", "WV", "CIRRUS", "S1", "S2", "N2"]
    example = images[2]
    assert example["labels"].item() == 1
    np.testing.assert_allclose(example["pixel_values"].numpy(), eurosat_image(1, 1) * 1e-4, rtol=1e-6)
    assert f"{replica / 'eurosat-train.txt'} is not the published list: results do not compare with published ones" in (
        caplog.messages
    )


def test_files_with_b8a_in_the_ninth_place_are_refused(tmp_path: Path) -> None:
    root = write_eurosat(tmp_path, order=(0, 1, 2, 3, 4, 5, 6, 7, 12, 8, 9, 10, 11))
    with pytest.raises(DataError) as caught:
        load(root)
    assert str(caught.value).endswith(
        "cirrus, the dark one, is in the eleventh place, so B8A is in the ninth and not the last as published. Read "
        "these files with `name: folder` and `source_bands`."
    )


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    root = write_eurosat(tmp_path)
    with (root / "eurosat-train.txt").open("a") as file:
        file.write("Desert_1.jpg\n")
    with pytest.raises(DataError, match=r"1 problem\(s\): 'Desert_1\.jpg' is of no known class \(listed in eurosat-tr"):
        load(root)
    (root / "eurosat-test.txt").unlink()
    with pytest.raises(DataError, match=r"eurosat-test\.txt is missing"):
        load(root)


def test_what_is_missing_is_downloaded_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, packed = write_eurosat(tmp_path / "source"), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(source.rglob("*.tif")):
            archive.write(path, path.relative_to(source))
    files = {"EuroSATallBands.zip": packed.getvalue()}
    files |= {file: (source / file).read_bytes() for file, _ in SPLITS.values()}
    root, target = tmp_path / "data", tmp_path / "data" / "eurosat"
    with serving_hub({f"{REPO_ID}/{REVISION}/{name}": content for name, content in files.items()}, monkeypatch) as hub:
        with pytest.raises(DataError, match=rf"has the md5 \w+, but {ARCHIVE_MD5} is published: it has been removed"):
            load(root, download=True)
        assert not list(root.rglob("*.zip")) and not target.exists()
        checksums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
        fetch = functools.partial(DATASET.fetch, md5=checksums["EuroSATallBands.zip"])
        monkeypatch.setattr(eurosat, "DATASET", dataclasses.replace(DATASET, fetch=fetch))
        with pytest.raises(DataError, match=r"eurosat-train\.txt of torchgeo/eurosat on the Hub has the md5 \w+, but"):
            load(root, download=True)
        assert not (target / "eurosat-train.txt").exists()
        monkeypatch.setattr(eurosat, "SPLITS", {split: (file, checksums[file]) for split, (file, _) in SPLITS.items()})
        for _ in range(2):
            assert load(root, download=True)["test"].names == [f"{name}_4" for name in DATASET.classes]
        address = f"/datasets/{REPO_ID}/resolve/{REVISION}"
        assert [hub.asked.count(f"{address}/{name}") for name in ("EuroSATallBands.zip", "eurosat-val.txt")] == [2, 1]
    assert not list(root.rglob("*.zip"))


def test_real_images_in_the_published_layout_and_with_class_folders_in_the_root(
    shared_data: Path, tmp_path: Path
) -> None:
    real = shared_data / "eurosat200"
    paths = sorted(real.glob("*/*.tif"))
    published, flat = tmp_path / "published", tmp_path / "flat"
    (published / IMAGES).parent.mkdir(parents=True)
    (published / IMAGES).symlink_to(real)
    flat.symlink_to(published / IMAGES)
    for place, split in enumerate(SPLITS):
        (published / f"eurosat-{split}.txt").write_text("".join(f"{path.stem}.jpg\n" for path in paths[place::3]))
    images = load(published)["test"]
    assert images.names == [path.stem for path in paths[2::3]]
    assert [images.classes[images[k]["labels"]] for k in (0, 20, 52)] == [
        paths[2::3][k].parent.name for k in (0, 20, 52)
    ]
    pixels = images[7]["pixel_values"].numpy()
    np.testing.assert_allclose(pixels, read_raster(paths[2::3][7], sensor=DATASET.sensor).values * 1e-4, rtol=1e-6)
    assert 0.01 < pixels[images.bands.index("R")].mean() < 0.5 and pixels[images.bands.index("CIRRUS")].max() < 0.05
    with pytest.raises(DataError, match=r"eurosat-train\.txt is missing; eurosat-val\.txt is missing"):
        load(flat)
