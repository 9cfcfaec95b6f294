"""What a trained model assumes of its images, and whether images fit: their bands, their unit, their values."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deflect_hf.errors import BandError, UnitError, listing
from deflect_hf.spectral.bands import Unit, is_reflectance
from deflect_hf.spectral.selection import band_or_none, match_bands

logger = logging.getLogger(__name__)

# Limits on reflectance, 1.0 = 100 %. Bright snow and sun glint reach 1.6 to 2.9 in single pixels; atmospheric
# correction leaves water down to about -0.02.
TOO_BRIGHT = 3.0  # more than 10 % of a channel above it
TOO_DARK = 2e-4  # the whole image below it: 0.5 with a scale of 1e-4 applied twice is 5e-5
DARKEST = 0.01  # 99 % of all images in each band below it: clear sea is brighter in blue, and images are not all of it
SHIFTED = -0.03  # more than half of a channel below it
FRACTIONS = 0.7  # mean of stored values that are reflectance already; of averaged digital numbers on dark water it is 1
LOWEST = -100.0  # more than 5 % of a channel below it: no standardised values, nor decibels
STANDARDISED = -0.3  # more than 5 % of a channel below it
_SAMPLE = 65536  # values looked at per channel
DIMMEST = 0.1  # reflectance that the highest of 8 bits has at least; of pictures under a scale for 16 bits it is 0.03
COARSEST = 0.5  # scale of whole numbers

GSD_RATIO = 1.25

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)  # of the training images, per band
FEWEST = 64  # measured pixels that quantiles can be taken of
NARROW = 0.02  # reflectance: a band that varies less than this over the training images
# What a wrong offset or scale makes of reflectance: scale, offset, and the share of the distance from the training
# images that may be left once it is undone. Twice and half as bright occurs in nature. Of 1,240 real chips against four
# training sets none was refused; of sets that were shifted by 0.1, 4 to 10 % of the distance is left.
# What is undone has to be NEAR the training images, too: a tenth of cloud, snow or desert is as dark as a forest.
NEAR = 0.2  # mean difference of the quantiles, in lengths from 5 to 95 % of training
MISTAKES: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "plus 0.1": (1.0, 0.1, 0.2),
        "minus 0.1": (1.0, -0.1, 0.2),
        "times 10": (10.0, 0.0, 0.2),
        "divided by 10": (0.1, 0.0, 0.2),
        "times 2": (2.0, 0.0, 0.15),
        "divided by 2": (0.5, 0.0, 0.15),
    }
)


@dataclass(frozen=True)
class BandContract:
    """What images a trained model takes: kept in its ``preprocessor_config.json``, checked where images are named."""

    bands: tuple[str, ...]  # band codes of ``pixel_values``, in order
    # those that every image must have; a model trained with band dropout does without the others
    needed_bands: tuple[str, ...]
    ignored_bands: tuple[str, ...] = ()  # further bands of the training images, which the model was not given
    unit: Unit = "reflectance"  # of ``pixel_values``
    gsd_m: float | None = None  # size of the training images' pixels on the ground, None where it is not known
    # how the training images' grid lies on the ground (`georeference.projection`); None where it is not known. Zones of
    # one projection are alike to a model, degrees and metres are not
    projection: str | None = None
    # of the training images in those pixels, where all images are resized to one size; None otherwise
    height: int | None = None
    # band -> values of the training images at ``QUANTILES``; empty where they are not known
    quantiles: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def compare(
        self,
        where: str,
        available: Sequence[str],
        unit: Unit,
        gsd_m: float | None,
        projection: str | None = None,
        height: int | None = None,
    ) -> None:
        """Compare images that have the bands ``available``, in any order, with the contract; warn of what is odd.

        Warnings: bands that nobody will look at, missing bands that the model can do without, a coordinate reference
        system of another projection than in training, and pixels more than a quarter larger or smaller than in
        training, as the model sees them.

        Args:
            height: of the images in pixels, before they are resized; None: as in training.

        Raises:
            BandError: a needed band is missing.
            UnitError: the images are 8-bit and the model expects reflectance, or the other way round.
        """
        if unit != self.unit:
            raise UnitError(
                f"{where}: the model was trained on {_UNIT_NAMES[self.unit]}, but the images hold "
                f"{_UNIT_NAMES[unit]}: use images of the same kind."
            )
        positions = match_bands(available, self.bands, self.needed_bands, where)
        missing = [band for band, position in zip(self.bands, positions, strict=True) if position is None]
        if missing:
            logger.warning("%s: without the band(s) %s; the model was trained to do without", where, listing(missing))
        used = {available[position] for position in positions if position is not None}
        extra = [band for band in available if band not in used and band not in self.ignored_bands]
        if extra:
            logger.warning("%s: band(s) %s are unknown to the model and are ignored", where, listing(extra))
        if projection is not None and self.projection is not None and projection != self.projection:
            logger.warning(
                "%s: its coordinate reference system is %s, but the model was trained on images in one that is %s: "
                "pixels may have another size or shape on the ground (gdalwarp -t_srs brings the image to such a "
                "system)",
                where,
                projection,
                self.projection,
            )
        if gsd_m is None or self.gsd_m is None:
            return
        shrunk = height / self.height if height is not None and self.height is not None else 1.0
        if not 1 / GSD_RATIO <= shrunk * gsd_m / self.gsd_m <= GSD_RATIO:
            logger.warning(
                "%s: pixels of %g m%s, but the model was trained on %g m",
                where,
                shrunk * gsd_m,
                "" if shrunk == 1.0 else f" once {height} of them are resized as {self.height} were in training",
                self.gsd_m,
            )

    def check_values(self, pixel_values: NDArray[Any] | Tensor, where: str) -> None:
        """Refuse (C, ...) values that are those of training but for an offset or a scale; NaN is skipped.

        Images of another place or season differ from those of training, but not by one number in all bands: an error is
        raised only where such a number brings nearly all quantiles of all bands back, or where they are darker than
        any sea.

        Args:
            pixel_values: of a whole scene or of many images, bands in the order of the contract.

        Raises:
            UnitError: naming the likely cause and the ways out.
        """
        if self.unit != "reflectance":
            return
        array = pixel_values.detach().cpu().numpy() if isinstance(pixel_values, Tensor) else np.asarray(pixel_values)
        found: dict[str, NDArray[np.float64]] = {}
        for band, values in zip(self.bands, array.reshape(len(self.bands), -1), strict=True):
            sample = values[:: max(1, values.size // _SAMPLE)]
            sample = sample[np.isfinite(sample)]
            if len(self.quantiles.get(band, ())) == len(QUANTILES) and sample.size >= FEWEST:
                found[band] = np.quantile(sample.astype(np.float64), QUANTILES)
        if len(found) < 2:
            return
        scene = np.array([*found.values()])[:, 1:-1]
        if scene.any():  # zeros alone are told elsewhere
            refuse_dark(found, where)
        training = np.array([self.quantiles[band][1:-1] for band in found])
        spread = np.maximum(training[:, -1:] - training[:, :1], NARROW)

        def distance(values: NDArray[np.float64]) -> float:
            return float((np.abs(values - training) / spread).mean())

        undone = {change: distance((scene - offset) / scale) for change, (scale, offset, _) in MISTAKES.items()}
        change = min(MISTAKES, key=lambda one: undone[one] / MISTAKES[one][2])
        if not undone[change] < NEAR <= distance(scene) or undone[change] >= MISTAKES[change][2] * distance(scene):
            return
        medians = ", ".join(
            f"{band} {own[2]:.3g} (training: {usual[2]:.3g})"
            for band, own, usual in list(zip(found, scene, training, strict=True))[:3]
        )
        raise UnitError(
            f"{where}: in all bands, its values are those of the training images {change}; medians are {medians}. "
            f"{_CAUSES[MISTAKES[change][1] != 0]} Correct `offset`, `scale` or `sensor`; if the values are right, "
            "set `unit_check` to false."
        )


_CAUSES = {
    True: "Sentinel-2 since processing baseline 04.00 (DN + 1000) needs offset -0.1, before it and in 'harmonized' "
    "collections offset 0.",
    False: "The digital numbers mean something else than the scale says.",
}
_UNIT_NAMES = {"reflectance": "reflectance (1.0 = 100 %)", "8bit": "8-bit values"}

Problem = Literal["8bit", "digital numbers", "dark", "shifted", "standardised", "fill", "offset"]
_FIXES: dict[Problem, str] = {
    "8bit": "these look like 8-bit values: use a sensor with unit '8bit' and scale 1/255, such as 'rgb'.",
    "digital numbers": "these look like digital numbers: give the sensor, or its scale and offset (Sentinel-2: scale "
    "1e-4, offset -0.1 from processing baseline 04.00 on, else 0; Landsat C2 L2: 2.75e-5, -0.2).",
    "dark": "this looks like a scale applied twice: values that are reflectance already need scale 1, offset 0 "
    "(predictor(images, scale=1.0)).",
    "shifted": "this looks like an offset that the images do not have: Sentinel-2 before processing baseline 04.00 and "
    "'harmonized' collections need offset 0 (sensor 'sentinel2_l2a_harmonized' or 'sentinel2_l1c_harmonized'); zeros "
    "where nothing was measured need `nodata: [0]`; 8 bits of old Landsat files their folder with its _MTL.txt.",
    "fill": "many hold the lowest one, by which files often mean that nothing was measured: tag the stored value in "
    "the files (gdal_edit.py -a_nodata), or give it as `nodata` ([-9999], [-3.4028234663852886e+38], ...).",
    "offset": "this looks like an offset of digital numbers; it is added after the scale: of (DN - 1000) * 1e-4 it is "
    "-0.1.",
    "standardised": "these look standardised (mean and standard deviation taken off): spectral indices need the "
    "reflectance itself, so give the images before normalisation.",
}


def check_reflectance(values: NDArray[Any] | Tensor, where: str, bands: Sequence[str] = ()) -> None:
    """Refuse values that cannot be reflectance (1.0 = 100 %): (..., C, H, W) or any shape; NaN is skipped.

    Judged from percentiles of each channel, so that single bad pixels, snow, cloud, and water with slightly negative
    values pass. Values between 0 and 1 pass whatever they are: 8-bit divided by 255 cannot be told apart.

    Args:
        values: the image after scale and offset.
        where: what the message calls it, a file name for example.
        bands: codes of the channels; those that are no reflectance (DEM, T1) are not judged. Empty: all are.

    Raises:
        UnitError: digital numbers, 8-bit or standardised values, a scale applied twice, or an offset in excess; the
            message names the channel, what was found, and the fix.
    """
    array = values.detach().cpu().float().numpy() if isinstance(values, Tensor) else np.asarray(values)
    channels = np.moveaxis(array, -3, 0).reshape(array.shape[-3], -1) if array.ndim >= 3 else array.reshape(1, -1)
    brightest = 0.0
    for number, channel in enumerate(channels):
        if bands and not is_reflectance(bands[number]):
            continue
        sample = channel[:: max(1, channel.size // _SAMPLE)]
        lowest, highest = float(np.fmin.reduce(sample)), float(np.fmax.reduce(sample))
        if lowest >= SHIFTED and highest <= TOO_BRIGHT:  # then no percentile can be out of the limits either
            brightest = max(brightest, -lowest, highest)
            continue
        sample = sample[np.isfinite(sample)].astype(np.float64)
        if not sample.size:
            continue
        low, half, high = np.percentile(sample, [5, 50, 90])
        brightest = max(brightest, float(np.abs(sample).max()))
        problem = _problem(sample, low, half, high)
        if problem is not None:
            named = f"band {bands[number]!r}, " if bands else ""
            raise UnitError(
                f"{where}: {named}channel {number} is not reflectance (1.0 = 100 %): 5 % of its values are below "
                f"{low:.4g}, half below {half:.4g}, 90 % below {high:.4g}; {_FIXES[problem]}"
            )
    if 0 < brightest < TOO_DARK:
        raise UnitError(f"{where}: no value is above {brightest:.3g}, but 1.0 is 100 % reflectance; {_FIXES['dark']}")


def refuse_order(image: Any, bands: Sequence[str], where: str) -> None:
    """Refuse a labelled array, as xarray's, whose coordinate ``band`` gives its channels other names than ``bands``."""
    coordinates = getattr(image, "coords", None)
    labels = np.asarray(coordinates.get("band", ()) if isinstance(coordinates, Mapping) else ())
    for label, band in zip(labels if labels.ndim == 1 else (), bands, strict=False):
        if band_or_none(str(label)) in {*bands} - {band}:
            raise BandError(
                f"{where} has the coordinate band={label!s:.20} where the band {band!r} was announced: give the names "
                "of its channels in its own order, `source_bands` (or `bands`)."
            )


