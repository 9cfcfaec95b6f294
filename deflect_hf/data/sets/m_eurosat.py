"""m-eurosat of GEO-Bench: land cover; B8A is the last of its channels, which are called by the names in sequence.

Sources: ServiceNow/geo-bench issue 28; phelber/EuroSAT issue 7.
"""

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

_DARKER = 3.0  # the cirrus band of EuroSAT is 60 times as dark as water vapour


def evidence(images: Sequence[Image]) -> tuple[str | None, str]:
    """Whether cirrus, the darkest band by far, lies in the channel called B10, or one channel ahead (B8A last)."""
    vapour, cirrus = (mean_of(images, code) for code in ("WV", "CIRRUS"))
    why = f"the channel called B9 has a mean of {vapour:.0f}, that called B10 of {cirrus:.0f}"
    if vapour * _DARKER < cirrus:
        return "true", f"{why}: cirrus, the dark one, is in B9's place and B8A last"
    if cirrus * _DARKER < vapour:
        return "nominal", f"{why}: cirrus, the dark one, is in its own place"
    return None, why


DATASET = geobench_dataset(
    "m-eurosat",
    sensor="eurosat",
    gsd_m=10.0,
    counts=(2000, 1000, 1000),
    classes="AnnualCrop; Forest; HerbaceousVegetation; Highway; Industrial; "
    "Pasture; PermanentCrop; Residential; River; SeaLake",
    side=64,
    names=names_in_sequence("eurosat"),
    misnamed=Misnamed(SENSORS["eurosat"], evidence),
)
load = partial(load_geobench, DATASET)
