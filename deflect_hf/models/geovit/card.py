"""The card that goes with converted weights: what they are, whose, and under which licence."""

from __future__ import annotations

from collections.abc import Mapping

from deflect_hf.models.geovit.sources import NON_COMMERCIAL, Source

LICENCES = {
    NON_COMMERCIAL: (
        "Creative Commons Attribution-NonCommercial 4.0 (https://creativecommons.org/licenses/by-nc/4.0/). **No "
        "commercial use**; name the authors. This holds for these weights and for adaptations of them, whatever the "
        "licence of the code that makes those."
    ),
    "mit": "MIT, see LICENSE of the authors' repository.",
    "apache-2.0": "Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0).",
}

CARD = """---
library_name: transformers
license: {licence}
tags: [geospatial, remote-sensing, vision-transformer]
---

# {title}, for transformers

The encoder of {title} as published by its authors, converted to `GeoViTModel` of deflect_hf. The numbers are theirs
(in float32); only names and file format changed, and the parts below were left out.

- Authors' page: {homepage}
- Paper: {paper}
- Checkpoint: {download}, file `{file}`, SHA-256 `{sha256}`

## Licence of the weights

{licence_text}

## Use

```python
import deflect_hf
from transformers import AutoModel

encoder = AutoModel.from_pretrained("FOLDER")
```

Channels: {bands}. Pretrained on: {pixels}. {normalisation} {note}

## Left out

{left_out}
"""


def model_card(source: Source, file: str, sha256: str, left_out: Mapping[str, int]) -> str:
    """The text of README.md; ``left_out`` counts tensors by part of the model."""
    if source.mean is not None and source.std is not None:
        normalisation = "Normalise reflectance with the mean and deviation in normalisation.json."
    else:
        normalisation = "For reflectance take the mean and deviation of your own training images."
    return CARD.format(
        licence=source.licence,
        title=source.title,
        homepage=source.homepage,
        paper=source.paper,
        download=source.download,
        file=file,
        sha256=sha256,
        licence_text=LICENCES[source.licence],
        bands=", ".join(source.base_bands),
        pixels=source.pixels,
        normalisation=normalisation,
        note=source.note,
        left_out="\n".join(f"- `{part}`: {count}" for part, count in left_out.items()) or "Nothing.",
    )
