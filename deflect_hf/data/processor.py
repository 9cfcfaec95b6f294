"""Images as they are stored -> ``pixel_values`` in reflectance, in transformers' image processor format.

The only place where digital numbers become reflectance. It selects bands by name, marks what is not a measurement as
NaN, refuses values in implausible units, and optionally resizes. Normalisation is the model's business, not done here.
"""

from __future__ import annotations

import copy
import inspect
import math
import numbers
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F

from deflect_hf.data.contract import BandContract, check_reflectance, refuse_coarse, refuse_mixed_units, refuse_order
from deflect_hf.errors import BandError, ConfigError, DataError, listing, nearest
from deflect_hf.raster.validity import unmasked
from deflect_hf.spectral.bands import UNITS, Unit
from deflect_hf.spectral.selection import match_bands, resolve_bands, select_bands
from deflect_hf.spectral.sensors import get_sensor

if TYPE_CHECKING:
    from transformers import BatchFeature
try:
    import transformers  # noqa: F401  (the name of what is missing, where it is)
    from transformers.image_processing_utils import BaseImageProcessor  # the package's own name asks for Pillow
except ModuleNotFoundError as error:  # where exported models make maps
    if error.name != "transformers":
        raise

    class BaseImageProcessor:  # type: ignore[no-redef]
        """Such maps need nothing of transformers' class of that name."""


Image = np.ndarray | torch.Tensor
Size = int | Sequence[int] | Mapping[str, int]
READING = ("sensor", "source_bands", "nodata", "quality", "files", "grid", "band_resampling", "composite")


