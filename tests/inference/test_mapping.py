"""Map files: what they hold, and what is refused."""

import resource
import shutil
import signal
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil

from deflect_hf.errors import ConfigError, DataError, UnsupportedOperationError
from deflect_hf.inference.predictor import Predictor
from deflect_hf.raster.maps import MapLayout, Square, write_map
from tests.inference.folders import encoder_folder, result_folder
from tests.inference.scenes_and_models import (
    UTM,
    Stub,
    info_of,
    map_of,
    predictor_of,
    probabilities_of,
    small_blocks,
    stored,
    write_scene,
)


def test_a_map_lies_where_its_image_lies(predictor: Predictor, scene: Path, tmp_path: Path) -> None:
    with rasterio.open(map_of(predictor, scene, tmp_path / "out.tif")) as made, rasterio.open(scene) as image:
        assert (made.crs, made.transform, made.shape) == (image.crs, image.transform, image.shape)
        assert tuple(made.transform)[:6] == UTM and made.crs.to_epsg() == 32635
        assert made.descriptions == ("land", "water") and made.dtypes == ("float32", "float32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tif", "out.tif"]


def test_classes_have_names_and_colors_that_gis_programs_show(
    predictor: Predictor, scene: Path, values: np.ndarray, tmp_path: Path
) -> None:
    predictor.class_values = (10, 20)
    target = map_of(predictor, scene, tmp_path / "out.tif", output="classes")
    with rasterio.open(target) as made:
        found = made.read(1)
        assert made.dtypes == ("uint8",) and made.nodata == 255
        assert made.colormap(1)[1][:3] == (0, 114, 178) and made.colormap(1)[255] == (0, 0, 0, 0)
        names = {"CLASS_0": "land", "CLASS_1": "water"}
        assert made.tags(1) == {**names, "CLASS_0_VALUE": "10", "CLASS_1_VALUE": "20"}
    expected = probabilities_of(predictor, values).argmax(axis=0)
    whole = np.ones_like(found, dtype=bool)
    whole[96:120, 24:56] = False  # patches with a hole
    np.testing.assert_array_equal(found[whole], expected[whole])
    rasterio.shutil.copy(target, tmp_path / "as.vrt", driver="VRT")  # GDAL's own view of the band
    assert "<Category>land</Category>" in (tmp_path / "as.vrt").read_text()


def test_probabilities_in_eight_bits_are_scaled(predictor: Predictor, scene: Path, tmp_path: Path) -> None:
    exact = rasterio.open(map_of(predictor, scene, tmp_path / "a.tif")).read()
    with rasterio.open(map_of(predictor, scene, tmp_path / "b.tif", dtype="uint8")) as made:
        assert made.scales == (0.004, 0.004) and made.nodata == 255
        steps = made.read()
    valid = steps != 255
    np.testing.assert_array_equal(valid, np.isfinite(exact))
    np.testing.assert_allclose(steps[valid] * 0.004, exact[valid], atol=0.002 + 1e-6)


@pytest.mark.parametrize("cog", [False, True])
def test_probabilities_of_four_classes_are_no_colours_with_alpha(cog: bool, tmp_path: Path) -> None:
    values = np.zeros((4, 32, 32), dtype=np.uint8)
    layout = MapLayout("uint8", 255, ("land", "water", "ice", "cloud"), (0.004,) * 4)
    path = tmp_path / "map.tif"
    write_map(path, layout, info_of(values), iter([Square(0, 0, values)]), cog=cog, final=path)
    with rasterio.open(path) as made:
        assert [kind.name for kind in made.colorinterp] == ["gray", "undefined", "undefined", "undefined"]


