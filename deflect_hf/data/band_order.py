"""Do the values of stored channels bear out the band order that is assumed of them?

Two data sets of GEO-Bench name their channels by position, with the names of another order; a converter may have put
that right since. The values tell which it is.

Sources: ServiceNow/geo-bench issues 28 (m-eurosat) and 29 (m-brick-kiln); phelber/EuroSAT issue 7.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deflect_hf.errors import DataError

logger = logging.getLogger(__name__)

Image = Mapping[str, np.ndarray]  # band code that the channel is called by -> (H, W) stored values

# the channels that m-brick-kiln calls B10, B11, B12, and of which colour they are the 8-bit image
_TRUE_COLOUR = {"CIRRUS": "R", "S1": "G", "S2": "B"}
# A true-colour image has about 0.1 times the digital numbers; the means of m-brick-kiln have 0.102 times.
_TRUE_COLOUR_RATIO = (0.05, 0.2)
_DARKER = 3.0  # the cirrus band of EuroSAT is 60 times as dark as water vapour, 150 times as SWIR


@dataclass(frozen=True)
class Evidence:
    """What the values say: the ``order`` of :data:`~deflect_hf.config.data.BAND_ORDERS`, or None, and why."""

    order: str | None
    why: str


def kiln_evidence(images: Sequence[Image]) -> Evidence:
    """m-brick-kiln: the channels called B10, B11 and B12 hold B10, B11 and B12, or the 8-bit true-colour image."""
    mean = {code: _mean(images, code) for code in ("B", "G", "R", *_TRUE_COLOUR)}
    ratios = [mean[channel] / max(mean[colour], 1.0) for channel, colour in _TRUE_COLOUR.items()]
    peak = [max(float(image[channel].max()) for image in images) for channel in _TRUE_COLOUR]
    shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    peaks = ", ".join(f"{value:g}" for value in peak)
    if max(peak) <= 255 and all(_TRUE_COLOUR_RATIO[0] < ratio < _TRUE_COLOUR_RATIO[1] for ratio in ratios):
        return Evidence(
            "true",
            f"the channels called B10, B11, B12 stay within 8 bits (up to {peaks}) at {shown} times B4, B3, B2: they "
            "are the true-colour image",
        )
    if min(mean["S1"], mean["S2"]) > 255:
        return Evidence(
            "nominal",
            f"the channels called B11, B12 have means of {mean['S1']:.0f} and {mean['S2']:.0f}, no 8-bit values: they "
            "are a Sentinel-2 image of 13 bands",
        )
    return Evidence(None, f"the channels called B10, B11, B12 go up to {peaks}, at {shown} times B4, B3, B2")


def eurosat_evidence(images: Sequence[Image]) -> Evidence:
    """m-eurosat: cirrus, the darkest band by far, lies in the channel called B10, or one channel ahead (B8A last)."""
    vapour, cirrus = (_mean(images, code) for code in ("WV", "CIRRUS"))
    why = f"the channel called B9 has a mean of {vapour:.0f}, that called B10 of {cirrus:.0f}"
    if vapour * _DARKER < cirrus:
        return Evidence("true", f"{why}: cirrus, the dark one, is in B9's place and B8A last")
    if cirrus * _DARKER < vapour:
        return Evidence("nominal", f"{why}: cirrus, the dark one, is in its own place")
    return Evidence(None, why)


def check_eurosat(title: str, images: Sequence[Image]) -> None:
    """Refuse EuroSAT images in another order than the published one, B8A last, given by the codes of that order.

    Raises:
        DataError: What should be SWIR (B11) is far darker than what should be cirrus: B8A is in the ninth place.
    """
    swir, cirrus = (_mean(images, code) for code in ("S1", "CIRRUS"))
    if swir * _DARKER < cirrus:
        raise DataError(
            f"{title}: the tenth channel has a mean of {cirrus:.0f}, the eleventh of {swir:.0f}: cirrus, the dark one, "
            f"is in the eleventh place, so B8A is in the ninth and not the last as published. Read these files with "
            f"`name: folder` and `source_bands`."
        )


def check_order(title: str, declared: str, evidence: Evidence) -> None:
    """Compare the declared order with what the values say; ``nominal`` against the values only warns.

    The published results used the nominal names, wrong as they are, so that order stays possible.

    Raises:
        DataError: The order ``true`` is declared, but the values say that the files' own names are right.
    """
    if evidence.order is None:
        logger.warning("%s: the values do not tell the band order: %s", title, evidence.why)
    elif declared == "true" and evidence.order == "nominal":
        raise DataError(
            f"{title}: {evidence.why}. The names in these files are right as they are: set `band_order: nominal`."
        )
    elif declared == "nominal" and evidence.order == "true":
        logger.warning(
            "%s: band_order: nominal takes bands by names that are wrong, and so are spectral indices of them: %s",
            title,
            evidence.why,
        )


def _mean(images: Sequence[Image], code: str) -> float:
    return float(np.mean([image[code].mean() for image in images]))
