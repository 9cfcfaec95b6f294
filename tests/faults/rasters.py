"""Images, masks, split files and folders that are broken, met in training, evaluation and prediction."""

import gzip
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from PIL import Image

from deflect_hf.raster.write import write_raster
from tests.faults.fault import Damage, changed, table
from tests.faults.files import ERROR_PAGE, LFS_POINTER, Change, bytes_
from tests.faults.inputs import BANDS, SIDE, Place, Words, cut, digital_numbers, junk, mask_values

FIRST, LATER = "a0.tif", "a2.tif"  # the image whose header settles the bands, and one that is read in training
WIDTH, LENGTH, SAMPLES, OFFSETS, COMPRESSION = 256, 257, 277, 273, 259  # tags of TIFF


def patch(path: Path, tag: int, value: int) -> None:
    """Overwrite the value of a tag in the first directory of a little-endian TIFF."""
    content = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", content, entry)[0] == tag:
            struct.pack_into("<HII", content, entry + 2, 4, 1, value)
            path.write_bytes(content)
            return
    raise AssertionError(f"{path} has no tag {tag}")


def image(name: str, change: Change, **dataset: Any) -> Damage:
    """Training after ``change`` has damaged one image."""
    return changed(lambda place: place.data / "images" / name, change, lambda place: place.train(**dataset))


def mask(change: Change, name: str = LATER) -> Damage:
    """Training after ``change`` has damaged one mask."""
    return changed(lambda place: place.data / "masks" / name, change, Place.train)


def stored(values: Any, **options: Any) -> Callable[[Path], None]:
    """Writes other values."""
    return lambda path: write_raster(path, np.asarray(values), **{"descriptions": BANDS, **options})


def overwritten(start: float, seed: int) -> Callable[[Path], None]:
    """Random bytes from a share of the file on."""

    def change(path: Path) -> None:
        data = bytearray(path.read_bytes())
        first = int(len(data) * start)
        data[first : first + 300] = junk(seed, min(300, len(data) - first))
        path.write_bytes(data)

    return change


def picture(path: Path) -> None:
    Image.fromarray(digital_numbers(0, 3).astype(np.uint8).transpose(1, 2, 0)).save(path, format="PNG")


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        archive.write(path)
    path.with_suffix(".zip").replace(path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dead_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("gone"))


def tagged(**tags: Any) -> Callable[[Path], None]:
    """Sets tags of GDAL."""

    def change(path: Path) -> None:
        with rasterio.open(path, "r+") as sink:
            for name, value in tags.items():
                setattr(sink, name, value)

    return change


def everywhere(change: Change, **dataset: Any) -> Damage:
    """Training after ``change`` has damaged all images."""

    def damage(place: Place) -> Words:
        for path in sorted((place.data / "images").iterdir()):
            change(path)
        return place.train(**dataset)

    return damage


REAL = digital_numbers(5).astype(np.float32) / 10_000