@pytest.mark.parametrize("temperature", [None, 4.0])
def test_confidence_is_the_calibrated_probability_of_the_class(
    temperature: float | None, predictor: Predictor, scene: Path, tmp_path: Path
) -> None:
    likely = rasterio.open(map_of(predictor, scene, tmp_path / "a.tif")).read() ** (1 / (temperature or 1))
    predictor.temperature = temperature
    classes = rasterio.open(map_of(predictor, scene, tmp_path / "b.tif", output="classes"))
    with rasterio.open(map_of(predictor, scene, tmp_path / "c.tif", output="confidence")) as made:
        assert made.descriptions == ("class", "confidence") and made.scales == (1.0, 0.004) and made.nodata == 255
        found, steps = made.read()
        assert made.colormap(1) == classes.colormap(1) and made.tags(1) == classes.tags(1)
    painted = ElementTree.parse(tmp_path / "c.qml").getroot().find("pipe/rasterrenderer")  # QGIS: by the first band
    assert painted is not None and (painted.get("type"), painted.get("band")) == ("paletted", "1")
    found_in_style = [(one.get("value"), one.get("color"), one.get("label")) for one in painted.iter("paletteEntry")]
    assert found_in_style == [("0", "#e69f00", "land"), ("1", "#0072b2", "water")]
    map_of(predictor, scene, tmp_path / "c.tif", overwrite=True)  # probabilities, which are not painted so
    assert not (tmp_path / "c.qml").exists() and not (tmp_path / "b.qml").exists()
    np.testing.assert_array_equal(found, classes.read(1))
    expected = likely.max(axis=0) / likely.sum(axis=0)
    np.testing.assert_array_equal(steps != 255, np.isfinite(expected))
    np.testing.assert_allclose(steps[steps != 255] * 0.004, expected[steps != 255], atol=0.002 + 1e-5)


@pytest.mark.parametrize("output", ["confidence", "probabilities"])
def test_a_cloud_optimized_map_has_the_layout_overviews_and_the_same_values(
    output: str, predictor: Predictor, tmp_path: Path
) -> None:
    scene = write_scene(tmp_path / "in.tif", stored(600, 560))
    plain = map_of(predictor, scene, tmp_path / "plain.tif", output=output, window=128)
    cog = map_of(predictor, scene, tmp_path / "cog.tif", output=output, window=128, cog=True)
    with rasterio.open(cog) as made, rasterio.open(plain) as expected:
        assert made.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert made.block_shapes[0] == (512, 512) and made.overviews(1) == [2]
        np.testing.assert_array_equal(made.read(), expected.read())
        assert (made.crs, made.transform) == (expected.crs, expected.transform)
        assert made.descriptions == expected.descriptions
        if output != "probabilities":
            assert made.colormap(1) == expected.colormap(1) and made.tags(1) == expected.tags(1)
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.name.startswith("cog")) == (
        [".tif"] if output == "probabilities" else [".qml", ".tif", ".xml"]
    )


def test_what_cannot_become_a_map_is_refused_before_anything_is_written(
    predictor: Predictor, scene: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"in\.tif is the image itself: give the map another name\."):
        map_of(predictor, scene, tmp_path / "." / "in.tif", overwrite=True)
    for name in ("map", "map.png"):
        with pytest.raises(ConfigError, match=rf"{name}: maps are GeoTIFFs, call it .*map\.tif\."):
            map_of(predictor, scene, tmp_path / name)
    map_of(predictor, scene, tmp_path / "out.tif")
    with pytest.raises(ConfigError, match=r"out\.tif is there already: .* or replace it with --overwrite\."):
        map_of(predictor, scene, tmp_path / "out.tif", overlap=0.5)
    map_of(predictor, scene, tmp_path / "out.tif", output="classes", overwrite=True)
    assert (tmp_path / "out.tif.aux.xml").exists()
    map_of(predictor, scene, tmp_path / "out.tif", overwrite=True)
    assert not (tmp_path / "out.tif.aux.xml").exists()
    again = write_scene(tmp_path / "again.tif", stored(64, 64))  # `*.tif` without quotes, and two images there
    before = again.read_bytes()
    with pytest.raises(ConfigError, match=r"again\.tif is no map that deflect_hf wrote, and is not replaced"):
        map_of(predictor, scene, again, overwrite=True)
    assert again.read_bytes() == before
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match=r"out\.tif\.parts cannot be written \(Not a directory\): make room"):
        map_of(predictor, scene, tmp_path / "file" / "out.tif")
    whole = Predictor(predictor.model, predictor.processor, task="classification", classes=("a", "b"))
    with pytest.raises(UnsupportedOperationError, match=r"of whole images, which makes no map"):
        map_of(whole, scene, tmp_path / "other.tif")
    radar = tmp_path / "radar.tif"  # complex numbers of a type that NumPy does not have
    with rasterio.open(radar, "w", driver="GTiff", count=3, height=8, width=8, dtype="complex_int16") as sink:
        sink.write(np.ones((3, 8, 8), np.complex64))
    with pytest.raises(DataError, match=r"radar\.tif holds complex numbers \(complex_int16\)"):
        map_of(predictor, radar, tmp_path / "other.tif")
    rasterio.shutil.copy(scene, tmp_path / "scene.nc", driver="netCDF")
    with pytest.raises(DataError, match=r"scene\.nc holds variables, not bands: convert one"):
        map_of(predictor, tmp_path / "scene.nc", tmp_path / "other.tif")
    assert not list(tmp_path.glob("other*"))