def refuse_dark(quantiles: Mapping[str, Sequence[float] | NDArray[np.float64]], where: str) -> None:
    """Refuse images that are all darker than the darkest sea: band -> its values at ``QUANTILES``.

    Raises:
        UnitError: the scale makes too little of the numbers.
    """
    brightest = max((values[-1] for values in quantiles.values() if len(values)), default=DARKEST)
    if brightest < DARKEST:
        raise UnitError(
            f"{where}: in every band, 99 % of the values are below {brightest:.2g}, but 1.0 is 100 % reflectance: "
            "correct `scale` or the scale tags of the files (Sentinel-2: 1e-4; Landsat C2 L2: 2.75e-5; percent: 0.01); "
            "if all of the images are so dark, set `unit_check` to false."
        )


def refuse_mixed_units(stored: NDArray[Any], scale: NDArray[Any], bands: Sequence[str], where: str) -> None:
    """Refuse bands that hold reflectance where others hold digital numbers: (C, H, W) stored values, NaN is skipped.

    Such a band holds fractions, which the scale of the others brings to nothing. Whole numbers as small are no measure:
    atmospheric correction leaves 0 and 1 on dark water. Bands that are no reflectance have a unit of their own.

    Args:
        scale: (C, 1, 1) or ().

    Raises:
        UnitError: naming the bands and the fix.
    """
    if stored.dtype.kind != "f" or np.all(np.abs(scale) >= TOO_DARK):
        return
    flat = stored.reshape(len(stored), -1)
    flat = flat[:, :: max(1, flat.shape[1] // _SAMPLE)]
    sample = np.where(np.isfinite(flat), flat, 0)
    highest = np.abs(sample).max(axis=1, initial=0)
    fractions = (
        (highest <= TOO_BRIGHT) & (np.abs(sample).mean(axis=1) < FRACTIONS) & (sample != np.round(sample)).any(axis=1)
    )
    fractions &= [is_reflectance(band) for band in bands]
    fractions &= np.broadcast_to(np.abs(scale).reshape(-1), highest.shape) * highest < TOO_DARK
    if fractions.any() and (highest > TOO_BRIGHT).any():
        odd = [band for band, one in zip(bands, fractions, strict=True) if one]
        raise UnitError(
            f"{where}: the band(s) {listing(odd)} hold fractions, up to {highest[fractions].max():.3g}, and the others "
            f"numbers up to {highest.max():.4g}: `scale` turns only one of both into reflectance. Store all bands in "
            "one unit, or leave `scale` and `offset` out and tag each band with its own in the files."
        )


def refuse_coarse(dtype: np.dtype[Any], scale: float | Sequence[float], bands: Sequence[str], where: str) -> None:
    """Refuse whole numbers that are too few steps of reflectance to be it, whatever their values.

    Args:
        dtype: of the stored values, which :func:`check_reflectance` has found nothing wrong with.
        bands: those that are no reflectance (DEM, VV) are not judged.

    Raises:
        UnitError: 8 bits under a scale for 16, or a scale of 1 or so.
    """
    scales = np.broadcast_to(np.abs(scale), len(bands))[[is_reflectance(band) for band in bands]]
    if dtype.kind not in "iu" or not scales.size:
        return
    highest = float(scales.max()) * np.iinfo(dtype).max
    if dtype.itemsize == 1 and highest < DIMMEST:
        raise UnitError(
            f"{where} holds 8 bits, of which scale {scales.max():g} makes a reflectance of {highest:.2g} at most: such "
            "numbers are no sensor's, most often a picture stretched for the eye. Give the original values; or, "
            f"for a model of such pictures, scale {1 / np.iinfo(dtype).max:.4f} and offset 0."
        )
    if scales.min() >= COARSEST:
        raise UnitError(
            f"{where} holds whole numbers, with scale {scales.min():g}: reflectance (1.0 = 100 %) in such steps says "
            "nothing. If it was rounded when it was stored, store it as float32; else give the scale of these numbers."
        )


def _problem(sample: NDArray[np.float64], low: float, half: float, high: float) -> Problem | None:
    whole = bool((sample == np.round(sample)).all())
    if high > TOO_BRIGHT or (whole and sample.max() > TOO_BRIGHT):
        return "8bit" if whole and sample.min() >= 0 and sample.max() <= 255 else "digital numbers"
    if low < STANDARDISED:
        if np.mean(sample == sample.min()) > 0.04:
            return "fill"
        return "offset" if low < LOWEST else "standardised"
    return "shifted" if half < SHIFTED else None
