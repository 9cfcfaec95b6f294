"""Masks on any grid and with any mark of validity: what is trained on is what rasterio finds on the ground."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform as to_system
from rasterio.warp import transform_bounds

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data.folder import load_folder
from deflect_hf.errors import DataError
from deflect_hf.raster import read_mask, write_raster

UTM = CRS.from_epsg(32632)
HEIGHT, WIDTH = 9, 12
NORTH_UP = Affine(10, 0, 500_000, 0, -10, 5_000_000)
TURNS = {
    "as stored": Affine.identity(),
    "south up": Affine(1, 0, 0, 0, -1, HEIGHT),
    "mirrored": Affine(-1, 0, WIDTH, 0, 1, 0),
    "half a turn": Affine(-1, 0, WIDTH, 0, -1, HEIGHT),
    "rows for columns": Affine(0, 1, 0, 1, 0, 0),
    "quarter of a turn": Affine(0, 1, 0, -1, 0, HEIGHT),
}
SHIFTS_M = (0.0, 0.0, 0.0, 0.4, 1.4, 10.0, 80.0, 400.0, 3000.0)
VALIDITY = ("all", "internal mask", "msk", "nodata", "alpha", "NODATA_VALUES")


def label_grid(image: Affine, generator: np.random.Generator) -> tuple[CRS, Affine, int, int]:
    """A grid on, beside, or in another system than that of the image: system, geotransform, height, width."""
    kind = generator.choice(["turned", "turned", "turned", "coarser", "finer", "other zone", "degrees"])
    shift = Affine.translation(*(generator.choice(SHIFTS_M) * generator.choice([-1, 1], 2)))
    if kind == "turned":
        name = str(generator.choice(list(TURNS)))
        height, width = (WIDTH, HEIGHT) if TURNS[name].a == 0 else (HEIGHT, WIDTH)
        return UTM, shift * image * TURNS[name], height, width
    if kind in ("coarser", "finer"):
        size = 2.0 if kind == "coarser" else 0.7137  # in pixels of the image
        return UTM, shift * image * Affine.scale(size), int(HEIGHT / size) + 1, int(WIDTH / size) + 1
    system = CRS.from_epsg(32633 if kind == "other zone" else 4326)
    corners = np.array([image * corner for corner in ((0, 0), (WIDTH, 0), (0, HEIGHT), (WIDTH, HEIGHT))])
    left, bottom, right, top = transform_bounds(UTM, system, *corners.min(axis=0), *corners.max(axis=0))
    step = 10.0 if kind == "other zone" else 1e-4
    return system, Affine(step, 0, left, 0, -step, top), int((top - bottom) / step) + 1, int((right - left) / step) + 1


def write_mask(path: Path, grid: tuple[CRS, Affine, int, int], validity: str, generator: np.random.Generator) -> None:
    system, transform, height, width = grid
    values = generator.integers(1, 4, (1, height, width)).astype(np.uint8)
    seen = np.where(generator.random((height, width)) < 0.7, 255, 0).astype(np.uint8)
    if validity in ("nodata", "NODATA_VALUES"):
        values[:, seen == 0] = 9
    profile: dict[str, Any] = {"driver": "GTiff", "dtype": "uint8", "count": 1, "height": height, "width": width}
    if validity == "alpha":
        values, profile = np.concatenate([values, seen[None]]), {**profile, "count": 2, "alpha": "yes"}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=validity == "internal mask"),
        rasterio.open(path, "w", crs=system, transform=transform, **profile) as sink,
    ):
        sink.write(values)
        if validity == "nodata":
            sink.nodata = 9
        if validity in ("internal mask", "msk"):
            sink.write_mask(seen)
        if validity == "NODATA_VALUES":
            sink.update_tags(NODATA_VALUES="9")


def on_the_ground(path: Path, image: Affine) -> tuple[np.ndarray, np.ndarray]:
    """Of rasterio alone: class ids at the middle of the image's pixels, -100 without; where these are in the mask."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].reshape(2, -1) + 0.5
    x, y = image * (columns, rows)
    with rasterio.open(path) as source:
        x, y = to_system(UTM, source.crs, x.tolist(), y.tolist())
        at = np.array(~source.transform * (np.array(x), np.array(y)))
        values, seen = source.read(1), source.dataset_mask()
        column, row = np.floor(at).astype(int)
        inside = (row >= 0) & (row < source.height) & (column >= 0) & (column < source.width)
        labels = np.full(HEIGHT * WIDTH, -100)
        found = values[row[inside], column[inside]].astype(int) - 1
        labels[inside] = np.where(seen[row[inside], column[inside]] > 0, found, -100)
    return labels.reshape(HEIGHT, WIDTH), at


