"""The only file that touches PEFT's tables: it enters our methods beside LoRA.

PEFT has no plug-in entry point: `register_peft_method` accepts only names that are members of the closed enum
`PeftType`. So a real member is added here (a `str` instance of the enum, entered in its three look-up tables), which
pickles, copies, compares and serialises like `PeftType.LORA`; then PEFT's own `register_peft_method` does the rest.

Source: peft.utils.peft_types (0.21), issue 2282 of huggingface/peft.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

import peft
import transformers
import transformers.integrations.peft
from packaging.version import Version
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType

if TYPE_CHECKING:
    from peft import PeftConfig
    from peft.tuners.tuners_utils import BaseTuner

logger = logging.getLogger(__name__)

# Below the first, internals that this is built on are missing. What differs above it is probed where it is used, so
# that a release that nobody has tested yet is warned about and never refused.
OLDEST = {"transformers": "5.18", "peft": "0.20"}
NEWEST_TESTED = {"transformers": "5.24", "peft": "0.21"}


@functools.cache
def check_versions() -> None:
    """Refuse PEFT and transformers below the oldest supported versions; warn once above the newest tested ones."""
    for package in (transformers, peft):
        name, installed = package.__name__, Version(package.__version__)
        oldest, tested = Version(OLDEST[name]), Version(NEWEST_TESTED[name])
        if Version(installed.base_version) < oldest:
            raise ImportError(
                f"deflect_hf works with {name} >= {oldest}, but {name} {installed} is installed. "
                f"Fix: pip install '{name}>={oldest}'."
            )
        if installed.release[:2] > tested.release:
            logger.warning("deflect_hf is tested with %s up to %s, and this is %s", name, tested, installed)
    needed = getattr(transformers.integrations.peft, "MIN_PEFT_VERSION", "0")
    if Version(peft.__version__) < Version(needed):
        logger.warning(
            "transformers %s wants PEFT >= %s for its own model.add_adapter and model.load_adapter, and PEFT %s is "
            "installed: use peft.get_peft_model and peft.PeftModel.from_pretrained, which work",
            *(transformers.__version__, needed, peft.__version__),
        )


def add_peft_type(name: str) -> PeftType:
    """Return the member `name` of `PeftType`, adding it when it is not there yet (idempotent)."""
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType.__members__)
    # Plain attribute assignment is refused by the enum's metaclass from Python 3.12 on.
    type.__setattr__(PeftType, name, member)
    PeftType._member_map_[name] = member
    PeftType._member_names_.append(name)
    PeftType._value2member_map_[name] = member
    return member


def register(name: str, config_cls: type[PeftConfig], model_cls: type[BaseTuner]) -> None:
    """Make `get_peft_model`, `PeftModel.from_pretrained` and transformers know the method `name` (lower case).

    Calling it again with the same classes does nothing.
    """
    peft_type = add_peft_type(name.upper())
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type)
    if known is config_cls:
        return
    if known is not None:
        raise ImportError(
            f"PEFT {peft.__version__} already has a method {name!r} ({known.__module__}.{known.__qualname__}); "
            "deflect_hf cannot register its own beside it. Fix: use either that one or an older PEFT."
        )
    register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls)
