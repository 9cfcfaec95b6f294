"""Scenes with polygons, points or rasters of classes, see :mod:`deflect_hf.data.scenes`."""

from deflect_hf.config.readers import DatasetSpec
from deflect_hf.data.scenes import load_scenes as load

__all__ = ["DATASET", "load"]

DATASET = DatasetSpec(
    name="scenes",
    title="scenes of the author",
    task="segmentation",
    keys=frozenset(
        [
            *("root", "scenes", "labels", "attribute", "background", "all_touched", "window", "windows_per_epoch"),
            *("block_km", "buffer_km", "split_column", "val_fraction", "test_fraction", "num_folds", "fold"),
            *("sensor", "source_bands", "scale", "offset", "nodata", "label_alignment", "gsd_m"),
            *("files", "grid", "band_resampling", "qa_band", "qa_values", "qa_bits", "qa_above", "qa", "qa_classes"),
            *("classes", "class_values", "class_colors", "ignore_values", "ignore_index"),
        ]
    ),
)
