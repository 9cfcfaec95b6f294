"""The classification sets of GEO-Bench 1.0 that there are readers for: their facts, and what their arrays are called.

Two sets name their channels wrongly, because the converter gave the 13 names of Sentinel-2 to channels of another
order. m-forestnet is stretched to 8 bits, and whitened by a quarter outside of the area of forest loss.

Sources: ServiceNow/geo-bench (geobench/dataset.py, make_benchmark/dataset_converters), its issues 28 and 29; the
published counts, from geobench's task descriptions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from deflect_hf.data.band_order import Evidence, Image, eurosat_evidence, kiln_evidence
from deflect_hf.data.public import PublicDataset
from deflect_hf.spectral.bands import Sensor
from deflect_hf.spectral.sensors import SENSORS

Names = Mapping[str, str]  # band code -> what its array is called in the files

REPO_ID = "recursix/geo-bench-1.0"

SENTINEL2: Names = MappingProxyType(
    {
        "A": "01 - Coastal aerosol",
        "B": "02 - Blue",
        "G": "03 - Green",
        "R": "04 - Red",
        "RE1": "05 - Vegetation Red Edge",
        "RE2": "06 - Vegetation Red Edge",
        "RE3": "07 - Vegetation Red Edge",
        "N": "08 - NIR",
        "N2": "08A - Vegetation Red Edge",
        "WV": "09 - Water vapour",
        "CIRRUS": "10 - SWIR - Cirrus",
        "S1": "11 - SWIR",
        "S2": "12 - SWIR",
    }
)
_LANDSAT8 = {
    "B": "02 - Blue",
    "G": "03 - Green",
    "R": "04 - Red",
    "N": "05 - NIR",
    "S1": "06 - SWIR1",
    "S2": "07 - SWIR2",
}


@dataclass(frozen=True)
class Doubt:
    """A set whose files name the channels wrongly.

    Attributes:
        sensor: The bands as the files name them; their arrays are called as in :data:`SENTINEL2`.
        corrected: What the arrays are called in files that name them rightly.
        evidence: What the values say, given channels by the code they are called by.
    """

    sensor: Sensor
    corrected: Names
    evidence: Callable[[Sequence[Image]], Evidence]


@dataclass(frozen=True)
class GeoBenchSet:
    """One set: its facts, the sides of its images in pixels, and what the arrays of its bands are called."""

    public: PublicDataset
    side: int
    names: Names
    doubt: Doubt | None = None


def _called(sensor: str) -> Names:
    """Bands of a sensor under their own names."""
    return {code: SENTINEL2[code] for code in SENSORS[sensor].codes}


def _in_sequence(sensor: str) -> Names:
    """Bands of a sensor that were given the first names of Sentinel-2, one after the other."""
    return dict(zip(SENSORS[sensor].codes, SENTINEL2.values(), strict=False))


def _public(name: str, sensor: str, gsd_m: float, counts: tuple[int, int, int], classes: str) -> PublicDataset:
    return PublicDataset(
        name=name,
        title=name,
        task="classification",
        sensor=SENSORS[sensor],
        gsd_m=gsd_m,
        classes=tuple(classes.split("; ")),
        counts=dict(zip(("train", "val", "test"), counts, strict=True)),
        source=f"https://huggingface.co/datasets/{REPO_ID}",
        licence="CC BY-SA 4.0 as tagged there, and the terms of the data set that it was taken from",
        citation="Lacoste et al. 2023, GEO-Bench (arXiv 2306.03831)",
    )


_SO2SAT = GeoBenchSet(
    _public(
        "m-so2sat",
        "so2sat",
        10.0,
        (19992, 986, 986),
        "Compact high rise; Compact mid rise; Compact low rise; Open high rise; Open mid rise; Open low rise; "
        "Lightweight low rise; Large low rise; Sparsely built; Heavy industry; Dense trees; Scattered trees; "
        "Bush or scrub; Low plants; Bare rock or paved; Bare soil or sand; Water",
    ),
    32,
    _called("so2sat"),  # the eight Sentinel-1 arrays are not read
)
_BRICK_KILN = GeoBenchSet(
    _public("m-brick-kiln", "brick_kiln", 10.0, (15063, 999, 999), "not brick kiln; brick kiln"),
    64,
    _in_sequence("brick_kiln"),  # the three arrays after these hold a true-colour image
    Doubt(
        dataclasses.replace(SENSORS["sentinel2_l1c_harmonized"], name="brick_kiln as named", nodata=()),
        _called("brick_kiln"),
        kiln_evidence,
    ),
)
_FORESTNET = GeoBenchSet(
    _public(
        "m-forestnet",
        "forestnet",
        15.0,
        (6464, 989, 993),
        "Oil palm plantation; Timber plantation; Other large-scale plantations; Grassland shrubland; Small-scale "
        "agriculture; Small-scale mixed plantation; Small-scale oil palm plantation; Mining; Fish pond; Logging; "
        "Secondary forest; Other",
    ),
    332,
    _LANDSAT8,
)
_EUROSAT = GeoBenchSet(
    _public(
        "m-eurosat",
        "eurosat",
        10.0,
        (2000, 1000, 1000),
        "AnnualCrop; Forest; HerbaceousVegetation; Highway; Industrial; Pasture; PermanentCrop; Residential; River; "
        "SeaLake",
    ),
    64,
    _in_sequence("eurosat"),
    Doubt(SENSORS["eurosat"], SENTINEL2, eurosat_evidence),
)

SETS: Mapping[str, GeoBenchSet] = MappingProxyType(
    {one.public.name: one for one in (_SO2SAT, _BRICK_KILN, _FORESTNET, _EUROSAT)}
)
