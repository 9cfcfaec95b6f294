"""What the numbers, bands and places of a scene mean for a trained model."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC

from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.errors import BandError, UnitError
from tests.inference.scenes_and_models import (
    BANDS,
    Stub,
    map_of,
    predictor_of,
    read,
    stored,
    write_scene,
)


def test_a_quality_layer_says_where_nothing_was_measured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quality = np.zeros((1, 64, 64), dtype=np.int16)
    quality[0, :10] = 9
    scene = write_scene(tmp_path / "in.tif", np.vstack([stored(64, 64), quality]), descriptions=[*BANDS, "SCL"])
    found = read(map_of(predictor_of(Stub()), scene, tmp_path / "out.tif", qa_band="scl", qa_values=[8, 9]))
    assert np.isnan(found[:, :10]).all() and np.isfinite(found[:, 10:]).all()
    assert "is left out" not in caplog.text
    map_of(predictor_of(Stub()), scene, tmp_path / "none.tif", qa_band="SCL", qa_values=[3])
    assert "in.tif: nothing is left out by the quality layer 'SCL'" in caplog.text


def test_bands_are_found_by_name_and_a_missing_one_is_named(tmp_path: Path) -> None:
    values = stored(64, 64)
    predictor = predictor_of(Stub())
    straight = read(map_of(predictor, write_scene(tmp_path / "a.tif", values), tmp_path / "a_out.tif"))
    turned = write_scene(tmp_path / "b.tif", values[[2, 0, 1]], descriptions=["N", "R", "G"])
    np.testing.assert_array_equal(read(map_of(predictor, turned, tmp_path / "b_out.tif")), straight)
    nameless = write_scene(tmp_path / "c.tif", values[[2, 0, 1]], descriptions=["", "", ""])
    with pytest.raises(BandError, match=r"c\.tif does not name its 3 band\(s\): give `source_bands`"):
        map_of(predictor, nameless, tmp_path / "c_out.tif")
    told = map_of(predictor, nameless, tmp_path / "c_out.tif", source_bands=["N", "R", "G"])
    np.testing.assert_array_equal(read(told), straight)


def test_names_in_training_do_not_make_a_band_of_a_quality_layer(tmp_path: Path) -> None:
    predictor = predictor_of(Stub(), reading={"source_bands": ["R", "G", "N"]})
    scene = write_scene(tmp_path / "in.tif", stored(64, 64), descriptions=["B04", "B03", "SCL"])
    with pytest.raises(BandError, match=r"band 3 is called 'SCL', a quality layer, .* but 'N' in `source_bands` .*"):
        map_of(predictor, scene, tmp_path / "out.tif")


def test_names_in_training_of_other_band_numbers_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    predictor = predictor_of(Stub(), reading={"source_bands": ["R", "G", "N"]})
    map_of(
        predictor,
        write_scene(tmp_path / "a.tif", stored(64, 64), descriptions=["B04", "B03", "B08"]),
        tmp_path / "1.tif",
    )
    assert "go by place" not in caplog.text
    map_of(
        predictor,
        write_scene(tmp_path / "b.tif", stored(64, 64), descriptions=["B02", "B03", "B04"]),
        tmp_path / "2.tif",
    )
    assert "b.tif: `source_bands` (where none is given, those of the training images) go by place and call B02 'R'" in (
        caplog.text
    )


def test_a_fill_that_no_tag_tells_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = stored(300, 300)
    values[:, 0, :5] = 32767
    scene = write_scene(tmp_path / "in.tif", values)
    map_of(predictor_of(Stub()), scene, tmp_path / "out.tif")
    assert "in.tif: 5 of 90000 pixels hold 32767, by which files often mean" in caplog.text
    caplog.clear()
    map_of(predictor_of(Stub()), scene, tmp_path / "none.tif", nodata=[32767])
    assert "pixels hold" not in caplog.text


def test_a_band_that_the_model_can_do_without_may_be_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = stored(64, 64)
    lacking = write_scene(tmp_path / "in.tif", values[:2], descriptions=["R", "G"])
    predictor = predictor_of(Stub(), needed_bands=["R", "G"])
    found = read(map_of(predictor, lacking, tmp_path / "out.tif"))
    assert np.isfinite(found).all()
    assert "without the band(s) 'N'; the model was trained to do without" in caplog.text


def test_scale_and_offset_come_from_the_command_line_the_file_or_the_training(tmp_path: Path) -> None:
    values = stored(64, 64)
    predictor = predictor_of(Stub())
    expected = read(map_of(predictor, write_scene(tmp_path / "a.tif", values), tmp_path / "a_out.tif"))
    shifted = write_scene(tmp_path / "b.tif", (values + 1000).astype(np.int16))
    found = read(map_of(predictor, shifted, tmp_path / "b_out.tif", scale=1e-4, offset=-0.1))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(UnitError, match=r"a\.tif: band 'R', channel 0 is not reflectance .* digital numbers"):
        map_of(predictor, tmp_path / "a.tif", tmp_path / "c_out.tif", scale=1.0)
    assert not list(tmp_path.glob("c_out*"))
    map_of(predictor, tmp_path / "a.tif", tmp_path / "c_out.tif", scale=1.0, unit_check=False)


def test_the_unit_is_judged_over_the_whole_scene_not_window_by_window(tmp_path: Path) -> None:
    values = stored(128, 128)
    values[:, :32] = 1  # a lake in shadow: 1e-4, as if a scale were applied twice
    found = read(map_of(predictor_of(Stub()), write_scene(tmp_path / "in.tif", values), tmp_path / "out.tif"))
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"transform": (60.0, 0.0, 6e5, 0.0, -60.0, 48e5)}, "pixels of 60 m, but the model was trained on 20 m"),
        ({"crs": "EPSG:4326", "transform": (1e-3, 0.0, 5.0, 0.0, -1e-3, 45.0)}, r"pixels of 9[0-9.]+ m, but"),
        ({"crs": None, "transform": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)}, "how large its pixels are is not known"),
        ({}, ""),
    ],
)
def test_another_resolution_than_in_training_is_told(
    header: dict, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scene = write_scene(tmp_path / "in.tif", stored(32, 32), **header)
    with caplog.at_level(logging.WARNING):
        map_of(predictor_of(Stub()), scene, tmp_path / "out.tif")
    assert bool(caplog.records) == bool(message)
    assert re.search(message, caplog.text)


def test_another_kind_of_grid_than_in_training_is_told_once_and_another_zone_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    predictor = predictor_of(Stub(), projection="Transverse_Mercator", gsd_m=100.0)
    degrees = {"crs": "EPSG:4326", "transform": (1e-3, 0.0, 5.0, 0.0, -1e-3, 45.0)}
    map_of(predictor, write_scene(tmp_path / "in.tif", stored(32, 32), **degrees), tmp_path / "out.tif")
    assert len(caplog.messages) == 1
    assert "in.tif: its coordinate reference system is geographic, but the model was trained on" in caplog.text
    zone = {"crs": "EPSG:32701", "transform": (90.0, 0.0, 6e5, 0.0, -90.0, 48e5)}
    caplog.clear()
    map_of(predictor, write_scene(tmp_path / "zone.tif", stored(32, 32), **zone), tmp_path / "zone_out.tif")
    assert not caplog.messages


def test_windows_of_another_size_that_are_resized_have_pixels_of_another_size(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scene = write_scene(tmp_path / "in.tif", stored(128, 128))
    predictor = predictor_of(Stub(), size=[16, 16], trained_size=[32, 32])
    map_of(predictor, scene, tmp_path / "as_trained.tif", window=None)
    assert not caplog.records
    map_of(predictor, scene, tmp_path / "larger.tif", window=128)
    assert "in.tif: pixels of 80 m once 128 of them are resized as 32 were in training" in caplog.text


@pytest.mark.parametrize("kind", ["gcps", "rpcs"])
def test_an_image_that_is_placed_by_other_means_than_a_grid_is_told_of(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corners = [GroundControlPoint(row, column, 5 + column, 45 - row) for row in (0, 64) for column in (0, 64)]
    ones = [1.0] * 20
    model = RPC(1.0, 1.0, 45.0, 1.0, ones, ones, 1.0, 1.0, 5.0, 1.0, ones, ones, 1.0, 1.0)
    placed = {"gcps": corners, "crs": "EPSG:4326"} if kind == "gcps" else {"rpcs": model}
    profile = {"driver": "GTiff", "count": 3, "height": 64, "width": 64, "dtype": "int16"}
    with rasterio.open(tmp_path / "in.tif", "w", **profile, **placed) as sink:
        sink.write(stored(64, 64))
        sink.descriptions = BANDS
    map_of(predictor_of(Stub()), tmp_path / "in.tif", tmp_path / "out.tif")
    name = {"gcps": "ground control points", "rpcs": "a camera model (RPC)"}[kind]
    assert f"in.tif is placed on the ground by {name}, not by a grid: its map will have no georeference" in caplog.text


def test_what_training_knows_of_its_files_holds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = stored(64, 64)
    quality = np.zeros((1, 64, 64), dtype=np.int16)
    quality[0, :10] = 9
    own = {"name": "mine", "bands": [{"code": code, "aliases": [f"X{code}"]} for code in BANDS]}
    trained = {"sensor": own, "source_bands": ["N", "R", "G"], "quality": ["SCL", [9], []]}
    predictor = predictor_of(Stub(), reading=trained)
    predictor.processor = MultispectralImageProcessor.from_dict(predictor.processor.to_dict())
    scene = write_scene(tmp_path / "a.tif", np.vstack([values, quality]), descriptions=["XR", "XG", "XN", "SCL"])
    found = read(map_of(predictor, scene, tmp_path / "a_out.tif"))
    assert np.isnan(found[:, :10]).all() and not caplog.text.count("quality")
    straight = read(map_of(predictor_of(Stub()), write_scene(tmp_path / "b.tif", values), tmp_path / "b_out.tif"))
    np.testing.assert_array_equal(found[:, 10:], straight[:, 10:])
    nameless = write_scene(tmp_path / "c.tif", values[[2, 0, 1]], descriptions=["", "", ""])
    np.testing.assert_array_equal(read(map_of(predictor, nameless, tmp_path / "c_out.tif")), straight)
    assert "c.tif: has no quality band SCL" in caplog.text
