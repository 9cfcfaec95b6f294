"""Inputs that no library finds fault with, and that would give wrong labels, maps or weights without a word."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import Affine, from_origin

from tests.faults.checkpoints import state
from tests.faults.fault import Damage, changed, given, table
from tests.faults.files import ADAPTER, PROCESSOR, Change, entries
from tests.faults.inputs import BANDS, SIDE, Place, Words, digital_numbers, mask_values
from tests.faults.rasters import LATER, REAL, tagged
from tests.faults.results import result

NORTH_UP = from_origin(500_000, 5_000_000, 10, 10)


def placed(path: Path, values: np.ndarray, transform: Affine = NORTH_UP, **profile: Any) -> None:
    """A GeoTIFF in UTM, with the names of the bands where there are as many."""
    count, height, width = values.shape
    profile = {"crs": "EPSG:32632", "dtype": values.dtype.name, **profile}
    with rasterio.open(
        path, "w", driver="GTiff", transform=transform, count=count, height=height, width=width, **profile
    ) as sink:
        sink.write(values)
        if count == len(BANDS):
            sink.descriptions = BANDS


def georeferenced(place: Place) -> None:
    """All images and masks of the data set on one grid."""
    for index in range(8):
        placed(place.data / "images" / f"a{index}.tif", digital_numbers(index))
        placed(place.data / "masks" / f"a{index}.tif", mask_values(index))


def grid_of_mask(transform: Affine = NORTH_UP, side: int = SIDE, **profile: Any) -> Damage:
    """Training where one mask is on this grid."""

    def damage(place: Place) -> Words:
        georeferenced(place)
        placed(place.data / "masks" / LATER, mask_values(2, side), transform, **profile)
        return place.train()

    return damage


def one_image(change: Change, **dataset: Any) -> Damage:
    """Training on georeferenced images, one of them changed."""

    def damage(place: Place) -> Words:
        georeferenced(place)
        change(place.data / "images" / LATER)
        return place.train(**dataset)

    return damage


def of_two_units(path: Path) -> None:
    """Digital numbers, the last band of which are fractions."""
    placed(path, np.concatenate([digital_numbers(2).astype(np.float32)[:-1], REAL[-1:]]))


def unmeasured(numbers: tuple[int, ...]) -> Damage:
    """Training where no pixel of a split was measured."""

    def damage(place: Place) -> Words:
        for number in numbers:
            placed(place.data / "images" / f"a{number}.tif", np.zeros_like(digital_numbers(0)), nodata=0)
        return place.train()

    return damage


def virtual(source: str, kind: str = "UInt16") -> str:
    """A virtual raster of one source."""
    band = (
        f'<VRTRasterBand dataType="{kind}" band="1"><SimpleSource><SourceFilename relativeToVRT="1">{source}'
        "</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
    )
    return f'<VRTDataset rasterXSize="16" rasterYSize="16">{band * 4}</VRTDataset>'


def as_virtual(source: str, **dataset: Any) -> Damage:
    return one_image(lambda path: path.write_text(virtual(source)), source_bands=list(BANDS), **dataset)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def another_image(change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    """The map of a scene whose values are another product's."""
    return changed(
        lambda place: place.folder / "scene.tif",
        lambda path: placed(path, change(digital_numbers(0, side=32))),
        lambda place: place.predict(scene=place.folder / "scene.tif"),
    )


def result_entry(name: str, **changes: Any) -> Damage:
    """Evaluation with other entries in a file of the result."""
    return result(name, entries(**changes))


def shifted(split: str, *numbers: int) -> tuple[str, Damage, list[str]]:
    """Images of a split from after the offset of Sentinel-2's baseline 04.00."""

    def damage(place: Place) -> Words:
        georeferenced(place)
        for number in numbers:
            placed(place.data / "images" / f"a{number}.tif", digital_numbers(number) + np.int16(1000))
        return place.train()

    return f"a {split} split of another offset", damage, [f"{split} split", "plus 0.1", "offset"]


