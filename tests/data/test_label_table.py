"""Labels of whole images in a CSV: what is read, and what is refused by its place."""

import math
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data.folder import load_folder
from deflect_hf.data.label_table import class_labels, class_names, number_of, read_table
from deflect_hf.errors import DataError, DeflectError
from deflect_hf.raster.write import write_raster


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


def test_classes_as_columns_and_as_a_list(tmp_path: Path) -> None:
    table, columns = read_table(write(tmp_path / "a.csv", "name,sea,marsh", "one.tif,1,0", "two.v2,,1"))
    assert class_names(table, columns) == ["sea", "marsh"] and list(table) == ["one", "two.v2"]
    assert class_labels(table["one"], ["marsh", "sea"], "here") == [0.0, 1.0]
    assert math.isnan(class_labels(table["two.v2"], ["sea"], "here")[0])
    table, columns = read_table(write(tmp_path / "c.csv", "name,sea,marsh", "one,True,FALSE"))
    assert class_labels(table["one"], columns, "here") == [1.0, 0.0]
    table, columns = read_table(write(tmp_path / "b.csv", "name,labels", "one,sea; marsh", "two,"))
    assert class_names(table, columns) == ["marsh", "sea"]
    assert [class_labels(row, ["sea", "marsh"], "here") for row in table.values()] == [[1.0, 1.0], [0.0, 0.0]]


def test_a_list_of_classes_stands_beside_other_columns(tmp_path: Path) -> None:
    table, columns = read_table(write(tmp_path / "a.csv", "name,label,labels", "one,x,sea;marsh", "two,y,"))
    assert class_names(table, columns) == ["marsh", "sea"]
    table, columns = read_table(write(tmp_path / "b.csv", "name,sea,labels", "one,1,0", "two,0,True"))
    assert class_names(table, columns) == ["sea", "labels"]  # which is a class here
    table, _ = read_table(write(tmp_path / "c.csv", "name,sea,marsh,labels", "one,1,0,sea", "two,0,1,"))
    assert class_labels(table["one"], ["sea", "marsh"], "here") == [1.0, 0.0]
    with pytest.raises(DataError, match="here: the column 'labels' holds '', but the column 'marsh' '1': correct"):
        class_labels(table["two"], ["sea", "marsh"], "here")


def test_names_are_composed_as_macos_does_not_write_them(tmp_path: Path) -> None:
    table, columns = read_table(
        write(tmp_path / "a.csv", "name,fore\N{COMBINING CIRCUMFLEX ACCENT}t,kind", "a,1,e\u0301")
    )
    assert (columns, table) == (["forêt", "kind"], {"a": {"forêt": "1", "kind": "é"}})


def test_semicolons_or_tabs_between_the_cells_and_programs_words_for_empty_ones(tmp_path: Path) -> None:
    table, columns = read_table(
        write(tmp_path / "a.csv", "name;class;height", 'one.tif;"sea;marsh";1.5', "two;land;NA")
    )
    assert columns == ["class", "height"]
    assert table["one"] == {"class": "sea;marsh", "height": "1.5"}
    assert read_table(write(tmp_path / "b.csv", "name\tlabels", "one\tsea;marsh"))[0] == {
        "one": {"labels": "sea;marsh"}
    }
    assert math.isnan(number_of(table["two"]["height"], "here"))


