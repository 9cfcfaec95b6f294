"""GeoViT, registered with transformers' Auto classes on import.

Checkpoints as published are brought into this form by ``python -m deflect_hf.models.geovit.conversion``.
"""

from transformers import AutoBackbone, AutoConfig, AutoModel

from deflect_hf.models.geovit.configuration import GeoViTConfig
from deflect_hf.models.geovit.modeling import GeoViTBackbone, GeoViTModel

AutoConfig.register(GeoViTConfig.model_type, GeoViTConfig, exist_ok=True)
AutoModel.register(GeoViTConfig, GeoViTModel, exist_ok=True)
AutoBackbone.register(GeoViTConfig, GeoViTBackbone, exist_ok=True)
