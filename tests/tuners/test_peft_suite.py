"""PEFT's own common tests, run against DEFLECT on three architectures; LoRA on ViT is the control.

SLR and BitFit run on ViT, too, where their layers are the same as on the others.

They come from the source distribution of the installed PEFT (`peft_sources`): the methods of `PeftCommonTester` and
`TestPeftCustomModel` that PEFT runs on its whole matrix of methods and models. Nothing of them is rewritten; the model
they get is a tiny encoder that answers with log-probabilities, as PEFT's own small models do, and DEFLECT is announced
to `_skip_if_merging_not_supported` as other unmergeable methods are (PEFT does it there, class by class).

How many ran and passed per architecture: `python -m pytest tests/tuners/test_peft_suite.py -q` prints it at the end.

| left out | why |
| --- | --- |
| generate, passing_input_embeds | language models: they need `generate`, token ids |
| lora_conversion | returns at once for methods that cannot become LoRA |
| training_prompt_learning_tasks | prompt learning only |
| disable_adapter_with_bias_warns | skips itself for every method (`!= LoRA or != BOFT`) |
| save_load_roundtrip_fsdp_wrapped_learnable_bias | for methods with a `bias` argument; LoRA's runs in PEFT |
| tests over `ALL_PEFT_CONFIG_CLASSES` | adapt layer `lin0` of an MLP; those on `requires_grad` run on ViT, below |
| merge_*, safe_merge, delete_merged_*, disable_adapters_with_merging | DEFLECT alone: refused, see `test_deflect.py` |
| weighted_combination_of_adapters | DEFLECT: refused, see `test_deflect.py`; SLR, BitFit: skips itself |
| adding_multiple_adapters_with_bias_raises | LoRA alone: for methods with a `bias` argument |
| three tests of LoRA, SLR, BitFit on ViT | expected to fail: see `KNOWN_TO_FAIL` |
| tests of one other method (DoRA, IA3, ...) | take no model and method: not part of the matrix |

`test_every_test_of_the_matrix_is_accounted_for` keeps this table true when PEFT adds a test.
"""

import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig
from transformers import PreTrainedModel

from deflect_hf import BitFitConfig, DeflectConfig, ScaledLoraConfig
from tests.tuners.peft_sources import OLDER, load
from tests.tuners.tiny import IMAGE, PATCH, make_encoder

