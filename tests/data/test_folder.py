"""Folders of GeoTIFFs: what is read, and what is said about broken folders."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data import load_dataset_splits
from deflect_hf.errors import BandError, ConfigError, DataError
from deflect_hf.raster.read import raster_info, read_mask
from deflect_hf.raster.write import write_raster
from tests.data.conftest import BANDS, stored_image


def segments(root: Path, **changes: Any) -> DatasetArguments:
    given = {"classes": ["land", "water"], "class_values": [1, 2], "ignore_values": [0], "scale": 1e-4}
    return DatasetArguments(name="folder", root=str(root), **{**given, **changes})


def scenes(root: Path, **changes: Any) -> DatasetArguments:
    return DatasetArguments(name="folder", root=str(root), **{"source_bands": list(BANDS), "scale": 1e-4, **changes})


def test_examples_hold_reflectance_and_contiguous_labels(segmentation_folder: Path) -> None:
    train = load_dataset_splits(segments(segmentation_folder, bands=["N", "R"]))["train"]
    example = train[0]
    index = int(example["name"].removeprefix("a"))
    assert example["pixel_values"].dtype == torch.float32
    np.testing.assert_allclose(example["pixel_values"].numpy(), stored_image(index)[[3, 2]] * 1e-4, atol=1e-7)
    mask = read_mask(segmentation_folder / "masks" / f"a{index}.tif").values[0]
    expected = np.select([mask == 1, mask == 2], [0, 1], default=-100)
    np.testing.assert_array_equal(example["labels"].numpy(), expected)
    assert (train.bands, train.classes, train.num_classes) == (["N", "R"], ["land", "water"], 2)
    assert (train.task, train.ignore_index, train.gsd_m) == ("segmentation", -100, None)


def test_pixels_without_any_valid_band_are_ignored(segmentation_folder: Path) -> None:
    stored = stored_image(0)
    stored[:, 0, :] = -9999
    stored[1, 1, :] = -9999  # one band only: the others still tell something about the pixel
    write_raster(segmentation_folder / "images" / "a0.tif", stored, nodata=-9999, descriptions=BANDS)
    write_raster(segmentation_folder / "masks" / "a0.tif", np.full((1, 6, 8), 2, dtype=np.uint8))
    (segmentation_folder / "train.txt").write_text("a0\n")
    example = load_dataset_splits(segments(segmentation_folder))["train"][0]
    assert torch.isnan(example["pixel_values"][:, 0]).all()
    assert torch.isnan(example["pixel_values"]).sum() == 4 * 8 + 8
    assert example["labels"].tolist() == [[-100] * 8] + [[1] * 8] * 5


def test_the_masks_own_nodata_is_ignored(segmentation_folder: Path) -> None:
    mask = np.full((1, 6, 8), 1, dtype=np.int16)
    mask[0, 0] = -1
    write_raster(segmentation_folder / "masks" / "a0.tif", mask, nodata=-1)
    (segmentation_folder / "train.txt").write_text("a0\n")
    labels = load_dataset_splits(segments(segmentation_folder))["train"][0]["labels"]
    assert labels.tolist() == [[-100] * 8] + [[0] * 8] * 5


def test_a_split_is_labelled_if_any_mask_is(segmentation_folder: Path) -> None:
    for index in range(4):
        write_raster(segmentation_folder / "masks" / f"a{index}.tif", np.zeros((1, 6, 8), dtype=np.uint8))
    (segmentation_folder / "train.txt").write_text("a0\na1\n")
    (segmentation_folder / "test.txt").write_text("a2\na3\na4\n")
    splits = load_dataset_splits(segments(segmentation_folder, val_fraction=0.0))
    assert not splits["train"].is_labelled() and splits["test"].is_labelled()


def test_images_are_resized_with_their_masks_and_pixel_size(segmentation_folder: Path) -> None:
    for index in range(10):
        path = segmentation_folder / "images" / f"a{index}.tif"
        utm = replace(raster_info(path), crs="EPSG:32635", transform=(30.0, 0.0, 6e5, 0.0, -30.0, 4.8e6))
        write_raster(path, stored_image(index), like=utm, descriptions=BANDS)
    train = load_dataset_splits(segments(segmentation_folder, image_size=[12, 16]))["train"]
    plain = load_dataset_splits(segments(segmentation_folder))["train"]
    assert train[0]["pixel_values"].shape == (4, 12, 16)
    assert torch.equal(train[0]["labels"][::2, ::2], plain[0]["labels"])
    assert (plain.gsd_m, train.gsd_m) == (30.0, 15.0)
    assert plain.processor.projection == train.processor.projection == "Transverse_Mercator"


def test_values_of_masks_are_refused_where_there_are_none(class_folder: Callable[..., Path]) -> None:
    root = class_folder(forest=3, river=3)
    for given in ({"classes": ["forest", "river"], "class_values": [1, 2]}, {"ignore_values": [0]}):
        with pytest.raises(ConfigError, match=r"has class folders and no masks: `(class|ignore)_values` does nothing"):
            load_dataset_splits(scenes(root, **given))


@pytest.mark.parametrize("kind", ["masks", "classes"])
def test_two_images_of_one_name_are_refused(
    segmentation_folder: Path, class_folder: Callable[..., Path], kind: str
) -> None:
    root = segmentation_folder if kind == "masks" else class_folder(forest=3, river=3)
    path = root / "images" / "a2.tif" if kind == "masks" else root / "river" / "river_2.tif"
    path.with_suffix(".tiff").write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=rf"{path.stem}\.tif and .*{path.stem}\.tiff are images of the same name: keep"):
        load_dataset_splits(segments(root) if kind == "masks" else scenes(root))


def test_water_chips_are_read_as_they_are(shared_data: Path) -> None:
    args = DatasetArguments(name="folder", root=str(shared_data / "water"), classes=["land", "water"])
    splits = load_dataset_splits(args)
    assert {name: len(split) for name, split in splits.items()} == {"train": 167, "val": 33, "test": 44}
    train = splits["train"]
    assert (train.task, train.bands) == ("segmentation", ["A", "B", "G", "R", "N", "S1", "S2"])
    assert train.processor.scale == 1e-4
    example = train[0]
    assert example["pixel_values"].shape == (7, 128, 128)
    assert 0.0 < float(example["pixel_values"].median()) < 0.5
    assert set(example["labels"].unique().tolist()) <= {0, 1}


def test_eurosat_chips_are_read_as_they_are(shared_data: Path) -> None:
    args = DatasetArguments(
        name="folder", root=str(shared_data / "eurosat200"), sensor="eurosat", bands=["B4", "B8", "B8A"], num_folds=4
    )
    splits = load_dataset_splits(args)
    assert {name: len(split) for name, split in splits.items()} == {"train": 100, "val": 20, "test": 40}
    test = splits["test"]
    assert (test.bands, test.num_classes) == (["R", "N", "N2"], 10)
    assert test.gsd_m == pytest.approx(10.0, abs=0.02)
    forest = test.select([i for i, name in enumerate(test.names) if name.startswith("Forest")])
    red, nir, narrow_nir = torch.stack([forest[i]["pixel_values"] for i in range(len(forest))]).mean(dim=(0, 2, 3))
    assert red < 0.1 < 0.2 < nir < narrow_nir  # B8A is read from the last channel, not from the ninth


def described(root: Path, last: str) -> None:
    """Write the images of a folder again with a fifth band of this description."""
    for path in (root / "images").iterdir():
        stored = stored_image(int(path.stem.removeprefix("a")))
        write_raster(path, np.concatenate([stored, stored[:1] // 2]), descriptions=(*BANDS, last))


def test_a_band_that_no_catalogue_knows_is_named_skipped_or_declared(
    segmentation_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    described(segmentation_folder, "VV")
    assert load_dataset_splits(segments(segmentation_folder))["train"].bands == list(BANDS)
    assert "left out are 'VV'" in caplog.text
    caplog.clear()
    with pytest.raises(BandError, match=r"source_bands: 'mask' is not a band of .* layer to be left out is called '_'"):
        load_dataset_splits(segments(segmentation_folder, source_bands=[*BANDS, "mask"]))
    skipped = load_dataset_splits(segments(segmentation_folder, source_bands=[*BANDS, "_"]))["train"]
    assert (skipped.bands, caplog.text) == (list(BANDS), "")
    sensor = {"name": "mine", "bands": [*BANDS, {"code": "VV"}]}
    declared = load_dataset_splits(segments(segmentation_folder, sensor=sensor))["train"]
    assert (declared.bands, caplog.text) == ([*BANDS, "VV"], "")
    torch.testing.assert_close(declared[0]["pixel_values"][4], declared[0]["pixel_values"][0] / 2, atol=1e-4, rtol=0)


@pytest.mark.parametrize("stored_as", ["int16", "float32"])
def test_bit_fields_and_products_of_quality_bands(
    segmentation_folder: Path, caplog: pytest.LogCaptureFixture, stored_as: str
) -> None:
    for path in (segmentation_folder / "images").iterdir():
        stored = stored_image(int(path.stem.removeprefix("a")))
        layer = np.full((1, 6, 8), 21824, dtype=np.int16)  # clear
        layer[:, 0], layer[:, 1] = 22280, 21824 | 1 << 5  # cloud, snow
        write_raster(path, np.concatenate([stored, layer]).astype(stored_as), descriptions=(*BANDS, "QA_PIXEL"))

    def unseen_rows(**quality: Any) -> list[int]:
        pixels = load_dataset_splits(segments(segmentation_folder, **quality))["train"][0]["pixel_values"]
        return torch.isnan(pixels).all(dim=(0, 2)).nonzero().flatten().tolist()

    assert unseen_rows(qa_band="qa_pixel", qa_bits=[3]) == unseen_rows(qa="landsat_qa_pixel") == [0]
    assert unseen_rows(qa="landsat_qa_pixel", qa_classes=["snow"]) == [1]
    assert caplog.text == ""
    assert unseen_rows(qa_band="QA_PIXEL", qa_values=[3]) == []
    assert "nothing is left out by the quality layer 'QA_PIXEL'" in caplog.text and "`qa_bits`" in caplog.text


def test_images_of_several_pixel_sizes_and_systems_are_named(
    segmentation_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(10):
        path = segmentation_folder / "images" / f"a{index}.tif"
        size, crs = (30.0 if index == 4 else 10.0), ("EPSG:3035" if index == 7 else "EPSG:32635")
        like = replace(raster_info(path), crs=crs, transform=(size, 0.0, 6e5, 0.0, -size, 4.8e6))
        write_raster(path, stored_image(index), like=like, descriptions=BANDS)
    assert load_dataset_splits(segments(segmentation_folder))["train"].gsd_m == 10.0
    assert "pixels of 30 m in 1 of 10 images" in caplog.text and ": a4.tif" in caplog.text
    assert (
        "reference system is Lambert_Azimuthal_Equal_Area in 1 of 10 images" in caplog.text and "a7.tif" in caplog.text
    )


@pytest.mark.parametrize(
    ("names", "bands", "said"),
    [
        (("B", "G", "R", "N", "VV"), None, "1 of 10 images have 'VV', unlike the others: a4.tif (the model gets 'B', "),
        (("B", "G", "R", "N", "S1"), None, "1 of 10 images have 'S1', unlike the others: a4.tif"),
        (("G", "R", "N", "S1"), ["G", "R"], "1 of 10 images have 'S1' and lack 'B', unlike the others: a4.tif"),
        (("B", "G", "R", "N2"), None, "1 of 10 images have 'N2' and lack 'N', unlike the others: a4.tif"),
        (("N", "R", "G", "B"), None, ""),
    ],
)
def test_images_of_other_bands_are_named(
    names: tuple[str, ...],
    bands: list[str] | None,
    said: str,
    segmentation_folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    values = np.concatenate([stored_image(4), stored_image(5)])[: len(names)]
    write_raster(segmentation_folder / "images" / "a4.tif", values, descriptions=names)
    load_dataset_splits(segments(segmentation_folder, bands=bands))
    assert said in caplog.text and ("unlike the others" in caplog.text) == bool(said)


@pytest.mark.parametrize(("last", "refused"), [("2021_x{}", True), ("2021_x{}", False), ("band {}", False)])
def test_descriptions_in_another_order_are_not_named_by_it(last: str, refused: bool, segmentation_folder: Path) -> None:
    """Of other files those that are no codes are, too, where nothing says that they are the same bands."""
    for path in (segmentation_folder / "images").iterdir():
        other, numbers = path.stem == "a4", (2, 3, 4, 8)
        text, numbers = (last, numbers[::-1] if refused else numbers) if other else ("2020_x{}", numbers)
        described = [text.format(number) for number in numbers]
        write_raster(path, stored_image(int(path.stem[1:])), descriptions=described)
    told = pytest.raises(DataError, match=r"a4\.tif describes its bands as '2021_x8', .* others as '2020_x2', ")
    with told if refused else nullcontext():
        load_dataset_splits(segments(segmentation_folder, source_bands=list(BANDS)))


def test_pictures_beside_rasters_are_previews_and_train_alone(class_folder: Callable[..., Path]) -> None:
    root = class_folder(forest=3, river=3)
    for path in root.glob("*/*.tif"):
        path.with_suffix(".png").write_bytes(b"a preview")
    assert sum(map(len, load_dataset_splits(scenes(root)).values())) == 6
    (root / "forest" / "notes.gif").write_bytes(b"")
    for path in [*root.glob("*/*.tif"), *root.glob("*/*.png")]:
        path.unlink()
    with pytest.raises(DataError, match="nor class folders with GeoTIFFs"):
        load_dataset_splits(scenes(root))
