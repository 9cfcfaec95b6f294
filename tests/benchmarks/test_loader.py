"""The loader's benchmark on few images and a tiny transformer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deflect_hf.errors import ConfigError
from deflect_hf.raster.write import write_raster
from tests.benchmarks import loader

QUICK = ["--size", "tiny", "--batch_size", "2", "--images", "4", "--rounds", "2"]


def test_generated_images_are_loaded_and_compared_with_a_forward_pass(tmp_path: Path, capsys) -> None:
    loader.main(["--output", str(tmp_path), *QUICK, "--workers", "0", "1"])
    found = json.loads((tmp_path / "loader.json").read_text())
    assert [(one["data"], one["workers"]) for one in found] == [
        ("generated chips", 0), ("generated chips", 1), ("generated scenes", 0), ("generated scenes", 1)
    ]  # fmt: skip
    assert [(one["bands"], one["height"], one["width"]) for one in found[1:3]] == [(7, 128, 128), (6, 224, 224)]
    for one in found:
        first, second = (a / b for a, b in zip(one["loader"], one["forward"], strict=True))
        assert one["ratio"] == pytest.approx((first + second) / 2) and min(first, second) > 0
    table = capsys.readouterr().out
    assert f"| generated scenes | 6 | 224 x 224 | 1 | {found[3]['ratio']:.1f} |" in table
    assert table.strip() == (tmp_path / "loader.md").read_text().strip()


def test_a_data_set_of_the_users_own(tmp_path: Path) -> None:
    for kind in ("dark", "bright"):
        for number in range(6):
            write_raster(tmp_path / kind / f"{number}.tif", np.full((3, 20, 40), 0.2, np.float32), descriptions="BGR")
    flags = ["--dataset.name", "folder", "--dataset.root", str(tmp_path), "--augmentation.random_crop", "18", "33"]
    loader.main(["--output", str(tmp_path / "out"), *QUICK, "--workers", "0", *flags])
    (one,) = json.loads((tmp_path / "out" / "loader.json").read_text())
    assert (one["data"], one["bands"], one["height"], one["width"]) == (str(tmp_path), 3, 18, 33)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workers", "1", "-1"], "--workers -1: give at least 0"),
        (["--images", "4", "--batch_size", "8"], "--images 4: give at least 8"),
        (["--dataset.nme", "folder"], "unknown option '--dataset.nme'. Did you mean '--dataset.name'?"),
    ],
)
def test_what_cannot_be_measured_is_refused(flags: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        loader.main(["--output", str(tmp_path), *flags])
    assert message in str(caught.value)
