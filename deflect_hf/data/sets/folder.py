"""A folder of a user's own images, see :mod:`deflect_hf.data.folder`."""

from deflect_hf.config.readers import SPLIT_FILES, DatasetSpec
from deflect_hf.data.folder import load_folder as load

__all__ = ["DATASET", "load"]

DATASET = DatasetSpec(
    name="folder",
    title="images of the author",
    task=None,
    keys=frozenset(
        [
            *("images", "masks", "class_colors", "split_column"),
            *("root", "task", "sensor", "source_bands", "scale", "offset", "nodata", "label_alignment", "gsd_m"),
            *("dates", "composite", "files", "grid", "band_resampling"),
            *("qa_band", "qa_values", "qa_bits", "qa_above", "qa", "qa_classes"),
            *(*SPLIT_FILES, "val_fraction", "test_fraction"),
            *("num_folds", "fold", "place_km", "classes", "class_values", "ignore_values", "ignore_index"),
            *("label_table", "target", "target_unit"),
        ]
    ),
)
