"""The report of a map: its areas, its text, its pictures, and what a browser makes of it."""

import base64
import io
import re
import shutil
import sys
import tracemalloc
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image

from deflect_hf.errors import BandError, DataError
from deflect_hf.figures import class_colors
from deflect_hf.inference import cli
from deflect_hf.inference.report import write_report
from deflect_hf.raster.georeference import pixel_areas
from deflect_hf.raster.maps import SQUARE
from deflect_hf.raster.read import raster_info
from deflect_hf.raster.write import write_raster
from tests.inference.browser import asked, find_browser, rendered
from tests.inference.folders import ALL_BANDS, encoder_folder, result_folder

UTM: dict[str, Any] = {"crs": "EPSG:32631", "transform": (10.0, 0.0, 5e5, 0.0, -10.0, 5e6)}
DEGREES: dict[str, Any] = {"crs": "EPSG:4326", "transform": (0.001, 0.0, 7.0, 0.0, -0.001, 50.0)}
NOWHERE: dict[str, Any] = {"crs": None, "transform": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)}
HOSTILE = "<script>document.title = 'pwned'</script>"
CLASSES = ("land & lake", HOSTILE, '"><img src=x onerror="document.title=1">', "never seen")


def write(path: Path, values: np.ndarray, where: dict[str, Any], **options: Any) -> Path:
    """(C, H, W) values with a georeference."""
    plain = path.with_name(f"plain-{path.name}")
    write_raster(plain, values, **options)
    write_raster(path, values, like=replace(raster_info(plain), **where), **options)
    plain.unlink()
    return path


