"""Addresses: read by windows where the user writes them, refused where a file names them."""

import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from deflect_hf.errors import ConfigError, DataError, DeflectError
from deflect_hf.raster.products import Product
from deflect_hf.raster.read import open_raster, raster_info, read_raster
from tests.data.web import FileServer, serving

SIDE = 512
VALUES = np.random.default_rng(0).integers(1, 8000, (2, SIDE, SIDE), dtype=np.uint16)


@pytest.fixture(scope="module")
def cog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bands in tiles, 900 kB."""
    return write(tmp_path_factory.mktemp("cog") / "scene.tif", VALUES, ("R", "N"))


def write(path: Path, values: np.ndarray, names: tuple[str, ...] = ("",)) -> Path:
    count, height, width = values.shape
    place = rasterio.transform.from_origin(500_000, 5_400_000, 10, 10)
    kept = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    with rasterio.open(path, "w", driver="GTiff", count=count, height=height, width=width, dtype=values.dtype,
                       crs="EPSG:32632", transform=place, **kept) as sink:  # fmt: skip
        sink.write(values)
        sink.descriptions = names
    return path


@pytest.fixture
def web(cog: Path) -> Iterator[FileServer]:
    with serving({}, ranges=True) as server:
        server.files["/a/scene.tif"] = cog.read_bytes()
        yield server


def written(path: str, **said: Any) -> Product:
    return Product(path, written=True, **said)


def test_a_cog_is_read_by_windows(web: FileServer, cog: Path) -> None:
    with open_raster(written(f"{web.url}/a/scene.tif?token=1")) as file:
        raster = read_raster(file, ["N"], window=(70, 70, 50, 50))
        np.testing.assert_array_equal(raster.values[0], VALUES[1, 70:120, 70:120])
        assert raster.info.path == f"{web.url}/a/scene.tif?token=1"
    assert web.sent < cog.stat().st_size / 3
    assert set(web.seen) == {"/a/scene.tif"}  # no list of the folder, no masks or overviews beside it


def stores(web: FileServer) -> dict[str, dict[str, str]]:
    """What tells GDAL that a store is the server of this test."""
    account = f"AccountName=x;AccountKey=a2V5;BlobEndpoint={web.url}"
    return {
        "s3": {"AWS_S3_ENDPOINT": web.host, "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE",
               "AWS_NO_SIGN_REQUEST": "YES"},
        "gs": {"CPL_GS_ENDPOINT": f"{web.url}/", "GS_NO_SIGN_REQUEST": "YES"},
        "az": {"AZURE_STORAGE_CONNECTION_STRING": f"DefaultEndpointsProtocol=http;{account}"},
    }  # fmt: skip


@pytest.mark.parametrize("store", ["s3", "gs", "az"])
def test_stores(store: str, web: FileServer, cog: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in stores(web)[store].items():
        monkeypatch.setenv(key, value)
    for address in (f"{store}://a/scene.tif", f"/vsi{store}/a/scene.tif"):
        np.testing.assert_array_equal(read_raster(written(address), window=(0, 0, 9, 9)).values, VALUES[:, :9, :9])
        with pytest.raises(DataError, match="only files on disk are read"):
            raster_info(Product(address))
    assert 0 < web.sent < cog.stat().st_size
    with pytest.raises(DataError, match=f"^{store}://a/none.tif cannot be opened"):
        raster_info(written(f"{store}://a/none.tif"))


def test_archives(web: FileServer, cog: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(cog, "in/scene.tif")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(cog, "in/scene.tif")
    web.files["/a/a.zip"] = (tmp_path / "a.zip").read_bytes()
    for address in (f"/vsicurl/{web.url}/a/scene.tif",
                    f"/vsizip/{tmp_path}/a.zip/in/scene.tif", f"/vsitar/{tmp_path}/a.tar/in/scene.tif",
                    f"/vsizip/vsicurl/{web.url}/a/a.zip/in/scene.tif"):  # fmt: skip
        np.testing.assert_array_equal(read_raster(written(address), window=(0, 0, 9, 9)).values, VALUES[:, :9, :9])
        with pytest.raises(DataError, match="only files on disk are read"):
            raster_info(Product(address))


def virtual(source: str) -> bytes:
    """A VRT of 8 x 8 pixels."""
    return (
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        f"<SourceFilename>{source}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    ).encode()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.tif", None, "404"),
        ("text.tif", lambda _, __: b"<html>Please log in</html>" * 99, "not recognized"),
        ("other.tif", lambda url, _: virtual(f"/vsicurl/{url}/a/scene.tif"), "not recognized"),
        ("local.vrt", lambda _, cog: virtual(str(cog)), "not recognized"),
        ("item.json", None, "404"),
        ("text.json", lambda _, __: b"<html>", "no STAC item"),
    ],
)
def test_what_is_no_raster_is_refused_by_its_address(
    name: str, content: Callable[[str, Path], bytes] | None, reason: str, web: FileServer, cog: Path
) -> None:
    if content is not None:
        web.files[f"/a/{name}"] = content(web.url, cog)
    with pytest.raises(DataError) as caught:
        raster_info(written(f"{web.url}/a/{name}"))
    message = str(caught.value)
    assert message.startswith(f"{web.url}/a/{name} ") and reason in message and message.count("\n") == 0
    assert set(web.seen) == {f"/a/{name}"}


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/x.tif", "http://127.0.0.1:9/x.json"])
def test_a_server_that_is_not_there(address: str) -> None:
    with pytest.raises(DataError, match=rf"^{address} cannot be .* check the address"):
        raster_info(written(address))


@pytest.mark.parametrize("address", ["ftp://host/x.tif", "/vsistdin/", "/vsimem/x.tif", "/vsisubfile/0_9,x.tif"])
def test_other_places_are_no_addresses(address: str) -> None:
    with pytest.raises(DataError, match="only files on disk are read"):
        raster_info(written(address))


def test_what_is_said_of_files_on_disk(web: FileServer, cog: Path) -> None:
    address = f"{web.url}/a/scene.tif"
    with pytest.raises(ConfigError, match="`files` are looked for on disk"):
        raster_info(written(address, files="*_{band}.tif"))
    with pytest.raises(ConfigError, match="all are addresses, or none"):
        raster_info(written(str(cog), dates=(address,)))
    web.files["/a/2020.tif"] = web.files["/a/scene.tif"]
    dated = read_raster(written(address, dates=(f"{web.url}/a/2020.tif",)), window=(0, 0, 9, 9))
    assert dated.info.descriptions == ("R", "N", "R@1", "N@1") and not web.seen.count("/a")
    np.testing.assert_array_equal(dated.values[2:], VALUES[:, :9, :9])


def item(**hrefs: str) -> dict[str, Any]:
    unit = [{"scale": 1e-4, "offset": -0.1}]
    return {"type": "Feature", "assets": {key: {"href": href, "raster:bands": unit} for key, href in hrefs.items()}}


def test_a_stac_item_is_read_from_its_own_server_alone(web: FileServer, tmp_path: Path) -> None:
    for name, step in (("red", 1), ("nir", 2)):
        path = write(tmp_path / f"{name}.tif", np.ascontiguousarray(VALUES[:1, ::step, ::step]))
        web.files[f"/data/{name}.tif"] = path.read_bytes()
    web.files["/items/one.json"] = web.files["/collections/c/items/two"] = json.dumps(
        item(red="../data/red.tif", nir=f"{web.url}/data/nir.tif")
    ).encode()
    web.files["/collections/c/items/two"] = web.files["/items/one.json"].replace(b"../data", b"/data")
    for address in ("/items/one.json", "/collections/c/items/two"):
        raster = read_raster(written(web.url + address), ["R"], window=(0, 0, 9, 9))
        assert raster.info.descriptions == ("R", "N")
        np.testing.assert_allclose(raster.values[0], VALUES[0, :9, :9] * 1e-4 - 0.1, atol=1e-6)
    assert "/data/red.tif.aux.xml" not in web.seen
    elsewhere = web.host.replace("127.0.0.1", "localhost")
    for href in (f"http://{elsewhere}/data/red.tif", f"https://{web.host}/x.tif", "s3://bucket/x.tif",
                 "//example.org/x.tif", "file:///etc/x.tif"):  # fmt: skip
        web.files["/items/one.json"] = json.dumps(item(red=href)).encode()
        with pytest.raises(DataError, match=r"asset 'red' is at .*only files of its own server are read; give the"):
            raster_info(written(f"{web.url}/items/one.json"))
    web.files["/items/one.json"] = json.dumps(item(red="/vsis3/bucket/x.tif")).encode()
    with pytest.raises(DeflectError, match=f"{web.url}/vsis3/bucket/x.tif, band R, cannot be opened .*404"):
        raster_info(written(f"{web.url}/items/one.json"))
    on_disk = tmp_path / "item.json"  # though the user wrote its name
    on_disk.write_text(json.dumps(item(red=f"{web.url}/data/red.tif")))
    with pytest.raises(DataError, match="what a file names is not fetched"):
        raster_info(written(str(on_disk)))
