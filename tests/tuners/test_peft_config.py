"""PEFT's own tests of configurations (`TestPeftConfig`), run against ours.

| left out | why |
| --- | --- |
| from_pretrained, from_pretrained_cache_dir(_remote), save_pretrained_with_runtime_config | read a LoRA from the Hub |
| config_layers_to_transform_index_zero | for methods that have `layers_pattern` |
| tests of some other methods (LoRA, IA3, AdaLoRA, prompt encoders) | do not run over all classes |

`test_every_test_is_accounted_for` keeps this table true when PEFT adds a test.
"""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import TaskType

from deflect_hf import BitFitConfig, DeflectConfig, ScaledLoraConfig
from tests.tuners.peft_sources import OLDER, load

LEFT_OUT = {
    "test_from_pretrained", "test_from_pretrained_cache_dir", "test_save_pretrained_with_runtime_config",
    "test_config_layers_to_transform_index_zero",
}  # fmt: skip
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "test_valid_task_type": [{"valid_task_type": task} for task in [*TaskType, None]],
    "test_peft_version_is_stored": [{"version": version} for version in ("0.17.0", "0.18.0rc0")],
}
TESTS = [
    "test_methods", "test_valid_task_type", "test_invalid_task_type", "test_save_pretrained", "test_from_json_file",
    "test_to_dict", "test_set_attributes", "test_config_copy", "test_config_deepcopy", "test_config_pickle_roundtrip",
    "test_from_pretrained_forward_compatible", "test_from_pretrained_forward_compatible_load_from_peft_config",
    "test_from_pretrained_sanity_check", "test_peft_version_is_stored", "test_peft_version_is_dev_version",
    "test_peft_version_is_dev_version_but_commit_hash_cannot_be_determined",
    "test_peft_version_warn_when_commit_hash_errors",
]  # fmt: skip
SPECTRAL = {"bands": ["red", "green", "blue", "nir"], "layers_to_transform": [-1], "modules_to_save": ["head"]}
CONFIGS: dict[str, tuple[type, dict[str, Any]]] = {
    "DEFLECT-defaults": (DeflectConfig, {}),
    "DEFLECT": (DeflectConfig, SPECTRAL),
    "SLR": (ScaledLoraConfig, {"r": 4, "exclude_modules": ".*k_proj"}),
    "BITFIT": (BitFitConfig, {"modules_to_save": ["head"]}),
}


@pytest.fixture(scope="module")
def peft_class(peft_folder: Path) -> Any:
    """PEFT's class of tests of configurations."""
    (module,) = load(peft_folder, "test_config")
    return module.TestPeftConfig


@pytest.mark.parametrize("mandatory", list(CONFIGS))
@pytest.mark.parametrize(
    ("test", "variant"),
    [pytest.param(test, variant, id=test) for test in TESTS for variant in VARIANTS.get(test, [{}])],
)
def test_of_peft(test, variant, mandatory, peft_class, tmp_path, monkeypatch, recwarn):
    run = getattr(peft_class(), test)
    config_class, fields = CONFIGS[mandatory]
    known = {"config_class": config_class, "mandatory_kwargs": dict(fields), "tmp_path": tmp_path,
             "monkeypatch": monkeypatch, "recwarn": recwarn, **variant}  # fmt: skip
    run(**{name: known[name] for name in inspect.signature(run).parameters})


def test_numbers_of_numpy_and_tuples_are_kept_as_those_of_a_file(tmp_path):
    spectral = {"bands": SPECTRAL["bands"], "band_dropout": np.float32(0.5), "base_mean": np.full(3, 0.5, np.float32)}
    configs = [
        DeflectConfig(**spectral, base_std=[np.float64(1)] * 3, rank=np.int64(4), layers_to_transform=np.arange(2)),
        DeflectConfig(layers_to_transform=np.int64(1)),
        ScaledLoraConfig(r=np.int64(2), target_modules=("q_proj", "v_proj")),
    ]
    assert (configs[0].rank, configs[0].band_dropout, configs[0].layers_to_transform) == (4, 0.5, [0, 1])
    for config in configs:
        config.save_pretrained(tmp_path)
        assert type(config).from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_every_peft_type_makes_its_config(peft_class):
    peft_class().test_from_peft_type()


def test_every_test_is_accounted_for(peft_class):
    """Each test that PEFT runs over all configuration classes is either run here or left out by name."""
    found = {
        name for name, function in vars(peft_class).items()
        if name.startswith("test_") and "mandatory_kwargs" in inspect.signature(function).parameters
    }  # fmt: skip
    known = LEFT_OUT | set(TESTS)
    assert found <= known if OLDER else found == known
