"""Windows over a scene give what the whole scene at once gives, wherever a model allows it."""

import math
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deflect_hf.errors import ConfigError, DataError
from deflect_hf.raster.maps import SQUARE
from deflect_hf.raster.read import read_raster
from tests.data.web import serving
from tests.inference.scenes_and_models import (
    BANDS,
    Local,
    PerPatch,
    Stub,
    WindowDependent,
    map_of,
    predictor_of,
    probabilities_of,
    read,
    small_blocks,
    stored,
    write_scene,
)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_a_model_of_single_patches_gives_the_same_map_everywhere(overlap: float, tmp_path: Path) -> None:
    values = stored(136, 200)
    scene = write_scene(tmp_path / "in.tif", values)
    predictor = predictor_of(PerPatch())
    found = read(map_of(predictor, scene, tmp_path / "out.tif", overlap=overlap))
    np.testing.assert_allclose(found, probabilities_of(predictor, values), atol=1e-6)


def test_a_map_of_several_squares_and_parts_is_the_scene_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)
    values = stored(SQUARE + 88, 2 * SQUARE + 56)
    values[:, 500:530, 1000:1040] = -9999
    scene = write_scene(tmp_path / "in.tif", values)
    predictor = predictor_of(Stub())
    whole = np.where((values == -9999).all(axis=0), np.nan, probabilities_of(predictor, np.abs(values)))
    for batch in (1, 16):
        target = map_of(predictor, scene, tmp_path / f"{batch}.tif", window=128, overlap=0.5, batch_size=batch)
        np.testing.assert_allclose(read(target), whole, atol=1e-5)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(height=st.integers(1, 90), width=st.integers(1, 90), batch=st.integers(1, 5), overlap=st.floats(0, 0.5))
def test_a_model_of_single_pixels_gives_the_same_map_at_any_size(
    tmp_path: Path, height: int, width: int, batch: int, overlap: float
) -> None:
    values = stored(height, width)
    scene = write_scene(tmp_path / "in.tif", values)
    model = Stub()
    options = {"overlap": overlap, "batch_size": batch, "overwrite": True}
    found = read(map_of(predictor_of(model), scene, tmp_path / "out.tif", **options))
    pixels = torch.from_numpy(values).float()[None] * 1e-4
    np.testing.assert_allclose(found, model.predict(pixels).softmax(1)[0].detach(), atol=1e-5)
    assert all(shape[0] <= batch and shape[2] % 8 == 0 and shape[3] % 8 == 0 for shape in model.seen)


def test_a_model_that_looks_around_is_the_same_away_from_the_edges_of_the_scene(tmp_path: Path) -> None:
    values = stored(120, 152)
    scene = write_scene(tmp_path / "in.tif", values)
    predictor = predictor_of(Local())
    whole = probabilities_of(predictor, values)
    found = read(map_of(predictor, scene, tmp_path / "out.tif", overlap=0.25))  # counts nothing within 2 px
    np.testing.assert_allclose(found, whole, atol=1e-5)  # at the edge of the scene, windows see what the whole sees
    without = read(map_of(predictor, scene, tmp_path / "seams.tif", overlap=0.0))
    assert np.abs(without - whole).max() > 0.01


def test_blending_leaves_no_seams(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "in.tif", np.full((3, 64, 256), 1000, dtype=np.int16))
    predictor = predictor_of(WindowDependent())
    steps = {}
    for overlap in (0.0, 0.5):
        row = read(map_of(predictor, scene, tmp_path / f"{overlap}.tif", overlap=overlap))[0, 40]
        assert np.isfinite(row).all()
        steps[overlap] = np.abs(np.diff(np.log(row / (1 - row)))).max()
    assert steps[0.0] > 1.9  # from the end of one ramp to the start of the next
    assert steps[0.5] < 0.2


def test_nothing_is_predicted_where_nothing_was_measured(tmp_path: Path) -> None:
    values = stored(96, 96)
    values[:, :40] = -9999  # no band
    values[0, 60:70] = -9999  # one band of three
    scene = write_scene(tmp_path / "in.tif", values)
    model = Stub()
    found = read(map_of(predictor_of(model), scene, tmp_path / "out.tif"))
    assert np.isnan(found[:, :40]).all() and np.isfinite(found[:, 40:]).all()
    windows = sum(shape[0] for shape in model.seen)
    assert windows == 12  # of 16: the uppermost row of windows has nothing to see
    classes = map_of(predictor_of(Stub()), scene, tmp_path / "classes.tif", output="classes")
    with rasterio.open(classes) as source:
        assert source.nodata == 255
        assert (source.read(1)[:40] == 255).all() and set(np.unique(source.read(1)[40:])) <= {0, 1}


