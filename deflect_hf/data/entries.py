"""What types the entries of a ``preprocessor_config.json`` have, which may come from anybody."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deflect_hf.config.data import Side
from deflect_hf.errors import CheckpointError

Number = Annotated[float, Field(allow_inf_nan=False)]


class Reading(BaseModel):
    """How the training files were read; see ``MultispectralImageProcessor``."""

    model_config = ConfigDict(extra="forbid", strict=True)
    sensor: str | dict[str, Any] | None = None
    source_bands: list[str] | None = None
    nodata: list[Number] | None = None
    quality: Annotated[list[str | list[int] | float], Field(min_length=3, max_length=4)] | None = None
    files: str | dict[str, str] | None = None
    grid: float | str | None = None
    band_resampling: Literal["bilinear", "cubic"] | None = None
    composite: Literal["median"] | None = None


class ProcessorEntries(BaseModel):
    """The types of ``preprocessor_config.json``; what the values must be like says the processor."""

    model_config = ConfigDict(extra="forbid", strict=True)
    bands: list[str]
    image_processor_type: str = ""
    source_bands: list[str] | None = None
    needed_bands: list[str] | None = None
    scale: Number | list[Number] = 1.0
    offset: Number | list[Number] = 0.0
    nodata: list[Number] = []
    unit: str = ""
    unit_check: bool = True
    size: Annotated[dict[Literal["height", "width"], Side], Field(min_length=2)] | None = None
    trained_size: Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    gsd_m: Number | None = None
    projection: str | None = None
    quantiles: dict[str, list[Number]] = {}
    reading: Reading | None = None


def check_entries(path: Path, entries: Mapping[str, Any]) -> None:
    """Refuse values of other types, or sizes beyond reason (CheckpointError); unknown keys refuses the processor."""
    known = {key: value for key, value in entries.items() if key in ProcessorEntries.model_fields}
    try:
        ProcessorEntries.model_validate(known)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise CheckpointError(f"{path}: {key} is {entries.get(key)!r:.80}: {first['msg']}.") from None
