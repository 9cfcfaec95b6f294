"""m-so2sat of GEO-Bench: local climate zones. The eight Sentinel-1 arrays are not read."""

from functools import partial

from deflect_hf.data.geobench import SENTINEL2, geobench_dataset, load_geobench
from deflect_hf.spectral.sensors import SENSORS

DATASET = geobench_dataset(
    "m-so2sat",
    sensor="so2sat",
    gsd_m=10.0,
    counts=(19992, 986, 986),
    classes="Compact high rise; Compact mid rise; Compact low rise; Open high rise; Open mid rise; Open low rise; "
    "Lightweight low rise; Large low rise; Sparsely built; Heavy industry; Dense trees; Scattered trees; "
    "Bush or scrub; Low plants; Bare rock or paved; Bare soil or sand; Water",
    side=32,
    names={code: SENTINEL2[code] for code in SENSORS["so2sat"].codes},
)
load = partial(load_geobench, DATASET)
