"""DEFLECT as a PEFT method.

Source: Thoreau, Marsocci, Derksen, "Parameter-Efficient Adaptation of Geospatial Foundation Models through Embedding
Deflection", ICCV 2025 (arXiv 2503.09493). The full text and code were not available to us: the equations implemented
here are this project's own definition, built from what is published; see the README.
"""

from deflect_hf.tuners.deflect.config import DeflectConfig
from deflect_hf.tuners.deflect.layer import DeflectBlock, DeflectEmbeddings, DeflectLayer
from deflect_hf.tuners.deflect.model import DeflectModel
from deflect_hf.tuners.registration import register

register("deflect", DeflectConfig, DeflectModel)

__all__ = ["DeflectBlock", "DeflectConfig", "DeflectEmbeddings", "DeflectLayer", "DeflectModel"]
