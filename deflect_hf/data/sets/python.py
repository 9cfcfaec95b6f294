"""Examples that a program hands over, see :func:`deflect_hf.train`; what is said of them here says how to read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from deflect_hf.config.readers import DatasetSpec
from deflect_hf.errors import ConfigError

if TYPE_CHECKING:
    from deflect_hf.config.data import DatasetArguments

DATASET = DatasetSpec(
    name="python",
    title="examples of a program",
    task=None,
    keys=frozenset(
        [
            *("task", "sensor", "source_bands", "scale", "offset", "nodata", "gsd_m", "val_fraction", "test_fraction"),
            *("classes", "class_values", "ignore_values", "ignore_index", "target", "target_unit"),
        ]
    ),
)


def load(args: DatasetArguments, processor: Any = None) -> NoReturn:
    """Refused: only the program has them."""
    raise ConfigError(
        "dataset.name is 'python', whose examples a program hands over: deflect_hf.train(..., train=dataset), and "
        "deflect_hf.Run(FOLDER).evaluate(dataset) for its scores. For images in files: --dataset.name folder, "
        "--dataset.root FOLDER."
    )