@pytest.fixture
def full_disk() -> Any:
    """Files cannot grow beyond a size: what a full disk does, for this process alone."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("cog", [False, True])
def test_a_full_disk_is_an_error_and_nothing_half_is_left(
    cog: bool, full_disk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)
    predictor = predictor_of(Stub())
    scene = write_scene(tmp_path / "in.tif", stored(352, 320))
    options = {"cog": cog, "overlap": 0.0}
    expected = rasterio.open(map_of(predictor, scene, tmp_path / "whole.tif", **options)).read()
    full_disk(20_000)
    with pytest.raises(DataError, match=r"out\.tif\.parts cannot be written \(File too large\): make room on the disk"):
        map_of(predictor, scene, tmp_path / "out.tif", **options)
    assert sorted(path.name for path in (tmp_path / "out.tif.parts").iterdir()) == ["job.json"]
    full_disk((tmp_path / "whole.tif").stat().st_size - 10_000)
    with pytest.raises(DataError, match=r"out\.tif cannot be written \(.*\): make room on the disk"):
        map_of(predictor, scene, tmp_path / "out.tif", **options)
    left = {path.suffix for path in (tmp_path / "out.tif.parts").iterdir()}
    assert left == {".json", ".npy"} and not (tmp_path / "out.tif").exists()
    full_disk(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    np.testing.assert_array_equal(
        rasterio.open(map_of(predictor, scene, tmp_path / "out.tif", **options)).read(), expected
    )


def test_a_map_that_came_back_with_other_values_is_refused(
    predictor: Predictor, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = rasterio.io.DatasetWriter.write

    def lossy(self: Any, values: np.ndarray, *args: Any, **options: Any) -> None:
        made(self, np.zeros_like(values), *args, **options)

    monkeypatch.setattr("rasterio.io.DatasetWriter.write", lossy)
    with pytest.raises(DataError, match=r"out\.tif cannot be written \(row 0, column 0: .* other values\)"):
        map_of(predictor, scene, tmp_path / "out.tif", output="classes")


def test_the_job_knows_weights_statistics_and_formulas_but_not_where_they_lie(tmp_path: Path) -> None:
    encoder = encoder_folder(tmp_path / "encoder")
    other = shutil.copytree(encoder, tmp_path / "copy")
    ndvi, evi = ({"indices": [name], "aux_dim": 8, "rank": 2} for name in ("NDVI", "NDWI"))
    folders = [
        result_folder(tmp_path / "a", encoder, **ndvi),
        result_folder(tmp_path / "b", other, **ndvi),
        result_folder(tmp_path / "c", encoder, **evi),
        result_folder(tmp_path / "d", encoder, **ndvi, statistics={"base_mean": [0.2] * 3, "base_std": [0.1] * 3}),
    ]
    same, moved, formula, statistics = (Predictor.from_folder(one).digest() for one in folders)
    assert same == moved and len({same, formula, statistics}) == 3