class Overflowing(Stub):
    """In single precision, large values spoil a whole window."""

    def predict(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Every pixel by itself, but for an attention over all."""
        return super().predict(pixel_values) + 0 * pixel_values.square().sum()


def test_an_undeclared_fill_value_is_refused_and_does_not_make_holes(tmp_path: Path) -> None:
    values = stored(96, 96).astype(np.float32)
    values[:, 3, 3] = -3.4e38
    scene = write_scene(tmp_path / "in.tif", values, nodata=None)
    with pytest.raises(
        DataError, match=r"in\.tif: the model's computation overflows on values from -3\.\d{5,8}e\+34 to .*--nodata"
    ):
        map_of(predictor_of(Overflowing()), scene, tmp_path / "out.tif")
    named = map_of(predictor_of(Overflowing()), scene, tmp_path / "named.tif", nodata=[float(np.float32(-3.4e38))])
    assert np.isnan(read(named)).sum() == 2  # probabilities of one pixel


def test_windows_are_as_large_as_the_training_images_unless_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scene = write_scene(tmp_path / "in.tif", stored(96, 96))
    sides = {}
    for name, options in {
        "encoder": {},
        "trained": {"trained_size": [48, 40]},
        "odd": {"trained_size": [41, 39]},
    }.items():
        model = Stub(side=24)
        map_of(predictor_of(model, **options), scene, tmp_path / f"{name}.tif", window=None)
        sides[name] = {shape[2:] for shape in model.seen}
    assert sides == {"encoder": {(24, 24)}, "trained": {(48, 40)}, "odd": {(48, 40)}}
    assert "windows of 24 x 24 pixels, the size of the encoder's pretraining" in caplog.text
    with pytest.raises(ConfigError, match=r"--window 30: no multiple of the model's patches, 8 x 8 pixels; give 32\."):
        map_of(predictor_of(Stub()), scene, tmp_path / "odd.tif", window=30)


def test_windows_are_resized_as_the_training_images_were(tmp_path: Path) -> None:
    values = np.repeat(np.repeat(stored(24, 32), 4, axis=1), 4, axis=2)  # 96 x 128, in squares of 4 x 4
    scene = write_scene(tmp_path / "in.tif", values)
    model = Stub()
    predictor = predictor_of(model, size=[16, 16], trained_size=[32, 32])
    found = read(map_of(predictor, scene, tmp_path / "out.tif", window=None))
    assert {shape[2:] for shape in model.seen} == {(16, 16)}
    assert found.shape == (2, 96, 128) and np.isfinite(found).all()
    smooth = np.full((3, 96, 128), 1500, dtype=np.int16)
    expected = predictor(smooth[:, :32, :32])[0, :, 0, 0].numpy()
    flat = read(map_of(predictor, write_scene(tmp_path / "flat.tif", smooth), tmp_path / "flat_out.tif", window=None))
    np.testing.assert_allclose(flat, np.broadcast_to(expected[:, None, None], flat.shape), atol=1e-5)
    with pytest.raises(ConfigError, match=r"give --window, the side of the training images in pixels"):
        map_of(predictor_of(Stub(), size=[16, 16]), scene, tmp_path / "unknown.tif", window=None)


def test_a_damaged_tile_is_named_with_its_window(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(200, 4000, (3, 512, 512)).astype(np.int16)
    scene = write_scene(tmp_path / "in.tif", noise)
    content = bytearray(scene.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 5000] = bytes(5000)
    scene.write_bytes(content)
    with pytest.raises(DataError, match=r"in\.tif is truncated or damaged in the window \(row \d+, column \d+"):
        map_of(predictor_of(Stub()), scene, tmp_path / "out.tif", window=64, batch_size=1, unit_check=False)
    assert not (tmp_path / "out.tif").exists()


@pytest.mark.parametrize("overlap", [0.0, 0.25])
def test_a_mosaic_of_real_chips_is_predicted_as_its_chips(overlap: float, shared_data: Path, tmp_path: Path) -> None:
    chips = [read_raster(shared_data / "water" / "images" / f"{number:03d}.tif", BANDS).values for number in range(9)]
    mosaic = np.concatenate([np.concatenate(chips[k : k + 3], axis=2) for k in (0, 3, 6)], axis=1)
    scene = write_scene(tmp_path / "mosaic.tif", mosaic)
    predictor = predictor_of(PerPatch())
    found = read(map_of(predictor, scene, tmp_path / "out.tif", window=128, overlap=overlap))
    for number, chip in enumerate(chips):
        row, column = 128 * (number // 3), 128 * (number % 3)
        cut = found[:, row : row + 128, column : column + 128]
        np.testing.assert_allclose(cut, probabilities_of(predictor, chip), atol=1e-6)


def test_a_mosaic_of_files_is_read_through_a_vrt(tmp_path: Path) -> None:
    values = stored(64, 64)
    write_scene(tmp_path / "left.tif", values[:, :, :40])
    write_scene(tmp_path / "right.tif", values[:, :, 40:])
    bands = "".join(
        f'<VRTRasterBand dataType="Int16" band="{k}"><Description>{name}</Description>'
        + "".join(
            f'<SimpleSource><SourceFilename relativeToVRT="1">{file}</SourceFilename><SourceBand>{k}</SourceBand>'
            f'<SrcRect xOff="0" yOff="0" xSize="{width}" ySize="64"/>'
            f'<DstRect xOff="{left}" yOff="0" xSize="{width}" ySize="64"/></SimpleSource>'
            for file, left, width in (("left.tif", 0, 40), ("right.tif", 40, 24))
        )
        + "</VRTRasterBand>"
        for k, name in enumerate(BANDS, start=1)
    )
    (tmp_path / "both.vrt").write_text(
        f'<VRTDataset rasterXSize="64" rasterYSize="64"><SRS>EPSG:32635</SRS>'
        f"<GeoTransform>600000, 20, 0, 4800000, 0, -20</GeoTransform>{bands}</VRTDataset>"
    )
    predictor = predictor_of(Stub())
    found = read(map_of(predictor, tmp_path / "both.vrt", tmp_path / "out.tif"))
    np.testing.assert_allclose(found, probabilities_of(predictor, values), atol=1e-6)
    (tmp_path / "right.tif").unlink()
    with pytest.raises(DataError, match=r"both\.vrt is truncated or damaged in the window .*right\.tif"):
        map_of(predictor, tmp_path / "both.vrt", tmp_path / "again.tif")
    assert math.isnan(rasterio.open(tmp_path / "out.tif").nodata)


@pytest.mark.parametrize("kind", ["one", "strips", "virtual", "masked", "address"])
def test_a_scene_that_cannot_be_read_in_pieces_is_read_through_a_copy_in_tiles(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    values, file = stored(128, 64), tmp_path / "in.tif"
    profile = {"driver": "GTiff", "count": 3, "height": 128, "width": 64, "dtype": "int16", "nodata": -5}
    with rasterio.open(file, "w", **profile, blockysize=1 if kind == "strips" else 128) as sink:
        sink.write(values)
        sink.descriptions = BANDS
        sink.scales, sink.offsets = [1e-4] * 3, [0.01] * 3
        if kind == "masked":
            sink.write_mask(np.arange(128 * 64).reshape(128, 64) % 7 > 0)
    if kind == "virtual":
        file = tmp_path / "in.vrt"
        rasterio.shutil.copy(tmp_path / "in.tif", file, driver="VRT")
    before = sorted(tmp_path.iterdir())
    with serving({}, ranges=True) as web:
        web.files["/in.tif"] = (tmp_path / "in.tif").read_bytes()
        scene = f"{web.url}/in.tif" if kind == "address" else file
        expected = read(map_of(predictor_of(Stub()), scene, tmp_path / "as it is.tif", window=64))
        monkeypatch.setattr("deflect_hf.raster.tiles.CACHE_BYTES", 20_000)
        found = read(map_of(predictor_of(Stub()), scene, tmp_path / "out.tif", window=64))
    assert f"{scene} is stored in blocks of which GDAL decodes" in caplog.text
    np.testing.assert_array_equal(found, expected)
    assert {path.suffix for path in set(tmp_path.iterdir()) - set(before)} == {".tif"}  # the two maps


def test_a_scene_without_a_measurement_is_a_map_of_nodata_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scene = write_scene(tmp_path / "in.tif", np.full((3, 64, 64), -9999, dtype=np.int16))
    found = rasterio.open(map_of(predictor_of(PerPatch()), scene, tmp_path / "out.tif", output="classes")).read()
    assert (found == 255).all()
    assert "out.tif holds nodata alone: no pixel of" in caplog.text


def test_the_map_of_an_array_is_that_of_a_file(tmp_path: Path) -> None:
    predictor, values = predictor_of(Stub()), stored(64, 64)
    expected = read(map_of(predictor, write_scene(tmp_path / "in.tif", values), tmp_path / "of_file.tif"))
    np.save(tmp_path / "in.npy", values)
    np.testing.assert_array_equal(
        read(map_of(predictor, tmp_path / "in.npy", tmp_path / "out.tif", source_bands=BANDS)), expected
    )


def test_the_map_of_an_address_is_that_of_the_file_and_known_again(tmp_path: Path) -> None:
    predictor, values = predictor_of(Stub()), stored(64, 64)
    scene = write_scene(tmp_path / "in.tif", values)
    expected = read(map_of(predictor, scene, tmp_path / "of_file.tif"))
    with serving({}, ranges=True) as web:
        web.files["/in.tif"] = scene.read_bytes()
        target = map_of(predictor, f"{web.url}/in.tif", tmp_path / "out.tif")
        np.testing.assert_array_equal(read(target), expected)
        made = target.stat().st_mtime_ns
        map_of(predictor, f"{web.url}/in.tif", target)
        assert target.stat().st_mtime_ns == made
        web.files["/other.tif"] = scene.read_bytes()
        with pytest.raises(ConfigError, match="is there already"):  # the same pixels, of another place
            map_of(predictor, f"{web.url}/other.tif", target)
        web.files["/in.tif"] = write_scene(tmp_path / "in.tif", values + 1).read_bytes()
        with pytest.raises(ConfigError, match="is there already"):
            map_of(predictor, f"{web.url}/in.tif", target)
    with pytest.raises(DataError, match="check the address"):
        map_of(predictor, f"{web.url}/gone.tif", tmp_path / "gone.tif")
    assert not list(tmp_path.glob("gone*"))