def test_a_parquet_table_is_read_as_the_same_csv(tmp_path: Path) -> None:
    columns = {"name": ["one.tif", "two"], "sea": [True, None], "marsh": [0.0, 1.0], "height": [1.5, math.nan],
               "labels": [["sea", "marsh"], []], "year": [2019, 2020]}  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    lines = ("name,sea,marsh,height,labels,year", "one.tif,1,0,1.5,sea;marsh,2019", "two,,1,,,2020")
    assert read_table(tmp_path / "a.parquet") == read_table(write(tmp_path / "a.csv", *lines))
    write(tmp_path / "b.parquet", "name,sea")
    with pytest.raises(DataError, match=r"b\.parquet is no Parquet file \(.*\): write it again"):
        read_table(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (("name,a,b", "00,1,0"), {}, r"labels\.csv has no row for 2 of 3 images, first '01', '02'"),
        (
            (",name,a", "0,00,1", "1,01,0"),
            {"target": "a"},
            r"its first column, the names of images, begins with '0', '1': put the names first \(pandas",
        ),
        (("name,a", "00,x", "01,", "02,y"), {"task": "classification"}, r"'' is none of 'x', 'y'\. Take images"),
        (
            ("name,a", "00,0", "01,1", "02,0"),
            {"task": "classification", "classes": ["x", "y"]},
            "'0' .* `class_values: ",
        ),
        (("name;a", "00;1,5", "01;2", "02;3"), {"task": "regression"}, "00 holds '1,5', which is no number; write 1.5"),
        (
            ("name,class", "00,sea", "01,Sea", r"images\02.tif,land"),
            {"task": "classification"},
            r"the classes 'Sea' and 'sea' differ in case, spaces",
        ),
        (("name,a,b", "00,1,0", "01,2,0", "02,0,1"), {}, r"labels\.csv, 01, column 'a' holds '2': write 1 for a class"),
        (
            ("name,a,b", "00,1,0", "01,x,0", "02,0,1"),
            {},
            r"01, column 'a' holds 'x': write .*; `classes` names the columns",
        ),
        (("name,a,b", "00,1,0", "01,1", "02,0,1"), {}, r"row 3 has 2 cells instead of 3"),
        (("name,a,b", "00,1,0", "00.tif,1,0"), {}, r"'00' has two rows"),
        (("name,labels", "00,sea", "01,see", "02,"), {"classes": ["sea", "land"]}, r"'see' is none of .*'sea'\?"),
        (("name,a", "00,1", "01,0", "02,0"), {}, r"the classes 'a': at least two are needed"),
        (("name,a,b", "00,1,0"), {"label_table": "other.csv"}, r"other\.csv is not there: write a CSV"),
        (("name,a,b", "00,1,2", "01,1,2", "02,1,2"), {"task": "regression"}, r"columns 'a', 'b': name the one to"),
        (
            ("name,labels", "00,x", '01,"x,y"', "02,y"),
            {"task": "multi_label"},
            r"holds 'x,y', part of which is a class",
        ),
        (
            ("name,labels", "00,x|y", "01,x|z", "02,y"),
            {"task": "multi_label"},
            r"holds 'x\|y', part of which is a class",
        ),
        (
            ("name,labels", "00,sea|reed", "01,sea|marsh", "02,sand"),
            {"task": "multi_label"},
            r"holds 'sea\|marsh', part of which .* as it seems: separate .* by ';'",
        ),
        (("name,a", "00,1", "01,1.0", "02,2"), {"task": "classification"}, r"classes '1' and '1\.0' differ in case"),
        (("name,a", "00,1", "01,1_3", "02,2"), {"task": "regression"}, r"01 holds '1_3', which is no number"),
        (("name,a", "00,1", "01,inf", "02,2"), {"task": "regression"}, r"01 holds 'inf': leave it empty"),
    ],
)
def test_tables_that_do_not_fit_are_refused(
    lines: tuple[str, ...], options: dict, message: str, tmp_path: Path
) -> None:
    for name in ("00", "01", "02"):
        write_raster(tmp_path / "images" / f"{name}.tif", np.full((3, 8, 8), 0.1, np.float32), descriptions=list("RGB"))
    write(tmp_path / "labels.csv", *lines)
    with pytest.raises(DeflectError, match=message):
        load_folder(DatasetArguments(**{"name": "folder", "root": str(tmp_path), "task": "multi_label", **options}))


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ("sea,train sea,train land,test land,", "the column 'use' says which split an image is in, and is not read"),
        ("sea,train sea,north land,test land,", ""),
        ("sea,1 sea,2 land,3 land,4 land,5", "1 of 5 rows have no image, such as '4'"),
        ("sea,1 sea,2 nan,3 nan,4", "'nan' is a class, but tables mostly mean by it that a label is not known"),
    ],
)
def test_what_a_table_seems_to_say_is_told(
    cells: str, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        write_raster(tmp_path / f"images/{number}.tif", np.full((3, 8, 8), 0.1, np.float32), descriptions=list("RGB"))
    write(tmp_path / "labels.csv", "name,class,use", *(f"{k},{row}" for k, row in enumerate(cells.split())))
    options = {"task": "classification", "target": "class", "val_fraction": 0.4, "test_fraction": 0.0}
    load_folder(DatasetArguments(name="folder", root=str(tmp_path), **options))
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said in "".join(warned) and bool(said) == any("labels.csv" in one for one in warned)


def test_whole_numbers_stand_for_classes_as_pandas_writes_them_beside_empty_cells(tmp_path: Path) -> None:
    for name in ("00", "01"):
        write_raster(tmp_path / "images" / f"{name}.tif", np.full((3, 8, 8), 0.1, np.float32), descriptions=list("RGB"))
    write(tmp_path / "labels.csv", "name,kind,use", "00,2.0,train", "01,1,train")
    said = {"task": "classification", "target": "kind", "split_column": "use", "val_fraction": 0.0}
    args = DatasetArguments(name="folder", root=str(tmp_path), classes=["land", "sea"], class_values=[1, 2], **said)
    assert [example["labels"] for example in load_folder(args)["train"]] == [1, 0]


def test_masks_of_numbers_keep_their_scale_and_what_is_not_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import rasterio

    for name in ("00", "01", "02"):
        write_raster(tmp_path / "images" / f"{name}.tif", np.full((3, 8, 8), 0.1, np.float32), descriptions=list("RGB"))
        values = np.full((1, 8, 8), 250, np.int16)
        values[0, 0, :2] = -1, 7
        write_raster(tmp_path / "masks" / f"{name}.tif", values, nodata=-1)
        with rasterio.open(tmp_path / "masks" / f"{name}.tif", "r+") as mask:
            mask.scales, mask.offsets = [0.1], [5.0]
    options = {"name": "folder", "root": str(tmp_path), "task": "pixel_regression", "target": "height"}
    labels = load_folder(DatasetArguments(**options))["train"][0]["labels"]
    assert labels.dtype == torch.float32 and bool(labels[0, 0].isnan()) and float(labels[0, 1]) == pytest.approx(5.7)
    assert bool((labels[1:] == 30.0).all())
    assert "unlike the others" not in caplog.text
    write_raster(tmp_path / "masks" / "02.tif", values, nodata=-1)
    load_folder(DatasetArguments(**options))
    assert "1 of 3 masks have neither a scale nor an offset tag, unlike the others: 02.tif" in caplog.text
    for name in ("00", "01", "02"):
        write_raster(tmp_path / "masks" / f"{name}.tif", np.full((1, 8, 8), -3.4028235e38, np.float32))
    with pytest.raises(DataError, match=r"\.tif holds -3\.402823e\+38, which is no value of a regression"):
        load_folder(DatasetArguments(**options))["train"][0]


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"x\.csv is no CSV in UTF-8"):
        read_table(tmp_path / "x.csv")
