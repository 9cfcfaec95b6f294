"""Map files: what they hold, what is refused, and runs that are interrupted or shared."""

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
from torch import Tensor

from deflect_hf.errors import ConfigError, DataError, DeflectError, UnsupportedOperationError
from deflect_hf.inference.blocks import Block, Overhang
from deflect_hf.inference.parts import Parts
from deflect_hf.inference.predictor import Predictor
from deflect_hf.inference.scenes import Axis
from tests.inference.folders import encoder_folder, result_folder
from tests.inference.scenes_and_models import (
    UTM,
    PerPatch,
    Stub,
    WindowDependent,
    map_of,
    predictor_of,
    probabilities_of,
    small_blocks,
    stored,
    write_scene,
)


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return stored(352, 96)


@pytest.fixture
def scene(tmp_path: Path, values: np.ndarray) -> Path:
    holes = values.copy()
    holes[:, 100:120, 30:50] = -9999
    return write_scene(tmp_path / "in.tif", holes)


@pytest.fixture
def predictor() -> Predictor:
    return predictor_of(PerPatch())


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
    assert not list(tmp_path.glob("other*"))


class Stopped(Exception):
    pass


class Stopping(PerPatch):
    """Gives up after a number of windows."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def forward(self, pixel_values: Any) -> Any:
        """(B, C, H, W) reflectance -> logits (B, 2, H, W), or an exception"""
        if sum(shape[0] for shape in self.seen) >= self.after:
            raise Stopped
        return super().forward(pixel_values)


@pytest.fixture
def interrupted(scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A map of four parts that was stopped after the first."""
    small_blocks(monkeypatch)
    with pytest.raises(Stopped):
        map_of(predictor_of(Stopping(after=20)), scene, tmp_path / "out.tif")
    assert not (tmp_path / "out.tif").exists()
    assert sorted(path.name for path in (tmp_path / "out.tif.parts").iterdir()) == ["00000.npy", "job.json"]
    return tmp_path / "out.tif"


class Counting(WindowDependent):
    """How many windows it was given."""

    windows = 0

    def predict(self, pixel_values: Tensor) -> Tensor:
        self.windows += len(pixel_values)
        return super().predict(pixel_values)


@pytest.mark.parametrize(("overlap", "across"), [(0.25, 1), (0.5, 2)])  # blocks beside one another
def test_blocks_one_below_the_other_predict_each_window_once_with_the_bits_of_blocks_on_their_own(
    overlap: float, across: int, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)
    model = Counting()
    one = rasterio.open(map_of(predictor_of(model), scene, tmp_path / "one.tif", overlap=overlap)).read()
    down, right = (Axis.cover(length, 32, overlap, 8) for length in (352, 96))
    columns = [columns for _, _, columns in right.split(4)]
    windows = len(down) * sum(map(len, columns))
    assert (model.windows, len(columns), len(down.split(4)) > 2) == (windows, across, True)
    monkeypatch.setattr(Overhang, "over", lambda self, block: (None, block.rows))
    other = rasterio.open(map_of(predictor_of(model), scene, tmp_path / "other.tif", overlap=overlap)).read()
    np.testing.assert_array_equal(one, other)
    assert model.windows > 2 * windows


