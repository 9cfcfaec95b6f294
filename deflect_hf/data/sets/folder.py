"""A folder of a user's own images, see :mod:`deflect_hf.data.folder`."""

from deflect_hf.config.readers import SPLIT_FILES, DatasetSpec
from deflect_hf.config.reading import ReadingArguments
from deflect_hf.data.folder import load_folder as load

__all__ = ["DATASET", "load"]

DATASET = DatasetSpec(
    name="folder",
    title="images of the author",
    task=None,
    keys=frozenset(
        [
            *("images", "masks", "class_colors", "split_column"),
            *(*ReadingArguments.model_fields, "root", "task", "label_alignment"),
            *(*SPLIT_FILES, "val_fraction", "test_fraction"),
            *("num_folds", "fold", "place_km", "classes", "class_values", "ignore_values", "ignore_index"),
            *("label_table", "target", "target_unit"),
        ]
    ),
)
