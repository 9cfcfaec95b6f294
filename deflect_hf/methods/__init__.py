"""One road from a method's name to an adapted model: what `--finetune NAME` does.

`deflect` takes all bands inside the tuner. Every other method shows the encoder the base bands alone, picked by name
and normalised by the task model, or all bands through a patch embedding that is trained (`patch_embed`). All methods
train the task head.
"""

from __future__ import annotations

from deflect_hf.config.methods import METHODS, as_values
from deflect_hf.methods.adaptation import adapt, method_options
from deflect_hf.methods.bands import Bands, extra_bands, trained_projection
from deflect_hf.methods.inspect import (
    HEAD,
    deflect_config,
    encoder_parameters,
    further_bands,
    needed_bands,
    patch_embedding_parameters,
    taken_bands,
    task_model,
    unwrapped,
)
