"""Task models on any vision transformer, registered with transformers' Auto classes on import."""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForSemanticSegmentation

from deflect_hf.models.classification import EncoderForImageClassification
from deflect_hf.models.configuration import EncoderForImageClassificationConfig, EncoderForSemanticSegmentationConfig
from deflect_hf.models.geovit import GeoViTBackbone, GeoViTConfig, GeoViTModel
from deflect_hf.models.loading import load_encoder
from deflect_hf.models.rivals import PixelNet, PixelNetConfig, UNet, UNetConfig
from deflect_hf.models.segmentation import EncoderForSemanticSegmentation

AutoConfig.register(EncoderForImageClassificationConfig.model_type, EncoderForImageClassificationConfig, exist_ok=True)
AutoConfig.register(
    EncoderForSemanticSegmentationConfig.model_type, EncoderForSemanticSegmentationConfig, exist_ok=True
)
AutoModelForImageClassification.register(
    EncoderForImageClassificationConfig, EncoderForImageClassification, exist_ok=True
)
AutoModelForSemanticSegmentation.register(
    EncoderForSemanticSegmentationConfig, EncoderForSemanticSegmentation, exist_ok=True
)

for _config, _model in ((PixelNetConfig, PixelNet), (UNetConfig, UNet)):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)

__all__ = [
    "EncoderForImageClassification",
    "EncoderForImageClassificationConfig",
    "EncoderForSemanticSegmentation",
    "EncoderForSemanticSegmentationConfig",
    "GeoViTBackbone",
    "GeoViTConfig",
    "GeoViTModel",
    "load_encoder",
]