def test_an_interrupted_run_goes_on_after_its_finished_parts(
    interrupted: Path, scene: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", logger="deflect_hf")
    returned = []
    count = lambda: returned.append(len(list(interrupted.with_name("out.tif.parts").glob("*.npy"))))  # noqa: E731
    monkeypatch.setattr("deflect_hf.inference.mapping.give_back", count)
    model, whole = PerPatch(), PerPatch()
    map_of(predictor_of(model), scene, interrupted)
    assert returned == [2, 3, 4]  # memory goes back after each part
    expected = map_of(predictor_of(whole), scene, interrupted.with_name("whole.tif"))
    assert interrupted.read_bytes() == expected.read_bytes()
    windows = [sum(shape[0] for shape in one.seen) for one in (whole, model)]
    assert windows[0] - windows[1] == 8  # of the 12 of the first part; the others reach into the second
    assert "out.tif.parts: 1 of 4 parts are finished and are kept" in caplog.text
    assert not interrupted.with_name("out.tif.parts").exists()


@pytest.mark.parametrize(
    ("change", "named"), [("model", "model"), ("overlap", "windows"), ("output", "output"), ("image", "image")]
)
def test_parts_of_another_job_are_neither_mixed_in_nor_thrown_away(
    change: str, named: str, interrupted: Path, scene: Path
) -> None:
    model, options = PerPatch(), {}
    if change == "model":
        model.weight.data.neg_()
    elif change == "image":
        write_scene(scene, stored(352, 96, seed=5))
    else:
        options = {"overlap": {"overlap": 0.5}, "output": {"output": "classes"}}[change]
    part = interrupted.with_name("out.tif.parts") / "00000.npy"
    with pytest.raises(ConfigError, match=rf"out\.tif\.parts holds .* another {named}: .* --overwrite"):
        map_of(predictor_of(model), scene, interrupted, **options)
    assert part.exists()
    expected = map_of(predictor_of(model), scene, interrupted.with_name("whole.tif"), **options)
    map_of(predictor_of(model), scene, interrupted, overwrite=True, **options)
    assert interrupted.read_bytes() == expected.read_bytes()


def test_a_damaged_part_is_made_again_whichever_bit_is_wrong(interrupted: Path, scene: Path) -> None:
    expected = map_of(predictor_of(PerPatch()), scene, interrupted.with_name("whole.tif")).read_bytes()
    part = interrupted.with_name("out.tif.parts") / "00000.npy"
    whole = part.read_bytes()
    blocks = [Block(0, 0, np.load(part).shape[0], 0, 96, range(0), range(0))]
    parts = Parts(part.parent, 2, np.dtype(np.float32))
    assert parts.missing(blocks) == []
    for bit in np.random.default_rng(0).integers(0, 8 * len(whole), 150):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << (bit % 8)
        part.write_bytes(content)
        assert parts.missing(blocks) == blocks
    with pytest.raises(DataError, match=r"00000\.npy is damaged: repeat the command"):
        list(parts.squares(blocks))
    part.write_bytes(whole[:-40])
    map_of(predictor_of(PerPatch()), scene, interrupted)
    assert interrupted.read_bytes() == expected


def test_a_map_that_is_finished_is_not_made_again(scene: Path, tmp_path: Path) -> None:
    target = map_of(predictor_of(PerPatch()), scene, tmp_path / "out.tif", nodata=[float("nan"), -9999.0])
    before, model = target.stat().st_mtime_ns, PerPatch()
    map_of(predictor_of(model), scene, target, nodata=[float("nan"), -9999.0])
    assert target.stat().st_mtime_ns == before and not model.seen
    for other in ({"cog": True}, {"overlap": 0.5}):
        with pytest.raises(ConfigError, match=r"out\.tif is there already"):
            map_of(predictor_of(model), scene, target, **other)
    model.weight.data.neg_()
    with pytest.raises(ConfigError, match=r"out\.tif is there already"):
        map_of(predictor_of(model), scene, target)


@pytest.mark.parametrize("change", ["source of a VRT", "mask of a source", "sidecar"])
def test_a_finished_map_is_not_kept_when_a_file_of_its_image_changed(change: str, scene: Path, tmp_path: Path) -> None:
    rasterio.shutil.copy(scene, tmp_path / "inner.vrt", driver="VRT")
    outer = tmp_path / "outer.vrt"
    rasterio.shutil.copy(tmp_path / "inner.vrt", outer, driver="VRT")
    outer.write_text(outer.read_text().replace("in.tif", "inner.vrt"))
    target = map_of(predictor_of(PerPatch()), outer, tmp_path / "out.tif")
    map_of(predictor_of(PerPatch()), outer, target)
    if change == "source of a VRT":
        write_scene(scene, stored(352, 96, seed=7))
    elif change == "mask of a source":
        with rasterio.open(scene, "r+") as opened:
            opened.write_mask(np.zeros((352, 96), dtype=bool))
    else:
        scene.with_name("in.tif.aux.xml").write_text("<PAMDataset></PAMDataset>")
    with pytest.raises(ConfigError, match=r"out\.tif is there already"):
        map_of(predictor_of(PerPatch()), outer, target)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.tif.aux.xml", r"out\.tif\.aux\.xml is there already"),
        ("out.tif.parts/thesis.txt", r"out\.tif\.parts is in the way: .* move it\."),
    ],
)
def test_a_file_or_folder_of_somebody_else_is_left_alone(
    name: str, message: str, predictor: Predictor, scene: Path, tmp_path: Path
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("three years")
    with pytest.raises(DeflectError, match=message):
        map_of(predictor, scene, tmp_path / "out.tif")
    assert (tmp_path / name).read_text() == "three years"


@pytest.mark.parametrize("options", [{}, {"overwrite": True, "overlap": 0.5}])
def test_two_commands_at_once_do_not_share_a_map(options: dict[str, Any], scene: Path, tmp_path: Path) -> None:
    class Meanwhile(PerPatch):
        def predict(self, pixel_values: Tensor) -> Tensor:
            with pytest.raises(ConfigError, match=r"out\.tif\.parts: another command is making this map right now"):
                map_of(predictor_of(PerPatch()), scene, tmp_path / "out.tif", **options)
            return super().predict(pixel_values)

    target = map_of(predictor_of(Meanwhile()), scene, tmp_path / "out.tif")
    expected = map_of(predictor_of(PerPatch()), scene, tmp_path / "alone.tif")
    assert target.read_bytes() == expected.read_bytes()
    assert not (tmp_path / "out.tif.parts").exists()


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
