"""Pictures of data and results, as PNG: samples, band statistics, predictions, confusion matrices, learning curves.

matplotlib is imported when something is drawn, on a canvas of its own: no display is needed and no global backend
changes. Class colours keep apart under the common colour-vision deficiencies.

    python -m deflect_hf.figures dataset --dataset_config configs/datasets/synthetic.yaml --output FOLDER
    python -m deflect_hf.figures curves work-dir/RUN [work-dir/RUN ...] --output curves.png
"""

from deflect_hf.figures.colours import class_colours, composite, false_colour_bands, paint
from deflect_hf.figures.confusion import confusion_figure
from deflect_hf.figures.curves import curves_figure
from deflect_hf.figures.panels import prediction_panel

__all__ = [
    "class_colours",
    "composite",
    "confusion_figure",
    "curves_figure",
    "false_colour_bands",
    "paint",
    "prediction_panel",
]
