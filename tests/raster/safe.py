"""Sentinel-2 products of few pixels, with the folders, names, formats and metadata of real ones."""

from pathlib import Path

import numpy as np
import rasterio

SIDES = {10: 60, 20: 30, 60: 10}  # metres of a pixel, pixels of a side
BANDS = {"B02": 10, "B03": 10, "B04": 10, "B08": 10, "B05": 20, "B06": 20, "B07": 20, "B8A": 20, "B11": 20, "B12": 20,
         "B01": 60, "B09": 60}  # fmt: skip
NAME = "S2A_MSIL2A_20230715T103631_N0509_R008_T32UNU_20230715T164854.SAFE"
IMAGES = "GRANULE/L2A_T32UNU_A042109_20230715T103626/IMG_DATA"


def write_layer(path: Path, values: np.ndarray, gsd: float, epsg: int = 32632, driver: str = "JP2OpenJPEG") -> None:
    """A file of one band, without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exact = {"QUALITY": "100", "REVERSIBLE": "YES"} if driver.startswith("JP2") else {}
    height, width = values.shape
    place = rasterio.transform.from_origin(500_000, 5_400_000, gsd, gsd)
    with rasterio.open(path, "w", driver=driver, count=1, dtype=values.dtype, height=height, width=width,
                       crs=f"EPSG:{epsg}", transform=place, **exact) as sink:  # fmt: skip
        sink.write(values, 1)


def write_safe(root: Path, offset: int = -1000) -> dict[str, np.ndarray]:
    """An L2A product below ``root``; the stored values of each band, and SCL."""
    random = np.random.default_rng(0)
    safe = root / NAME
    stored, listed = {}, []
    for band, gsd in BANDS.items():
        stored[band] = random.integers(1, 8000, (SIDES[gsd],) * 2, dtype=np.uint16)
        stored[band][: SIDES[gsd] // 6] = 0  # the edge of the swath
        for size in (10, 20, 60):
            if size >= gsd:  # a band comes in its own resolution, and in those that are coarser
                name = f"{IMAGES}/R{size}m/T32UNU_20230715T103631_{band}_{size}m"
                step = size // gsd
                write_layer(safe / f"{name}.jp2", np.ascontiguousarray(stored[band][::step, ::step]), size)
                listed.append(name)
    stored["SCL"] = random.integers(4, 8, (30, 30), dtype=np.uint8)
    stored["SCL"][10:14, 10:20] = 9
    name = f"{IMAGES}/R20m/T32UNU_20230715T103631_SCL_20m"
    write_layer(safe / f"{name}.jp2", stored["SCL"], 20)
    offsets = "".join(f'<BOA_ADD_OFFSET band_id="{k}">{offset - k}</BOA_ADD_OFFSET>' for k in range(13))
    files = "".join(f"<IMAGE_FILE>{name}</IMAGE_FILE>" for name in [*listed, name])
    numbers = [*range(1, 9), "8A", *range(9, 13)]
    spectral = "".join(f'<Spectral_Information bandId="{k}" physicalBand="B{n}"/>' for k, n in enumerate(numbers))
    (safe / "MTD_MSIL2A.xml").write_text(
        '<?xml version="1.0" encoding="UTF-8"?><n1:Level-2A_User_Product '
        'xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-2A.xsd"><n1:General_Info><Product_Info>'
        f"<Product_Organisation><Granule_List><Granule>{files}</Granule></Granule_List></Product_Organisation>"
        "</Product_Info><Product_Image_Characteristics><QUANTIFICATION_VALUES_LIST>"
        '<BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE></QUANTIFICATION_VALUES_LIST>'
        f"<BOA_ADD_OFFSET_VALUES_LIST>{offsets}</BOA_ADD_OFFSET_VALUES_LIST>"
        f"<Spectral_Information_List>{spectral}</Spectral_Information_List>"
        "</Product_Image_Characteristics></n1:General_Info></n1:Level-2A_User_Product>"
    )
    return stored


def write_l1c(root: Path, offset: int = -1000) -> tuple[Path, dict[str, np.ndarray]]:
    """An L1C product, whose bands come in one resolution each, cirrus too; its folder and the stored values."""
    safe = root / NAME.replace("L2A", "L1C")
    random = np.random.default_rng(1)
    stored, files = {}, []
    for band, gsd in {**BANDS, "B10": 60}.items():
        stored[band] = random.integers(1, 8000, (SIDES[gsd],) * 2, dtype=np.uint16)
        name = f"GRANULE/L1C_T32UNU_A042109_20230715T103626/IMG_DATA/T32UNU_20230715T103631_{band}"
        write_layer(safe / f"{name}.jp2", stored[band], gsd)
        files.append(f"<IMAGE_FILE>{name}</IMAGE_FILE>")
    offsets = "".join(f'<RADIO_ADD_OFFSET band_id="{k}">{offset - k}</RADIO_ADD_OFFSET>' for k in range(13))
    (safe / "MTD_MSIL1C.xml").write_text(
        '<?xml version="1.0" encoding="UTF-8"?><n1:Level-1C_User_Product '
        'xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-1C.xsd"><n1:General_Info><Product_Info>'
        f"<Product_Organisation><Granule_List><Granule>{''.join(files)}</Granule></Granule_List>"
        "</Product_Organisation></Product_Info><Product_Image_Characteristics>"
        '<QUANTIFICATION_VALUE unit="none">10000</QUANTIFICATION_VALUE>'
        f"<Radiometric_Offset_List>{offsets}</Radiometric_Offset_List>"
        "</Product_Image_Characteristics></n1:General_Info></n1:Level-1C_User_Product>"
    )
    return safe, stored
