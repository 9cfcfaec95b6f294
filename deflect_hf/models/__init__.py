"""Task models on any vision transformer."""

from deflect_hf.models.configuration import EncoderForImageClassificationConfig, EncoderForSemanticSegmentationConfig
from deflect_hf.models.geovit import GeoViTBackbone, GeoViTConfig, GeoViTModel
from deflect_hf.models.loading import load_encoder
from deflect_hf.models.task_models import EncoderForImageClassification, EncoderForSemanticSegmentation
