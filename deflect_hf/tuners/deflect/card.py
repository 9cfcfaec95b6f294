"""What the model card of a saved adapter says about loading it: PEFT does not know DEFLECT by itself."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard

TAG = "deflect"
HEADING = "## How to load this DEFLECT adapter"
HOW_TO_LOAD = f"""{HEADING}

PEFT knows the method once `deflect_hf` is imported; without it, loading ends in `KeyError: 'DEFLECT'`.

```python
import deflect_hf  # before the adapter is loaded
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "path or name of this adapter")
```

`adapter_config.json` names the bands that `pixel_values` must hold, in this order, in reflectance (1.0 = 100 %).

"""


def complete_card(adapter_folder: Path) -> None:
    """Add tag and loading instructions to the card that PEFT wrote for the adapter in `adapter_folder`, if any.

    PEFT writes one card for all adapters: beside the adapter named "default", above all others. A README.md of
    another kind is left alone.
    """
    for folder in (adapter_folder, adapter_folder.parent):
        path = folder / "README.md"
        if not path.is_file():
            continue
        card = ModelCard.load(path)
        if card.data.get("library_name") != "peft":
            continue
        card.data["tags"] = sorted({*(card.data.get("tags") or []), TAG})
        if HEADING not in card.text:
            card.text = f"\n{HOW_TO_LOAD}{card.text.lstrip()}"
        card.save(path)
        return
