"""Windows straight from scenes: what is read, drawn, split, and refused."""

import json
import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
import torch
from accelerate import Accelerator

from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.data import DatasetArguments
from deflect_hf.config.run import RunArguments
from deflect_hf.data import ImageDataset
from deflect_hf.data.places import balanced, blocks_of, cells_of, write_regions
from deflect_hf.data.sets.scenes import load as load_scenes
from deflect_hf.errors import ConfigError, DataError, DeflectError
from deflect_hf.figures.dataset import splits_figure
from deflect_hf.raster.header import RasterInfo
from deflect_hf.raster.vector import read_features
from deflect_hf.raster.write import write_raster
from deflect_hf.training.run import run
from deflect_hf.training.statistics import look_at
from tests.data.web import serving

SIDE, BANDS, CLASSES = 96, ("B", "G", "R", "N"), ("land", "water")
CRS = rasterio.crs.CRS.from_epsg(32633).to_wkt()
CONF = Path(__file__).resolve().parents[1] / "conf"


def header(path: Path, west: float = 5e5, side: int = SIDE) -> RasterInfo:
    return RasterInfo(str(path), 4, side, side, "uint16", BANDS, (1.0,) * 4, (0.0,) * 4, (None,) * 4, CRS,
                      (10.0, 0.0, west, 0.0, -10.0, 5e6), 10.0)  # fmt: skip


