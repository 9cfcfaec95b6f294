"""Pictures of a data set: indices where they were measured, labels counted, bands in the order of wavelength."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data import ImageDataset, load_dataset_splits
from deflect_hf.errors import DataError
from deflect_hf.figures import __main__ as command
from deflect_hf.figures import dataset
from deflect_hf.figures.dataset import by_wavelength, collect, index_maps, sample_sheets, statistics_figure


def images(task: str, count: int = 30) -> ImageDataset:
    args = DatasetArguments(name="synthetic", task=task, num_samples=count, image_size=[16, 16])
    return load_dataset_splits(args)["train"]


def test_indices_are_those_of_the_catalogue_where_all_their_bands_were_measured() -> None:
    pixels = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)) + 0.1
    pixels[0, 0, 0] = torch.nan
    maps = index_maps(pixels, ["N", "R", "N2"], "reflectance")
    assert list(maps) == ["NDVI"]
    near, red = pixels[0], pixels[1]
    np.testing.assert_allclose(maps["NDVI"], (near - red) / (near + red), rtol=1e-5)
    assert np.isnan(maps["NDVI"]).sum() == 1
    assert len(index_maps(torch.rand(4, 2, 2), ["G", "R", "N", "S1"], "reflectance")) == 3
    assert index_maps(torch.rand(1, 2, 2), ["S2"], "reflectance") == {}


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_sheets_show_the_samples_asked_for(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "ROWS", 2)
    paths = sample_sheets(tmp_path, images(task), "train", "synthetic", 3)
    assert [path.name for path in paths] == ["samples_train_00.png", "samples_train_01.png"]  # 2 rows and 1
    few = images(task, count=6)
    assert len(sample_sheets(tmp_path / "few", few, "train", "few", 50)) == -(-len(few) // 2)
    heights = [Image.open(path).size[1] for path in paths]
    assert heights[0] > heights[1] + 200


def test_labels_and_pixels_are_counted(tmp_path: Path) -> None:
    split = images("segmentation")
    pixels, counts, ignored = collect(split, range(len(split)))
    labels = torch.stack([split[k]["labels"] for k in range(len(split))])
    assert counts.tolist() == torch.bincount(labels[labels >= 0], minlength=4).tolist()
    assert ignored == int((labels < 0).sum())
    assert pixels.shape == (len(split) * 256, len(split.bands))
    assert Image.open(statistics_figure(tmp_path / "x.png", split, "x", 3)).size[0] > 1000
    chips = images("classification")
    _, counts, ignored = collect(chips, [0, 2, 4])
    assert counts.sum() == 3 and ignored == 0


def test_bands_are_ordered_by_wavelength_with_the_unknown_ones_last() -> None:
    told = by_wavelength(["S1", "W1034", "HAZE", "B", "N"])
    assert told == {"B": "450-530 nm", "N": "760-900 nm", "W1034": "1034 nm", "S1": "1550-1750 nm", "HAZE": ""}


def test_a_band_without_a_measurement_is_drawn_as_such(tmp_path: Path) -> None:
    split = images("segmentation", count=6)
    blind = split.with_transform(lambda example, _: {**example, "pixel_values": example["pixel_values"] * torch.nan})
    assert Image.open(statistics_figure(tmp_path / "x.png", blind, "x")).size[0] > 1000


def test_the_command_draws_a_data_set_and_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["dataset", "--dataset.name", "synthetic", "--dataset.num_samples", "20", "--split", "val"]
    command.main([*words, "--output", str(tmp_path), "--samples", "1", "--dataset.image_size", "encoder"])
    drawn = [str(tmp_path / name) for name in ("samples_val_00.png", "statistics_val.png")]
    assert capsys.readouterr().out.splitlines() == drawn
    command.main(["--help"])
    assert "figures curves work-dir/RUN" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        command.main(["curves", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        command.main(["pie"])
    assert "error: there is no 'pie' here: choose one of 'dataset', 'curves'." in capsys.readouterr().err
    words = ["--dataset.name", "synthetic", "--dataset.test_fraction", "0", "--split", "test", "--output"]
    with pytest.raises(DataError, match="the data set has no split 'test', only 'train', 'val': give --split"):
        command.draw_dataset([*words, str(tmp_path)])
