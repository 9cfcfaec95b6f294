"""Arrays that numpy saved: GDAL reads their numbers where they lie in the file, by windows and not into memory."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from numpy.lib import format as npy

from deflect_hf.errors import DataError, data_errors

SUFFIX = ".npy"
TYPES = {"b1": "Byte", "u1": "Byte", "i1": "Int8", "u2": "UInt16", "i2": "Int16", "u4": "UInt32", "i4": "Int32",
         "i8": "Int64", "u8": "UInt64", "f4": "Float32", "f8": "Float64"}  # fmt: skip


def array_xml(path: str) -> str:
    """A virtual raster, as XML, of a file that holds an array (C, H, W), or (H, W) of one band.

    Raises:
        DataError: It is no such file, or it holds something else; what was pickled is never loaded.
    """
    file = Path(path)
    none = data_errors(f"{path} is no array that numpy saved", "np.save makes one.", ValueError)
    with none, file.open("rb") as opened:
        version = npy.read_magic(opened)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, turned, dtype = header(opened)
        start, held = opened.tell(), file.stat().st_size
    if dtype.str[1:] not in TYPES or turned or len(shape) not in (2, 3) or min(shape) < 1:
        order = ", in Fortran's order" if turned else ""
        raise DataError(
            f"{path} holds {dtype} {shape}{order}: give real numbers, halves as float32, (C, H, W), or (H, W) of one "
            "band, as np.save(FILE, np.ascontiguousarray(values)) stores them."
        )
    count, height, width = shape if len(shape) == 3 else (1, *shape)
    size = dtype.itemsize
    band_bytes = height * width * size
    if held < start + band_bytes * count:
        raise DataError(f"{path} is truncated: its header says {shape} of {dtype}; copy it again.")
    root = ElementTree.Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
    for number in range(count):
        kind = {"dataType": TYPES[dtype.str[1:]], "band": str(number + 1), "subClass": "VRTRawRasterBand"}
        band = ElementTree.SubElement(root, "VRTRasterBand", kind)
        said = {"ImageOffset": start + number * band_bytes, "PixelOffset": size, "LineOffset": width * size}
        ElementTree.SubElement(band, "SourceFilename", relativeToVRT="0").text = str(file.absolute())
        for tag, value in {**said, "ByteOrder": "MSB" if dtype.str[0] == ">" else "LSB"}.items():
            ElementTree.SubElement(band, tag).text = str(value)
    return ElementTree.tostring(root, encoding="unicode")
