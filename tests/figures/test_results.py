"""Pictures of results: the right bands and colors, readable files, no global state."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from deflect_hf.errors import DataError
from deflect_hf.figures import class_colors, prediction_panel, results
from deflect_hf.figures.colors import OKABE_ITO, composite, composites_of, paint
from deflect_hf.figures.results import confusion_figure

BANDS = ["B", "G", "R", "N", "S1"]


def pixels() -> np.ndarray:
    values = np.random.default_rng(0).uniform(0.02, 0.4, (5, 16, 20)).astype(np.float32)
    values[3, :4] = np.nan
    return values


def test_composites_pick_bands_by_name() -> None:
    values = np.zeros((5, 4, 4), dtype=np.float32)
    values[0] = 0.2  # the air alone, which is dark in the picture
    values[2, :2], values[1, :2] = 0.4, 0.1
    image = composite(values, BANDS, ("R", "G", "B"))
    assert image.shape == (4, 4, 3)
    np.testing.assert_allclose(image[0, 0], [1.0, 0.5, 0.0], atol=1e-6)
    np.testing.assert_allclose(image[2:], 0.0, atol=1e-6)
    with pytest.raises(DataError, match=r"cannot draw S2/N/R: no band \['S2'\]"):
        composite(values, BANDS, ("S2", "N", "R"))


def test_invalid_pixels_are_grey_and_do_not_set_the_stretch() -> None:
    image = composite(pixels(), BANDS, ("N", "R", "G"))
    assert (image[:4] == 0.75).all() and not (image[4:] == 0.75).all()
    assert (composite(np.full((5, 4, 4), np.nan), BANDS, ("R", "G", "B")) == 0.75).all()


def test_composites_are_what_the_bands_allow() -> None:
    assert list(composites_of(BANDS)) == ["true color R/G/B", "false color N/R/G"]
    assert composites_of(["R", "G", "N2"]) == {"false color N2/R/G": ("N2", "R", "G")}
    assert composites_of(["R", "N", "S1"]) == {"false color S1/N/R": ("S1", "N", "R")}
    assert composites_of(["S2", "R"]) == {"band S2": ("S2",) * 3}


def test_classes_have_colors_of_their_own_and_ignored_pixels_none_of_them() -> None:
    for count in (1, 2, 8, 9, 15, 22, 23, 40):
        for name in ("class {}", "water {}", "Forested Wetland {}"):
            colors = class_colors([name.format(number) for number in range(count)])
            assert colors.shape == (count, 3) and len(np.unique(colors.round(3), axis=0)) == count
    painted = paint(np.array([[0, 1, -100, 255]]), ["a", "b"])
    np.testing.assert_allclose(painted[0, :2], class_colors(["a", "b"]))
    np.testing.assert_allclose(painted[0, 2], painted[0, 3])
    np.testing.assert_allclose(paint(np.array([[1]]), ["a", "b"], [(0, 0, 0), (255, 51, 0)])[0, 0], [1, 0.2, 0])
    assert not any(np.allclose(painted[0, 2], color) for color in class_colors(["a", "b"]))


def in_hex(*classes: str) -> list[str]:
    return [to_hex(color).upper() for color in class_colors(classes)]


def test_well_known_classes_have_the_colors_of_maps() -> None:
    blue, green, red, sky = "#0072B2", "#009E73", "#D55E00", "#56B4E9"
    assert in_hex("cleared", "forest", "water") == ["#E69F00", green, blue]
    assert in_hex("Open Water", "BuiltUp", "deciduous_forest") == [blue, red, green]
    assert in_hex("Emergent Wetland", "Forested Wetland") == [sky, green]  # one of them has the first word's color
    assert blue not in in_hex("a", "b", "c", "sand", "wetter")  # that of water, before other colors are used up
    assert in_hex("no water", "non-forest", "unburnt", "paddock") == [*OKABE_ITO[:4]]


def test_files_are_pictures(tmp_path: Path) -> None:
    labels = np.random.default_rng(1).integers(-1, 3, (16, 20))
    classes = ["land", "water $\\frac{$", "$now"]  # no formulas
    full = prediction_panel(tmp_path / "a.png", pixels(), BANDS, classes, np.abs(labels), labels, "image 7")
    narrow = prediction_panel(tmp_path / "b.png", pixels()[:1], ["S1"], classes, np.abs(labels), None, "image 8")
    chip = prediction_panel(tmp_path / "c.png", pixels(), BANDS, classes, np.array(1), np.array(0), "image 9")
    matrix = confusion_figure(tmp_path / "d.png", np.array([[3, 1, 0], [0, 0, 0], [2, 0, 9]]), classes, "$_ test$")
    widths = [Image.open(path).size[0] for path in (full, narrow, chip, matrix)]
    assert widths[0] == 2 * widths[1] == 2 * widths[2] and widths[3] > 300
    assert not list(tmp_path.glob("*.partial"))


def test_a_panel_is_as_high_as_its_image(tmp_path: Path) -> None:
    heights = []
    for rows in (16, 8):
        values, labels = pixels()[:, :rows], np.zeros((rows, 20), dtype=np.float32)
        panel = prediction_panel(tmp_path / f"{rows}.png", values, BANDS, ["NDVI"], labels, labels + 1, "image")
        heights.append(Image.open(panel).size[1])
    assert heights[0] - heights[1] == round(3.0 * 110 * 8 / 20)


def test_a_scatter_spans_what_was_labelled_and_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    monkeypatch.setattr(results, "save", lambda figure, path: figures.append(figure) or path)
    counts = np.zeros((10, 10), dtype=int)
    counts[4, 5], counts[6, 4] = 4, 1  # label 40 to 50 predicted as 50 to 60, and so on
    scores = {"pairs": {"edges": np.arange(0, 101, 10), "counts": counts.tolist()}, "unit": "%"}
    results.scatter_figure(tmp_path / "a.png", scores, "burnt", "test")
    axis, bar = figures[0].axes
    assert axis.get_xlim() == axis.get_ylim() == (40, 70)
    assert not bar.get_yticklabels(minor=True)  # "4 x 10^0" between the whole numbers
