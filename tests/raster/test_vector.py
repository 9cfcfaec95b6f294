"""Polygons and points as labels: what is burnt where, in whatever reference system they were drawn."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyproj import Transformer
from rasterio.crs import CRS

from deflect_hf.errors import DataError
from deflect_hf.raster.header import RasterInfo
from deflect_hf.raster.read import raster_info, read_mask
from deflect_hf.raster.vector import Shapes, class_values_of, on_grid, read_features

pyogrio = pytest.importorskip("pyogrio")
shapely = pytest.importorskip("shapely")

IMAGE = RasterInfo("image.tif", 1, 40, 50, "uint8", ("",), (1.0,), (0.0,), (None,),
                   CRS.from_epsg(32631).to_wkt(), (10.0, 0.0, 5e5, 0.0, -10.0, 5e6), 10.0)  # fmt: skip
CLASSES = ("grass", "water")


def write(path: Path, shapes: list[Any], values: list[Any], crs: str = "EPSG:32631", **options: Any) -> Path:
    """Shapes in the pixels of IMAGE -> a file in a reference system of its own."""
    change = Transformer.from_crs("EPSG:32631", crs, always_xy=True).transform
    moved = shapely.transform(
        np.array(shapes), lambda at: np.stack(change(5e5 + 10 * at[:, 0], 5e6 - 10 * at[:, 1]), axis=1)
    )
    kind = moved[0].geom_type if len({one.geom_type for one in moved}) == 1 else "Unknown"
    said = options.pop("said", crs)
    pyogrio.raw.write(
        path, shapely.to_wkb(moved), [np.array(values)], ["class"], geometry_type=kind, crs=said, **options
    )
    return path


def shapes_of(path: Path, classes: tuple[str, ...] = CLASSES, values: tuple[int, ...] = (0, 1)) -> Shapes:
    return on_grid(*class_values_of(read_features(path), "class", classes, values), IMAGE)


@pytest.mark.parametrize("ending", ["gpkg", "geojson", "shp", "fgb"])
@pytest.mark.parametrize("crs", ["EPSG:32631", "EPSG:4326", "EPSG:3035"])
def test_polygons_in_any_system_and_format_cover_their_pixels(tmp_path: Path, ending: str, crs: str) -> None:
    shapes, classes = [shapely.box(4, 3, 20, 11), shapely.Point(30.4, 20.6)], list(CLASSES)
    if ending == "shp":  # holds shapes of one kind
        shapes, classes = shapes[:1], classes[:1]
    path = write(tmp_path / f"labels.{ending}", shapes, classes, crs)
    values, labelled = shapes_of(path).burn((0, 0, 40, 50))
    expected = np.zeros((40, 50), dtype=bool)
    expected[3:11, 4:20] = True
    if ending != "shp":
        assert labelled[20, 30] and values[20, 30] == 1
        labelled[20, 30] = False
    assert (labelled == expected).all() and (values[expected] == 0).all()


def test_windows_put_together_are_the_whole(tmp_path: Path) -> None:
    shapes = shapes_of(write(tmp_path / "a.gpkg", [shapely.Point(25, 20).buffer(13)], ["water"], "EPSG:4326"))
    values, labelled = shapes.burn((0, 0, 40, 50))
    parts = [[shapes.burn((row, column, 10, 25)) for column in (0, 25)] for row in range(0, 40, 10)]
    assert (np.block([[values for values, _ in row] for row in parts])[labelled] == values[labelled]).all()
    assert (np.block([[there for _, there in row] for row in parts]) == labelled).all()
    assert shapes.burn((0, 0, 40, 50), all_touched=True)[1].sum() > labelled.sum() > 500


def test_ground_that_two_classes_claim_has_none(tmp_path: Path) -> None:
    shapes = shapes_of(
        write(tmp_path / "a.gpkg", [shapely.box(0, 0, 10, 10), shapely.box(5, 0, 15, 10)], list(CLASSES))
    )
    values, labelled = shapes.burn((0, 0, 10, 20))
    assert labelled[:, :5].all() and not labelled[:, 5:10].any() and labelled[:, 10:15].all()
    assert (values[:, 10:15] == 1).all() and shapes.overlaps() == [(0, 1)]


def test_numbers_are_class_values_and_some_are_no_label(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", [shapely.box(0, 0, 5, 5), shapely.box(5, 0, 10, 5)], [7, 9])
    features, values = class_values_of(read_features(path), "class", CLASSES, (7, 3), ignored=(9,))
    assert values.tolist() == [7] and len(features.geometries) == 1


def test_a_layer_of_the_world_keeps_what_lies_on_the_image(tmp_path: Path) -> None:
    shapes = np.array([shapely.box(-180, -90, 180, 90), shapely.box(100, -20, 130, 20)])
    path = tmp_path / "world.gpkg"
    pyogrio.raw.write(path, shapely.to_wkb(shapes), [np.array(["water", "grass"])], ["class"], geometry_type="Polygon",
                      crs="EPSG:4326")  # fmt: skip
    found = shapes_of(path)
    values, labelled = found.burn((0, 0, 40, 50))
    assert len(found.geometries) == 1 and labelled.all() and (values == CLASSES.index("water")).all()


def test_geoparquet(tmp_path: Path) -> None:
    import json

    import pyarrow
    import pyarrow.parquet

    box = shapely.box(2.9999, 45.1, 3.001, 45.2)
    geo: dict[str, Any] = {"version": "1.0.0", "primary_column": "shape", "columns": {"shape": {"encoding": "WKB"}}}
    table = pyarrow.table({"shape": [shapely.to_wkb(box)], "class": ["water"]})
    pyarrow.parquet.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), tmp_path / "a.parquet")
    _, labelled = shapes_of(tmp_path / "a.parquet").burn((0, 0, 40, 50))
    assert labelled[:, :7].all() and not labelled[:, 9:].any()  # 0.001 degrees are 78 m east of the meridian
    geo["columns"]["shape"]["crs"] = None
    pyarrow.parquet.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet does not say which reference system it is in: give it one"):
        shapes_of(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"values": ["gras", "water"]}, "holds 'gras' (1 features), which `classes` does not name"),
        ({"values": [0, 5]}, "holds '5' (1 features), which `class_values` does not name"),
        ({"attribute": "klass"}, "has no attribute 'klass', only 'class': correct `attribute`. Did you mean 'class'?"),
        ({"layers": ("one", "two")}, "has the layers 'one', 'two': say which one, `layer`"),
        ({"broken": True}, "cannot be read as a vector file"),
        ({"missing": True}, "is not there"),
        ({"said": "EPSG:4326"}, "has coordinates up to 5000000, but its reference system is in degrees"),
        ({"end": float("inf")}, "feature 1 has coordinates that are not finite"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "labels.gpkg"
    for layer in () if "missing" in change else change.get("layers", ("labels",)):
        shapes = [shapely.box(0, 0, 5, 5), shapely.box(5, 0, 9, change.get("end", 9))]
        write(path, shapes, change.get("values", ["grass", "water"]),
              layer=layer, append=path.exists(), **({"said": change["said"]} if "said" in change else {}))  # fmt: skip
    if "broken" in change:
        path.write_bytes(b"no vector file")
    with pytest.raises(DataError, match=r"labels\.gpkg") as error:
        on_grid(*class_values_of(read_features(path), change.get("attribute", "class"), CLASSES, (0, 1)), IMAGE)
    assert said in str(error.value)


def test_features_without_geometry_are_told_and_lists_are_no_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    square = shapely.geometry.mapping(shapely.box(0, 0, 1, 1))
    for found in ("grass", ["grass"]):
        features = [
            {"type": "Feature", "properties": {"class": found}, "geometry": geometry} for geometry in (square, None)
        ]
        (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        refused = pytest.raises(DataError, match=r"a\.geojson: the attribute 'class' holds .*\['grass'\].*`classes`")
        with nullcontext() if found == "grass" else refused:
            class_values_of(read_features(tmp_path / "a.geojson"), "class", CLASSES, (0, 1))
    assert "1 of 2 features have no geometry" in caplog.text


def test_dates_are_classes_as_they_are_written(tmp_path: Path) -> None:
    days = np.array(["2020-01-01", "NaT", "2021-06-30"], dtype="datetime64[D]")
    path = write(tmp_path / "labels.gpkg", [shapely.box(k, 0, k + 1, 1) for k in range(3)], list(days))
    values, labelled = shapes_of(path, ("2020-01-01", "2021-06-30")).burn((0, 0, 1, 3))
    assert labelled.tolist() == [[True, False, True]] and values[labelled].tolist() == [0, 1]


@pytest.mark.parametrize("values", [["ma\u0301r", None], ["már", None]])
def test_names_are_classes_however_their_letters_are_composed(tmp_path: Path, values: list[str | None]) -> None:
    path = write(tmp_path / "labels.gpkg", [shapely.box(k, 0, k + 1, 1) for k in range(2)], values)
    stored, labelled = shapes_of(path, ("grass", "már")).burn((0, 0, 1, 2))
    assert labelled.tolist() == [[True, False]] and stored[0, 0] == 1


def test_real_polygons_are_the_raster_that_was_made_of_them(shared_data: Path) -> None:
    folder = shared_data / "workflow" / "le7_etm"
    if not folder.is_dir():
        pytest.skip("needs workflow/le7_etm")
    label = raster_info(folder / "training_data.gtif")
    classes, numbers = ("forest", "water", "herbaceous", "barren", "urban"), (1, 2, 3, 4, 5)
    features = read_features(folder / "training_data.shp")
    shapes = on_grid(*class_values_of(features, "id", classes, numbers), label)
    values, labelled = shapes.burn((0, 0, label.height, label.width))
    mask = read_mask(folder / "training_data.gtif")
    assert (labelled == mask.valid[0]).mean() > 0.999
    assert (values == mask.values[0])[labelled & mask.valid[0]].all()