IMAGES = table(
    "train.py",
    *(
        (f"{name} truncated to {share:.1%}", image(name, lambda path, share=share: cut(path, share)), [name])
        for name, share in ((FIRST, 0.0), (FIRST, 0.2), (LATER, 0.003), (LATER, 0.02), (LATER, 0.6), (LATER, 0.9))
    ),
    *(
        (f"random bytes from {start:.0%} on", image(LATER, overwritten(start, seed)), [LATER])
        for seed, start in enumerate((0.0, 0.5))
    ),
    ("an error page", image(LATER, bytes_(ERROR_PAGE)), [LATER]),
    ("a pointer of Git LFS", image(FIRST, bytes_(LFS_POINTER)), [FIRST]),
    ("a zip file", image(LATER, zipped), [LATER]),
    ("compressed as a whole", image(FIRST, lambda p: p.write_bytes(gzip.compress(p.read_bytes()))), [FIRST]),
    ("zeros", image(LATER, bytes_(b"\0" * 2000)), [LATER]),
    ("a header alone", image(FIRST, bytes_(b"II*\0\x08\0\0\0")), [FIRST]),
    ("a directory beyond the end", image(LATER, bytes_(b"II*\0\xff\xff\xff\x7f" + b"\0" * 100)), [LATER]),
    ("a directory of 65535 tags", image(LATER, bytes_(b"II*\0\x08\0\0\0\xff\xff" + b"\0" * 100)), [LATER]),
    ("a picture in three bands", image(LATER, picture), [LATER, "band"]),
    ("a folder", image(LATER, a_folder), [LATER]),
    ("a dead link", image(FIRST, dead_link), [FIRST]),
    ("no bands in its header", image(LATER, lambda p: patch(p, SAMPLES, 0)), [LATER]),
    ("65535 bands in its header", image(LATER, lambda p: patch(p, SAMPLES, 65535)), [LATER]),
    ("a width of two billion", image(LATER, lambda p: patch(p, WIDTH, 2**31 - 1)), [LATER]),
    ("a height of two billion", image(FIRST, lambda p: patch(p, LENGTH, 2**31 - 1)), [FIRST]),
    ("no width", image(LATER, lambda p: patch(p, WIDTH, 0)), [LATER]),
    ("both sides of 200 000", image(LATER, lambda p: (patch(p, WIDTH, 200_000), patch(p, LENGTH, 200_000))), [LATER]),
    ("an unknown compression", image(LATER, lambda p: patch(p, COMPRESSION, 61234)), [LATER]),
    ("pixels beyond the end", image(LATER, lambda p: patch(p, OFFSETS, 2**31)), [LATER]),
    ("no pixels of height", image(LATER, lambda p: patch(p, LENGTH, 0)), [LATER]),
    ("complex values", image(LATER, stored(digital_numbers(2).astype(np.complex64))), [LATER, "complex"]),
    ("complex values in the first", image(FIRST, stored(digital_numbers(2).astype(np.complex64))), [FIRST, "complex"]),
    (
        "one band fewer",
        image(LATER, stored(digital_numbers(2, 3), descriptions=BANDS[:3])),
        [LATER, "lack the band(s) 'N'"],
    ),
    (
        "one band fewer than were named",
        image(LATER, stored(digital_numbers(2, 3), descriptions=()), source_bands=list(BANDS)),
        [f"{LATER} has 3 band(s), but 4 were announced"],
    ),
    ("no band names", image(LATER, stored(digital_numbers(2), descriptions=())), [LATER, "source_bands"]),
    (
        "band names of another sensor",
        image(LATER, stored(digital_numbers(2), descriptions=("x1", "x2", "x3", "x4"))),
        [LATER, "source_bands"],
    ),
    ("a band name given twice", image(LATER, stored(digital_numbers(2), descriptions=("B", "G", "R", "R"))), [LATER]),
    (
        "truncated, met by a worker process",
        lambda p: [*image(LATER, lambda q: cut(q, 0.6))(p), "--num_workers", "1"],
        [LATER],
    ),
    ("another size", image(LATER, stored(digital_numbers(2, side=24))), [LATER, "24 x 24", "16 x 16"]),
    ("already reflectance", image(LATER, stored(REAL)), [LATER, "scale"]),
    (
        "reflectance in whole numbers",
        everywhere(stored(digital_numbers(2) // 2000), scale=1),
        ["images/a", "whole numbers", "float32"],
    ),
    ("standardised values", image(LATER, stored((REAL - 0.2) * 50_000)), [LATER]),
    ("values of a million", image(LATER, stored(digital_numbers(2).astype(np.int32) * 1000)), [LATER]),
    ("other scale tags", image(LATER, tagged(scales=(0.5,) * 4), scale=None, unit_check=False), ["a", "scale"]),
    ("a scale tag of zero", everywhere(tagged(scales=(0.0,) * 4), scale=None), ["a", "scale"]),
    ("a scale tag of NaN", everywhere(tagged(scales=(float("nan"),) * 4), scale=None), ["scale"]),
    ("nothing measured anywhere", everywhere(stored(REAL * np.nan), scale=1), ["measured pixel", "train split", "a0"]),
    (
        "nodata everywhere",
        everywhere(tagged(nodata=0), nodata=list(range(300, 4000))),
        ["measured pixel", "train split", "a0"],
    ),
    ("one value everywhere", everywhere(stored(np.full((4, SIDE, SIDE), 900, np.int16))), ["one value", "'R'"]),
)


def only(*members: str) -> Damage:
    """Class folders with only these left."""

    def damage(place: Place) -> Words:
        root = place.copy("classes")
        for folder in list(root.iterdir()):
            if folder.name not in members:
                shutil.rmtree(folder)
        return place.train(root=str(root), classes=None, source_bands=list(BANDS))

    return damage


def without(name: str) -> Damage:
    """Training without a part of the folder."""

    def damage(place: Place) -> Words:
        target = place.data / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        return place.train()

    return damage


def of_arrays(place: Place) -> Words:
    """A folder without images."""
    (place.folder / "empty").mkdir()
    np.save(place.folder / "empty" / "tile.npy", np.zeros((10, 32, 32)))
    return place.train(root=str(place.folder / "empty"))


def emptied(place: Place) -> Words:
    for path in (place.data / "images").iterdir():
        path.unlink()
    return place.train()


def moved_up(place: Place) -> Words:
    for path in (place.data / "images").iterdir():
        path.rename(place.data / path.name)
    shutil.rmtree(place.data / "images")
    return place.train(classes=None)


def half_scale(path: Path) -> None:
    write_raster(path, mask_values(2)[:, ::2, ::2])


def blank_test(place: Place) -> Words:
    for name in ("a6.tif", "a7.tif"):
        stored(np.full((1, SIDE, SIDE), 9, np.uint8), descriptions=())(place.data / "masks" / name)
    return place.train(ignore_values=[9])


MASKS = table(
    "train.py",
    ("missing", mask(os.unlink), ["images/a2.tif has no mask (1 of 8 images have none): add", "masks/a2.png"]),
    ("empty", mask(bytes_(b"")), [LATER]),
    *((f"truncated to {share:.0%}", mask(lambda p, share=share: cut(p, share)), [LATER]) for share in (0.01, 0.3, 0.8)),
    ("random bytes", mask(bytes_(junk(9))), [LATER]),
    ("random pixels", mask(overwritten(0.6, 3)), [LATER]),
    ("text", mask(bytes_(b"water")), [LATER]),
    ("three bands", mask(stored(digital_numbers(0, 3).astype(np.uint8), descriptions=())), [LATER, "3 bands"]),
    ("colours", mask(picture), [LATER, "3 bands"]),
    ("half the size", mask(half_scale), ["masks/a2.tif is 8 x 8 pixels", "images/a2.tif is 16 x 16: make the mask"]),
    ("one row more", mask(stored(np.zeros((1, 17, 16), np.uint8), descriptions=())), [LATER, "17 x 16"]),
    (
        "unknown classes",
        mask(stored(mask_values(0) * 200, descriptions=())),
        ["masks/a2.tif holds unknown class value(s) [200]: known are [0, 1] ('land', 'water')", "class_values"],
    ),
    ("negative classes", mask(stored(-mask_values(0).astype(np.int16), descriptions=())), [LATER, "-1"]),
    ("fractions", mask(stored(mask_values(0) * np.float32(0.5), descriptions=())), [LATER, "fraction"]),
    ("complex values", mask(stored(mask_values(0).astype(np.complex64), descriptions=())), [LATER, "complex"]),
    ("unknown classes in validation", mask(stored(mask_values(0) * 9, descriptions=()), "a4.tif"), ["a4.tif", "9"]),
    ("unknown classes in test", mask(stored(mask_values(0) * 9, descriptions=()), "a6.tif"), ["a6.tif", "9"]),
    ("truncated in test", mask(lambda p: cut(p, 0.5), "a7.tif"), ["a7.tif"]),
    (
        "two of an image",
        mask(lambda p: Image.fromarray(mask_values(0)[0]).save(p.with_suffix(".png"))),
        [LATER, "a2.png", "are masks of the same image"],
    ),
    ("a huge header", mask(lambda p: (patch(p, WIDTH, 2**31 - 1), patch(p, LENGTH, 2**31 - 1))), [LATER]),
    ("nothing labelled", lambda p: p.train(ignore_values=[0, 1], class_values=[2, 3]), ["the train split", "label"]),
    ("nothing labelled in test", blank_test, ["the test split", "label"]),
    (
        "a class that is nodata",
        mask(tagged(nodata=0)),
        [LATER, "tags 0 as nodata, which is the value of class 'land': remove"],
    ),
    ("all masks gone", without("masks"), ["a0.tif", "mask"]),
)


def misnamed(place: Place) -> Words:
    for kind in ("images", "masks"):
        path = place.data / kind / FIRST
        os.rename(path, os.fsencode(path.parent) + b"/\xe9.tif")
    for path in place.data.glob("*.txt"):
        path.unlink()
    return place.train()


FOLDERS = table(
    "train.py",
    ("no images", without("images"), ["segments"]),
    ("an empty folder of images", emptied, ["images holds no GeoTIFF"]),
    ("a name that is not in UTF-8", misnamed, ["name is not in UTF-8"]),
    ("images beside their folder", moved_up, ["segments"]),
    (
        "a folder of arrays",
        of_arrays,
        ["holds neither images/ and masks/ nor class", "; it holds 1 .npy"],
    ),
    ("the folder of the images as root", lambda p: p.train(root=str(p.data / "images")), ["images"]),
    ("one class folder", only("forest"), ["forest"]),
    ("no class folder", only(), ["classes"]),
    (
        "a class folder without a class",
        lambda p: p.train(root=str(p.copy("classes")), classes=["forest", "rivers"], source_bands=list(BANDS)),
        ["class folder(s) 'river' that `classes` does not name", "Did you mean 'rivers'"],
    ),
)


def split(name: str, data: str | bytes) -> Damage:
    """Training with this split file."""
    content = data if isinstance(data, bytes) else data.encode()
    return changed(lambda place: place.data / name, bytes_(content), Place.train)


def split_folder(place: Place) -> Words:
    (place.data / "train.txt").unlink()
    (place.data / "train.txt").mkdir()
    return place.train(train_split="train.txt")


SPLIT_FILES = table(
    "train.py",
    ("empty", split("train.txt", ""), ["train.txt lists no images"]),
    ("blank lines", split("val.txt", "\n \n\t\n"), ["val.txt", "no images"]),
    (
        "an image that is not there",
        split("train.txt", "a0\na99\n"),
        ["train.txt lists 1 id(s) without an image, first 'a99'"],
    ),
    ("an image twice", split("train.txt", "a0\na1\na0\n"), ["train.txt lists 'a0' more than once"]),
    (
        "an image twice, once with its ending",
        split("train.txt", "a0\na0.tif\n"),
        ["train.txt lists 'a0' more than once"],
    ),
    ("an image in two splits", split("test.txt", "a6\na0\n"), ["test.txt and", "train.txt both list 'a0'"]),
    ("UTF-16", split("train.txt", "a0\na1\n".encode("utf-16")), ["train.txt", "UTF-8"]),
    ("random bytes", split("train.txt", junk(4)), ["train.txt"]),
    ("zero bytes", split("train.txt", b"\0" * 30), ["train.txt"]),
    ("JSON", split("train.txt", json.dumps(["a0", "a1"])), ["train.txt"]),
    ("a table with columns", split("train.txt", "name,label\na0,1\n"), ["train.txt", "name,label"]),
    ("paths outside", split("train.txt", "../../images/a0\n"), ["train.txt", "../../images/a0"]),
    ("capital letters", split("train.txt", "A0\nA1\n"), ["train.txt", "A0"]),
    ("a folder", split_folder, ["train.txt"]),
    ("a glob", split("train.txt", "a*\n"), ["train.txt", "a*"]),
    ("no training images", lambda p: (os.unlink(p.data / "train.txt"), p.train())[1], ["train"]),
)
