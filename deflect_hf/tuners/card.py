"""What the model card of a saved adapter says about loading it: PEFT does not know our methods by itself."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard

HOW_TO_LOAD = """## How to load this {name} adapter

PEFT knows the method once `deflect_hf` is imported; without it, loading ends in `KeyError: '{name}'`.

```python
import deflect_hf  # before the adapter is loaded
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "path or name of this adapter")
```

{note}"""


def complete_card(adapter_folder: Path, name: str, note: str = "") -> None:
    """Add tag and loading instructions to the card that PEFT wrote for the adapter in `adapter_folder`, if any.

    PEFT writes one card for all adapters: beside the adapter named "default", above all others. A README.md of
    another kind is left alone.

    Args:
        name: of the method among PEFT's types, such as `DEFLECT`; in lower case it is the tag.
        note: a paragraph of Markdown about the adapter's input.
    """
    text = HOW_TO_LOAD.format(name=name, note=f"{note}\n\n" if note else "")
    for folder in (adapter_folder, adapter_folder.parent):
        path = folder / "README.md"
        if not path.is_file():
            continue
        card = ModelCard.load(path)
        if card.data.get("library_name") != "peft":
            continue
        card.data["tags"] = sorted({*(card.data.get("tags") or []), name.lower()})
        if text.splitlines()[0] not in card.text:
            card.text = f"\n{text}{card.text.lstrip()}"
        card.save(path)
        return
