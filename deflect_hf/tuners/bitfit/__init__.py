"""BitFit as a PEFT method: the biases of a model are trained, and nothing else.

Source: Ben Zaken, Goldberg, Ravfogel, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
Language-models", ACL 2022 (arXiv 2106.10199).
"""

from deflect_hf.tuners.registration import add_peft_type, check_versions, register

check_versions()
# The member has to exist before a config is made.
add_peft_type("BITFIT")

from deflect_hf.tuners.bitfit.config import BitFitConfig  # noqa: E402
from deflect_hf.tuners.bitfit.layer import BitFitLayer  # noqa: E402
from deflect_hf.tuners.bitfit.model import BitFitModel  # noqa: E402

register("bitfit", BitFitConfig, BitFitModel)

__all__ = ["BitFitConfig", "BitFitLayer", "BitFitModel"]
