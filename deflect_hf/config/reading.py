"""How stored values become reflectance: the keys that data sets and scenes to be mapped have in common."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat

from deflect_hf.config.schema import Arguments, option
from deflect_hf.errors import ConfigError

# NaN marks nodata by itself, and does harm anywhere else
Number = Annotated[float, Field(allow_inf_nan=True)]
Numbers = Annotated[list[Number], AfterValidator(lambda given: [value for value in given if math.isfinite(value)])]
QualityPreset = Literal["sentinel2_scl", "landsat_qa_pixel", "hls_fmask"]
QualityClass = Literal["cloud", "cirrus", "shadow", "snow", "water"]
Bit = Annotated[int, Field(ge=0, lt=32)]


class ReadingArguments(Arguments):
    """What the bands, numbers and quality layer of image files are; null: as the files, or the training, say."""

    sensor: str | dict[str, Any] | None = option(
        None, "Sensor preset, or a mapping describing one: band names, order, scale, offset, nodata values."
    )
    source_bands: list[str] | None = option(
        None,
        "Names of the stored bands in file order, for files that do not name them; '_' for a layer to be left out.",
        min_length=1,
    )
    dates: list[str] | None = option(
        None,
        "The same places at other times: a file for each (below root), whose bands are called 'N@1', 'N@2', ...; * "
        "stands for the name of the image, 'images_2019/*.tif'. Scenes of a list may have their own.",
        min_length=1,
    )
    composite: Literal["median"] | None = option(
        None,
        "With dates: 'median': bands without a date are medians over all dates of what was measured; 'N@0' is then "
        "that of the image itself. null: as in training.",
    )
    files: str | dict[str, str] | None = option(
        None,
        "Scenes with one file per band: how the files of a scene's folder are called, '*_{band}.tif', or the file of "
        "each band, {B: '*_B2.TIF', N: '*_B4.TIF'}. null: as in training, else by the product's metadata, or the last "
        "word of the names.",
    )
    grid: PositiveFloat | str | None = option(
        None,
        "Scenes of several files: the band whose grid the others come onto, or the side of a pixel in metres. null: "
        "as in training, else the finest.",
    )
    band_resampling: Literal["bilinear", "cubic"] | None = option(
        None, "How bands come onto the grid; classes are those of the nearest pixel. null: as in training, or bilinear."
    )
    scale: float | None = option(
        None,
        "reflectance = stored * scale + offset. null: the files' own tags, else the sensor's, else as in training.",
    )
    offset: float | None = option(None, "See scale; -0.1 for Sentinel-2 baseline >= 04.00.")
    nodata: Numbers | None = option(
        None,
        "Stored values that are no measurements, besides NaN and the files' tags. null: the sensor's, as in training.",
    )
    qa_band: str | None = option(
        None,
        "Description (or name in source_bands) of a band that classifies pixels, such as SCL; no band of the model.",
    )
    qa_values: list[int] = option(
        [], "Values of qa_band at which nothing was measured, cloud for example; SCL: [0, 1, 3, 8, 9, 10]."
    )
    qa_bits: list[Bit] = option([], "Bits of qa_band, from 0, any of which says that nothing was measured.")
    qa_above: float | None = option(
        None,
        "Value of qa_band above which nothing was measured: of a cloud probability (CLP, CLDPRB), as stored.",
    )
    qa: QualityPreset | None = option(None, "Product whose quality band the files have.")
    qa_classes: list[QualityClass] | None = option(
        None, "Classes of qa that are no measurement. null: cloud, cirrus and shadow."
    )
    unit_check: bool = option(True, "Refuse images whose values cannot be reflectance. Turn off only knowingly.")
    gsd_m: PositiveFloat | None = option(
        None, "Pixel size on the ground as stored, in metres. null: from the georeference."
    )

    def refuse_half_a_quality(self) -> None:
        """Refuse keys of a quality layer that do nothing without each other."""
        told = bool(self.qa_values or self.qa_bits or self.qa_above is not None)
        if self.qa is None and (self.qa_band is None) == told:
            raise ConfigError(
                "qa_band and qa_values go together (or qa_bits, or qa_above): the band, and its values or bits that "
                "are no measurement; or name the product alone, qa."
            )
        if self.qa_classes is not None and self.qa is None:
            raise ConfigError("qa_classes are those of a product: name it, qa.")
