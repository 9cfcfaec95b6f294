"""The embedded set: repeatable, balanced, and metameric in RGB."""

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deflect_hf.config.data import DatasetArguments
from deflect_hf.data import load_dataset_splits
from deflect_hf.data.processor import MultispectralImageProcessor
from deflect_hf.data.sets.synthetic import MIXED
from deflect_hf.errors import BandError, ConfigError, UnitError

CHANCE = 0.25
TRAINED = {"bands": ["R", "G", "B", "CIRRUS"], "needed_bands": ["R"], "offset": -0.1, "nodata": [900.0]}
RGB = ["R", "G", "B"]


def scene_statistics(scenes: np.ndarray) -> np.ndarray:
    """(n, C, pixels) -> (n, F) means, deviations, quantiles and correlations of each scene's pixels."""
    quantiles = np.quantile(scenes, [0.05, 0.5, 0.95], axis=2).transpose(1, 0, 2).reshape(len(scenes), -1)
    pairs = np.triu_indices(scenes.shape[1], 1)
    correlations = np.array([np.corrcoef(scene)[pairs] for scene in scenes])
    return np.concatenate([scenes.mean(2), scenes.std(2), quantiles, correlations], axis=1)


def test_whoever_sees_rgb_alone_can_only_guess_and_the_other_bands_tell_the_class() -> None:
    splits = load_dataset_splits(
        DatasetArguments(num_samples=720, image_size=[32, 32], val_fraction=0, test_fraction=0.4)
    )
    examples = {name: list(splits[name]) for name in ("train", "test")}
    pixels = {name: np.stack([one["pixel_values"].flatten(1) for one in some]) for name, some in examples.items()}
    labels = {name: [int(one["labels"]) for one in some] for name, some in examples.items()}
    logistic = LogisticRegression(C=10, max_iter=500)
    rgb = [splits["train"].bands.index(band) for band in RGB]
    train, test = ((scene_statistics(pixels[name][:, rgb]), labels[name]) for name in ("train", "test"))
    for model in (logistic, RandomForestClassifier(50, random_state=0), KNeighborsClassifier(1)):
        accuracy = make_pipeline(StandardScaler(), model).fit(*train).score(*test)
        assert abs(accuracy - CHANCE) < 0.1, model
    train, test = ((scene_statistics(pixels[name]), labels[name]) for name in ("train", "test"))
    assert make_pipeline(StandardScaler(), logistic).fit(*train).score(*test) >= 0.95


def test_pixels_are_metamers_too() -> None:
    split = load_dataset_splits(DatasetArguments(task="segmentation", num_samples=300, image_size=[32, 32]))["train"]
    examples = [split[index] for index in range(len(split))]
    pixels = torch.stack([example["pixel_values"][:, 8::16, 8::16] for example in examples]).movedim(1, -1)
    labels = torch.stack([example["labels"][8::16, 8::16] for example in examples])
    half = len(split) // 2
    scores = {}
    for name, channels in (("rgb", [split.bands.index(band) for band in RGB]), ("all", list(range(7)))):
        given = pixels[..., channels]
        model = make_pipeline(StandardScaler(), RandomForestClassifier(50, random_state=0))
        model.fit(given[:half].flatten(0, 2), labels[:half].flatten())
        scores[name] = model.score(given[half:].flatten(0, 2), labels[half:].flatten())
    assert abs(scores["rgb"] - CHANCE) < 0.1
    assert scores["all"] >= 0.9


def test_scenes_are_the_same_whatever_bands_are_asked_for() -> None:
    full = load_dataset_splits(DatasetArguments(num_samples=20, bands=list(MIXED)))["train"]
    few = load_dataset_splits(DatasetArguments(num_samples=20, bands=["RE1", "B"]))["train"]
    channels = [list(MIXED).index("RE1"), list(MIXED).index("B")]
    assert torch.equal(full[3]["pixel_values"][channels], few[3]["pixel_values"])
    assert torch.equal(few[3]["pixel_values"], few[3]["pixel_values"])
    other = load_dataset_splits(DatasetArguments(num_samples=20, bands=["RE1", "B"], seed=1))["train"]
    assert not torch.equal(few[3]["pixel_values"], other[3]["pixel_values"])


def test_both_tasks_have_the_sizes_asked_for() -> None:
    scenes = load_dataset_splits(DatasetArguments(num_samples=80, image_size=[24, 40]))
    assert {name: len(split) for name, split in scenes.items()} == {"train": 56, "val": 12, "test": 12}
    assert np.bincount([int(scenes["test"][i]["labels"]) for i in range(12)]).tolist() == [3, 3, 3, 3]
    regions = load_dataset_splits(DatasetArguments(task="segmentation", num_samples=80, image_size=[24, 40]))["val"]
    example = regions[0]
    assert (example["pixel_values"].shape, example["labels"].shape) == ((7, 24, 40), (24, 40))
    assert set(example["labels"].unique().tolist()) <= set(range(4))
    assert (regions.task, regions.num_classes, regions.gsd_m) == ("segmentation", 4, 30.0)


def test_values_are_plausible_reflectance() -> None:
    train = load_dataset_splits(DatasetArguments(num_samples=40, bands=list(MIXED)))["train"]
    pixels = torch.stack([train[i]["pixel_values"] for i in range(len(train))])
    assert -0.05 < float(pixels.min()) < 0.05
    assert 0.3 < float(pixels.max()) < 0.8


def test_noise_is_added_in_reflectance() -> None:
    def scene(noise: float) -> torch.Tensor:
        return load_dataset_splits(DatasetArguments(num_samples=20, noise=noise))["train"][0]["pixel_values"]

    assert float((scene(0.02) - scene(0.0)).std()) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bands": ["R", "T1"]}, BandError, r"has no band 'T1': choose among 'A', 'B', 'G'"),
        ({"root": "data"}, ConfigError, r"`root` does nothing for the data set 'synthetic'"),
        ({"scale": 1e-4}, ConfigError, r"`scale` does nothing"),
    ],
)
def test_requests_it_cannot_meet_are_refused(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_dataset_splits(DatasetArguments(**options))


def test_a_model_trained_on_another_product_reads_the_scenes_in_their_own_numbers() -> None:
    args = DatasetArguments(num_samples=8, image_size=[16, 16], bands=["R", "G", "B"])
    own = load_dataset_splits(args)["train"][0]["pixel_values"]
    pixels = load_dataset_splits(args, MultispectralImageProcessor(**TRAINED))["train"][0]["pixel_values"]
    assert torch.equal(pixels[:3], own) and pixels[3].isnan().all()
    with pytest.raises(BandError, match="Data set 'synthetic' has no band 'CIRRUS'"):
        load_dataset_splits(args, MultispectralImageProcessor(["R", "CIRRUS"]))
    with pytest.raises(UnitError, match="trained on 8-bit values, but the images hold reflectance"):
        load_dataset_splits(args, MultispectralImageProcessor.from_sensor("rgb"))
