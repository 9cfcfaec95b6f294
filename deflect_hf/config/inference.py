"""The keys of a prediction."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, model_validator

from deflect_hf.config.data import Batch, Side
from deflect_hf.config.reading import ReadingArguments
from deflect_hf.config.schema import Arguments, UserPath, option
from deflect_hf.errors import ConfigError

EXPORTED = (".pt2", ".onnx")
Overlap = Annotated[float, Field(ge=0.0, le=0.5)]


class JobArguments(Arguments):
    """Which files, which model."""

    predict: list[UserPath] = Field(
        description="IN OUT: images, scene folders (SAFE, Landsat, HLS, one file per band), addresses of COGs or "
        "STAC items, or quoted patterns, and last the map to write; with several "
        "images the folder of the maps (needed)"
    )
    adapter: UserPath | None = option(None, "folder of a run, its best/ folder, or USER/NAME on the Hub")
    model: UserPath | None = option(
        None, "instead of a run, a file of deflect-export, .onnx or .pt2: needs neither PEFT nor transformers"
    )
    revision: str | None = option(None, "commit, tag or branch of an adapter on the Hub")
    encoder: UserPath | None = option(None, "Hub id or folder of the base encoder; null: as in training")
    report: bool = option(False, "beside each map, a report of its name that a browser shows: picture, map, areas")


class SceneArguments(ReadingArguments):
    """How a scene is read, cut into windows and written."""

    output: Literal["classes", "confidence", "probabilities", "embeddings"] = option(
        "classes",
        "one band of class numbers; with confidence a second band, the probability of that class, calibrated on "
        "validation; one band of probabilities per class; or the encoder's token features on the grid of its patches",
    )
    dtype: Literal["float32", "uint8"] | None = option(
        None, "of probabilities; uint8: steps of 0.004, a quarter of the size; null: float32"
    )
    polygons: UserPath | None = option(
        None, "write the map as polygons, too (.gpkg, .geojson, .fgb), with the class, area and confidence of each"
    )
    simplify: NonNegativeFloat = option(1.0, "pixels by which the borders of polygons may move; 0: as in the map")
    cog: bool = option(False, "write a Cloud Optimized GeoTIFF")
    overwrite: bool = option(False, "replace maps that are there, and parts of others")
    window: Side | None = option(
        None, "side of the windows in pixels; null: as in evaluation, else that of the training images"
    )
    overlap: Overlap = option(0.25, "share of its side by which a window overlaps the next")
    batch_size: Batch = option(8, "windows per forward pass")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dtype is not None and self.output != "probabilities":
            raise ConfigError(f"dtype={self.dtype!r} is for probabilities: add --output probabilities, or leave it out")
        if self.polygons is not None and self.output not in ("classes", "confidence"):
            raise ConfigError(f"--polygons are of a map of classes: leave out --output {self.output}, or --polygons")
        self.refuse_half_a_quality()
        return self


class PredictArguments(SceneArguments, JobArguments):
    """The command line of a prediction: files and model first, then how."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.adapter is None) == (self.model is None):
            raise ConfigError("give one model: --adapter RUN, or --model FILE of deflect-export")
        if self.model is not None and not self.model.endswith(EXPORTED):
            raise ConfigError(f"model={self.model!r} is no .pt2 or .onnx of deflect-export: a run goes with --adapter")
        for name in ("revision", "encoder"):
            if self.model is not None and getattr(self, name) is not None:
                raise ConfigError(f"--{name} goes with --adapter: {self.model} holds all of its model; leave it out")
        if self.report and self.output not in ("classes", "confidence"):
            raise ConfigError(f"--report shows a map of classes: leave out --output {self.output}, or --report")
        return self


class ExportArguments(Arguments):
    """The keys of an export."""

    run: UserPath = Field(description="folder of a run, its best/ folder, or USER/NAME on the Hub (needed)")
    output: UserPath = Field(description="file to write: .pt2 for torch.export, .onnx for ONNX (needed)")
    revision: str | None = option(None, "commit, tag or branch of a model on the Hub")
    encoder: UserPath | None = option(None, "Hub id or folder of the base encoder; null: as in training")
    window: Side | None = option(None, "side of the images in pixels; null: as deflect-predict cuts its windows")
    batch_size: Batch | None = option(None, "images per call; null: any number")
    overwrite: bool = option(False, "replace an export that is there")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.output.endswith(EXPORTED):
            raise ConfigError(f"output={self.output!r} must end in .pt2 (torch.export) or in .onnx")
        return self
