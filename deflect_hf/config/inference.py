"""What a prediction can be told. Importing this file needs neither torch nor rasterio."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from deflect_hf.config.paths import UserPath
from deflect_hf.errors import ConfigError

Overlap = Annotated[float, Field(ge=0.0, le=0.5)]


@dataclass(kw_only=True)
class JobArguments:
    """Which files, which model."""

    predict: list[str] = field(
        metadata={
            "help": "IN OUT: image files or quoted patterns (GeoTIFF or VRT), and last the map to write; with several "
            "images the folder of the maps (needed)"
        }
    )
    adapter: UserPath = field(metadata={"help": "folder of a run, its best/ folder, or USER/NAME on the Hub (needed)"})
    revision: str | None = field(default=None, metadata={"help": "commit, tag or branch of an adapter on the Hub"})
    encoder: UserPath | None = field(
        default=None, metadata={"help": "Hub id or folder of the base encoder; null: as in training"}
    )
    report: bool = field(
        default=False,
        metadata={"help": "beside each map, a report of its name that a browser shows: picture, map, areas"},
    )


@dataclass(kw_only=True)
class SceneArguments:
    """How a scene is read, cut into windows and written.

    Raises:
        ConfigError: options that do not go together.
    """

    output: Literal["classes", "probabilities"] = field(
        default="classes", metadata={"help": "one band of class numbers, or one band of probabilities per class"}
    )
    dtype: Literal["float32", "uint8"] | None = field(
        default=None,
        metadata={"help": "of probabilities; uint8: steps of 0.004, a quarter of the size; null: float32"},
    )
    cog: bool = field(default=False, metadata={"help": "write a Cloud Optimized GeoTIFF"})
    overwrite: bool = field(default=False, metadata={"help": "replace maps that are there, and parts of others"})
    window: PositiveInt | None = field(
        default=None,
        metadata={"help": "side of the windows in pixels; null: as in evaluation, else that of the training images"},
    )
    overlap: Overlap = field(default=0.25, metadata={"help": "share of its side by which a window overlaps the next"})
    batch_size: PositiveInt = field(default=8, metadata={"help": "windows per forward pass"})
    sensor: str | dict[str, Any] | None = field(
        default=None, metadata={"help": "sensor preset: names, order, scale and offset of the bands"}
    )
    source_bands: list[str] | None = field(
        default=None, metadata={"help": "names of the bands in file order, for files that do not name them"}
    )
    scale: float | None = field(
        default=None,
        metadata={"help": "reflectance = stored * scale + offset; null: file's tags, sensor's, as in training"},
    )
    offset: float | None = field(default=None, metadata={"help": "see scale"})
    nodata: list[float] | None = field(
        default=None, metadata={"help": "stored values that are no measurement, besides NaN and the file's nodata tag"}
    )
    qa_band: str | None = field(
        default=None, metadata={"help": "description of a band that classifies the pixels, such as SCL"}
    )
    qa_values: list[int] = field(
        default_factory=list, metadata={"help": "values of qa_band at which nothing was measured, cloud for example"}
    )
    unit_check: bool = field(
        default=True, metadata={"help": "refuse scenes whose values cannot be reflectance; turn off only knowingly"}
    )
    gsd_m: PositiveFloat | None = field(
        default=None, metadata={"help": "pixel size on the ground in metres; null: from the georeference"}
    )

    def __post_init__(self) -> None:
        if self.dtype is not None and self.output == "classes":
            raise ConfigError(f"dtype={self.dtype!r} is for probabilities: add --output probabilities, or leave it out")
        if (self.qa_band is None) != (not self.qa_values):
            raise ConfigError("qa_band and qa_values go together: the band, and its values that are no measurement")


@dataclass(kw_only=True)
class PredictArguments(SceneArguments, JobArguments):
    """The command line of a prediction: files and model first, then how.

    Raises:
        ConfigError: options that do not go together.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.report and self.output != "classes":
            raise ConfigError(f"--report shows a map of classes: leave out --output {self.output}, or --report")
