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
    from deflect_hf.tuners.bitfit import BitFitConfig as BitFitConfig
    from deflect_hf.tuners.bitfit import BitFitModel as BitFitModel
    from deflect_hf.tuners.deflect import DeflectConfig as DeflectConfig
    from deflect_hf.tuners.deflect import DeflectModel as DeflectModel
    from deflect_hf.tuners.scaled_lora import ScaledLoraConfig as ScaledLoraConfig
    from deflect_hf.tuners.scaled_lora import ScaledLoraModel as ScaledLoraModel
except ModuleNotFoundError as error:
    if error.name not in ("peft", "transformers"):  # something is missing inside of them, or inside of ours
        raise

if TYPE_CHECKING:
    from deflect_hf.api import Run as Run
    from deflect_hf.api import train as train
    from deflect_hf.data.adapt import adapt_dataset as adapt_dataset
    from deflect_hf.data.processor import MultispectralImageProcessor as MultispectralImageProcessor
    from deflect_hf.errors import DeflectError as DeflectError
    from deflect_hf.hub.load import load_adapter as load_adapter
    from deflect_hf.hub.load import load_predictor as load_predictor
    from deflect_hf.inference.multi import MultiAdapterPredictor as MultiAdapterPredictor
    from deflect_hf.inference.predictor import Predictor as Predictor
    from deflect_hf.methods import adapt as adapt
    from deflect_hf.models import EncoderForImageClassification as EncoderForImageClassification
    from deflect_hf.models import EncoderForSemanticSegmentation as EncoderForSemanticSegmentation
    from deflect_hf.spectral.bands import Band as Band
    from deflect_hf.spectral.bands import Sensor as Sensor
    from deflect_hf.spectral.selection import resolve_bands as resolve_bands
    from deflect_hf.spectral.selection import select_bands as select_bands
    from deflect_hf.spectral.sensors import SENSORS as SENSORS
    from deflect_hf.spectral.sensors import get_sensor as get_sensor
    from deflect_hf.tuners.check import check as check
    from deflect_hf.tuners.statistics import fit_statistics as fit_statistics

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

__all__ = [*_LAZY]

__getattr__, __dir__ = lazy_names(__name__, _LAZY)
