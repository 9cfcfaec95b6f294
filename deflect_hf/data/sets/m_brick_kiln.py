"""m-brick-kiln of GEO-Bench: brick kiln or not, in ten bands of Sentinel-2 that are called by wrong names.

Source: ServiceNow/geo-bench issue 29.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial

from deflect_hf.data.geobench import (
    Image,
    Misnamed,
    geobench_dataset,
    load_geobench,
    mean_of,
    names_in_sequence,
)
from deflect_hf.spectral.sensors import SENSORS

# the channels that are called B10, B11, B12, and of which color they are the 8-bit image
_TRUE_COLOR = {"CIRRUS": "R", "S1": "G", "S2": "B"}
# A true-color image has about 0.1 times the digital numbers; the means of m-brick-kiln have 0.102 times.
_TRUE_COLOR_RATIO = (0.05, 0.2)


def evidence(images: Sequence[Image]) -> tuple[str | None, str]:
    """Whether the channels called B10, B11 and B12 hold these bands, or the 8-bit true-color image."""
    mean = {code: mean_of(images, code) for code in ("B", "G", "R", *_TRUE_COLOR)}
    ratios = [mean[channel] / max(mean[color], 1.0) for channel, color in _TRUE_COLOR.items()]
    peak = [max(float(image[channel].max()) for image in images) for channel in _TRUE_COLOR]
    shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    peaks = ", ".join(f"{value:g}" for value in peak)
    if max(peak) <= 255 and all(_TRUE_COLOR_RATIO[0] < ratio < _TRUE_COLOR_RATIO[1] for ratio in ratios):
        return "true", (
            f"the channels called B10, B11, B12 stay within 8 bits (up to {peaks}) at {shown} times B4, B3, B2: they "
            "are the true-color image"
        )
    if min(mean["S1"], mean["S2"]) > 255:
        return "nominal", (
            f"the channels called B11, B12 have means of {mean['S1']:.0f} and {mean['S2']:.0f}, no 8-bit values: they "
            "are a Sentinel-2 image of 13 bands"
        )
    return None, f"the channels called B10, B11, B12 go up to {peaks}, at {shown} times B4, B3, B2"


DATASET = geobench_dataset(
    "m-brick-kiln",
    sensor="brick_kiln",
    gsd_m=10.0,
    counts=(15063, 999, 999),
    classes="not brick kiln; brick kiln",
    side=64,
    names=names_in_sequence("brick_kiln"),  # the three arrays after these hold the true-color image
    misnamed=Misnamed(
        dataclasses.replace(SENSORS["sentinel2_l1c_harmonized"], name="brick_kiln as named", nodata=()),
        evidence,
    ),
)
load = partial(load_geobench, DATASET)
