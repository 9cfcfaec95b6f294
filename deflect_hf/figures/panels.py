"""A prediction beside its image: true colour, false colour, label, prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from deflect_hf.figures.canvas import class_legend, new_figure, save
from deflect_hf.figures.colours import Array, composite, composites_of, paint

CELL_INCHES = 3.0
LETTERS_PER_INCH = 13  # of the title


def prediction_panel(
    path: Path,
    pixel_values: Array,
    bands: Sequence[str],
    classes: Sequence[str],
    prediction: Array,
    label: Array | None,
    title: str,
) -> Path:
    """Write RGB, false colour, label and prediction of one image side by side, with the classes' legend.

    ``prediction`` and ``label`` are (H, W) class numbers for segmentation, 0-d class numbers for classification.
    """
    pictures = {name: composite(pixel_values, bands, shown) for name, shown in composites_of(bands).items()}
    maps = {"label": label, "prediction": prediction} if prediction.ndim == 2 else {}
    drawn = {name: values for name, values in maps.items() if values is not None}
    pictures |= {name: paint(values, len(classes)) for name, values in drawn.items()}
    figure = new_figure(CELL_INCHES * len(pictures), CELL_INCHES + 0.9)
    for axis, (name, picture) in zip(
        figure.subplots(1, len(pictures), squeeze=False)[0], pictures.items(), strict=True
    ):
        axis.set_axis_off()
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(name, fontsize=9)
    if drawn:
        class_legend(figure, classes, drawn.values())
    else:
        told = "" if label is None else f"\nlabel: {classes[int(label)]}"
        title = f"{title}{told}\nprediction: {classes[int(prediction)]}"
    letters = int(LETTERS_PER_INCH * figure.get_figwidth())
    figure.suptitle("\n".join(part for line in title.splitlines() for part in wrap(line, letters)), fontsize=9)
    return save(figure, path)
