"""What the model card of a saved adapter says about loading it: PEFT does not know our methods by itself."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import ModelCard

ADAPTER_OF = "base_model:adapter:"
HOW_TO_LOAD = """## How to load this {name} adapter

PEFT knows the method once `deflect_hf` is imported; without it, loading ends in `KeyError: '{name}'`.

```python
import deflect_hf  # before the adapter is loaded
from peft import PeftModel

# base_model: of the class that was adapted (`auto_mapping` in adapter_config.json names it), a head included
model = PeftModel.from_pretrained(base_model, "path or name of this adapter")
```

{note}"""


def is_hub_id(name: str | None) -> bool:
    """Whether a base model is named as the Hub names it: it refuses cards with the path of a folder instead."""
    return re.fullmatch(r"[\w.-]+(?:/[\w.-]+)?", name or "") is not None and not Path(str(name)).is_dir()


def is_hub_tag(tag: str) -> bool:
    """Whether a tag may be published: PEFT makes one of the base model, wherever that lies."""
    return not tag.startswith(ADAPTER_OF) or is_hub_id(tag.removeprefix(ADAPTER_OF))


def complete_card(adapter_folder: Path, name: str, note: str = "") -> None:
    """Add tag and loading instructions to the card that PEFT wrote for the adapter in `adapter_folder`, if any.

    PEFT writes one card for all adapters: beside the adapter named "default", above all others. A README.md of
    another kind is left alone. A base model in a folder of this machine is not named.

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
        tags = {tag for tag in card.data.get("tags") or [] if is_hub_tag(tag)}
        card.data["tags"] = sorted({*tags, name.lower()})
        if not is_hub_id(card.data.get("base_model")):
            card.data.pop("base_model", None)
        if text.splitlines()[0] not in card.text:
            card.text = f"\n{text}{card.text.lstrip()}"
        card.save(path)
        return