LEFT_OUT = {
    "_test_generate", "_test_generate_pos_args", "_test_generate_half_prec", "_test_passing_input_embeds_works",
    "_test_generate_with_mixed_adapter_batches_and_beam_search",
    "_test_training_prompt_learning_tasks", "test_disable_adapter_with_bias_warns", "_test_lora_conversion",
    "test_save_load_roundtrip_fsdp_wrapped_learnable_bias",
}  # fmt: skip
MERGING = {
    "test_merge_layers", "test_merge_layers_fp16", "test_merge_layers_is_idempotent", "test_safe_merge",
    "test_merge_layers_is_deterministic_in_train_mode", "_test_merge_layers_nan", "_test_merge_layers_multi",
    "test_disable_adapters_with_merging", "test_delete_merged_adapter_raises_without_mutation",
    "test_delete_merged_adapter_only_rejects_the_merged_one",
}  # fmt: skip
LORA_ONLY = {"_test_weighted_combination_of_adapters", "test_adding_multiple_adapters_with_bias_raises"}
COMMON = {
    "_test_prepare_for_training", "_test_save_pretrained_selected_adapters", "_test_training_layer_indexing",
    "_test_training_gradient_checkpointing", "_test_unload_adapter", "_test_disable_adapter",
    "_test_add_adapter_no_autocast_adapter_dtype", "_test_mixed_adapter_batches",
}  # fmt: skip
# PEFT's callers start these away from the identity, or they would compare the frozen model with itself.
NOT_IDENTITY = {
    "_test_unload_adapter", "_test_disable_adapter", "_test_merge_layers_nan", "_test_merge_layers_multi",
    "_test_mixed_adapter_batches",
}  # fmt: skip
CUSTOM = {
    "test_attributes_parametrized", "test_adapter_name", "test_save_pretrained", "test_save_pretrained_pickle",
    "test_save_load_roundtrip_direct_injection", "test_save_pretrained_adapter_name_substring",
    "test_load_model_low_cpu_mem_usage", "test_from_pretrained_config_construction", "test_load_multiple_adapters",
    "test_training_custom_models", "test_inference_safetensors", "test_peft_model_device_map",
    "test_in_features_out_features_exposed", "test_forward_output_finite", "test_forward_float16",
    "test_forward_bfloat16", "test_forward_float16_no_autocast", "test_forward_bfloat16_no_autocast",
    "test_adapter_dtype_autocast", "test_only_params_are_updated", "test_save_load_roundtrip",
    "test_parameters_after_loading_model", "test_disable_adapters", "test_active_adapter",
    "test_disable_adapters_exiting_context_restores_previous_state", "test_disable_adapter_is_reentrant",
    "test_disable_adapters_exiting_context_irregular_state", "test_delete_adapter", "test_delete_inactive_adapter",
    "test_delete_adapter_properly_cleans_up_after_itself", "test_delete_unknown_adapter_raises",
    "test_get_base_model_state_dict",
    "test_save_load_roundtrip_fsdp_wrapped",
}  # fmt: skip
HALVES = [torch.float16, torch.bfloat16]
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "test_adapter_dtype_autocast": [
        {"dtype": dtype, "autocast_adapter_dtype": autocast, "low_cpu_mem_usage": autocast}
        for dtype, autocast in itertools.product([*HALVES, torch.float32], [True, False])
    ],
    "_test_add_adapter_no_autocast_adapter_dtype": [{"dtype": dtype} for dtype in HALVES],
    "_test_training_gradient_checkpointing": [{"use_reentrant": True}, {"use_reentrant": False}],
}
METHODS: dict[str, tuple[type, dict[str, Any]]] = {
    "DEFLECT": (DeflectConfig, {"bands": ["R", "G", "B"], "aux_dim": 16, "rank": 4}),
    "DEFLECT-defaults": (DeflectConfig, {}),
    "LORA": (LoraConfig, {"target_modules": ["q_proj", "v_proj"]}),
    "SLR": (ScaledLoraConfig, {"target_modules": ["q_proj", "v_proj"]}),
    # PEFT wants a gradient for each parameter: nothing here reads the pooler, and softmax ignores the bias of the keys.
    "BITFIT": (BitFitConfig, {"exclude_modules": ["pooler.dense", "k_proj"]}),
}
MERGEABLE = ("LORA", "SLR", "BITFIT")
DEFLECT_ON = ("vit", "vit_mae", "dinov3_vit")
KNOWN_TO_FAIL: dict[tuple[str, str, str], type[Exception]] = {
    # PEFT's pattern for `layers_to_transform` wants a module above `layers`, which a ViT alone does not have.
    ("LORA", "vit", "_test_training_layer_indexing"): ValueError,
    ("SLR", "vit", "_test_training_layer_indexing"): ValueError,
    # It wants the embedded input to need no gradient, but BitFit trains the bias of the patch embedding.
    ("BITFIT", "vit", "_test_prepare_for_training"): AssertionError,
}
# Three steps of PEFT's optimizer must move every parameter by more than its tolerance.
SHARPNESS = 10.0


class MergingReachedError(Exception):
    """Raised where PEFT asks whether the method merges: everything before that point has passed."""


def refuse_merging(*_: Any) -> None:
    raise MergingReachedError


@contextmanager
def process_group() -> Iterator[None]:
    """A process group of one, as PEFT's fixture of the FSDP tests makes it."""
    hook = sys.excepthook  # torch puts the rank before every later traceback
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
        sys.excepthook = hook


