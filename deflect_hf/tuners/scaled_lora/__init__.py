"""Scaled low-rank adapters (SLR) as a PEFT method.

Source: Scheibenreif, Mommert, Borth, "Parameter Efficient Self-Supervised Geospatial Domain Adaptation", CVPR 2024.
"""

from deflect_hf.tuners.registration import add_peft_type, check_versions, register

check_versions()
# The member has to exist before a config is made. The name is the paper's: `scaled_lora_` would hold LoRA's prefix.
add_peft_type("SLR")

from deflect_hf.tuners.scaled_lora.config import ScaledLoraConfig  # noqa: E402
from deflect_hf.tuners.scaled_lora.layer import ScaledLoraLayer  # noqa: E402
from deflect_hf.tuners.scaled_lora.model import ScaledLoraModel  # noqa: E402

register("slr", ScaledLoraConfig, ScaledLoraModel)

__all__ = ["ScaledLoraConfig", "ScaledLoraLayer", "ScaledLoraModel"]
