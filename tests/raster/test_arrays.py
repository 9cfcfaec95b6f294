"""Arrays that numpy saved, read as rasters."""

from pathlib import Path

import numpy as np
import pytest

from deflect_hf.errors import BandError, DataError
from deflect_hf.raster.read import open_raster, raster_info, read_mask, read_raster


@pytest.mark.parametrize("kind", ["<u2", ">u2", "<f4", ">f8", "|u1", "|i1", "<i4", "<i8"])
def test_bands_and_windows_of_an_array(kind: str, tmp_path: Path) -> None:
    values = np.arange(3 * 20 * 30).reshape(3, 20, 30).astype(kind)
    np.save(tmp_path / "a.npy", values)
    with open_raster(tmp_path / "a.npy") as file:
        raster = read_raster(file, ["N", "R"], source_bands=["R", "G", "N"], window=(4, 5, 7, 9))
        np.testing.assert_array_equal(raster.values, values[[2, 0], 4:11, 5:14])
    assert raster.values.dtype == np.dtype(kind).newbyteorder("=") and raster.valid.all()


def test_nan_is_no_measurement_and_one_band_is_a_mask(tmp_path: Path) -> None:
    values = np.ones((1, 4, 5), np.float32)
    values[0, 1, 2] = np.nan
    np.save(tmp_path / "a.npy", values)
    assert (~read_raster(tmp_path / "a.npy", source_bands=["R"]).valid).nonzero() == (0, 1, 2)
    for classes in (np.eye(4, 5, dtype=bool), np.eye(4, 5, dtype=np.int64)):
        np.save(tmp_path / "m.npy", classes)
        np.testing.assert_array_equal(read_mask(tmp_path / "m.npy").values[0], classes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((2, 3, 4), np.float16), "halves as float32"),
        (np.zeros((2, 3, 4), complex), "holds complex128"),
        (np.zeros((2, 3, 4, 5)), "give real numbers"),
        (np.zeros((2, 0, 4)), "give real numbers"),
        (np.asfortranarray(np.zeros((2, 3, 4))), "Fortran's order"),
        (np.array([{"a": 1}], dtype=object), "holds object"),
        (b"not an array", "no array that numpy saved"),
        (b"", "no array that numpy saved"),
    ],
)
def test_other_content_is_refused(content: np.ndarray | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(DataError, match=rf"a\.npy .*{message}"):
        raster_info(path)


def test_an_array_whose_bands_come_last_is_told(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 2), np.float32))
    with pytest.raises(BandError, match=r"has 3 band\(s\), but 2 were announced .* values\.transpose\(2, 0, 1\)"):
        read_raster(tmp_path / "a.npy", source_bands=["R", "N"])


def test_a_truncated_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 30, 40)))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-8])
    with pytest.raises(DataError, match="is truncated"):
        raster_info(tmp_path / "a.npy")
