"""Every key of a data set does something for the chosen reader, or is refused."""

import pytest

from deflect_hf.config.data import DatasetArguments
from deflect_hf.config.readers import EVERY, dataset_module, dataset_names, dataset_spec, keys_of_reader
from deflect_hf.data.public import PublicDataset
from deflect_hf.errors import ConfigError

OTHER_THAN_DEFAULT = {
    "root": "data",
    "download": True,
    "task": "segmentation",
    "sensor": "mados",
    "source_bands": ["R", "G", "B"],
    "band_order": "nominal",
    "scale": 1e-4,
    "offset": -0.1,
    "nodata": [0.0],
    "qa_band": "SCL",
    "qa_values": [3],
    "qa_bits": [1],
    "qa_above": 40.0,
    "files": "{band}.tif",
    "grid": "B11",
    "band_resampling": "cubic",
    "dates": ["2019/*.tif"],
    "composite": "median",
    "qa": "sentinel2_scl",
    "qa_classes": ["cloud"],
    "label_alignment": "resample",
    "resampling": "bilinear",
    "gsd_m": 10.0,
    "classes": ["land", "water"],
    "label_table": "t.csv",
    "target": "ndvi",
    "target_unit": "%",
    "class_values": [1, 2],
    "ignore_values": [0],
    "ignore_index": -1,
    "partition": "0.10x_train",
    "train_split": "train_few.txt",
    "val_split": "val_few.txt",
    "test_split": "test_few.txt",
    "val_fraction": 0.2,
    "test_fraction": 0.2,
    "num_folds": 5,
    "fold": 1,
    "place_km": 5.0,
    "num_samples": 8,
    "noise": 0.01,
    "scenes": "list.csv",
    "labels": "labels.gpkg",
    "attribute": "class",
    "background": "land",
    "all_touched": True,
    "window": 64,
    "windows_per_epoch": 100,
    "block_km": 2.0,
    "buffer_km": 0.5,
    "split_column": "split",
    "images": "**/*.tif",
    "masks": "**/*.png",
    "class_colors": {"land": [[0, 255, 0]], "water": [[0, 0, 255]]},
}
TOGETHER = {
    "qa_band": "qa_values",
    "qa_values": "qa_band",
    "qa_bits": "qa_band",
    "qa_above": "qa_band",
    "qa_classes": "qa",
    "fold": "num_folds",
    "buffer_km": "block_km",
    "background": "classes",
}  # refused without the other


@pytest.mark.parametrize("key", OTHER_THAN_DEFAULT)
def test_a_key_is_refused_by_the_readers_that_do_not_look_at_it(key: str) -> None:
    for name in dataset_names():
        given = {"root": "data"} if "root" in dataset_spec(name).keys else {}
        given |= {"scenes": "list.csv"} if name == "scenes" else {}
        given[key] = OTHER_THAN_DEFAULT[key]
        if key in dataset_spec(name).keys:
            if key in TOGETHER:
                given[TOGETHER[key]] = OTHER_THAN_DEFAULT[TOGETHER[key]]
            assert getattr(DatasetArguments(name=name, **given), key) == OTHER_THAN_DEFAULT[key]
        else:
            with pytest.raises(ConfigError, match=rf"^`{key}` does nothing for the data set '{name}': remove it\. It"):
                DatasetArguments(name=name, **given)


def test_the_message_names_the_readers_that_use_the_key() -> None:
    with pytest.raises(ConfigError, match=r"It is for 'folder', 'scenes', the public data sets\.$"):
        DatasetArguments(root="data")
    with pytest.raises(ConfigError, match=r"It is for the public data sets\.$"):
        DatasetArguments(name="folder", root="data", download=True)
    with pytest.raises(ConfigError, match=r"It is for 'folder', 'scenes', 'synthetic'\.$"):
        DatasetArguments(name="mados", root="data", num_folds=3)


def test_scenes_need_a_list_of_them() -> None:
    with pytest.raises(ConfigError, match="Data set 'scenes' needs `scenes`: a list of"):
        DatasetArguments(name="scenes")


def test_arguments_of_one_reader_carried_over_to_another() -> None:
    trained_on = DatasetArguments(name="mados", root="data", resampling="bilinear", limited_label=0.5)
    kept = keys_of_reader(dict(trained_on), "folder")
    assert "resampling" not in kept and "download" not in kept
    assert (kept["root"], kept["limited_label"]) == ("data", 0.5)
    DatasetArguments(**{**kept, "name": "folder"})


@pytest.mark.parametrize("name", dataset_names())
def test_every_file_of_a_data_set_is_complete(name: str) -> None:
    module = dataset_module(name)
    fields = set(DatasetArguments.model_fields)
    assert callable(module.load) and module.DATASET.name == name and module.DATASET.keys < fields
    assert fields - EVERY == set(OTHER_THAN_DEFAULT)
    if isinstance(module.DATASET, PublicDataset):
        assert module.DATASET.public and {"root", "download"} < module.DATASET.keys
