"""The guide's "your own scene and polygons" does what it says: its file and its commands are run."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from deflect_hf import cli
from deflect_hf.figures import __main__ as figures
from deflect_hf.inference import cli as inference
from deflect_hf.raster import write_raster
from deflect_hf.raster.header import RasterInfo

pyogrio = pytest.importorskip("pyogrio")
pytest.importorskip("shapely")

SIDE, BANDS = 320, ("B", "G", "R", "N")
TINY = """encoder: {random: {model_type: vit, image_size: 64, patch_size: 16, hidden_size: 16, num_hidden_layers: 1,
  num_attention_heads: 2, intermediate_size: 32}}
epochs: 1
num_workers: 0
batch_size: 4
"""


def blocks(language: str) -> list[str]:
    text = (Path(__file__).resolve().parents[1] / "docs" / "guide.md").read_text(encoding="utf-8")
    part = re.split(r"^## ", text.split("## Your own scene and polygons\n")[1], flags=re.MULTILINE)[0]
    return re.findall(rf"^```{language}\n(.*?)^```", part, flags=re.MULTILINE | re.DOTALL)


def write_scene(folder: Path) -> None:
    """A scene of 3.2 km, left dark and right bright, and squares on it, in longitude and latitude."""
    values = np.random.default_rng(0).integers(300, 900, (4, SIDE, SIDE)).astype(np.uint16)
    values[:, :, SIDE // 2 :] += 2000
    info = RasterInfo("", 4, SIDE, SIDE, "uint16", BANDS, (1.0,) * 4, (0.0,) * 4, (None,) * 4, "EPSG:32633",
                      (10.0, 0.0, 5e5, 0.0, -10.0, 5e6), 10.0)  # fmt: skip
    write_raster(folder / "scene.tif", values.astype(np.float32) / 1e4, like=info, descriptions=BANDS)
    features = []
    for south in np.arange(45.126, 45.150, 0.005):
        for west, name in ((15.002, "field"), (15.012, "field"), (15.024, "sand"), (15.034, "sand")):
            ring = [[west, south], [west + 0.002, south], [west + 0.002, south + 0.002], [west, south]]
            features.append({"type": "Feature", "properties": {"class": name},
                             "geometry": {"type": "Polygon", "coordinates": [ring]}})  # fmt: skip
    (folder / "polygons.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def test_a_scene_and_polygons_become_a_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scene(tmp_path)
    (said,), (commands,) = blocks("yaml"), blocks("bash")
    encoder = next(line for line in said.splitlines() if line.startswith("encoder:"))
    (tmp_path / "scene.yaml").write_text(said.replace(encoder + "\n", TINY), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for command in commands.strip().splitlines():
        program, *words = shlex.split(command)
        {"deflect-train": cli.train, "deflect-predict": inference.main}[program](words)
    figures.main(["dataset", "--dataset_config", "scene.yaml", "--output", "pictures"])
    assert Path("pictures/splits.png").stat().st_size > 1000
    found, _, outlines, fields = pyogrio.raw.read("map.gpkg")
    assert list(found["fields"]) == ["class", "value", "pixels", "confidence", "area_ha"]
    assert len(outlines) and set(fields[0]) <= {"field", "sand"} and fields[2].sum() == SIDE**2
    report = Path("map.html").read_text(encoding="utf-8")
    assert "Estimated" in report or "mapped wrongly" in report or len(set(fields[0])) == 1
    assert {Path(name).exists() for name in ("run/splits.gpkg", "map.qml", "map.tif.aux.xml")} == {True}
