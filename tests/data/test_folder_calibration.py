"""What the numbers in a folder of GeoTIFFs mean: scale and offset, and images given to a trained model."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from deflect_hf.data import load_dataset_splits
from deflect_hf.data.dataset import ImageDataset
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.errors import BandError, ConfigError, DataError, UnitError
from deflect_hf.raster.write import write_raster
from tests.data.conftest import BANDS, stored_image
from tests.data.test_folder import segments


def test_the_files_scale_tags_are_used_unless_told_otherwise(segmentation_folder: Path) -> None:
    def tag(name: str, scale: float) -> None:
        with rasterio.open(segmentation_folder / "images" / name, "r+") as sink:
            sink.scales = (scale,) * 4

    for index in range(10):
        tag(f"a{index}.tif", 2e-4)
    tagged = load_dataset_splits(segments(segmentation_folder, scale=None))["train"]
    assert tagged.processor.scale == 2e-4
    told = load_dataset_splits(segments(segmentation_folder, scale=1e-4))["train"]
    torch.testing.assert_close(tagged[0]["pixel_values"], 2 * told[0]["pixel_values"])
    with pytest.raises(DataError, match=r"is tagged scale 0.0002, offset 0.0, but sensor 'hls' has scale 0.0001"):
        load_dataset_splits(segments(segmentation_folder, scale=None, sensor="hls"))
    tag(f"{tagged.names[0]}.tif", 1e-4)  # one of ten: the others say what is usual
    with pytest.raises(DataError, match=r"has the scale tag 0\.0001 for band 'B', unlike the other images"):
        load_dataset_splits(segments(segmentation_folder, scale=None))


@pytest.mark.parametrize("sensor", [None, {"name": "mine", "bands": [*BANDS]}])
@pytest.mark.parametrize("unit", [None, "reflectance"])
def test_tags_of_each_band_are_its_scale_whatever_its_unit_says(
    unit: str | None, sensor: dict[str, Any] | None, segmentation_folder: Path
) -> None:
    scales = (1e-4, 2e-4, 1e-4, 5e-5)
    for path in (segmentation_folder / "images").iterdir():
        with rasterio.open(path, "r+") as sink:
            sink.scales = scales
            if unit is not None:
                sink.units = [unit] * 4
    tagged = load_dataset_splits(segments(segmentation_folder, scale=None, sensor=sensor))["train"]
    assert tagged.processor.scale == list(scales)
    told = load_dataset_splits(segments(segmentation_folder, scale=1e-4, sensor=sensor))["train"]
    factors = torch.tensor([1.0, 2.0, 1.0, 0.5])[:, None, None]
    torch.testing.assert_close(tagged[0]["pixel_values"], told[0]["pixel_values"] * factors)
    stated = {"name": "mine", "bands": [*BANDS], "scale": 1e-4}
    with pytest.raises(DataError, match=r"but sensor 'mine' has scale 0\.0001"):
        load_dataset_splits(segments(segmentation_folder, scale=None, sensor=stated))


def test_offset_tags_still_count_where_only_the_scale_is_given(segmentation_folder: Path) -> None:
    train = load_dataset_splits(segments(segmentation_folder, scale=1e-4))["train"]
    with rasterio.open(segmentation_folder / "images" / f"{train.names[-1]}.tif", "r+") as sink:
        sink.scales, sink.offsets = (1e-4,) * 4, (-0.1,) * 4
    with pytest.raises(DataError, match=r"has the offset tag -0\.1 for band 'B', unlike the other images \(0\.0\)"):
        load_dataset_splits(segments(segmentation_folder, scale=1e-4))
    told = load_dataset_splits(segments(segmentation_folder, scale=1e-4, offset=-0.1))["train"]
    assert told[len(told) - 1]["pixel_values"].isfinite().all()


def test_a_saved_processor_reads_the_images_as_in_training(segmentation_folder: Path, tmp_path: Path) -> None:
    trained = load_dataset_splits(segments(segmentation_folder, bands=["R", "N"]))["test"]
    trained.processor.save_pretrained(tmp_path)
    processor = MultispectralImageProcessor.from_pretrained(tmp_path)
    evaluated = load_dataset_splits(segments(segmentation_folder, scale=None), processor)["test"]
    assert torch.equal(evaluated[0]["pixel_values"], trained[0]["pixel_values"])


def trained(**options: Any) -> MultispectralImageProcessor:
    """The processor of a model trained on R, G and N of images that also had B."""
    given = {"bands": ["R", "G", "N"], "source_bands": ["B", "G", "R", "N"], "scale": 1e-4, "gsd_m": 10.0, **options}
    return MultispectralImageProcessor(**given)


def rewrite(root: Path, bands: tuple[str, ...], **options: Any) -> None:
    """Store the images with other bands in another order; a band that they did not have holds 1000."""
    for index in range(10):
        values = dict(zip(BANDS, stored_image(index), strict=True))
        planes = [values.get(band, np.full((6, 8), 1000, dtype=np.int16)) for band in bands]
        write_raster(root / "images" / f"a{index}.tif", np.stack(planes), descriptions=bands, **options)


def read(root: Path, processor: MultispectralImageProcessor, **changes: Any) -> ImageDataset:
    return load_dataset_splits(segments(root, scale=None, **changes), processor)["test"]


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_bands_in_another_order_are_found_by_name(segmentation_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = read(segmentation_folder, trained())
    before = expected[0]["pixel_values"]
    rewrite(segmentation_folder, ("N", "B", "R", "G"))
    again = read(segmentation_folder, trained())
    assert torch.equal(again[0]["pixel_values"], before)
    assert again.bands == ["R", "G", "N"]
    assert told(caplog) == []


def test_bands_that_training_never_saw_are_ignored_aloud(
    segmentation_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = read(segmentation_folder, trained())[0]["pixel_values"]
    rewrite(segmentation_folder, ("S1", *BANDS))
    assert torch.equal(read(segmentation_folder, trained())[0]["pixel_values"], before)
    assert [text.partition(": ")[2] for text in told(caplog)] == [
        "band(s) 'S1' are unknown to the model and are ignored"
    ]


def test_bands_without_a_name_that_training_had_too_are_ignored_in_silence(
    segmentation_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rewrite(segmentation_folder, (*BANDS, "DEM"))
    processor = load_dataset_splits(segments(segmentation_folder, bands=["R", "N"]))["test"].processor
    rewrite(segmentation_folder, ("DEM", "slope", *BANDS))
    read(segmentation_folder, processor)
    assert [text.partition(": ")[2] for text in told(caplog)] == [
        "band(s) 'slope' are unknown to the model and are ignored"
    ]


def test_a_missing_band_is_refused_unless_the_model_can_do_without(
    segmentation_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = read(segmentation_folder, trained())[0]["pixel_values"]
    rewrite(segmentation_folder, ("G", "R"))
    with pytest.raises(BandError, match=r"images/a\d\.tif: the images lack the band\(s\) 'N'; they have 'G', 'R'"):
        read(segmentation_folder, trained())
    examples = read(segmentation_folder, trained(needed_bands=["R", "G"]))
    pixel_values = examples[0]["pixel_values"]
    assert torch.equal(pixel_values[:2], before[:2]) and torch.isnan(pixel_values[2]).all()
    assert (examples[0]["labels"] != -100).any()
    assert [text.partition(": ")[2] for text in told(caplog)] == [
        "without the band(s) 'N'; the model was trained to do without"
    ]
    with pytest.raises(BandError, match=r"lack the band\(s\) 'R'; they have 'G', 'N'"):
        rewrite(segmentation_folder, ("G", "N"))
        read(segmentation_folder, trained(needed_bands=["R", "G"]))


def test_files_of_one_folder_may_lack_different_bands(segmentation_folder: Path) -> None:
    expected = stored_image(7)[2] * 1e-4
    write_raster(segmentation_folder / "images" / "a7.tif", stored_image(7)[:3], descriptions=BANDS[:3])
    splits = load_dataset_splits(segments(segmentation_folder), trained(needed_bands=["R"]))
    examples = {example["name"]: example["pixel_values"] for split in splits.values() for example in split}
    np.testing.assert_allclose(examples["a7"][0], expected, atol=1e-7)
    assert [name for name, pixels in examples.items() if torch.isnan(pixels[2]).all()] == ["a7"]


def test_scale_and_offset_are_those_of_the_files(segmentation_folder: Path) -> None:
    """A model trained on one product reads another: what its numbers mean comes with the images."""
    given = {"scale": 2e-4, "offset": -0.02}
    pixels = load_dataset_splits(segments(segmentation_folder, **given), trained())["test"][0]["pixel_values"]
    as_trained = read(segmentation_folder, trained())[0]["pixel_values"]
    torch.testing.assert_close(pixels, 2 * as_trained - 0.02)
    sensor = {"name": "other", "bands": list(BANDS), "scale": 5e-5}
    of_sensor = read(segmentation_folder, trained(), sensor=sensor)[0]["pixel_values"]
    torch.testing.assert_close(of_sensor, as_trained / 2)


def test_another_unit_is_refused_and_another_pixel_size_told(
    segmentation_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    eight_bit = {"name": "screen", "bands": list(BANDS), "scale": 1 / 255, "unit": "8bit"}
    with pytest.raises(UnitError, match=r"trained on reflectance .*, but the images hold 8-bit values"):
        read(segmentation_folder, trained(), sensor=eight_bit)
    read(segmentation_folder, trained(), gsd_m=60.0)
    assert [text.partition(": ")[2] for text in told(caplog)] == ["pixels of 60 m, but the model was trained on 10 m"]


def test_the_pixel_size_is_that_of_the_images_at_hand(segmentation_folder: Path) -> None:
    processor = trained(size=[12, 16])
    assert read(segmentation_folder, processor).gsd_m == 5.0
    assert read(segmentation_folder, processor, gsd_m=8.0).gsd_m == 4.0


def test_clouds_of_the_quality_layer_are_no_measurement_and_carry_no_label(segmentation_folder: Path) -> None:
    for index in range(10):
        cloud = np.where(np.arange(8) < 3, 9, 4).astype(np.int16)
        values = np.concatenate([stored_image(index), np.broadcast_to(cloud, (1, 6, 8))])
        write_raster(segmentation_folder / "images" / f"a{index}.tif", values, descriptions=(*BANDS, "SCL"))
    example = load_dataset_splits(segments(segmentation_folder, qa_band="SCL", qa_values=[8, 9]))["test"][0]
    assert example["pixel_values"].shape[0] == len(BANDS)
    assert torch.isnan(example["pixel_values"]).all(dim=1).all(dim=0).tolist() == [True] * 3 + [False] * 5
    assert (example["labels"][:, :3] == -100).all() and (example["labels"][:, 3:] != -100).any()
    with pytest.raises(ConfigError, match=r"qa_band and qa_values go together"):
        segments(segmentation_folder, qa_band="SCL")
