"""Pictures of data and results, as PNG: samples, band statistics, predictions, confusion matrices, learning curves.

matplotlib is imported when something is drawn, on a canvas of its own: no display is needed and no global backend
changes. Class colors keep apart under the common color-vision deficiencies.
"""

from deflect_hf.figures.colors import class_colors as class_colors
from deflect_hf.figures.results import FIGURES as FIGURES
from deflect_hf.figures.results import curves_figure as curves_figure
from deflect_hf.figures.results import prediction_panel as prediction_panel
from deflect_hf.figures.results import rates_figure as rates_figure
from deflect_hf.figures.results import scores_figure as scores_figure
