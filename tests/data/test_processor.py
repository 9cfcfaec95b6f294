"""Stored values -> reflectance: scale, bands by name, validity, units, size, saving."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deflect_hf.data import adapt_dataset
from deflect_hf.data.contract import BandContract
from deflect_hf.data.processor import MultispectralImageProcessor, resize
from deflect_hf.errors import BandError, ConfigError, DataError, UnitError

STORED = np.random.default_rng(0).integers(200, 4000, (3, 6, 8)).astype(np.int16)  # bands R, G, N
SEEN = np.ones(STORED.shape, dtype=bool)


@pytest.fixture
def processor() -> MultispectralImageProcessor:
    return MultispectralImageProcessor(
        bands=["N", "R"], source_bands=["R", "G", "N"], scale=1e-4, offset=-0.01, nodata=[-9999], gsd_m=10.0
    )


def test_digital_numbers_become_reflectance_by_band_name(processor: MultispectralImageProcessor) -> None:
    pixel_values = processor(STORED)["pixel_values"]
    assert pixel_values.dtype == torch.float32
    np.testing.assert_allclose(pixel_values[0].numpy(), STORED[[2, 0]] * 1e-4 - 0.01, atol=1e-7)
    reordered = processor(STORED[::-1].copy(), source_bands=["N", "G", "R"])["pixel_values"]
    assert torch.equal(reordered, pixel_values)


def test_scale_and_offset_may_differ_per_output_band() -> None:
    processor = MultispectralImageProcessor(["N", "R"], ["R", "G", "N"], scale=[1e-4, 2e-4], offset=[0.0, 0.1])
    pixel_values = processor(STORED)["pixel_values"][0].numpy()
    np.testing.assert_allclose(pixel_values, [STORED[2] * 1e-4, STORED[0] * 2e-4 + 0.1], atol=1e-7)


def test_invalid_pixels_become_nan_in_the_bands_affected(processor: MultispectralImageProcessor) -> None:
    stored = STORED.astype(np.float32)
    stored[0, 0, 0], stored[2, 1, 1], stored[1, 2, 2] = -9999, np.inf, np.nan
    missing = torch.isnan(processor(stored)["pixel_values"][0])
    assert missing.nonzero().tolist() == [[0, 1, 1], [1, 0, 0]]


def test_validity_masks_per_image_and_per_band(processor: MultispectralImageProcessor) -> None:
    plane = np.ones((6, 8), dtype=bool)
    plane[3] = False
    both = processor([STORED, STORED], valid=[plane, np.stack([plane, plane, plane | True])])["pixel_values"]
    assert torch.isnan(both).any(dim=-1).nonzero().tolist() == [[0, 0, 3], [0, 1, 3], [1, 1, 3]]
    batch = processor(np.stack([STORED, STORED]), valid=np.stack([plane, plane]))["pixel_values"]
    assert torch.equal(torch.isnan(batch[1]), torch.isnan(both[0]))


def test_labelled_arrays_are_not_read_in_another_order_than_their_labels(
    processor: MultispectralImageProcessor,
) -> None:
    class Labelled(np.ndarray):  # as xarray.DataArray has them
        coords: dict[str, Any]

    image = STORED.view(Labelled)
    for labels in (["red", "G", "nir"], [1, 2, 3], ["x", "y", "z"], "green"):
        image.coords = {"band": labels}
        assert torch.equal(processor([image])["pixel_values"], processor(STORED)["pixel_values"])
    image.coords = {"band": ["N", "green", "R"]}
    with pytest.raises(BandError, match="image 0 has the coordinate band=N where the band 'R' was announced: give"):
        processor([image])
    with pytest.raises(BandError, match="the image of example 0 of list has the coordinate band=N where"):
        adapt_dataset([{"image": image, "label": 0}], ["R", "G", "N"], task="classification", classes=["a", "b"])
    assert processor(image, source_bands=["N", "G", "R"])["pixel_values"].shape == (1, 2, 6, 8)


def test_masked_arrays_bring_their_validity(processor: MultispectralImageProcessor) -> None:
    plane = np.ones((6, 8), dtype=bool)
    plane[0] = False
    masked = np.ma.array(STORED, mask=np.stack([~plane, plane & False, plane & False]))
    expected = processor(STORED, valid=np.stack([plane, plane | True, plane | True]))["pixel_values"]
    for array in (masked, [masked], masked[None]):
        np.testing.assert_array_equal(processor(array)["pixel_values"], expected)
    both = processor(masked, valid=plane)["pixel_values"]
    assert both[0, :, 0].isnan().all() and both[0, :, 1:].isfinite().all()


def test_numbers_and_bands_of_numpy_are_numbers_and_bands():
    processor = MultispectralImageProcessor(np.array(["R", "G"]), scale=np.float32(0.5), gsd_m=np.int64(10))
    assert (processor.bands, processor.scale, processor.gsd_m) == (["R", "G"], 0.5, 10.0)
    assert json.loads(processor.to_json_string())["gsd_m"] == 10.0


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (STORED.astype(np.float32), "digital numbers"),
        (STORED // 16, "8-bit"),
        ((STORED - 2000.0) / 900, "standard"),
    ],
)
def test_values_that_cannot_be_reflectance_are_refused(values: np.ndarray, told: str) -> None:
    processor = MultispectralImageProcessor(["R", "G", "N"])
    with pytest.raises(UnitError, match=rf"image 0.*{told}"):
        processor(values)
    knowingly = MultispectralImageProcessor(["R", "G", "N"], unit_check=False)
    np.testing.assert_array_equal(knowingly(values)["pixel_values"][0].numpy(), values.astype(np.float32))


def test_eight_bit_images_are_not_taken_for_reflectance() -> None:
    processor = MultispectralImageProcessor.from_sensor("rgb")
    assert processor.unit == "8bit"
    pixel_values = processor(np.full((3, 2, 2), 255, dtype=np.uint8))["pixel_values"]
    assert torch.equal(pixel_values, torch.ones(1, 3, 2, 2))


def test_whole_numbers_of_bands_that_are_no_reflectance_are_not_judged() -> None:
    stored = np.full((2, 4, 4), 900, np.int16)
    for bands, scale in ((["VV", "DEM"], 1.0), (["R", "DEM"], [1e-4, 1.0])):
        pixels = MultispectralImageProcessor(bands, source_bands=bands, scale=scale).convert(stored)
        assert float(pixels[1, 0, 0]) == pytest.approx(900 * np.atleast_1d(scale)[-1])
    with pytest.raises(UnitError, match="whole numbers, with scale 1:"):
        MultispectralImageProcessor(["R", "DEM"], source_bands=["R", "DEM"], scale=1.0).convert(stored // 900)


def test_sensor_presets_give_scale_offset_and_nodata() -> None:
    processor = MultispectralImageProcessor.from_sensor("sentinel2_l2a", bands=["B4", "B8A"], gsd_m=20.0)
    assert (processor.bands, processor.scale, processor.offset, processor.nodata) == (["R", "N2"], 1e-4, -0.1, [0.0])
    stored = np.full((12, 1, 2), 3000, dtype=np.uint16)
    stored[:, 0, 0] = 0
    pixel_values = processor(stored)["pixel_values"]
    assert torch.isnan(pixel_values[..., 0]).all()
    torch.testing.assert_close(pixel_values[..., 1], torch.full((1, 2, 1), 0.2))
    assert MultispectralImageProcessor.from_sensor("sentinel2_l2a", offset=0.0).offset == 0.0


@pytest.mark.parametrize(
    ("images", "options", "error", "said"),
    [
        (STORED[:2], {}, BandError, r"image 0 has 2 channel\(s\), but 3 band\(s\) were announced"),
        (STORED.transpose(1, 2, 0), {}, BandError, r"It looks channels-last: move the channels first\."),
        (
            STORED,
            {"source_bands": ["R", "G", "B"]},
            BandError,
            r"image 0: .* lack .*'N'; they have 'R', 'G', 'B'",
        ),
        ([STORED[0]], {}, DataError, r"image 0 has shape \(6, 8\): give one image as \(channels, height, width\)"),
        (None, {}, DataError, "images are a NoneType: give arrays"),
        ("scene.tif", {}, DataError, "images are a str: give arrays"),
        (STORED[:, :0], {}, DataError, "image 0 holds 0 values of "),
        (STORED.astype(np.complex64), {}, DataError, "values of complex64: give one image of real numbers"),
        (STORED > 0, {}, DataError, "values of bool: give one image of real numbers"),
        (STORED, {"valid": SEEN[:2]}, DataError, r"its validity mask has shape \(2, 6, 8\)"),
        (
            STORED,
            {"valid": SEEN[0, :1]},
            DataError,
            r"\(1, 8\); give \(6, 8\) \(H, W\), or one plane per",
        ),
        ([STORED, STORED], {"valid": [SEEN[0]]}, DataError, r"2 image\(s\) but 1 validity mask"),
        ([STORED, STORED[:, :4]], {}, DataError, r"different sizes \[\(4, 8\), \(6, 8\)\] make no batch"),
        (STORED, {"return_tensors": "tf"}, ConfigError, "choose one of 'pt', 'np'"),
    ],
)
def test_what_is_no_image_of_these_bands_is_explained(
    processor: MultispectralImageProcessor, images: Any, options: dict, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        processor(images, **options)


def test_tensors_of_bfloat16_are_read(processor: MultispectralImageProcessor) -> None:
    stored = torch.from_numpy(STORED.astype(np.float32)).bfloat16()
    read = processor(stored)["pixel_values"]
    torch.testing.assert_close(read, processor(stored.float())["pixel_values"], equal_nan=True)


def test_a_missing_band_is_nan_where_the_model_was_trained_to_do_without(tmp_path: Path) -> None:
    MultispectralImageProcessor(["N", "R", "S1"], needed_bands=["R"], scale=1e-4).save_pretrained(tmp_path)
    processor = MultispectralImageProcessor.from_pretrained(tmp_path)
    pixel_values = processor(STORED, source_bands=["R", "G", "N"])["pixel_values"][0]
    np.testing.assert_allclose(pixel_values[:2].numpy(), STORED[[2, 0]] * 1e-4, atol=1e-7)
    assert torch.isnan(pixel_values[2]).all()
    with pytest.raises(BandError, match=r"lack the band\(s\) 'R'; they have 'S1', 'G', 'N'"):
        processor(STORED, source_bands=["S1", "G", "N"])


def test_the_contract_tells_what_images_must_be_like(processor: MultispectralImageProcessor) -> None:
    assert processor.contract == BandContract(("N", "R"), ("N", "R"), ("G",), "reflectance", 10.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "reflectence"}, "Did you mean 'reflectance'"),
        ({"unit": 8}, "Unknown unit 8: choose one of 'reflectance', '8bit'"),
        ({"scale": 0.0}, "scale is 0"),
        ({"scale": [1e-4]}, "scale has 1 values for 2 bands"),
        ({"size": 0}, "size=0"),
        ({"size": [224]}, r"size=\[224\]: give the side in pixels"),
        ({"size": True}, "size=True"),
        ({"scale": "much"}, "scale must be a number or a list of numbers, not 'much'"),
        ({"nodata": ["none"]}, r"nodata must be a number or a list of numbers, not \['none'\]"),
        ({"gsd_m": "10 m"}, "gsd_m='10 m': a pixel has a size above 0 metres"),
        ({"bands": []}, "bands is empty"),
        ({"bands": "RGB", "source_bands": ["R", "G", "B"]}, "not as the single string 'RGB'"),
        ({"needed_bands": ["S2"]}, r"lack the band\(s\) 'S2'"),
    ],
)
def test_impossible_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises((ConfigError, BandError), match=message):
        MultispectralImageProcessor(**{"bands": ["R", "N"], **options})


def test_saving_and_loading_gives_the_same_processor(processor: MultispectralImageProcessor, tmp_path: Path) -> None:
    processor.size = {"height": 3, "width": 4}
    processor.save_pretrained(tmp_path)
    loaded = MultispectralImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert torch.equal(loaded(STORED)["pixel_values"], processor(STORED)["pixel_values"])
    assert MultispectralImageProcessor.from_pretrained(tmp_path, size=None).size is None


def test_resizing_tracks_the_pixel_size_on_the_ground(processor: MultispectralImageProcessor) -> None:
    assert processor.effective_gsd_m(6) == 10.0
    processor.size = {"height": 12, "width": 16}
    assert processor(STORED)["pixel_values"].shape == (1, 2, 12, 16)
    assert processor.effective_gsd_m(6) == 5.0


@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 2**16))
def test_resizing_ignores_nan_and_spreads_none_of_it(height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    holes = torch.rand(2, 6, 5, generator=generator) < 0.3
    flat = torch.full((2, 6, 5), 0.37).masked_fill(holes, torch.nan)
    resized = resize(flat, (height, width))
    assert resized.shape == (2, height, width)
    finite = torch.isfinite(resized)
    torch.testing.assert_close(resized[finite], torch.full((int(finite.sum()),), 0.37))
    assert torch.isnan(resize(torch.full((1, 6, 5), torch.nan), (height, width))).all()


def test_resizing_full_images_is_plain_interpolation() -> None:
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(image[None], size=(4, 5), mode="bilinear", antialias=True)[0]
    assert torch.equal(resize(image, (4, 5)), expected)


def test_numpy_output_on_request(processor: MultispectralImageProcessor) -> None:
    assert isinstance(processor(STORED, return_tensors="np")["pixel_values"], np.ndarray)
