"""m-forestnet of GEO-Bench: what forest was lost to.

Landsat 8, stretched to 8 bits and whitened by a quarter outside of the area of forest loss.
"""

from functools import partial

from deflect_hf.data.geobench import geobench_dataset, load_geobench

DATASET = geobench_dataset(
    "m-forestnet",
    sensor="forestnet",
    gsd_m=15.0,
    counts=(6464, 989, 993),
    classes="Oil palm plantation; Timber plantation; Other large-scale plantations; Grassland shrubland; Small-scale "
    "agriculture; Small-scale mixed plantation; Small-scale oil palm plantation; Mining; Fish pond; Logging; "
    "Secondary forest; Other",
    side=332,
    names={
        "B": "02 - Blue",
        "G": "03 - Green",
        "R": "04 - Red",
        "N": "05 - NIR",
        "S1": "06 - SWIR1",
        "S2": "07 - SWIR2",
    },
)
load = partial(load_geobench, DATASET)