def class_map(height: int = 40, width: int = 60) -> np.ndarray:
    """(1, H, W): half class 0, a quarter class 1, the rest class 2, but for 100 pixels of no data."""
    values = np.zeros((1, height, width), dtype=np.uint8)
    values[:, height // 2 :] = 1
    values[:, height // 2 :, width // 2 :] = 2
    values[:, :10, :10] = 255
    return values


@pytest.fixture
def scene(tmp_path: Path) -> tuple[Path, Path]:
    """A map in UTM, and the image that it is of."""
    values = np.random.default_rng(0).integers(500, 3000, (4, 40, 60)).astype(np.uint16)
    values[:, :10, :10] = 0
    source = write(tmp_path / "scene.tif", values, UTM, nodata=0, descriptions=("B", "G", "R", "N"))
    return write(tmp_path / "map.tif", class_map(), UTM, nodata=255, descriptions=("class",)), source


class Reader(HTMLParser):
    """Tags with their attributes, and the text of each cell of the tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[str]] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.cells.append([])
        elif tag in ("th", "td"):
            self.cells[-1].append("")

        self.inside = self.inside or tag in ("th", "td")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells[-1][-1] += data.strip()


def read(page: Path) -> Reader:
    return Reader(page.read_text(encoding="utf-8"))


def pictures(page: Path) -> list[Image.Image]:
    found = [attributes["src"] or "" for tag, attributes in read(page).tags if tag == "img"]
    return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in found]


def test_areas_in_hectares_and_shares(scene: tuple[Path, Path], tmp_path: Path) -> None:
    page = write_report(tmp_path / "report.html", *scene, CLASSES, facts=(("Model", "work-dir/RUN"),))
    cells = read(page).cells
    assert cells[:7] == [
        ["Class", "Area (ha)", "Share of the mapped area", ""],
        [CLASSES[0], "11.00", "47.83 %", ""],
        [CLASSES[1], "6.00", "26.09 %", ""],
        [CLASSES[2], "6.00", "26.09 %", ""],
        ["never seen", "0.00", "0.00 %", ""],
        ["no data", "1.00", "4.17 % of the scene", ""],
        ["scene", "24.00", "", ""],
    ]
    facts = dict(cells[7:])
    assert facts["Model"] == "work-dir/RUN"
    assert facts["Size"] == "40 x 60 pixels (height x width)"
    assert facts["Reference system"] == "EPSG:32631, upper left 500000, 5000000"
    assert facts["Picture"] == "true color R/G/B, stretched from the 2nd to the 98th percentile of each band"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", facts["Date"])
    assert facts["Versions"].startswith("Python 3.") and "torch " in facts["Versions"]
    text = page.read_text()
    assert "Areas are those of the map: pixels of 10 m in EPSG:32631." in text
    assert '<div class="bar" style="width:16.667%"></div><div class="barlabel">100 m</div>' in text


def test_areas_are_corrected_by_what_the_model_confuses(scene: tuple[Path, Path], tmp_path: Path) -> None:
    matrix = np.diag([40, 30, 30, 5])
    matrix[0, 1] = 10  # of the 40 pixels that are mapped as the second class, 10 are of the first
    page = write_report(tmp_path / "report.html", *scene, CLASSES, confusion=("test", matrix.tolist()))
    cells = read(page).cells
    assert cells[0][:3] == ["Class", "Area (ha)", "Estimated (ha)"]
    assert [row[2] for row in cells[1:7]] == ["12.50 ± 0.815", "4.50 ± 0.815", "6.00", "0.00", "", ""]
    assert (
        "Without an interval: classes that the split does not hold, or that it confuses with no other"
        in page.read_text()
    )
    write_report(page, *scene, CLASSES, confusion=("test", np.diag([40, 30, 1, 5]).tolist()))
    assert "Areas are not corrected for errors: too few" in page.read_text()
    write_report(page, *scene, CLASSES, confusion=("test", np.diag([40, 30, 30, 5]).tolist()))  # no interval of 0
    assert "none of the 105 pixels of the test split is mapped wrongly" in page.read_text()


def test_areas_in_degrees_are_those_on_the_ellipsoid(scene: tuple[Path, Path], tmp_path: Path) -> None:
    prediction = write(tmp_path / "degrees.tif", class_map(), DEGREES, nodata=255)
    page = write_report(tmp_path / "report.html", prediction, scene[1], CLASSES)
    rows = pixel_areas(raster_info(prediction)).rows_m2
    hectares = (60 * rows[:20].sum() - 10 * rows[:10].sum()) / 1e4
    assert read(page).cells[1][1] == f"{hectares:,.2f}"
    assert "Areas by latitude on the ellipsoid of EPSG:4326: " in page.read_text()


def test_without_a_georeference_areas_are_pixels(scene: tuple[Path, Path], tmp_path: Path) -> None:
    prediction = write(tmp_path / "plain.tif", class_map(), NOWHERE, nodata=255)
    page = write_report(tmp_path / "report.html", prediction, scene[1], CLASSES)
    cells = read(page).cells
    assert cells[0][1] == "Area (pixels)"
    assert [row[1] for row in cells[1:7]] == ["1,100", "600", "600", "0", "100", "2,400"]
    assert "The file has no georeference: areas are in pixels." in page.read_text()
    assert 'class="bar"' not in page.read_text()


def test_every_pixel_is_counted_once(tmp_path: Path) -> None:
    values = np.random.default_rng(0).choice([0, 1, 2, 255], (1, SQUARE + 300, SQUARE + 1)).astype(np.uint8)
    path = write(tmp_path / "map.tif", values, NOWHERE, nodata=255)
    source = write(tmp_path / "in.tif", values + 1, NOWHERE, descriptions=("N",))
    cells = read(write_report(tmp_path / "report.html", path, source, ("a", "b", "c"))).cells
    assert [row[1] for row in cells[1:5]] == [f"{(values == value).sum():,}" for value in (0, 1, 2, 255)]


def test_a_map_of_nodata_alone_has_a_report(scene: tuple[Path, Path], tmp_path: Path) -> None:
    nothing = write(tmp_path / "nothing.tif", np.full((1, 40, 60), 255, dtype=np.uint8), UTM, nodata=255)
    cells = read(write_report(tmp_path / "report.html", nothing, scene[1], ("a", "b"))).cells
    assert cells[1][1:3] == ["0.00", "0.00 %"]
    assert cells[3][:3] == ["no data", "24.00", "100.00 % of the scene"]


def test_the_pictures_show_the_scene_and_the_classes(scene: tuple[Path, Path], tmp_path: Path) -> None:
    picture, overlay = pictures(write_report(tmp_path / "report.html", *scene, CLASSES))
    assert picture.size == overlay.size == (60, 40)
    colors = (class_colors(CLASSES) * 255).round().astype(int).tolist()
    seen = overlay.convert("RGBA")
    assert seen.getpixel((30, 5)) == (*colors[0], 255)
    assert seen.getpixel((5, 35)) == (*colors[1], 255)
    assert seen.getpixel((55, 35)) == (*colors[2], 255)
    assert seen.getpixel((5, 5))[3] == 0  # no data: the picture shows through
    assert all(abs(part - 191) < 8 for part in picture.convert("RGB").getpixel((4, 4)))  # nothing measured: grey


def test_a_scene_without_red_green_blue_and_one_that_does_not_name_its_bands(
    scene: tuple[Path, Path], tmp_path: Path
) -> None:
    prediction, source = scene
    with rasterio.open(source) as opened:
        values = opened.read()
    radar = write(tmp_path / "radar.tif", values[:2], UTM, descriptions=("S1", "S2"))
    text = write_report(tmp_path / "radar.html", prediction, radar, CLASSES).read_text()
    assert "radar.tif, band S1" in text
    unnamed = write(tmp_path / "unnamed.tif", values, UTM)
    with pytest.raises(BandError, match=r"unnamed\.tif does not name its 4 band\(s\)"):
        write_report(tmp_path / "unnamed.html", prediction, unnamed, CLASSES)
    reading = {"source_bands": ["B", "G", "R", "N"], "nodata": [0]}
    text = write_report(tmp_path / "unnamed.html", prediction, unnamed, CLASSES, reading=reading).read_text()
    assert "unnamed.tif, true color R/G/B" in text


def test_nothing_is_loaded_and_no_text_becomes_markup(scene: tuple[Path, Path], tmp_path: Path) -> None:
    prediction, source = scene
    hostile = tmp_path / "<script>alert('x')<" / "a&b<i>.tif"
    hostile.parent.mkdir()
    shutil.copy(source, hostile)
    words = "x odd\udcff.tif --note 'https://example.org/'"  # file names need not be text
    facts = (("Adapter", f"work-dir/{HOSTILE}"), ("Command line", words))
    page = write_report(tmp_path / "report.html", prediction, hostile, CLASSES, facts=facts)
    tags = read(page).tags
    assert [tag for tag, _ in tags if tag in ("script", "img", "i", "link", "iframe")] == ["img", "img", "script"]
    for tag, attributes in tags:
        assert not set(attributes) & {"href", "srcset", "onerror", "onload", "onclick"}, tag
        assert (attributes.get("src") or "data:image/").startswith("data:image/")
    assert read(page).cells[2][0] == HOSTILE
    assert ["Command line", words.replace("\udcff", "?")] in read(page).cells
    assert "url(" not in page.read_text() and "@import" not in page.read_text()


def test_maps_that_do_not_fit_are_refused(scene: tuple[Path, Path], tmp_path: Path) -> None:
    prediction, source = scene
    page = tmp_path / "report.html"
    page.write_text("the old one")
    with pytest.raises(DataError, match=r"map\.tif holds the value 2, but the model has 2 classes, 0 to 1: give the m"):
        write_report(page, prediction, source, ("a", "b"))
    other = write(tmp_path / "other.tif", class_map(20, 60), UTM, nodata=255)
    with pytest.raises(DataError, match=r"other\.tif has 20 x 60 pixels, but .*scene\.tif has 40 x 60: give the scene"):
        write_report(page, other, source, CLASSES)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/report\.html cannot be written"):
        write_report(tmp_path / "file" / "report.html", prediction, source, CLASSES)
    assert page.read_text() == "the old one"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def peak_bytes(folder: Path, side: int) -> int:
    """Memory of Python and numpy that a report of side x side pixels takes at most."""
    values = np.zeros((3, side, side), dtype=np.uint16)
    source = write(folder / "scene.tif", values, UTM, descriptions=("R", "G", "B"))
    prediction = write(folder / "map.tif", np.zeros((1, side, side), dtype=np.uint8), UTM, nodata=255)
    tracemalloc.start()
    write_report(folder / "report.html", prediction, source, ("a",))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_scene(scene: tuple[Path, Path], tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", *scene, CLASSES)  # imports
    small, large = peak_bytes(tmp_path, 1100), peak_bytes(tmp_path, 2200)
    assert large < 1.2 * small  # of the larger scene there are 29 MB
    assert [picture.size for picture in pictures(tmp_path / "report.html")] == [(1024, 1024), (1024, 1024)]


PROBE = """
const box = id => { const b = document.getElementById(id).getBoundingClientRect(); return [b.left, b.top, b.width]; };
const shown = () => ({ picture: box("picture"), map: box("map"), opacity: getComputedStyle(map).opacity });
const found = { sizes: [...document.images].map(image => image.naturalWidth), percent: percent.textContent };
found.over = shown();
opacity.value = 30; opacity.dispatchEvent(new Event("input")); found.faded = shown(); found.now = percent.textContent;
beside.click(); found.beside = shown();
found.keys = [...document.querySelectorAll("#areas .key")].map(key => getComputedStyle(key).backgroundColor);
found.wide = document.documentElement.scrollWidth <= window.innerWidth;
return found;
"""


def test_a_browser_shows_pictures_slider_and_legend(scene: tuple[Path, Path], tmp_path: Path) -> None:
    browser = find_browser()
    page = write_report(tmp_path / "report.html", *scene, CLASSES)
    script = PROBE
    for name in ("map", "percent", "opacity", "beside"):
        script = f"const {name} = document.getElementById('{name}');\n" + script
    found = asked(browser, page, tmp_path, script.replace("const map", "var map", 1))
    assert found["sizes"] == [60, 60]
    assert found["percent"] == "70 %" and found["over"]["opacity"] == "0.7"
    assert found["over"]["map"] == found["over"]["picture"] and found["over"]["map"][2] > 500
    assert found["now"] == "30 %" and found["faded"]["opacity"] == "0.3"
    left, right = found["beside"]["picture"], found["beside"]["map"]
    assert right[0] > left[0] + left[2] and right[1] == left[1] and found["beside"]["opacity"] == "1"
    rgb = [
        f"rgb({red}, {green}, {blue})"
        for red, green, blue in (class_colors(CLASSES) * 255).round().astype(int).tolist()
    ]
    assert found["keys"][:4] == rgb
    assert found["wide"]


def test_a_browser_runs_no_script_but_the_pages_own(scene: tuple[Path, Path], tmp_path: Path) -> None:
    browser = find_browser()
    text = write_report(tmp_path / "report.html", *scene, CLASSES).read_text()
    broken = tmp_path / "broken.html"  # even where escaping failed, the policy would hold
    broken.write_text(text.replace("<h1>", f"{HOSTILE}<h1>", 1))
    dom = rendered(browser, broken, tmp_path / "profile")
    assert "<title>scene.tif - map</title>" in dom
    assert '<output id="percent">70 %</output>' in dom  # its own has run


def test_the_command_line_writes_a_report_beside_the_map(tmp_path: Path, monkeypatch, capsys, caplog) -> None:
    encoder = encoder_folder(tmp_path / "encoder")
    result_folder(tmp_path / "run" / "best", encoder, crop=16, aux_dim=8, rank=2)
    (tmp_path / "run" / "best" / "results.json").write_text('{"test": {"confusion_matrix": [[30, 10], [0, 20]]}}')
    values = np.random.default_rng(0).random((len(ALL_BANDS) + 1, 24, 40), dtype=np.float32) * 0.4
    source = write(tmp_path / "scene.tif", values, UTM, nodata=float("nan"), descriptions=[*ALL_BANDS, "WV"])
    words = ["deflect-predict", str(source), str(tmp_path / "out.tif"), "--adapter", str(tmp_path / "run"), "--report"]
    words += ["--output", "confidence"]
    monkeypatch.setattr("sys.argv", words)
    cli.main()
    assert f"{tmp_path}/out.html: picture, map and areas" in capsys.readouterr().out
    assert caplog.text.count("band(s) 'WV' are unknown to the model and are ignored") == 1
    facts = dict(row for row in read(tmp_path / "out.html").cells if len(row) == 2)
    assert facts["Command line"] == " ".join(words)
    assert facts["Scores"].startswith("test split, 60 labelled pixels: accuracy 0.833, mIoU 0.708 (")
    assert facts["Method"] == "DEFLECT" and facts["Base encoder"] == str(encoder)
    assert facts["Bands"] == "B, G, R, N, S1, S2, in reflectance"
    assert facts["Model"] == str(tmp_path / "run") and facts["Confidence"] == "not calibrated"
    with rasterio.open(tmp_path / "out.tif") as made:
        water = (made.read(1) == 1).sum()
    assert read(tmp_path / "out.html").cells[2][:2] == ["water", f"{water / 100:,.2f}"]
    (tmp_path / "out.tif").unlink()
    with pytest.raises(SystemExit):
        cli.main()
    assert "out.html is there already: replace it with --overwrite." in capsys.readouterr().err
    (tmp_path / "mine.html").write_text("mine")
    monkeypatch.setattr("sys.argv", [str(tmp_path / "mine.tif") if "out.tif" in word else word for word in words])
    with pytest.raises(SystemExit):
        cli.main([*sys.argv[1:], "--overwrite"])
    assert "mine.html': not written by deflect_hf, and not replaced" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [*words, "--output", "probabilities"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "--report shows a map of classes: leave out --output probabilities, or --report" in capsys.readouterr().err
