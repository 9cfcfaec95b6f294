"""A map as polygons: they are the map, with class, area and confidence, and QGIS knows their colors."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.features

from deflect_hf.errors import ConfigError, DataError
from deflect_hf.inference.report import write_report
from tests.inference.scenes_and_models import PerPatch, map_of, predictor_of, small_blocks, stored, write_scene

pyogrio = pytest.importorskip("pyogrio")
shapely = pytest.importorskip("shapely")


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    values = np.kron(stored(20, 12), np.ones((8, 8), np.int16))
    values[:, 100:120, 30:50] = -9999
    return write_scene(tmp_path / "in.tif", values)


@pytest.mark.parametrize("ending", ["gpkg", "geojson"])
def test_polygons_are_the_map(scene: Path, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    predictor, path = predictor_of(PerPatch()), tmp_path / f"map.{ending}"
    sure = map_of(predictor, scene, tmp_path / "sure.tif")
    mapped = map_of(predictor, scene, tmp_path / "map.tif", output="classes", polygons=str(path), simplify=0.0)
    found, _, wkb, fields = pyogrio.raw.read(path)
    table = dict(zip(found["fields"], fields, strict=True))
    outlines = shapely.from_wkb(wkb)
    with rasterio.open(mapped) as source, rasterio.open(sure) as probabilities:
        classes, likely = source.read(1), probabilities.read().max(axis=0)
        if ending == "geojson":  # in longitude and latitude
            assert "4326" in found["crs"] and shapely.total_bounds(outlines)[0] == pytest.approx(28.2, abs=0.1)
            return
        burnt = rasterio.features.rasterize(zip(outlines, table["value"], strict=True), classes.shape, fill=255,
                                            transform=source.transform)  # fmt: skip
        numbers = rasterio.features.rasterize(zip(outlines, range(len(outlines)), strict=True), classes.shape, fill=-1,
                                              transform=source.transform, dtype="int32")  # fmt: skip
        assert rasterio.crs.CRS.from_user_input(found["crs"]) == source.crs
    assert (burnt == classes).all() and table["pixels"].sum() == (classes != 255).sum()
    assert set(table["class"]) <= {"land", "water"} and len(outlines) > 2
    sizes = table["pixels"] * abs(float(source.transform.a * source.transform.e)) / 1e4
    assert table["area_ha"] == pytest.approx(sizes, rel=0.01)
    for number in range(len(outlines)):
        assert table["confidence"][number] == pytest.approx(likely[numbers == number].mean(), abs=0.004)


def test_simplified_borders_stay_common_and_areas_those_of_the_map(scene: Path, tmp_path: Path) -> None:
    predictor = predictor_of(PerPatch())
    outlines, areas = [], []
    for tolerance in (0.0, 2.0):
        path = tmp_path / f"{tolerance}.gpkg"
        map_of(
            predictor, scene, tmp_path / f"{tolerance}.tif", output="classes", polygons=str(path), simplify=tolerance
        )
        found, _, wkb, fields = pyogrio.raw.read(path)
        outlines.append(shapely.from_wkb(wkb))
        areas.append(fields[list(found["fields"]).index("area_ha")])
    assert shapely.coverage_is_valid(outlines[1]) and (areas[0] == areas[1]).all()
    assert shapely.get_num_coordinates(outlines[1]).sum() <= shapely.get_num_coordinates(outlines[0]).sum()
    style = ElementTree.parse(tmp_path / "2.0.qml").getroot()
    assert [one.get("value") for one in style.iter("category")] == ["land", "water"]
    assert len(list(style.iter("symbol"))) == 2


def test_classes_have_the_colors_of_the_masks_that_painted_them(scene: Path, tmp_path: Path) -> None:
    predictor, path = predictor_of(PerPatch()), tmp_path / "map.gpkg"
    predictor.colors = ((10, 120, 30), (200, 20, 220))
    mapped = map_of(predictor, scene, tmp_path / "map.tif", output="classes", polygons=str(path))
    with rasterio.open(mapped) as source:
        assert [source.colormap(1)[number][:3] for number in (0, 1)] == list(predictor.colors)
    style = ElementTree.parse(path.with_suffix(".qml")).getroot()
    assert [one.get("value") for one in style.iter("Option") if one.get("name") == "color"] == [
        "10,120,30,255", "200,20,220,255"]  # fmt: skip
    page = write_report(tmp_path / "map.html", mapped, scene, predictor.classes).read_text()
    assert "#0a781e" in page and "#c814dc" in page


def test_what_cannot_become_polygons_is_refused_before_anything_is_predicted(scene: Path, tmp_path: Path) -> None:
    predictor, target = predictor_of(PerPatch()), tmp_path / "map.tif"
    with pytest.raises(ConfigError, match=r"must end in one of '\.gpkg'"):
        map_of(predictor, scene, target, output="classes", polygons=str(tmp_path / "map.dxf"))
    with pytest.raises(ConfigError, match="leave out --output probabilities, or --polygons"):
        map_of(predictor, scene, target, polygons=str(tmp_path / "map.gpkg"))
    (tmp_path / "map.gpkg").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        map_of(predictor, scene, target, output="classes", polygons=str(tmp_path / "map.gpkg"))
    assert not target.exists() and (tmp_path / "map.gpkg").read_text() == "mine"
    (tmp_path / "own.qml").write_text("mine")
    for options in ({"output": "confidence"}, {"output": "classes", "polygons": str(tmp_path / "own.gpkg")}):
        with pytest.raises(ConfigError, match=r"own\.qml': not written by deflect_hf, and not replaced"):
            map_of(predictor, scene, tmp_path / "own.tif", overwrite=True, **options)


@pytest.mark.parametrize(
    ("crs", "message"),
    [(None, "names no reference system, and GeoJSON is in"), ('LOCAL_CS["x",UNIT["metre",1]]', "nothing leads from")],
)
def test_geojson_of_an_image_that_lies_nowhere_is_refused_before_anything_is_predicted(
    crs: str | None, message: str, tmp_path: Path
) -> None:
    model, scene = PerPatch(), write_scene(tmp_path / "in.tif", stored(64, 64), crs=crs)
    with pytest.raises(DataError, match=message):
        map_of(
            predictor_of(model),
            scene,
            tmp_path / "map.tif",
            output="classes",
            polygons=str(tmp_path / "map.geojson"),
        )
    assert not model.seen and sorted(tmp_path.iterdir()) == [scene]


def test_the_same_command_again_makes_nothing_again(scene: Path, tmp_path: Path) -> None:
    predictor, path = predictor_of(PerPatch()), tmp_path / "map.gpkg"
    for _ in range(2):
        map_of(predictor, scene, tmp_path / "map.tif", output="classes", polygons=str(path))
    path.unlink()
    with pytest.raises(ConfigError, match="--overwrite"):
        map_of(predictor, scene, tmp_path / "map.tif", output="classes", polygons=str(path))
    assert np.isfinite(rasterio.open(tmp_path / "map.tif").read(1)).all()