def check(seed: int, root: Path) -> str:
    """Read a folder of one image and one mask; returns what became of it."""
    generator = np.random.default_rng([seed, 7])
    tilt = Affine.rotation(float(generator.choice([0, 0, 30]))) if generator.random() < 0.5 else Affine.scale(1, -1)
    image = NORTH_UP * tilt
    values = generator.integers(300, 4000, (2, HEIGHT, WIDTH)).astype(np.uint16)
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    profile = {"driver": "GTiff", "dtype": "uint16", "count": 2, "height": HEIGHT, "width": WIDTH}
    with rasterio.open(root / "images" / "a.tif", "w", crs=UTM, transform=image, **profile) as sink:
        sink.write(values)
        sink.descriptions = ("R", "N")
    grid = label_grid(image, generator)
    path = root / "masks" / "a.tif"
    write_mask(path, grid, str(generator.choice(VALIDITY)), generator)
    (root / "train.txt").write_text("a\n")
    expected, at = on_the_ground(path, image)
    off = np.abs(at - np.floor(at) - 0.5).max()
    same = off <= 0.1 and sorted(grid[2:]) == [HEIGHT, WIDTH] and (at > 0).all() and (at < [[grid[3]], [grid[2]]]).all()
    resample = bool(generator.random() < 0.5)
    given: dict[str, Any] = {"classes": ["a", "b", "c"], "class_values": [1, 2, 3], "scale": 1e-4, "val_fraction": 0.0}
    args = DatasetArguments(
        name="folder", root=str(root), label_alignment="resample" if resample else "strict", **given
    )
    if not (same or resample):
        with pytest.raises(DataError, match=r"masks/a\.tif is not on the grid of its image .*pixels \([\d.e+]+ m\)"):
            load_folder(args)
        return "refused"
    example = load_folder(args)["train"][0]
    np.testing.assert_allclose(example["pixel_values"].numpy(), values * 1e-4, rtol=1e-5)
    np.testing.assert_array_equal(example["labels"].numpy(), expected)
    return "resampled" if not same else "read"


def test_labels_are_those_on_the_ground_or_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcomes = [check(seed, tmp_path / str(seed)) for seed in range(40)]
    assert {outcome: outcomes.count(outcome) >= 5 for outcome in outcomes} == {
        "read": True, "resampled": True, "refused": True,
    }  # fmt: skip


def test_masks_that_lost_their_values_are_refused(tmp_path: Path) -> None:
    write_raster(tmp_path / "image.tif", np.ones((1, 16, 16), dtype=np.uint8))
    profile = {"dtype": "uint8", "count": 1, "height": 16, "width": 16}
    wavelets = {"driver": "JP2OpenJPEG", "QUALITY": "100"}  # without loss where reversible
    with rasterio.open(tmp_path / "a.jp2", "w", **profile, **wavelets, REVERSIBLE="YES") as sink:
        sink.write(np.eye(16, dtype=np.uint8)[None])
    assert (read_mask(tmp_path / "a.jp2").values[0] == np.eye(16)).all()
    with rasterio.open(tmp_path / "b.jp2", "w", **profile, **wavelets, REVERSIBLE="NO") as sink:
        sink.write(np.eye(16, dtype=np.uint8)[None])
    with pytest.raises(DataError, match=r"b\.jp2 is stored as lossy JPEG2000, which changes class values"):
        read_mask(tmp_path / "b.jp2")
    for name, how in (("a.png", {"driver": "JPEG"}), ("a.tif", {"driver": "GTiff", "compress": "jpeg"})):
        with rasterio.open(tmp_path / name, "w", **profile, **how) as sink:
            sink.write(np.eye(16, dtype=np.uint8)[None])
        with pytest.raises(DataError, match=rf"{name} is stored as JPEG, which changes class values"):
            read_mask(tmp_path / name)
