"""Maps that are interrupted, made twice, or shared: finished parts are kept, and none of another job is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from torch import Tensor

from deflect_hf.errors import ConfigError, DataError, DeflectError
from deflect_hf.inference.blocks import Block, Overhang
from deflect_hf.inference.parts import Parts
from deflect_hf.inference.predictor import Predictor
from deflect_hf.inference.scenes import Axis
from tests.inference.scenes_and_models import (
    PerPatch,
    WindowDependent,
    map_of,
    predictor_of,
    small_blocks,
    stored,
    write_scene,
)


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
