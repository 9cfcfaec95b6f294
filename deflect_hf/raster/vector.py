"""Polygons and points as labels: read from any vector file, brought to an image's pixels, burnt window by window.

pyogrio and shapely (`pip install deflect_hf[vector]`) are imported when a vector file is read.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deflect_hf.errors import DataError, data_errors, listing, named_extras, nearest
from deflect_hf.raster.georeference import is_geographic, pixels_of
from deflect_hf.raster.header import IDENTITY, Array, Box, RasterInfo
from deflect_hf.raster.local import OFFLINE, refuse_remote

logger = logging.getLogger(__name__)

SUFFIXES = (".gpkg", ".geojson", ".json", ".shp", ".fgb", ".parquet", ".geoparquet")
DRIVERS = ("GPKG", "GeoJSON", "ESRI Shapefile", "FlatGeobuf")
STRETCHES = 64  # into which the longer side of a layer is cut, so that long edges bend as their reference system does
LARGEST_ANGLE = 720.0  # of degrees or gon; metres are more
NAMED = 5  # features that a message names


def is_vector(path: str | Path) -> bool:
    """Whether a file of labels holds polygons or points, by its ending."""
    return Path(path).suffix.lower() in SUFFIXES


def need_vector() -> None:
    """Refuse to go on without the packages that read and write vector files (MissingPackageError)."""
    with named_extras():
        import pyogrio
        import shapely  # noqa: F401
    pyogrio.set_gdal_config_options(dict(OFFLINE))


@dataclass(frozen=True)
class Features:
    """The features of a layer, as the file stores them."""

    path: str
    crs: str | None
    geometries: Array  # (n,) of shapely, in the reference system ``crs`` (WKT)
    columns: Mapping[str, Array]  # (n,) values of each attribute

    def column(self, name: str, key: str) -> Array:
        """The values of an attribute that `key` of the configuration names: composed text, None where it is blank."""
        columns = {_composed(one): values for one, values in self.columns.items()}
        if name not in columns:
            raise DataError(
                f"{self.path} has no attribute {name!r}, only {listing(columns)}: correct `{key}`."
                f"{nearest(name, columns)}"
            )
        values = columns[name]
        return np.frompyfunc(_composed, 1, 1)(values) if values.dtype.kind == "O" else values

    def chosen(self, which: Array) -> Features:
        """Some of them."""
        columns = {name: values[which] for name, values in self.columns.items()}
        return Features(self.path, self.crs, self.geometries[which], columns)


def _composed(value: Any) -> Any:
    return (unicodedata.normalize("NFC", value) if value.strip() else None) if isinstance(value, str) else value


def read_features(path: str | Path, layer: str | None = None) -> Features:
    """Read a layer of a GeoPackage, GeoJSON, Shapefile, FlatGeobuf or GeoParquet file."""
    need_vector()
    import shapely

    refuse_remote(path)
    crs, wkb, columns = _from_parquet(path) if "parquet" in Path(path).suffix else _from_gdal(path, layer)
    geometries = np.asarray(shapely.from_wkb(wkb), dtype=object)
    there = ~(shapely.is_missing(geometries) | shapely.is_empty(geometries))
    endless = there & ~np.isfinite(shapely.bounds(geometries)).all(axis=1)
    if endless.any():
        raise DataError(f"{path}: feature {int(endless.argmax())} has coordinates that are not finite: draw it again.")
    invalid = there & ~shapely.is_valid(geometries)
    geometries[invalid] = shapely.make_valid(geometries[invalid])
    if not there.any():
        raise DataError(f"{path} holds no polygons or points: draw some, or take the file away.")
    if not there.all():
        logger.warning("%s: %d of %d features have no geometry, and label nothing", path, (~there).sum(), len(there))
    return Features(str(path), crs, geometries, columns).chosen(there)


def _from_gdal(path: str | Path, layer: str | None) -> tuple[str | None, Array, dict[str, Array]]:
    import pyogrio
    from pyproj import CRS

    kinds = (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, RuntimeError)
    with data_errors(f"{path} cannot be read as a vector file", "copy it again.", *kinds):
        layers = [str(name) for name, _ in pyogrio.list_layers(path)]
        if layer is None and len(layers) > 1:
            raise DataError(f"{path} has the layers {listing(layers)}: say which one, `layer`.")
        if layer is not None and layer not in layers:
            raise DataError(f"{path} has no layer {layer!r}: it has {listing(layers)}.{nearest(layer, layers)}")
        driver = pyogrio.read_info(path, layer=layer)["driver"]
        if driver not in DRIVERS:
            raise DataError(f"{path} is {driver}: give {listing(DRIVERS)} or GeoParquet.")
        found, _, wkb, values = pyogrio.raw.read(path, layer=layer)
    crs = CRS.from_user_input(found["crs"]).to_wkt() if found["crs"] else None
    return crs, wkb, {str(name): _as_text(column) for name, column in zip(found["fields"], values, strict=True)}


def _as_text(column: Array) -> Array:
    """Dates as text, as which classes are written."""
    if column.dtype.kind != "M":
        return column
    text = column.astype(str).astype(object)
    text[np.isnat(column)] = None
    return text


def _from_parquet(path: str | Path) -> tuple[str | None, Array, dict[str, Array]]:
    """GeoParquet without GDAL, whose wheels do not read it."""
    import json

    import pyarrow.parquet
    from pyproj import CRS

    kinds = (pyarrow.ArrowInvalid, KeyError, ValueError)
    with data_errors(f"{path} is no GeoParquet file", "copy it again.", *kinds):
        table = pyarrow.parquet.read_table(path)
        described = json.loads((table.schema.metadata or {})[b"geo"])
        name = described["primary_column"]
        column = described["columns"][name]
        said = column.get("crs", "OGC:CRS84")  # which it is where nothing is said; null says that it is not known
        crs = None if said is None else CRS.from_user_input(said).to_wkt()
        wkb = table[name].to_numpy()
    columns = {one: _as_text(table[one].to_numpy()) for one in table.column_names if one != name}
    return crs, wkb, columns


def write_features(path: Path, geometries: Array, columns: Mapping[str, Array], crs: str | None) -> None:
    """Write polygons (n,) with their attributes (n,) as the ending of ``path`` says, whole or not at all.

    Raises:
        DataError: it cannot be written there.
    """
    import pyogrio
    import shapely

    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    kinds = (OSError, RuntimeError, pyogrio.errors.DataSourceError)
    try:
        with data_errors(f"{path} cannot be written", "make room, or choose another folder.", *kinds):
            path.parent.mkdir(parents=True, exist_ok=True)
            pyogrio.raw.write(partial, shapely.to_wkb(geometries), list(columns.values()), list(columns),
                              geometry_type="Polygon", crs=crs, layer=path.stem)  # fmt: skip
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class Shapes:
    """Polygons and points in the pixels of an image: x counts columns, y counts rows."""

    geometries: Array
    values: Array  # (n,) what each is burnt as
    tree: Any  # finds those in a box

    def touching(self, box: Box) -> Array:
        """Numbers of those in a box, in order."""
        import shapely

        row, column, height, width = box
        return np.sort(self.tree.query(shapely.box(column, row, column + width, row + height), "intersects"))

    def burn(self, box: Box, all_touched: bool = False) -> tuple[Array, Array]:
        """(h, w) values of a box and where there are any: pixels with their middle in a polygon, or all it touches.

        Where features of two values meet in a pixel, it has none.
        """
        first, last = (self._burnt(box, backwards, all_touched) for backwards in (False, True))
        return first, (first == last) & (first != self._unlike)

    def claimed(self, box: Box, all_touched: bool = False) -> Array:
        """(h, w) where there is any feature."""
        return self._burnt(box, False, all_touched) != self._unlike

    @property
    def _unlike(self) -> int:
        """A value that no feature has."""
        return int(self.values.min(initial=0)) - 1

    def _burnt(self, box: Box, backwards: bool, all_touched: bool) -> Array:
        from rasterio import Affine
        from rasterio.features import rasterize

        row, column, height, width = box
        found = self.touching(box)
        if not len(found):
            return np.full((height, width), self._unlike, np.int32)
        order = found[::-1] if backwards else found
        burnt: Array = rasterize(
            [(self.geometries[number], int(self.values[number])) for number in order],
            out_shape=(height, width),
            fill=self._unlike,
            transform=Affine.translation(column, row),
            all_touched=all_touched,
            dtype="int32",
        )
        return burnt

    def overlaps(self) -> list[tuple[int, int]]:
        """Pairs of polygons of unlike values that share ground."""
        import shapely

        first, second = self.tree.query(self.geometries, "intersects")
        unlike = (first < second) & (self.values[first] != self.values[second])
        first, second = first[unlike], second[unlike]
        shared = shapely.area(shapely.intersection(self.geometries[first], self.geometries[second])) > 1e-3
        return list(zip(first[shared].tolist(), second[shared].tolist(), strict=True))


def on_grid(features: Features, values: Array, image: RasterInfo) -> Shapes:
    """Bring features to the pixels of an image, whatever reference system they are in; those outside are left out."""
    import shapely

    if not image.georeferenced or image.crs is None:
        raise DataError(f"{image.path} does not say where it lies, so no polygon can be laid over it: georeference it.")
    if features.crs is None:
        raise DataError(
            f"{features.path} does not say which reference system it is in: give it one "
            f"(ogr2ogr -a_srs EPSG:CODE, or a .prj file beside a Shapefile)."
        )
    west, south, east, north = shapely.total_bounds(features.geometries)
    largest = max(map(abs, (west, south, east, north)))
    if largest > LARGEST_ANGLE and is_geographic(features.crs):
        raise DataError(
            f"{features.path} has coordinates up to {largest:.0f}, but its reference system is in degrees (as that of "
            "GeoJSON without `crs` is): give it the system that they are in (ogr2ogr -a_srs EPSG:CODE NEW.gpkg OLD)."
        )
    ground = dataclasses.replace(image, path=features.path, crs=features.crs, transform=IDENTITY)
    near = _near(features, image, ground)
    west, south, east, north = shapely.total_bounds(near)
    stretch = max(east - west, north - south) / STRETCHES
    fine = shapely.segmentize(near, stretch) if stretch > 0 else near
    geometries = shapely.transform(fine, lambda at: np.stack(pixels_of(ground, image, at[:, 0], at[:, 1]), axis=1))
    inside = np.isfinite(shapely.bounds(geometries)).all(axis=1)
    inside[inside] &= shapely.intersects(geometries[inside], shapely.box(0, 0, image.width, image.height))
    geometries, values = geometries[inside], np.asarray(values)[inside]
    return Shapes(geometries, values, shapely.STRtree(geometries))


def _near(features: Features, image: RasterInfo, ground: RasterInfo) -> Array:
    """(n,) features without what lies far from an image, where its reference system may not reach; empty beyond."""
    import shapely

    columns, rows = (np.linspace(0, side, STRETCHES) for side in (image.width, image.height))
    x, y = pixels_of(image, ground, *np.meshgrid(columns, rows))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return features.geometries
    margin = max(np.ptp(x), np.ptp(y))
    part = shapely.box(x.min() - margin, y.min() - margin, x.max() + margin, y.max() + margin)
    beyond = ~shapely.covers(part, features.geometries)
    near = features.geometries.copy()
    near[beyond] = shapely.intersection(near[beyond], part)
    return near


def without_class(features: Features, attribute: str, ignored: Sequence[int] = ()) -> Array:
    """(n,) which features have no class: an empty attribute, or one of the numbers that are ignored."""
    column = features.column(attribute, "attribute")
    missing = ~np.isfinite(column) if column.dtype.kind == "f" else np.array([one is None for one in column], bool)
    return missing | np.isin(column, ignored) if column.dtype.kind in "iufb" else missing


def class_values_of(
    features: Features, attribute: str, classes: Sequence[str], values: Sequence[int], ignored: Sequence[int] = ()
) -> tuple[Features, Array]:
    """The features of a class and the stored value of it; those without any are left out.

    An attribute of text holds names of ``classes``, one of numbers the ``values`` of them.
    """
    column = features.column(attribute, "attribute")
    numeric = column.dtype.kind in "iufb"
    known = dict(zip(values if numeric else classes, values, strict=True))
    missing = without_class(features, attribute, ignored)
    features, column = features.chosen(~missing), column[~missing]
    strange = Counter(str(one) for one in column if not (isinstance(one, Hashable) and one in known))
    if strange:
        said = ", ".join(f"{name!r} ({count} features)" for name, count in strange.most_common(NAMED))
        key, names = ("class_values", map(str, values)) if numeric else ("classes", classes)
        raise DataError(
            f"{features.path}: the attribute {attribute!r} holds {said}, which `{key}` does not name: known are "
            f"{listing(map(str, known))}.{nearest(next(iter(strange)), names)} Correct it, or the file."
        )
    return features, np.array([known[one] for one in column], dtype=np.int64)
