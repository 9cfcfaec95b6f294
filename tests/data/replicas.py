"""Small copies of public data sets: their folders, file names, types and split files, with made-up content.

What is in the pixels can be learned: each class has a spectrum of its own, which differs from the others mostly outside
of the visible bands.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from deflect_hf.data.sets.eurosat import CLASSES, IMAGES
from deflect_hf.raster.write import write_raster

# pixel size in metres -> wavelengths in the file names, in nm
SATELLITES: Sequence[Mapping[int, Sequence[int]]] = (
    {60: (443,), 10: (492, 560, 665, 833), 20: (704, 740, 783, 865, 1614, 2202)},  # S2A
    {60: (442,), 10: (492, 559, 665, 833), 20: (704, 739, 780, 864, 1610, 2186)},  # S2B
)
MADOS_CLASSES = (5, 6, 7)  # stored values that the made-up crops contain: ship, oil spill, marine water


def quarters(rng: np.random.Generator, classes: int, size: int) -> np.ndarray:
    """(size, size) class numbers, one for each quarter of the image; each of up to four classes has at least one."""
    numbers = rng.integers(0, classes, 4)
    numbers[rng.permutation(4)[:classes]] = np.arange(classes)
    return enlarge(numbers.reshape(2, 2), size // 2)


def reflectance(classes: np.ndarray, wavelength_nm: int) -> np.ndarray:
    """Reflectance of made-up classes: alike below 700 nm, apart above."""
    return 0.06 + 0.02 * wavelength_nm / 2200 + (0.12 if wavelength_nm > 700 else 0.005) * classes


def enlarge(cells: np.ndarray, factor: int) -> np.ndarray:
    """Each cell as a square of ``factor`` pixels."""
    return cells.repeat(factor, axis=-2).repeat(factor, axis=-1)


def write_mados(
    root: Path, *, train: int = 6, val: int = 2, test: int = 2, size: int = 24, crops_per_scene: int = 3, seed: int = 0
) -> Path:
    """MADOS with ``size`` pixels in the 10 m folders, a multiple of 12 (published: 240); returns ``root``.

    Every crop has invalid pixels (NaN), small negative values, and pixels without a label.
    """
    rng = np.random.default_rng(seed)
    names = []
    for index in range(train + val + test):
        scene, crop = f"Scene_{index // crops_per_scene}", index % crops_per_scene + 1
        names.append(f"{scene}_{crop}")
        cells = quarters(rng, len(MADOS_CLASSES), size // 6)
        for gsd_m, wavelengths in SATELLITES[index // crops_per_scene % 2].items():
            for nm in wavelengths:
                band = mados_band(rng, reflectance(enlarge(cells, 60 // gsd_m), nm), gsd_m)
                write_raster(root / scene / str(gsd_m) / f"{scene}_L2R_rhorc_{nm}_{crop}.tif", band[None])
        labels = np.asarray(MADOS_CLASSES, dtype=np.uint8)[enlarge(cells, 6)]
        labels[rng.random(labels.shape) < 0.4] = 0
        folder = root / scene / "10"
        write_raster(folder / f"{scene}_L2R_cl_{crop}.tif", labels[None])
        for extra in ("conf", "rep"):
            write_raster(folder / f"{scene}_L2R_{extra}_{crop}.tif", np.ones_like(labels)[None])
        Image.fromarray(np.zeros((size, size, 3), dtype=np.uint8)).save(folder / f"{scene}_L2R_rgb_{crop}.png")
    write_lines(root / "splits" / "train_X.txt", names[:train])
    write_lines(root / "splits" / "val_X.txt", names[train : train + val])
    write_lines(root / "splits" / "test_X.txt", names[train + val :])
    return root


def mados_band(rng: np.random.Generator, plane: np.ndarray, gsd_m: int) -> np.ndarray:
    """float32 with noise, a negative pixel and a NaN corner."""
    band = (plane + 0.01 * rng.standard_normal(plane.shape)).astype(np.float32)
    band[-1, -1] = -0.004
    band[: 60 // gsd_m, : 60 // gsd_m] = np.nan
    return band


def write_burn_scars(root: Path, *, training: int = 12, validation: int = 4, size: int = 24, seed: int = 0) -> Path:
    """HLS Burn Scars with images of ``size`` pixels (published: 512); returns ``root``.

    Every image has pixels of 9999, of -9999 and NaN; the mask is -1 at the first two of these.
    """
    rng = np.random.default_rng(seed)
    for folder, count in (("training", training), ("validation", validation)):
        for index in range(count):
            stem = f"subsetted_512x512_HLS.S30.T{10 + index:02d}SGD.2018{100 + index}.v1.4"
            burnt = quarters(rng, 2, size)
            bands = [reflectance(burnt, nm) for nm in (490, 560, 660, 865, 1610, 2190)]
            image = (np.stack(bands) + 0.01 * rng.standard_normal((6, size, size))).astype(np.float32)
            image[:, 0, 0], image[:, 0, 1], image[:, 0, 2] = 9999.0, -9999.0, np.nan
            mask = burnt.astype(np.int16)
            mask[0, :2] = -1
            write_raster(root / folder / f"{stem}_merged.tif", image)
            write_raster(root / folder / f"{stem}.mask.tif", mask[None])
        (root / folder / "index.csv").write_text("id\n", encoding="utf-8")
    return root


def write_sen1floods11(
    root: Path, *, train: int = 6, val: int = 2, test: int = 2, bolivia: int = 2, size: int = 16, seed: int = 0
) -> Path:
    """The hand-labelled part of Sen1Floods11 v1.1 with images of ``size`` pixels (published: 512); returns ``root``.

    Every image has a pixel of zeros, which were not measured, and the mask is -1 there. The radar files are no images.
    """
    rng = np.random.default_rng(seed)
    hand = root / "data" / "flood_events" / "HandLabeled"
    nm = (443, 492, 560, 665, 704, 740, 783, 833, 865, 945, 1374, 1614, 2202)
    for split, event, count in (
        ("train", "Ghana", train),
        ("valid", "India", val),
        ("test", "Spain", test),
        ("bolivia", "Bolivia", bolivia),
    ):
        names = [f"{event}_{100 + index}" for index in range(count)]
        for name in names:
            water = quarters(rng, 2, size)
            bands = np.stack([reflectance(1 - water, one) for one in nm])
            image = np.round(10000 * bands + rng.integers(-50, 50, bands.shape)).astype(np.uint16)
            image[:, 0, 0] = 0
            mask = water.astype(np.int16)
            mask[0, 0] = -1
            write_raster(hand / "S2Hand" / f"{name}_S2Hand.tif", image)
            write_raster(hand / "LabelHand" / f"{name}_LabelHand.tif", mask[None])
            write_lines(hand / "S1Hand" / f"{name}_S1Hand.tif", ["no image"])
        rows = [f"{name}_S1Hand.tif,{name}_LabelHand.tif" for name in names]
        write_lines(root / "splits" / "flood_handlabeled" / f"flood_{split}_data.csv", rows)
    return root


# mean digital number of each band of EuroSAT in the order of the files, B8A last
EUROSAT_LEVELS = (1354, 1118, 1043, 948, 1199, 2000, 2369, 2297, 732, 12, 1819, 1119, 2594)


def eurosat_image(label: int, number: int) -> np.ndarray:
    """(13, 16, 16) digital numbers of an image of EuroSAT."""
    noise = np.random.default_rng(100 * label + number).uniform(0.6, 1.4, (13, 16, 16))
    return (np.reshape(EUROSAT_LEVELS, (13, 1, 1)) * noise).astype(np.uint16)


def write_eurosat(root: Path, *, order: Sequence[int] = range(13)) -> Path:
    """EuroSAT with images of 16 pixels (published: 64), four per class: two to train, then to validate and to test."""
    lists: dict[str, list[str]] = {split: [] for split in ("train", "val", "test")}
    for label, name in enumerate(CLASSES):
        for number, split in enumerate(("train", "train", "val", "test"), start=1):
            write_raster(root / IMAGES / name / f"{name}_{number}.tif", eurosat_image(label, number)[[*order]])
            lists[split].append(f"{name}_{number}.jpg")
    for split, names in lists.items():
        write_lines(root / f"eurosat-{split}.txt", names)
    return root


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """A text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
