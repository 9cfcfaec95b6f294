"""deflect_hf: adapt geospatial vision transformers to multispectral images with PEFT.

Importing the package registers DEFLECT, SLR and BitFit with PEFT, and the encoders and task models with transformers'
Auto classes. Everything else is loaded when it is first asked for, so that `import deflect_hf` costs little more than
importing peft and transformers. Where these two are not installed, exported models make maps, and nothing else works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deflect_hf.lazy import lazy_names

try:
    import deflect_hf.auto
    from deflect_hf.tuners.bitfit import BitFitConfig, BitFitModel
    from deflect_hf.tuners.deflect import DeflectConfig, DeflectModel
    from deflect_hf.tuners.scaled_lora import ScaledLoraConfig, ScaledLoraModel
except ModuleNotFoundError as error:
    if error.name not in ("peft", "transformers"):  # something is missing inside of them, or inside of ours
        raise

if TYPE_CHECKING:
    from deflect_hf.api import Run, train
    from deflect_hf.data.adapt import adapt_dataset
    from deflect_hf.data.processor import MultispectralImageProcessor
    from deflect_hf.errors import DeflectError
    from deflect_hf.hub.load import load_adapter, load_predictor
    from deflect_hf.inference.multi import MultiAdapterPredictor
    from deflect_hf.inference.predictor import Predictor
    from deflect_hf.methods import adapt
    from deflect_hf.models import EncoderForImageClassification, EncoderForSemanticSegmentation
    from deflect_hf.spectral.bands import Band, Sensor
    from deflect_hf.spectral.selection import resolve_bands, select_bands
    from deflect_hf.spectral.sensors import SENSORS, get_sensor
    from deflect_hf.tuners.check import check
    from deflect_hf.tuners.statistics import fit_statistics

__version__ = "0.1.0"

_LAZY = {
    "SENSORS": "spectral.sensors",
    "Band": "spectral.bands",
    "BitFitConfig": "tuners.bitfit",  # these six are there, unless PEFT is not, which asking for them then says
    "BitFitModel": "tuners.bitfit",
    "DeflectConfig": "tuners.deflect",
    "DeflectModel": "tuners.deflect",
    "ScaledLoraConfig": "tuners.scaled_lora",
    "ScaledLoraModel": "tuners.scaled_lora",
    "DeflectError": "errors",
    "EncoderForImageClassification": "models",
    "EncoderForSemanticSegmentation": "models",
    "MultiAdapterPredictor": "inference.multi",
    "MultispectralImageProcessor": "data.processor",
    "Predictor": "inference.predictor",
    "Run": "api",
    "Sensor": "spectral.bands",
    "adapt": "methods",
    "adapt_dataset": "data.adapt",
    "check": "tuners.check",
    "fit_statistics": "tuners.statistics",
    "get_sensor": "spectral.sensors",
    "load_adapter": "hub.load",
    "load_predictor": "hub.load",
    "resolve_bands": "spectral.selection",
    "select_bands": "spectral.selection",
    "train": "api",
}

__all__ = [
    "SENSORS",
    "Band",
    "BitFitConfig",
    "BitFitModel",
    "DeflectConfig",
    "DeflectError",
    "DeflectModel",
    "EncoderForImageClassification",
    "EncoderForSemanticSegmentation",
    "MultiAdapterPredictor",
    "MultispectralImageProcessor",
    "Predictor",
    "Run",
    "ScaledLoraConfig",
    "ScaledLoraModel",
    "Sensor",
    "adapt",
    "adapt_dataset",
    "check",
    "fit_statistics",
    "get_sensor",
    "load_adapter",
    "load_predictor",
    "resolve_bands",
    "select_bands",
    "train",
]

__getattr__, __dir__ = lazy_names(__name__, _LAZY)