def answering(architecture: str) -> type[PreTrainedModel]:
    """The encoder's class, answering with (B, D) log-probabilities, the kind of output PEFT's tests work with."""
    encoder: Any = type(make_encoder(architecture))

    def forward(self: Any, pixel_values: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        output = encoder.forward(self, pixel_values=pixel_values.to(self.dtype), **kwargs)
        return (SHARPNESS * output.last_hidden_state.mean(dim=1)).log_softmax(dim=-1)

    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        model = encoder.from_pretrained.__func__(cls, *args, **kwargs)
        # PEFT's own models come from the Hub; a card of ours does not name a folder as the base model.
        model.name_or_path = model.config.name_or_path = f"user/{architecture}"
        return model

    members = {
        "forward": forward,
        "from_pretrained": classmethod(from_pretrained),
        # What PEFT asks of models that have a `generate`, and every PeftModel has one: the output as scores.
        "generate": lambda self, return_dict_in_generate, output_scores, **inputs: SimpleNamespace(
            scores=[self(**inputs)]
        ),
        # PEFT's half precision tests assign `model.dtype`, which its own small models keep as an attribute.
        "dtype": PreTrainedModel.dtype.setter(lambda self, value: None),
        # transformers converts checkpoints of its own classes alone, which it knows by name and module.
        "__module__": encoder.__module__,
    }
    return type(encoder.__name__, (encoder,), members)


def answering_language(architecture: str) -> type[PreTrainedModel]:
    """The same with the input of a language model, `input_ids`, and its output, which begins with the logits."""
    answers: Any = answering(architecture)

    def forward(self: Any, input_ids: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor]:
        return (answers.forward(self, pixel_values=input_ids, **kwargs),)

    members = {
        "forward": forward,
        "generate": lambda self, return_dict_in_generate, output_scores, **inputs: SimpleNamespace(
            scores=self(**inputs)
        ),
        "__module__": answers.__module__,
    }
    return type(answers.__name__, (answers,), members)


@pytest.fixture(scope="module")
def peft_tests(peft_folder: Path) -> SimpleNamespace:
    common, custom, utils = load(peft_folder, "testing_common", "test_custom_models", "testing_utils")
    return SimpleNamespace(common=common, custom=custom, utils=utils)


@pytest.fixture(scope="module")
def saved_encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folder of a tiny encoder per architecture: what `from_pretrained` is given in place of a model on the Hub."""
    folders = {}
    for name in DEFLECT_ON:
        folder = tmp_path_factory.mktemp(name)
        make_encoder(name).save_pretrained(folder)
        folders[name] = str(folder)
    return folders


def classes_of(peft_tests: SimpleNamespace) -> list[type]:
    names = ("TestPeftCustomModel", "TestPeftFsdpStateDict")
    return [cls for name in names if (cls := getattr(peft_tests.custom, name, None))]


def instance_of_peft_class(peft_tests: SimpleNamespace, architecture: str, test: str) -> Any:
    """An instance of the class of PEFT's that has `test`, with our model and input put in."""
    pixels = 0.02 + 0.4 * torch.rand(4, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(1))
    inputs = {"pixel_values": pixels}
    if architecture == "vit_mae":
        inputs["noise"] = torch.rand(4, (IMAGE // PATCH) ** 2, generator=torch.Generator().manual_seed(2))
    if test == "_test_prepare_for_training":
        inputs = {"input_ids": pixels}  # what it hands to `get_input_embeddings()`: here the patch embedding
    model = answering
    if test == "_test_mixed_adapter_batches":
        inputs["input_ids"] = inputs.pop("pixel_values")
        model = answering_language
    members = {
        "transformers_class": model(architecture),
        "prepare_inputs_for_testing": lambda self: dict(inputs),
    }
    base = next((cls for cls in classes_of(peft_tests) if hasattr(cls, test)), None)
    if base is None and OLDER:
        pytest.skip(f"PEFT {peft.__version__} has no such test")
    assert base is not None
    return type("Tester", (base,), members)()


def matrix() -> Iterator[Any]:
    """(method, architecture, test, variant) of every run."""
    runs = [("DEFLECT", architecture) for architecture in DEFLECT_ON]
    for method, architecture in [*runs, *((method, "vit") for method in METHODS if method != "DEFLECT")]:
        further = (MERGING if method in MERGEABLE else set()) | (LORA_ONLY if method == "LORA" else set())
        for test in sorted(CUSTOM | COMMON | further):
            for number, variant in enumerate(VARIANTS.get(test, [{}])):
                label = f"{method}-{architecture}-{test.removeprefix('_')}" + (f"-{number}" if variant else "")
                fails = KNOWN_TO_FAIL.get((method, architecture, test))
                marks = pytest.mark.xfail(raises=fails, strict=True) if fails else ()
                yield pytest.param(method, architecture, test, variant, id=label, marks=marks)


@pytest.mark.parametrize(("method", "architecture", "test", "variant"), list(matrix()))
def test_of_peft(
    method, architecture, test, variant, peft_tests, saved_encoders, tmp_path, monkeypatch, record_property
):
    record_property("peft_suite", f"{method} {architecture}")
    config_cls, config_kwargs = METHODS[method]
    config_kwargs = dict(config_kwargs)
    instance = instance_of_peft_class(peft_tests, architecture, test)
    if test in NOT_IDENTITY:
        config_kwargs = peft_tests.utils.set_init_weights_false(config_cls, config_kwargs)
    run: Callable[..., None] = getattr(instance, test)
    known = {"test_name": method, "model_id": saved_encoders[architecture], "config_cls": config_cls,
             "config_kwargs": config_kwargs, "tmp_path": tmp_path, **variant}  # fmt: skip
    arguments = {name: value for name, value in known.items() if name in inspect.signature(run).parameters}
    if method not in MERGEABLE:
        for module in (peft_tests.common, peft_tests.custom):
            monkeypatch.setattr(module, "_skip_if_merging_not_supported", refuse_merging)
    if test == "_test_mixed_adapter_batches":
        monkeypatch.setattr(peft_tests.common, "LoraConfig", config_cls)  # it skips itself for all but two methods
    torch.manual_seed(0)
    try:
        if "fsdp" in test:
            with process_group():
                run(**arguments)
        else:
            run(**arguments)
    except MergingReachedError:
        assert test.startswith("test_forward_"), f"{test} is about merging: it belongs in MERGING"


def test_every_test_of_the_matrix_is_accounted_for(peft_tests):
    """Each test that PEFT runs over all its methods and models is either run here or left out by name."""
    custom, common = peft_tests.custom.TestPeftCustomModel, peft_tests.common.PeftCommonTester
    found = set()
    for cls in classes_of(peft_tests):
        for name, function in vars(cls).items():
            if name.startswith("test_") and "config_kwargs" in inspect.signature(function).parameters:
                found.add(name)
    wrapped = "\n".join(inspect.getsource(vars(custom)[name]) for name in found if name in vars(custom))
    called_by_others = {"_test_weighted_combination_of_adapters_lora", "_test_weighted_combination_of_adapters_ia3"}
    found |= {
        name for name in vars(common)
        if name.startswith("_test_") and f"self.{name}(" not in wrapped and name not in called_by_others
    }  # fmt: skip
    accounted = LEFT_OUT | MERGING | LORA_ONLY | COMMON | CUSTOM
    assert found <= accounted if OLDER else found == accounted


MODULES_TO_SAVE = {"layers.0.lin1": "pooler.dense"}


@pytest.mark.parametrize("is_trainable", [False, True])
@pytest.mark.parametrize(
    "test",
    [
        "test_loading_model_requires_grad_set_correctly",
        "test_loading_model_with_modules_to_save_requires_grad_set_correctly",
    ],
)
def test_of_peft_on_requires_grad(test, is_trainable, peft_tests, tmp_path, monkeypatch):
    """PEFT's MLP is replaced by a ViT, and the layer names of the MLP by names of the ViT."""

    def config(target_modules: list[str], modules_to_save: list[str] | None = None) -> DeflectConfig:
        named = [MODULES_TO_SAVE[name] for name in modules_to_save] if modules_to_save else None
        return DeflectConfig(aux_dim=16, modules_to_save=named)

    monkeypatch.setattr(peft_tests.custom, "DeepMLP", lambda size: make_encoder("vit"))
    getattr(peft_tests.custom.TestRequiresGrad(), test)(config, is_trainable, tmp_path)