@pytest.fixture
def scenes(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A scene whose first band counts its pixels, three squares of each class as GeoJSON, and what to say of them."""
    for name, west in (("one", 5e5), ("far", 6e5)):
        image = np.random.default_rng(0).integers(500, 4000, (4, SIDE, SIDE)).astype(np.uint16)
        image[0] = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
        write_raster(tmp_path / f"{name}.tif", image, like=header(tmp_path / name, west), descriptions=BANDS)
        features = []
        for number, (row, column) in enumerate([(4, 4), (40, 8), (70, 70), (10, 60), (60, 30), (85, 5)]):
            said_of = {"kind": CLASSES[number % 2], "part": ("Training", "val")[number % 2]}
            x, y = west + 10 * column, 5e6 - 10 * row
            ring = [[x, y], [x + 60, y], [x + 60, y - 60], [x, y - 60], [x, y]]
            features.append({"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]},
                             "properties": said_of})  # fmt: skip
        named = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
        text = json.dumps({"type": "FeatureCollection", "crs": {"type": "name", **named}, "features": features})
        (tmp_path / f"{name}.geojson").write_text(text, encoding="utf-8")

    def said(**changes: Any) -> dict[str, Any]:
        values = {"name": "scenes", "root": str(tmp_path), "scenes": [{"image": "one.tif", "labels": "one.geojson"}],
                  "attribute": "kind", "window": 16, "block_km": 0.32, "scale": 1e-4, "offset": 0.0}  # fmt: skip
        return {key: value for key, value in {**values, **changes}.items() if value is not None}

    return said


def load(values: dict[str, Any]) -> dict[str, ImageDataset]:
    return load_scenes(DatasetArguments(**values))


@pytest.mark.parametrize("lost", [None, "kind", ""])
def test_polygons_without_a_class_are_no_background(
    scenes: Callable[..., dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture, lost: str | None
) -> None:
    said = scenes(background="land", classes=list(CLASSES), block_km=None, val_fraction=0.0)
    path = tmp_path / "one.geojson"
    layer = json.loads(path.read_text(encoding="utf-8"))
    if lost is not None:
        layer["features"][1]["properties"]["kind"] = "" if lost == "" else None
    path.write_text(json.dumps(layer), encoding="utf-8")
    said["scenes"] = [{"image": "one.tif", "labels": "one.geojson", "split": "train"}]
    labels = torch.cat([example["labels"].flatten() for example in load(said)["train"]])
    water = 3 - (lost is not None)
    assert ((labels == 1).sum(), (labels == 0).sum()) == (36 * water, SIDE * SIDE - 3 * 36)
    assert ("1 of 6 features have no class in 'kind'" in caplog.text) == (lost is not None)


def test_a_grid_counts_each_labelled_pixel_once_in_one_split(scenes: Callable[..., dict[str, Any]]) -> None:
    splits = load(scenes())
    assert list(splits) == ["train", "val", "test"] and splits["train"].classes == list(CLASSES)
    pixels: dict[str, list[int]] = {}
    for name, images in splits.items():
        for example in images:
            assert example["pixel_values"].shape == (4, 16, 16) and example["labels"].shape == (16, 16)
            seen = (example["pixel_values"][0] * 1e4).round().int()
            pixels.setdefault(name, []).extend(seen[example["labels"] >= 0].tolist())
    everything = [pixel for found in pixels.values() for pixel in found]
    assert len(everything) == len(set(everything)) == 6 * 36
    boxes = {name: [row["region"] for row in images.table] for name, images in splits.items()}
    assert not {tuple(box) for box in boxes["train"]} & {tuple(box) for box in boxes["val"] + boxes["test"]}


def test_training_windows_are_drawn_anew_and_stay_in_their_block(scenes: Callable[..., dict[str, Any]]) -> None:
    splits = load(scenes(windows_per_epoch=20))
    train = splits["train"].with_transform(None, drawn=True)
    assert len(train) == 20

    def corners() -> list[int]:
        return [round(float(example["pixel_values"][0, 0, 0]) * 1e4) for example in train]

    first = corners()
    assert first == corners()  # of seed, epoch and position alone
    for row, corner in zip(train.table, first, strict=True):
        top, left, height, width = row["region"]
        assert top <= corner // SIDE <= top + height - 16 and left <= corner % SIDE <= left + width - 16
    assert all((example["labels"] >= 0).any() for example in train)
    train.set_epoch(1)
    assert sum(one != other for one, other in zip(first, corners(), strict=True)) > 10


def test_few_windows_of_an_epoch_see_all_labels_in_the_end(scenes: Callable[..., dict[str, Any]]) -> None:
    whole, few = (load(scenes(windows_per_epoch=wanted, test_fraction=0.0))["train"] for wanted in (None, 2))
    assert len(few) == 2 < len(whole)
    train, seen = few.with_transform(None, drawn=True), set()
    for epoch in range(60):
        train.set_epoch(epoch)
        seen |= {example["name"] for example in train}
    assert seen == set(whole.names)
    counts = [np.bincount(example["labels"][example["labels"] >= 0], minlength=2) for example in whole]
    assert look_at(parse_arguments(RunArguments, "test", ["--config", str(CONF / "segmentation.yaml")]), train, None,
                   Accelerator()).labels == np.sum(counts, axis=0).tolist()  # fmt: skip


@pytest.mark.parametrize("painted", [False, True])
def test_a_raster_of_classes_on_another_grid_is_as_good_as_polygons(
    painted: bool, scenes: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    fine = np.full((1, 2 * SIDE, 2 * SIDE), 9, np.uint8)
    fine[:, 40:80, 40:80], fine[:, 120:160, 100:150] = 0, 1
    like = RasterInfo("", 1, 2 * SIDE, 2 * SIDE, "uint8", ("",), (1.0,), (0.0,), (None,), CRS,
                      (5.0, 0.0, 5e5, 0.0, -5.0, 5e6), 5.0)  # fmt: skip
    meaning: dict[str, Any] = {"classes": list(CLASSES), "ignore_values": [9]}
    if painted:
        fine = np.concatenate([np.where(fine == 0, 255, 0), 0 * fine, np.where(fine == 1, 255, 0)]).astype(np.uint8)
        meaning = {"class_colors": {"land": "red", "water": "blue", "_": "black"}}
    write_raster(tmp_path / "fine.tif", fine, like=like)
    values = scenes(scenes=[{"image": "one.tif"}], labels="fine.tif", attribute=None, label_alignment="resample",
                    test_fraction=0.0, **meaning)  # fmt: skip
    counts = np.zeros(2, int)
    for images in load(values).values():
        for example in images:
            counts += np.bincount(example["labels"][example["labels"] >= 0].numpy(), minlength=2)
    assert counts.tolist() == [400, 500]


def test_a_class_that_a_raster_tags_as_nodata_is_refused(scenes: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    mask = (np.arange(SIDE * SIDE).reshape(1, SIDE, SIDE) % 2).astype(np.uint8)
    write_raster(tmp_path / "mask.tif", mask, like=header(tmp_path), nodata=0)
    with pytest.raises(DataError, match=r"mask\.tif tags 0 as nodata, which is the value of class 'land'"):
        load(scenes(scenes=[{"image": "one.tif", "labels": "mask.tif"}], attribute=None, classes=list(CLASSES)))


def test_splits_by_scene_by_column_and_as_said(
    scenes: Callable[..., dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = [{"image": f"{name}.tif", "labels": f"{name}.geojson"} for name in ("one", "far")]
    by_scene = load(scenes(scenes=both, block_km=None, test_fraction=0.0))
    assert {split: {row["scene"] for row in images.table} for split, images in by_scene.items()} in (
        {"train": {0}, "val": {1}}, {"train": {1}, "val": {0}})  # fmt: skip
    (tmp_path / "list.csv").write_text(
        "image;labels;split\none.tif;one.geojson;Validation\nfar.tif;far.geojson;train\n"
    )
    as_said = load(scenes(scenes="list.csv", block_km=None))
    assert {split: {row["scene"] for row in images.table} for split, images in as_said.items()} == {
        "train": {1}, "val": {0}}  # fmt: skip
    by_column = load(scenes(block_km=None, split_column="part", classes=list(CLASSES)))
    found = {split: {int(v) for e in images for v in e["labels"].unique()} for split, images in by_column.items()}
    assert found == {"train": {-100, 0}, "val": {-100, 1}}
    assert "splits overlap or touch on the ground, train and val at " in caplog.text


def test_ground_without_polygons_can_be_a_class(scenes: Callable[..., dict[str, Any]]) -> None:
    splits = load(scenes(background="field"))
    assert splits["train"].classes == ["field", *CLASSES]
    labels = np.concatenate([example["labels"].numpy().ravel() for images in splits.values() for example in images])
    assert np.bincount(labels[labels >= 0]).tolist() == [SIDE * SIDE - 216, 108, 108]


def test_a_scene_without_polygons_is_background_and_told(
    scenes: Callable[..., dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    listed = [{"image": f"{name}.tif", "labels": "one.geojson", "split": split}
              for name, split in (("one", "train"), ("far", "val"))]  # fmt: skip
    splits = load(scenes(scenes=listed, background="field", block_km=None))
    assert all(bool((example["labels"] == 0).all()) for example in splits["val"])
    assert sum(int((example["labels"] >= 0).sum()) for example in splits["val"]) == SIDE * SIDE
    assert "no polygon lies on 1 of 2 scenes, such as" in caplog.text and "far.tif: all of it is 'field'" in caplog.text
    for one in (listed, listed[1:]):
        with pytest.raises(DataError, match=r"one\.geojson: none of its 6 features lies on .*far\.tif"):
            load(scenes(scenes=one, background=None if len(one) > 1 else "field", block_km=None))


def test_folds_go_through_all_blocks(scenes: Callable[..., dict[str, Any]]) -> None:
    tested = [{row["name"] for row in load(scenes(num_folds=3, fold=fold))["test"].table} for fold in range(3)]
    assert len(set.union(*tested)) == sum(map(len, tested)) > 6


def test_blocks_lie_on_one_grid_and_a_buffer_keeps_them_apart() -> None:
    one, shifted = header(Path("a")), header(Path("b"), 5e5 + 130)
    boxes = blocks_of(one, 0.2, 0.0)
    assert sum(height * width for _, _, height, width in boxes) == SIDE * SIDE
    edges = [{column * 10 + west for _, column, *_ in blocks_of(info, 0.2, 0.0)} - {west}
             for info, west in ((one, 5e5), (shifted, 5e5 + 130))]  # fmt: skip
    assert edges[0] & edges[1] and all(edge % 200 == 0 for edge in edges[0] | edges[1])
    apart = sorted({(row, row + height) for row, _, height, _ in blocks_of(one, 0.2, 0.04)})
    assert all(after[0] - before[1] == 4 for before, after in pairwise(apart))


def test_windows_of_a_region_are_a_partition_of_it() -> None:
    counted = np.zeros((50, 50), int)
    for window, (row, column, height, width) in cells_of((3, 5, 40, 30), 16):
        counted[row : row + height, column : column + width] += 1
        assert window[0] >= 3 and window[0] + window[2] <= 43 and window[2:] == (16, 16)
    assert (counted[3:43, 5:35] == 1).all() and counted.sum() == 1200


def test_each_split_gets_its_share_of_each_class() -> None:
    counts = np.random.default_rng(0).integers(0, 100, (200, 3)) * np.array([1, 20, 300])
    found = np.array(balanced(counts.tolist(), {"train": 0.7, "val": 0.1, "test": 0.2}, seed=0))
    for split, share in {"train": 0.7, "val": 0.1, "test": 0.2}.items():
        assert np.abs(counts[found == split].sum(axis=0) / counts.sum(axis=0) - share).max() < 0.02


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image;lable\none.tif;one.geojson\n", "unknown key 'lable'. Did you mean 'labels'"),
        ("image,labels\nf\xfcr.tif,one.geojson\n".encode("latin-1"), r"list\.csv is no CSV in UTF-8"),
        (b"image,labels\none.tif\n", r"list\.csv, row 2 has 1 cells instead of 2"),
        (b"image,labels\n", "list.csv lists no scenes"),
    ],
)
def test_a_list_that_is_no_table_is_told(
    content: bytes, message: str, scenes: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(DeflectError, match=message):
        load(scenes(scenes="list.csv"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attribute": None}, "give `attribute`"),
        ({"attribute": "kint"}, "Did you mean 'kind'?"),
        ({"classes": ["land", "wood"]}, "holds 'water' (3 features), which `classes` does not name"),
        ({"scenes": [{"image": "one.tif", "lables": "x"}]}, "unknown key 'lables'. Did you mean 'labels'?"),
        ({"scenes": [{"image": "one.tif"}]}, "has no labels"),
        ({"scenes": [{"image": "one.tif", "labels": "far.geojson"}]}, "none of its 6 features lies on"),
        ({"scenes": "gone.csv"}, "is not there"),
        ({"block_km": None}, "without block_km, a scene is one place"),
        ({"block_km": 0.1}, "smaller than a window of 16"),
        ({"block_km": 5.0}, "1 place(s) with labels are too few for 3"),
        ({"buffer_km": 0.4}, "give a larger block_km"),
        ({"split_column": "kind"}, "remove `block_km`"),
        ({"split_column": "kind", "block_km": None}, "holds 'land', 'water': it must be one of 'train', "),
        ({"split_column": "part", "block_km": None, "val_fraction": 0.3}, "val_fraction=0.3 does nothing"),
        ({"background": "sea", "classes": ["land", "water"]}, "is none of `classes`"),
        ({"background": "watr"}, "is no class of the labels. Did you mean 'water'?"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    scenes: Callable[..., dict[str, Any]], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises((ConfigError, DataError)) as error:
        load(scenes(**changes))
    assert said in str(error.value)


def test_a_run_says_where_its_splits_lie(
    scenes: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "data.yaml").write_text(json.dumps(scenes(block_km=0.16, val_fraction=0.3)), encoding="utf-8")
    words = ["--encoder_config", str(CONF / "tiny_vit.yaml"), "--dataset_config", str(tmp_path / "data.yaml")]
    words += ["--epochs", "1", "--batch_size", "4", "--num_workers", "0", "--work_dir", str(tmp_path / "run")]
    results, work_dir, _ = run(parse_arguments(RunArguments, "test", words))
    assert sum(map(sum, results["test"]["confusion_matrix"])) > 0
    written = read_features(work_dir / "splits.gpkg")
    assert set(written.columns["split"]) == {"train", "val", "test"}
    assert written.columns["pixels"].sum() == 216
    assert sum(column.sum() for name, column in written.columns.items() if name.startswith("pixels of ")) == 216
    with rasterio.open(tmp_path / "one.tif") as scene:
        assert rasterio.crs.CRS.from_wkt(written.crs) == scene.crs
        west, south, east, north = shapely.total_bounds(written.geometries)
        assert scene.bounds.left <= west < east <= scene.bounds.right
        assert scene.bounds.bottom <= south < north <= scene.bounds.top
    reader = load(scenes())["train"].reader
    assert splits_figure(tmp_path / "splits.png", reader).stat().st_size > 10_000
    # scenes with masks need no vector files
    monkeypatch.setitem(sys.modules, "pyogrio", None)
    write_regions(tmp_path / "no.gpkg", reader.regions, reader.infos, reader.classes)
    assert "no.gpkg is not written" in caplog.text and not (tmp_path / "no.gpkg").exists()


def test_a_scene_of_the_list_has_dates_of_its_own(tmp_path: Path, scenes: Callable[..., dict[str, Any]]) -> None:
    entry = {"image": "one.tif", "labels": "one.geojson", "dates": ["again.tif"]}
    settings = scenes(scenes=[entry])
    shutil.copy(tmp_path / "one.tif", tmp_path / "again.tif")
    images = load(settings)["val"]
    assert images.bands == [*BANDS, *(f"{band}@1" for band in BANDS)]
    pixels = images[0]["pixel_values"]
    np.testing.assert_array_equal(pixels[4:], pixels[:4])
    bare = {"image": "one.tif", "labels": "one.geojson", "name": "alone"}
    with pytest.raises(ConfigError, match=r"of several dates, but there is one of '.*one.tif'"):
        load(scenes(scenes=[entry, bare], composite="median"))


def test_addresses_are_read_where_the_configuration_says_them(
    scenes: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    expected = load(scenes())["train"][0]["pixel_values"]
    with serving({}, ranges=True) as web:
        web.files["/one.tif"] = (tmp_path / "one.tif").read_bytes()
        address = f"{web.url}/one.tif"
        found = load(scenes(scenes=[{"image": address, "labels": "one.geojson"}]))["train"]
        assert web.seen and torch.equal(found[0]["pixel_values"], expected)
        (tmp_path / "list.csv").write_text(f"image,labels\n{address},one.geojson\n")
        asked = len(web.seen)
        with pytest.raises(DataError, match=f"{address}: only files on disk are read"):
            load(scenes(scenes="list.csv"))
        with pytest.raises(DataError, match="geojson: only files on disk are read"):
            load(scenes(scenes=[{"image": "one.tif", "labels": f"{web.url}/one.geojson"}]))
        assert len(web.seen) == asked
