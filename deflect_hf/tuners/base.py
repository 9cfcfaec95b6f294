"""What our tuners share: a configuration of each model's own, mixed batches, how modules are replaced, the model card.

PEFT does not know our methods by itself: the card of a saved adapter says how it is loaded.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from huggingface_hub import ModelCard
from peft import PeftModel
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.peft_types import PeftType
from torch import nn

from deflect_hf.errors import ArchitectureError, ConfigError, nearest
from deflect_hf.tuners.mixed_batch import mixed_batch

logger = logging.getLogger(__name__)

# whose encoder lies one level deeper than in any model of transformers, so that no name of a weight is the same
TASK_MODELS = ("EncoderForImageClassification", "EncoderForSemanticSegmentation")
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


class TunerConfig(PeftConfig):
    """A configuration that PEFT writes and reads, with a model card that says how to load the adapter."""

    method: ClassVar[str]  # name of the method among PEFT's types
    card_note: ClassVar[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType[self.method]
        for item in dataclasses.fields(self):
            value = _plain(getattr(self, item.name))
            setattr(self, item.name, type(value)(map(_plain, value)) if isinstance(value, list | tuple) else value)
        kinds = (("target_modules", list | tuple, set), ("exclude_modules", list | tuple, set))  # as PEFT keeps names
        for name, given, kept in (*kinds, ("layers_to_transform", tuple | set | range, list)):  # what a file can hold
            if isinstance(value := getattr(self, name, None), given):
                setattr(self, name, kept(value))
        if type(start := getattr(self, "init_weights", True)) is not bool:
            raise ConfigError(f"init_weights must be True or False, not {start!r:.80}.")
        if isinstance(saved := getattr(self, "modules_to_save", None), str):
            raise ConfigError(f"modules_to_save must be a list of names, such as [{saved!r}], not {saved!r}.")

    @classmethod
    def check_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        """Refuse a misspelt entry of a file (ConfigError); PEFT drops others with a warning, as of a later version."""
        known = [item.name for item in dataclasses.fields(cls)]
        for name in kwargs:
            if name not in known and (near := nearest(name, known)):
                raise ConfigError(f"adapter_config.json: {name!r} is no entry of {cls.__name__}.{near}")
        return super().check_kwargs(**kwargs)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write adapter_config.json; a model card that PEFT wrote for this adapter gets told how to load it."""
        super().save_pretrained(save_directory, **kwargs)
        complete_card(Path(save_directory), self.method, self.card_note)


def _plain(value: Any) -> Any:
    """Numbers of numpy are none of JSON's."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


class TunerLayer(nn.Module, BaseTunerLayer):
    """A wrapper around one module."""

    base_layer: nn.Module
    if TYPE_CHECKING:  # PEFT has no types, and nn.Module says that any attribute may be a tensor

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._disable_adapters = False
        self.merged_adapters: list[str] = []


class Tuner(BaseTuner):
    """A tuner that applies the active adapters to a batch, or to each sample the one named for it (`adapter_names`)."""

    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As PEFT does, with a copy of the configuration: what is filled in for this model stays out of the next.

        The copy is checked anew, as its fields may have been set since it was made.
        """
        config = self.peft_config[adapter_name]
        self._refuse_another_class(config)
        # PEFT promises to keep the one that a saved adapter is loaded with, and its classes of tasks add to theirs the
        # names that heads may have
        if not config.inference_mode and config.task_type is None:
            self.peft_config[adapter_name] = config = dataclasses.replace(config)
            names = [name for name, _ in model.named_modules()]
            for saved in config.modules_to_save or ():
                if not any(name.endswith(saved) for name in names):
                    parts = {name.rpartition(".")[2] for name in names}
                    raise ConfigError(f"modules_to_save: the model has no module {saved!r}.{nearest(saved, parts)}")
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _refuse_another_class(self, config: PeftConfig) -> None:
        """Stored weights will not be found: PEFT names them as they lie in the class that was adapted."""
        if isinstance(self.model, PeftModel) and config.inference_mode:
            raise ArchitectureError(
                "The base is a PeftModel already, within which stored weights have other names and are not found. Fix: "
                "model.load_adapter(FOLDER, adapter_name=NAME), or model.unload() first, which gives its base."
            )
        saved_for = (config.auto_mapping or {}).get("base_model_class")
        if saved_for in (None, *(one.__name__ for one in type(self.model).__mro__)):
            return
        text = (
            f"the adapter was saved for a {saved_for}, and this is a {type(self.model).__name__}: its weights may have "
            f"other names here, and are then not loaded. Load it into a {saved_for}, with its head if it has one; "
            "deflect_hf.load_predictor does that"
        )
        if saved_for in TASK_MODELS and config.inference_mode:
            raise ArchitectureError(
                f"{text}, and so do AutoModelForImageClassification and AutoModelForSemanticSegmentation of "
                "transformers where its config.json lies beside it."
            )
        logger.warning(text)

    @abstractmethod
    def _with_adapter(self, target: nn.Module, name: str, adapter_name: str, config: PeftConfig) -> TunerLayer | None:
        """The layer around a targeted module, a new one or `target` itself, with the adapter added; None: leave it."""

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = self._with_adapter(target, current_key, adapter_name, peft_config)
        if layer is None:
            return
        layer._move_adapter_to_device_of_base_layer(adapter_name)
        layer.set_adapter(layer.active_adapters, inference_mode=peft_config.inference_mode)
        if layer is target:
            return
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Put `new_module` in the place of `child`. PEFT's own version copies a `weight`, which heads may not have."""
        setattr(parent, child_name, new_module)
        new_module.train(child.training)

    def _check_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Refuse what the model is called with."""

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """As PEFT's LoRA: `adapter_names` of a call gives each sample its adapter."""
        self._check_call(args, kwargs)
        names = kwargs.get("adapter_names")
        with nullcontext() if names is None else mixed_batch(self, names):
            yield


def is_hub_id(name: str | None) -> bool:
    """Whether a base model is named as the Hub names it: it refuses cards with the path of a folder instead."""
    return re.fullmatch(r"[\w.-]+(?:/[\w.-]+)?", name or "") is not None and not Path(str(name)).is_dir()


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
        tags = {*(card.data.get("tags") or []), name.lower()}
        of_base = {tag for tag in tags if tag.startswith(ADAPTER_OF)}  # PEFT makes one, wherever the base lies
        card.data["tags"] = sorted(tags - {tag for tag in of_base if not is_hub_id(tag.removeprefix(ADAPTER_OF))})
        if not is_hub_id(card.data.get("base_model")):
            card.data.pop("base_model", None)
        if text.splitlines()[0] not in card.text:
            card.text = f"\n{text}{card.text.lstrip()}"
        card.save(path)
        return
