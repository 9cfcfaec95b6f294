"""`evaluate.py --predict` and `deflect-predict` as a user runs them."""

import os
import re
import shutil
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import rasterio

from deflect_hf.cli import evaluate
from deflect_hf.config.inference import PredictArguments
from deflect_hf.errors import ConfigError, DataError
from deflect_hf.inference import cli
from tests.benchmarks.resume import finish, start
from tests.inference.folders import ALL_BANDS, encoder_folder, result_folder
from tests.inference.scenes_and_models import write_scene


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    encoder = encoder_folder(folder / "encoder")
    return result_folder(folder / "run" / "best", encoder, crop=16, aux_dim=8, rank=2).parent


def scene_of(path: Path, height: int, width: int) -> Path:
    values = np.random.default_rng(0).random((len(ALL_BANDS), height, width), dtype=np.float32) * 0.4
    return write_scene(path, values, nodata=float("nan"), descriptions=ALL_BANDS)


def predicting(words: Sequence[str], log: Path) -> None:
    """`deflect-predict` in one of several processes, telling when it returns: gloo's threads could abort it later."""
    sink = os.open(f"{log}{os.environ['RANK']}", os.O_WRONLY | os.O_CREAT)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    cli.main(words)
    print("returned")


@pytest.mark.parametrize("words", [["--help"], ["--predict", "--help"], ["--predict", "IN.tif", "OUT.tif", "-h"]])
def test_help_tells_of_predictions(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        evaluate(words)
    told = capsys.readouterr().out
    assert stopped.value.code == 0 and "python evaluate.py --predict IN.tif OUT.tif --adapter work-dir/RUN" in told
    assert ("--overlap" in told) == ("--predict" in words)


def test_one_image_or_several_and_patterns(tmp_path: Path) -> None:
    for name in ("a.tif", "b.tif", "c.vrt"):
        (tmp_path / name).touch()
    (tmp_path / "maps").mkdir()
    one, two, maps = str(tmp_path / "a.tif"), str(tmp_path / "b.tif"), tmp_path / "maps"
    assert cli.pairs([one, "out.tif"]) == [(one, Path("out.tif"))]
    assert cli.pairs([one, str(maps)]) == [(one, maps / "a.tif")]
    assert cli.pairs([one, "new/"]) == cli.pairs([one, "new"]) == [(one, Path("new/a.tif"))]
    everything = cli.pairs([str(tmp_path / "*.tif"), two, str(tmp_path / "c.vrt"), "2020"])
    names = ("a.tif", "b.tif", "c.vrt")
    assert everything == [(str(tmp_path / name), Path("2020") / f"{name[0]}.tif") for name in names]
    address = "https://host/folder/x.tif?token=1"
    assert cli.pairs([address, "maps/"]) == [(address, Path("maps/x.tif"))]


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for name in ("a.tif", "b.tif", "x/a.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    one, two, other = (str(tmp_path / name) for name in ("a.tif", "b.tif", "x/a.tif"))
    for files, message in (
        ([one], r"needs an image and a map to write: --predict IN\.tif OUT\.tif"),
        ([one, two, "out.tif"], r"2 images need a folder for their maps, but out\.tif is a file; give FOLDER/"),
        ([one, other, "maps/"], r"several images would become 'a\.tif' in maps: predict them one by one\."),
        ([one, "out.png"], r"out\.png: maps are GeoTIFFs, call it out\.tif; a folder ends in /\."),
    ):
        with pytest.raises(ConfigError, match=message):
            cli.pairs(files)
    with pytest.raises(DataError, match=r"/\*\.jp2 fits no file: correct the pattern\."):
        cli.pairs([str(tmp_path / "*.jp2"), "maps/"])


def test_the_files_come_with_or_without_the_flag_and_stay_text(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[PredictArguments] = []
    monkeypatch.setattr(cli, "predict", given.append)
    cli.main(["2020", "007", "--adapter", "RUN", "--qa_band", "SCL", "--qa_values", "8", "9"])
    cli.main(["--adapter", "RUN", "--qa_values", "8", "9", "--qa_band", "SCL", "--predict", "2020", "007"])
    assert given == [PredictArguments(predict=["2020", "007"], adapter="RUN", qa_band="SCL", qa_values=[8, 9])] * 2
    monkeypatch.setenv("HOME", "/home/me")
    assert PredictArguments(predict=["~/*.tif", "~/maps/"], adapter="RUN").predict == [
        "/home/me/*.tif",
        "/home/me/maps/",
    ]


def test_the_same_command_makes_what_is_missing_of_several_maps(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.tif", "b.tif", "c.tif"):
        scene_of(tmp_path / name, 40, 24)
    words = [str(tmp_path / "*.tif"), f"{tmp_path}/maps/", "--adapter", str(adapter), "--report", "--cog"]
    cli.main(words)
    maps = tmp_path / "maps"
    assert sorted(path.name for path in maps.glob("*.tif")) == ["a.tif", "b.tif", "c.tif"]
    with rasterio.open(maps / "b.tif") as made:
        assert made.shape == (40, 24) and made.tags(1)["CLASS_1"] == "water"
    kept, whole = (maps / "a.tif").stat().st_mtime_ns, (maps / "b.tif").read_bytes()
    (maps / "a.html").unlink()  # stopped between a map and its report
    for name in ("b.tif", "b.html", "c.tif", "c.html"):
        (maps / name).unlink()
    capsys.readouterr()
    cli.main(words)
    assert (maps / "a.tif").stat().st_mtime_ns == kept and (maps / "b.tif").read_bytes() == whole
    assert sorted(path.name for path in maps.glob("*.html")) == ["a.html", "b.html", "c.html"]
    told = capsys.readouterr().out
    assert f"a.tif: classes of {tmp_path}/a.tif, finished before" in told and "b.tif, finished" not in told


def test_a_report_knows_the_quality_layer_by_its_name_in_source_bands(adapter: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((7, 24, 24), dtype=np.float32) * 0.4
    values[6] = 3.0 * (np.arange(24) < 6)
    scene = write_scene(tmp_path / "a.tif", values, nodata=float("nan"), descriptions=[""] * 7)
    words = ["--source_bands", f"[{', '.join(ALL_BANDS)}, MINE]", "--qa_band", "MINE", "--qa_values", "[3]"]
    cli.main([str(scene), str(tmp_path / "map.tif"), "--adapter", str(adapter), "--report", *words])
    assert "25.00 % of the scene" in (tmp_path / "map.html").read_text()


def test_user_errors_exit_with_2_before_anything_is_predicted(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene_of(tmp_path / "a.tif", 24, 24)
    scene_of(tmp_path / "b.tif", 24, 24)
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "b.tif").touch()
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(tmp_path / "*.tif"), str(tmp_path / "maps"), "--adapter", str(adapter)])
    assert stopped.value.code == 2
    expected = (
        f"error: {tmp_path}/maps/b.tif is there already: give the map another name, or replace it with --overwrite."
    )
    assert capsys.readouterr().err.strip().endswith(expected)
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["b.tif"]


def test_an_interruption_says_how_to_go_on(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deflect_hf.inference.blocks.SceneWindows.logits", interrupted)
    scene = scene_of(tmp_path / "in.tif", 40, 24)
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(scene), str(tmp_path / "out.tif"), "--adapter", str(adapter)])
    assert stopped.value.code == 130
    assert "stopped: the same command goes on after the parts that are finished" in capsys.readouterr().err
    assert (tmp_path / "out.tif.parts" / "job.json").exists() and not (tmp_path / "out.tif").exists()


def test_a_process_that_is_done_waits_for_the_others_for_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {}

    def stopped_here(**options: object) -> None:
        told.update(options)
        raise DataError("far enough")

    monkeypatch.setattr("accelerate.PartialState", stopped_here)
    with pytest.raises(DataError, match="far enough"):
        cli.predict(PredictArguments(predict=["in.tif", "out.tif"], adapter="RUN"))
    assert told["timeout"] > timedelta(hours=12)


def test_two_processes_go_on_after_a_killed_one_and_make_the_map_of_one(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, target, folder = scene_of(tmp_path / "in.tif", 1000, 64), tmp_path / "out.tif", tmp_path / "out.tif.parts"
    words = ["--adapter", str(adapter), "--output", "probabilities"]

    def killed(*_: object) -> None:
        shutil.copytree(folder, tmp_path / "left")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("deflect_hf.inference.mapping.give_back", killed)
        with pytest.raises(SystemExit):
            cli.main([str(scene), str(target), *words])
    shutil.rmtree(folder)
    (tmp_path / "left").rename(folder)  # with its lock, which a killed process does not remove
    (folder / "00001.1").write_bytes(b"half a part")
    assert {path.name for path in folder.iterdir()} == {"00000.npy", "00001.1", "job.json", "lock"}
    cli.main([str(scene), str(tmp_path / "one.tif"), *words])
    finish(start([str(scene), str(target), *words], 2, tmp_path / "log", predicting))
    outputs = [(tmp_path / f"log{rank}").read_text() for rank in (0, 1)]
    assert not any("returned" in output for output in outputs)
    assert re.search(r"out\.tif\.parts: \d+ of \d+ parts are finished and are kept", outputs[0])
    assert f"{target}: probabilities of {scene}" in outputs[0] and str(target) not in outputs[1]
    assert not folder.exists()
    assert target.read_bytes() == (tmp_path / "one.tif").read_bytes()