EIGHT_BITS = (digital_numbers(2) // 16).astype(np.uint8)
ROTATED = NORTH_UP * Affine.rotation(20)
HTTP = "http://127.0.0.1:9/x.tif"
SILENT_DATA = table(
    "train.py",
    ("a mask 1 pixel away", grid_of_mask(from_origin(500_010, 5_000_000, 10, 10)), [LATER, "pixels", "10 m"]),
    ("a mask half a pixel away", grid_of_mask(from_origin(500_000, 5_000_005, 10, 10)), [LATER, "0.5 pixels"]),
    ("a mask 3 km away", grid_of_mask(from_origin(503_000, 5_000_000, 10, 10)), [LATER, "300 pixels"]),
    ("a mask in another zone", grid_of_mask(crs="EPSG:32633"), [LATER, "grid"]),
    ("a mask on the other side of the equator", grid_of_mask(crs="EPSG:32732"), [LATER, "grid"]),
    ("a mask of other pixels", grid_of_mask(from_origin(500_000, 5_000_000, 20, 20)), [LATER, "grid"]),
    ("a mask in a local system", grid_of_mask(crs='LOCAL_CS["mine",UNIT["metre",1]]'), [LATER, "'mine'", "one system"]),
    ("a mask of finer pixels", grid_of_mask(from_origin(500_000, 5_000_000, 5, 5), 32), [LATER, "it has 32 x 32"]),
    ("a mask turned by 20 degrees", grid_of_mask(ROTATED), [LATER, "grid"]),
    ("an image turned by 20 degrees", one_image(lambda p: placed(p, digital_numbers(2), ROTATED)), [LATER, "grid"]),
    ("an image of 30 m", one_image(lambda p: placed(p, digital_numbers(2), from_origin(0, 0, 30, 30))), [LATER]),
    ("a scale tag in one file", one_image(tagged(scales=(1e-4,) * 4), scale=None), ["scale", "a"]),
    ("an offset tag in one file", one_image(tagged(offsets=(-0.1,) * 4), scale=None), ["offset", "a"]),
    ("a band of fractions", one_image(of_two_units), [LATER, "'N'", "fractions"]),
    ("a picture of 8 bits", one_image(lambda p: placed(p, EIGHT_BITS)), [LATER, "8 bits", "scale 0.0001", "0.0039"]),
    shifted("val", 4, 5),
    shifted("test", 6, 7),
    ("an image of fractions", one_image(lambda p: placed(p, REAL)), [LATER, "scale"]),
    *(
        (f"a {split} split that was not measured", unmeasured(numbers), [f"the {split} split", f"a{numbers[0]}"])
        for split, numbers in (("val", (4, 5)), ("test", (6, 7)))
    ),
    ("an image that is http", as_virtual(HTTP), [LATER, "http"]),
    ("an image that is an archive on a server", as_virtual(f"/vsizip//vsicurl/{HTTP}"), [LATER, "vsi"]),
    ("an image that is itself", as_virtual(LATER), [LATER]),
    ("an image of a source with a name of 100,000 letters", as_virtual("x" * 100_000 + ".tif"), [LATER]),
    ("a window of a planet", lambda p: p.train("--segmentor.window", "1000000"), ["segmentor.window"]),
    ("a window of no whole patches", lambda p: p.train("--segmentor.window", "20"), ["segmentor.window", "patch"]),
    ("epochs beyond life", lambda p: p.train("--epochs", "1000000000000"), ["epochs"]),
    ("folds beyond reason", lambda p: p.train("--dataset.num_folds", "1000000"), ["num_folds"]),
    ("a word of 100,000 letters", lambda p: p.train("--finetune", "x" * 100_000), ["finetune"]),
    (
        "an encoder called best in the folder of the run",
        given("out/best/config.json", "mine", Place.train),
        ["out", "'best'"],
    ),
)
SILENT_STATES = table(
    "train.py",
    *(
        (f"a flipped bit in {name}", state(name, flip_a_bit), ["step-1"])
        for name in ("progress.json", "training.pt", "sha256")
    ),
)
SILENT_MAPS = table(
    "deflect-predict",
    ("values of the product before an offset", another_image(lambda v: v + 1000), ["scene.tif", "offset"]),
    ("values of twice the scale", another_image(lambda v: v * 2), ["scene.tif", "scale"]),
    (
        "a band of fractions",
        another_image(lambda v: (v * np.array([1, 1, 1, 1e-4])[:, None, None]).astype(np.float32)),
        ["scene.tif", "'N'", "fractions"],
    ),
    ("a picture of 8 bits", another_image(lambda v: (v // 16).astype(np.uint8)), ["scene.tif", "8 bits"]),
    ("a window of a planet", lambda p: p.predict("--window", "1000000"), ["window"]),
    ("an address where no server is", lambda p: p.predict(scene=HTTP), [HTTP, "check the address"]),
    ("an item where no server is", lambda p: p.predict(scene=f"{HTTP}.json"), [f"{HTTP}.json", "check the address"]),
    ("an address of a kind that is not read", lambda p: p.predict(scene="ftp://h/x.tif"), ["ftp://h/x.tif"]),
    (
        "names of bands in an address",
        lambda p: p.predict(scene="http://h/{band}.tif"),
        ["http://h/{band}.tif", "files"],
    ),
    ("batches beyond memory", lambda p: p.predict("--batch_size", "1000000000"), ["batch_size"]),
    ("a sidecar of somebody else's", given("map.tif.aux.xml", "mine", Place.predict), ["map.tif.aux.xml"]),
)
SILENT_RESULTS = table(
    "evaluate.py",
    (
        "formulas of other weights",
        result_entry(ADAPTER, formulas={"NDVI": "(N - R)/(N + R + 0.5)"}),
        [ADAPTER, "formulas"],
    ),
    ("an entry that no adapter has", result_entry(ADAPTER, colour="red"), [ADAPTER, "colour"]),
    ("code to load an adapter with", result_entry(ADAPTER, auto_map={"A": "x.y"}), ["auto_map"]),
    (
        "a processor of huge images",
        result_entry(PROCESSOR, size={"height": 10**7, "width": 10**7}),
        [PROCESSOR, "size"],
    ),
    ("a processor with a scale in words", result_entry(PROCESSOR, scale="1e-4"), [PROCESSOR, "scale"]),
    ("a processor with a scale of true", result_entry(PROCESSOR, scale=True), [PROCESSOR, "scale"]),
    ("a processor with nodata in words", result_entry(PROCESSOR, nodata="0"), [PROCESSOR, "nodata"]),
    ("a processor with a switch in words", result_entry(PROCESSOR, unit_check="no"), [PROCESSOR, "unit_check"]),
    (
        "a picture of somebody else's",
        given("out/confusion_matrix.png", "mine", lambda p: p.evaluate("--output_dir", str(p.folder / "out"))),
        ["confusion_matrix.png"],
    ),
)