class MultispectralImageProcessor(BaseImageProcessor):
    """Turn stored values into reflectance: ``(C_in, H, W) stored values -> (C, H, W) reflectance, NaN = invalid``.

    Saved as ``preprocessor_config.json`` beside an adapter, so that inference reads images exactly as training did.

    Args:
        bands: Band codes of the output, in order.
        source_bands: Band codes of the incoming arrays, in order; None: the arrays hold exactly ``bands``.
        scale: reflectance = stored * scale + offset; one number, or one per output band.
        offset: See ``scale``; -0.1 for Sentinel-2 since processing baseline 04.00.
        nodata: Stored values that mean "no measurement" (NaN always does).
        unit: ``"reflectance"``, or ``"8bit"`` for stretched images that never were reflectance (not checked).
        unit_check: Refuse values that cannot be reflectance; False only for data known to be extreme.
        size: Output height and width in pixels; None keeps the size.
        gsd_m: Pixel size of the incoming images on the ground, in metres.
        projection: How their grid lies on the ground (`georeference.projection`); None: not known.
        needed_bands: Bands that every image must have; a missing other band becomes NaN. None: all of ``bands``.
            Training sets it, to all bands unless the model was trained with band dropout.
        trained_size: Height and width of the training images as stored, in pixels; None where it is not known. Training
            sets it: windows of a scene are best of the same size.
        quantiles: Band -> reflectance of the training images at `contract.QUANTILES`, which scenes are compared with.
            Training sets it.
        reading: How the training files were read, where the configuration said it: ``sensor``, ``source_bands``,
            ``nodata`` and ``quality`` (band, values, bits). A scene is read the same way, unless it says something else
            itself.

    Raises:
        BandError: An output band is not among the source bands, or is unknown; or there is none.
        ConfigError: A scale of 0, a list of scales of another length than ``bands``, an unknown unit, a bad size.

    Example:
        >>> processor = MultispectralImageProcessor.from_sensor("sentinel2_l2a", bands=["R", "G", "B", "N"])
        >>> processor(stored_values, source_bands=["B", "G", "R", "N"])["pixel_values"]  # (1, 4, H, W)
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values"]

    def __init__(
        self,
        bands: Sequence[str],
        source_bands: Sequence[str] | None = None,
        scale: float | Sequence[float] = 1.0,
        offset: float | Sequence[float] = 0.0,
        nodata: Sequence[float] = (),
        unit: Unit = "reflectance",
        unit_check: bool = True,
        size: Size | None = None,
        gsd_m: float | None = None,
        projection: str | None = None,
        needed_bands: Sequence[str] | None = None,
        trained_size: Sequence[int] | None = None,
        quantiles: Mapping[str, Sequence[float]] | None = None,
        reading: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for names in (bands, source_bands, needed_bands):
            if isinstance(names, str):
                raise BandError(f"bands come as a list of names, not as the single string {names!r}.")
        if hasattr(bands, "__len__") and not len(bands):
            raise BandError("bands is empty: name the bands of the output.")
        self.source_bands = None if source_bands is None else list(source_bands)
        # a sensor described by the user may have codes of its own; those are known from source_bands only
        self.bands = resolve_bands(bands) if self.source_bands is None else list(bands)
        self.needed_bands = list(self.bands if needed_bands is None else needed_bands)
        select_bands(self.bands, self.needed_bands)
        match_bands(self.source_bands or self.bands, self.bands, self.needed_bands)
        self.scale = _per_band("scale", scale, self.bands)
        self.offset = _per_band("offset", offset, self.bands)
        if 0.0 in np.atleast_1d(self.scale):
            raise ConfigError("scale is 0, which would turn every value into the offset: give DN -> reflectance.")
        self.nodata = [fill for fill in _numbers("nodata", nodata) if math.isfinite(fill)]  # others never are measured
        if unit not in UNITS:
            raise ConfigError(f"Unknown unit {unit!r}: choose one of {listing(UNITS)}.{nearest(unit, UNITS)}")
        self.unit: Unit = unit
        self.unit_check = unit_check
        self.size = _size(size)
        if gsd_m is not None and not (isinstance(gsd_m, numbers.Real) and 0 < gsd_m < math.inf):
            raise ConfigError(f"gsd_m={gsd_m!r}: a pixel has a size above 0 metres.")
        self.gsd_m = None if gsd_m is None else float(gsd_m)
        self.projection = projection
        self.trained_size = None if trained_size is None else list(trained_size)
        self.quantiles = {band: _numbers("quantiles", values) for band, values in (quantiles or {}).items()}
        if reading is not None and (not isinstance(reading, Mapping) or not set(reading) <= {*READING}):
            raise ConfigError(f"reading={reading!r:.80}: a dictionary with some of {listing(sorted(READING))}.")
        self.reading = dict(reading or {})

    @classmethod
    def from_sensor(cls, sensor: str | Mapping[str, Any], bands: Sequence[str] | None = None, **options: Any) -> Self:
        """A processor with the scale, offset, nodata values and unit of a sensor preset; ``options`` override them."""
        preset = get_sensor(sensor)
        own = {key: getattr(preset, key) for key in ("scale", "offset", "nodata", "unit")}
        chosen = preset.codes if bands is None else resolve_bands(bands, preset)
        return cls(chosen, **{"source_bands": preset.codes, **own, **options})

    @classmethod
    def for_images(
        cls, where: str, available: Sequence[str], trained: Self | None, *, unit_check: bool = True, **options: Any
    ) -> Self:
        """That of images that have the bands ``available``: all of them, or of a ``trained`` model what it takes."""
        unit, gsd_m = options.get("unit", "reflectance"), options.get("gsd_m")
        if trained is not None:
            trained.contract.compare(where, available, unit, gsd_m, options.get("projection"))
            options |= {"bands": trained.bands, "needed_bands": trained.needed_bands, "size": trained.size}
            unit_check = unit_check and trained.unit_check
        try:
            return cls(**{"bands": available, **options}, source_bands=available, unit_check=unit_check)
        except BandError as error:
            raise BandError(f"{where}: {error}") from error

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from the contents of ``preprocessor_config.json``; keyword arguments override its entries.

        Raises:
            ConfigError: The file describes another kind of processor, or holds unknown entries.
        """
        return_unused_kwargs = kwargs.pop("return_unused_kwargs", False)
        known = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
        entries = dict(image_processor_dict)
        kind = entries.pop("image_processor_type", cls.__name__)
        if kind != cls.__name__:
            raise ConfigError(
                f"preprocessor_config.json describes a {kind}, not a {cls.__name__}: it belongs to another model."
            )
        entries.update({key: kwargs.pop(key) for key in list(kwargs) if key in known})
        for key in entries:
            if key not in known:
                raise ConfigError(f"Unknown entry {key!r} in preprocessor_config.json.{nearest(key, known)}")
        if "bands" not in entries:
            raise ConfigError("preprocessor_config.json has no entry 'bands': it was not written by this processor.")
        processor = cls(**entries)
        return (processor, kwargs) if return_unused_kwargs else processor

    def to_dict(self) -> dict[str, Any]:
        """The contents of ``preprocessor_config.json``, with what is None."""
        return {**copy.deepcopy(vars(self)), "image_processor_type": type(self).__name__}

    def __call__(
        self,
        images: Image | Sequence[Image],
        source_bands: Sequence[str] | None = None,
        valid: Image | Sequence[Image] | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """``(C_in, H, W)``, ``(B, C_in, H, W)`` or a list, stored values -> ``pixel_values`` (B, C, H, W) reflectance.

        Args:
            source_bands: Band codes of the channels; None takes those the processor was made with.
            valid: Booleans shaped like each image, or (H, W) for all its channels; False becomes NaN.
            return_tensors: ``"pt"`` or ``"np"``.

        Raises:
            BandError: The channels do not fit ``source_bands``, or a wanted band is missing.
            UnitError: The result cannot be reflectance.
            DataError: Images of different sizes without a ``size`` to bring them to.
        """
        from transformers import BatchFeature

        if return_tensors not in ("pt", "np"):
            raise ConfigError(f"return_tensors={return_tensors!r}: choose one of 'pt', 'np'.")
        single = getattr(images, "ndim", 0) == 3
        if isinstance(images, str) or not isinstance(images, Iterable):
            raise DataError(f"images are a {type(images).__name__}: give arrays (channels, height, width), or a list.")
        items: list[Any] = [images] if single else list(images)
        if not items:
            raise DataError("No image was given.")
        masks = [valid] if single else [None] * len(items) if valid is None else list(valid)
        if len(masks) != len(items):
            raise DataError(f"{len(items)} image(s) but {len(masks)} validity mask(s) were given.")
        converted = [
            self.convert(item, source_bands, mask, where=f"image {index}")
            for index, (item, mask) in enumerate(zip(items, masks, strict=True))
        ]
        sizes = sorted({tuple(image.shape[-2:]) for image in converted})
        if len(sizes) > 1:
            raise DataError(f"Images of different sizes {sizes} make no batch: give the processor a `size`, or crop.")
        batch = torch.stack(converted)
        return BatchFeature({"pixel_values": batch if return_tensors == "pt" else batch.numpy()})

    def convert(
        self, image: Image, source_bands: Sequence[str] | None = None, valid: Image | None = None, where: str = "image"
    ) -> torch.Tensor:
        """As :meth:`__call__`, for one image that errors call ``where``: -> ``(C, H, W)`` float32 reflectance."""
        valid = unmasked(image, valid)
        if isinstance(image, torch.Tensor):
            image = (image.float() if image.dtype == torch.bfloat16 else image).detach().cpu().numpy()
        stored = np.asarray(image)
        names = self._names(stored, source_bands, where)
        refuse_order(image, names, where)
        found = match_bands(names, self.bands, self.needed_bands, where)
        positions = [position or 0 for position in found]
        stored = stored[positions]
        values = stored.astype(np.float32)
        invalid = ~np.isfinite(values)
        invalid[[position is None for position in found]] = True
        for fill in self.nodata:
            invalid |= stored == fill
        if valid is not None:
            invalid |= ~self._validity(np.asarray(valid, dtype=bool), positions, (len(names), *stored.shape[1:]), where)
        values *= _column(self.scale)
        values += _column(self.offset)
        values[invalid] = np.nan
        if self.unit_check and self.unit == "reflectance":
            refuse_mixed_units(stored, _column(self.scale), self.bands, where)
            check_reflectance(values, where, self.bands)
            refuse_coarse(stored.dtype, self.scale, self.bands, where)
        pixels = torch.from_numpy(values)
        return pixels if self.size is None else resize(pixels, (self.size["height"], self.size["width"]))

    @property
    def contract(self) -> BandContract:
        """What images must be like for a model that was trained with this processor."""
        # a band without a name is "band 5 DEM" here, and "DEM" where its own name is compared
        plain = (re.sub(r"^band \d+ ", "", band) for band in self.source_bands or ())
        ignored = [band for band in plain if band not in self.bands]
        height = None if self.size is None or self.trained_size is None else self.trained_size[0]
        return BandContract(
            tuple(self.bands), tuple(self.needed_bands), tuple(ignored), self.unit, self.gsd_m, self.projection, height,
            self.quantiles,
        )  # fmt: skip

    def effective_gsd_m(self, height: int) -> float | None:
        """Pixel size on the ground after resizing images of ``height`` pixels; None where it is not known."""
        if self.gsd_m is None or self.size is None:
            return self.gsd_m
        return self.gsd_m * height / self.size["height"]

    def _names(self, stored: np.ndarray, source_bands: Sequence[str] | None, where: str) -> Sequence[str]:
        if stored.ndim != 3:
            raise DataError(f"{where} has shape {stored.shape}: give one image as (channels, height, width).")
        if not stored.size or stored.dtype.kind not in "iuf":
            raise DataError(f"{where} holds {stored.size} values of {stored.dtype}: give one image of real numbers.")
        names = source_bands if source_bands is not None else self.source_bands or self.bands
        if stored.shape[0] != len(names):
            hint = " It looks channels-last: move the channels first." if stored.shape[-1] == len(names) else ""
            raise BandError(
                f"{where} has {stored.shape[0]} channel(s), but {len(names)} band(s) were announced "
                f"({listing(names)}): give `source_bands`, the names of the channels in order.{hint}"
            )
        return names

    @staticmethod
    def _validity(valid: np.ndarray, positions: list[int], shape: tuple[int, ...], where: str) -> np.ndarray:
        if valid.shape == shape:
            return valid[positions]
        if valid.shape == shape[1:]:
            return valid[None]
        raise DataError(
            f"{where}: its validity mask has shape {valid.shape}; give {shape[1:]} (H, W), or one plane per channel."
        )


def resize(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """``(C, H, W) reflectance -> (C, height, width) reflectance``, bilinear and antialiased over valid pixels only.

    A resized pixel is NaN where at least half of what it is made of is NaN; elsewhere NaN leaves no trace in it.
    """
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    finite = torch.isfinite(pixels)
    if bool(finite.all()):
        return _interpolate(pixels, size)
    weight = _interpolate(finite.to(pixels.dtype), size)
    total = _interpolate(pixels.nan_to_num(0.0, 0.0, 0.0), size)
    return torch.where(weight > 0.5, total / weight, torch.nan)


def _interpolate(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]


def _per_band(name: str, value: float | Sequence[float], bands: Sequence[str]) -> float | list[float]:
    values = _numbers(name, value)
    one = isinstance(value, (numbers.Real, str))
    if not one and len(values) != len(bands):
        raise ConfigError(f"{name} has {len(values)} values for {len(bands)} bands: give one number, or one per band.")
    if not all(map(math.isfinite, values)):
        raise ConfigError(f"{name} must be finite, not {value!r}.")
    return values[0] if one else values


def _numbers(name: str, value: Any) -> list[float]:
    try:
        return [float(one) for one in ([value] if isinstance(value, (numbers.Real, str)) else value)]
    except (TypeError, ValueError):
        raise ConfigError(f"{name} must be a number or a list of numbers, not {value!r:.80}.") from None


def _column(value: float | list[float]) -> np.ndarray:
    return np.asarray(value, dtype=np.float32).reshape(-1, 1, 1)


def _size(size: Size | None) -> dict[str, int] | None:
    if size is None:
        return None
    if isinstance(size, Mapping):
        sides = [size.get("height"), size.get("width")]
    else:
        sides = [size, size] if isinstance(size, int) else list(size) if isinstance(size, Sequence) else []
    height, width = (side if isinstance(side, int) and side is not True else 0 for side in (*sides, 0, 0)[:2])
    if len(sides) != 2 or min(height, width) < 1:
        raise ConfigError(f"size={size!r}: give the side in pixels, [height, width], or height: and width:.")
    return {"height": height, "width": width}
