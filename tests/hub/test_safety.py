"""Published configurations from anybody: what is hostile or broken is refused before anything is built of it."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from deflect_hf.errors import CheckpointError, DeflectError
from deflect_hf.hub import check
from deflect_hf.hub.check import check_folder
from deflect_hf.hub.safety import MAX_CONFIG_BYTES
from deflect_hf.tuners.deflect import DeflectConfig
from tests.hub.conftest import staged

Runs = Callable[[str], Path]
ADAPTER, CONFIG, TASK, PROCESSOR = "adapter_config.json", "config.yaml", "config.json", "preprocessor_config.json"
DEEP: Any = []
for _ in range(30):
    DEEP = [DEEP]


def change(path: Path, changes: dict[str, Any]) -> None:
    """Set dotted keys of a JSON or YAML file."""
    read, write = (json.loads, json.dumps) if path.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    content = read(path.read_text())
    for dotted, value in changes.items():
        *parents, last = dotted.split(".")
        target = content
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    path.write_text(write(content))


def refused(published: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The sentence that a published folder is refused with; nothing may be built for it."""

    def built(*args: Any, **kwargs: Any) -> Any:
        pytest.fail("something was built of a hostile configuration")

    monkeypatch.setattr(check, "model_class", built)
    with pytest.raises(DeflectError) as caught:
        check_folder(published, published=True)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def test_what_was_pushed_passes(published: Path) -> None:
    assert check_folder(published, published=True).finetune == "deflect"


def test_bounds_that_are_not_written_out_follow_from_the_formulas(published: Path) -> None:
    written = DeflectConfig.from_pretrained(published)
    change(published / ADAPTER, {"index_bounds": None})
    assert check_folder(published, published=True).finetune == "deflect"
    assert written.index_bounds and DeflectConfig.from_pretrained(published).index_bounds == written.index_bounds


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LORA"}, "unknown entry"),
        ({"peft_type": "EVIL"}, "peft_type is 'EVIL', which is no method"),
        ({"peft_type": "XLORA"}, "peft_type is 'XLORA', which is no method"),
        ({"peft_type": ["DEFLECT"]}, "which is no method that is loaded from elsewhere"),
        ({"task_type": ["x"]}, "task_type is ['x'], which is none of PEFT's"),
        ({"trust_remote_code": True}, "asks for code that is not part of transformers, PEFT or deflect_hf"),
        ({"auto_mapping": {"base_model_class": "x", "parent_library": "os"}}, "'auto_mapping' asks for code"),
        ({"auto_mapping": {"parent_library": "transformers.evil/../x"}}, "'auto_mapping' asks for code"),
        ({"auto_mapping": "os"}, "'auto_mapping' asks for code"),
        ({"launch": "rm"}, "unknown entry 'launch' for DEFLECT"),
        ({"rank": 17}, "rank is 17; a whole number up to the encoder's width 16"),
        ({"rank": -1}, "rank is -1; a whole number"),
        ({"rank": True}, "rank is True; a whole number"),
        ({"aux_dim": 2**40}, "aux_dim is 1099511627776; a whole number"),
        ({"rank": 10**400}, "is a number that no setting is"),
        ({"bands": ["R"] * 2000}, "bands must name 1 to 1024 bands, got 2000"),
        ({"bands": ["R", "G", "B", "../N"]}, "bands is '../N': a path of some machine has no place here"),
        ({"bands": {"R": 1}}, "bands must be list[str] | None, not {'R': 1}"),
        ({"bands": "RGB"}, "bands must be list[str] | None, not 'RGB'"),
        ({"band_dropout": "0.5"}, "band_dropout must be float, not '0.5'"),
        ({"init_weights": 1}, "init_weights must be bool, not 1"),
        ({"unit": "dn"}, "unit must be Unit, not 'dn'"),
        ({"index_bounds.NDVI": 1e30}, "index_bounds must lie above 0 and be at most"),
        ({"formulas": None, "index_bounds": None}, "formulas are not written out"),
        ({"formulas": {"X": "N ** (9 ** (9 ** 9))"}, "index_bounds": None}, "an exponent must be a number of at most"),
        ({"formulas.NDVI": "__import__('os').system('true')"}, "holds Call: only + - * / **"),
        ({"formulas.NDVI": "N.__class__"}, "holds Attribute: only + - * / **"),
        ({"formulas.NDVI": "N +" * 1300 + "N"}, "a formula is a text of at most 2000 characters"),
        ({"formulas.NDVI": "-" * 900 + "N"}, "is too large: at most 400 terms and 60 levels"),
        ({"formulas.NDVI": 7}, "formulas must be dict[str, str] | None"),
        ({"formulas": {f"I{k}": "N" for k in range(700)}}, "700 formulas; 600 are the most"),
        ({"target_modules": "(a+)+$"}, "target_modules is a pattern that may take for ever to match"),
        ({"target_modules": r"(?P<x>.*)\1"}, "target_modules is a pattern that may take for ever to match"),
        ({"target_modules": ".*" * 20}, "target_modules is a pattern that may take for ever to match"),
        ({"target_modules": 3}, "target_modules must be names of modules or one pattern"),
        ({"modules_to_save": [["head"]]}, "modules_to_save must be names of modules"),
        ({"peft_version": "/etc/passwd"}, "peft_version is '/etc/passwd': a path of some machine"),
        ({"task_type": "~/x"}, "task_type is '~/x': a path of some machine"),
        ({"indices": "C:\\Users\\x"}, r"indices is 'C:\\Users\\x': a path of some machine"),
        ({"base_model_name_or_path": "/home/alice/encoder"}, "is '/home/alice/encoder', which is no repository"),
        ({"base_model_name_or_path": "../encoder"}, "is '../encoder', which is no repository of the Hub"),
        ({"base_model_name_or_path": "encoder"}, "is 'encoder', which is no repository of the Hub"),
        ({"base_model_name_or_path": "file:///x"}, "is 'file:///x', which is no repository of the Hub"),
        ({"base_model_name_or_path": {"a": 1}}, "is {'a': 1}, which is no repository of the Hub"),
        ({"base_model_name_or_path": "mallory/encoder"}, "names the base 'mallory/encoder' (revision 'main')"),
        ({"revision": "../../x"}, "revision is '../../x': a path of some machine has no place here"),
        ({"revision": "a b"}, "the revision 'a b' is no branch, tag or commit"),
        ({"revision": "evil"}, "names the base 'alice/encoder' (revision 'evil'), config.yaml 'alice/encoder'"),
        ({"peft_version": "x" * 5000}, "is longer than 4000 characters"),
        ({"modules_to_save": DEEP}, "levels"),
    ],
)
def test_hostile_adapter_configs(
    changes: dict[str, Any], message: str, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(published / ADAPTER, changes)
    assert message in refused(published, monkeypatch)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (TASK, {"model_type": ["llama"]}, "model_type is ['llama']; 'deflect_image_classification'"),
        (TASK, {"model_type": "llama"}, "model_type is 'llama'; 'deflect_image_classification'"),
        (TASK, {"auto_map": {"AutoModel": "evil.Model"}}, "'auto_map' asks for code that is not part"),
        (TASK, {"launch": 1}, "unknown entry 'launch' for a task model"),
        (TASK, {"head_channels": 10**9}, "head_channels is 1000000000; up to 16384 are meant"),
        (TASK, {"id2label": {str(k): "x" for k in range(20_000)}}, "id2label must name 1 to 10000 classes"),
        (TASK, {"id2label": {"x": "land", "1": "water"}}, "id2label must number its classes from 0"),
        (TASK, {"id2label": {"0": ["land"], "1": "water"}}, "config.json: cannot be loaded: id2label="),
        (TASK, {"encoder_config": None}, "encoder_config must describe the encoder"),
        (TASK, {"encoder_config.model_type": "timm_wrapper"}, "encoder_config.model_type is 'timm_wrapper', which is"),
        (TASK, {"encoder_config.auto_map": {"AutoModel": "x"}}, "'encoder_config.auto_map' asks for code"),
        (TASK, {"encoder_config.quantization_config": {"x": 1}}, "'encoder_config.quantization_config' asks for code"),
        (TASK, {"encoder_config._attn_implementation": "mallory/kernel"}, "attn_implementation' asks for code"),
        (TASK, {"encoder_config.num_hidden_layers": 10**6}, "encoder_config.num_hidden_layers is 1000000; a whole"),
        (TASK, {"encoder_config.hidden_size": 1 << 30}, "encoder_config.hidden_size is 1073741824; a whole number"),
        (TASK, {"encoder_config": {"model_type": "deflect_unet", "levels": 40}}, "encoder_config.levels is 40; a"),
        (TASK, {"encoder_config.image_size": [10**9, 3]}, "encoder_config.image_size is [1000000000, 3]"),
        (TASK, {"encoder_config.hidden_size": "16"}, "encoder_config.hidden_size is '16'; a whole number"),
        (PROCESSOR, {"auto_map": {"x": "y"}}, "'auto_map' asks for code that is not part"),
        (PROCESSOR, {"launch": 1}, "unknown entry 'launch' for preprocessor_config.json"),
        (PROCESSOR, {"size": {"height": 8}}, "size is {'height': 8}: Dictionary should have at least 2 items"),
        (PROCESSOR, {"trained_size": [16, 16, 16]}, "trained_size is [16, 16, 16]: List should have at most 2"),
        (PROCESSOR, {"bands": 7}, "bands is 7: Input should be a valid list"),
        (PROCESSOR, {"bands": ["R", 7]}, "bands is ['R', 7]: Input should be a valid string"),
        (PROCESSOR, {"gsd_m": True}, "gsd_m is True: Input should be a valid number"),
        (PROCESSOR, {"projection": 4326}, "projection is 4326: Input should be a valid string"),
        (CONFIG, {"finetune": "lora", "method": {}}, "peft_type is 'DEFLECT', but config.yaml says --finetune lora"),
        (CONFIG, {"encoder.name_or_path": "/home/alice/encoder"}, "encoder.name_or_path is '/home/alice/encoder', wh"),
        (CONFIG, {"encoder.name_or_path": "vit"}, "encoder.name_or_path is 'vit', which is no repository of the Hub"),
        (CONFIG, {"encoder.revision": "a b"}, "the revision 'a b' is no branch, tag or commit"),
        (CONFIG, {"encoder.name_or_path": "mallory/x"}, "config.yaml 'mallory/x' (revision 'main'): they must be the"),
    ],
)
def test_hostile_configurations(
    file: str, changes: dict[str, Any], message: str, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(published / file, changes)
    assert message in refused(published, monkeypatch)


@pytest.mark.parametrize(("key", "value"), [("patch_size", 0), ("num_attention_heads", 0), ("hidden_act", "os.system")])
def test_encoders_that_cannot_be_built_are_refused(key: str, value: Any, published: Path) -> None:
    change(published / TASK, {f"encoder_config.{key}": value})
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be loaded: "):
        check_folder(published, published=True)


BOMB = "a: &a [x, x, x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\nseed: 0\n"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (CONFIG, BOMB, "cannot be read: it holds an alias (*name); write the value out"),
        (CONFIG, "seed: !!python/object/apply:os.system ['true']\n", "could not determine a constructor for the tag"),
        (CONFIG, "seed: " + "[" * 500 + "]" * 500, "it is nested too deeply"),
        (CONFIG, "seed: 1\n" * 20_000, "config.yaml has 160,000 bytes; a configuration has at most 100,000"),
        (CONFIG, "seed: 1\nseed: 2\n", "key 'seed' is given twice"),
        (CONFIG, "- 1\n", "expected 'key: value' lines, found list"),
        (ADAPTER, "[" * 100_000, "cannot be read: "),
        (ADAPTER, '{"rank": NaN}', "cannot be read: NaN is no number of JSON"),
        (ADAPTER, '{"rank": 1, "rank": 2}', "cannot be read: a key is given twice"),
        (ADAPTER, "[1]", "expected an object, found list"),
        (ADAPTER, "{", "cannot be read: "),
        (ADAPTER, '{"rank": 1' + "0" * 5000 + "}", "cannot be read: "),
        (TASK, json.dumps({"x": "y" * MAX_CONFIG_BYTES}), "a configuration has at most 1,000,000"),
        (TASK, '"\\ud800"', "expected an object, found str"),
    ],
)
def test_hostile_files(file: str, content: str, message: str, published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (published / file).write_text(content)
    assert message in refused(published, monkeypatch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'; adapters from elsewhere are loaded with True"),
        ({"megatron_core": "evil.module"}, "megatron_core is 'evil.module'; adapters from elsewhere are loaded with"),
        ({"eva_config": {"rho": 2.0}}, "eva_config is {'rho': 2.0}; adapters from elsewhere"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication is [[0, 2], [0, 2]]; adapters from elsewhere"),
        ({"qalora_group_size": 10**9}, "qalora_group_size is 1000000000; numbers up to 65536 are meant"),
        ({"rank_pattern": {"(a+)+$": 8}}, "rank_pattern is {'(a+)+$': 8}; adapters from elsewhere"),
        ({"r": 4096}, "r is 4096; a whole number up to the encoder's width 16"),
        ({"peft_type": "DEFLECT"}, "unknown entry"),
    ],
)
def test_hostile_configurations_of_pefts_own_methods(
    changes: dict[str, Any], message: str, tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = staged(tmp_path / "published", "lora", runs)
    change(published / ADAPTER, changes)
    assert message in refused(published, monkeypatch)


def test_weights_smaller_than_the_configuration_says_are_refused_before_room_is_made(published: Path) -> None:
    change(published / TASK, {"head_channels": 16_000})
    with pytest.raises(DeflectError, match=r"the configuration describes [\d,]+ weights, but only [\d,]+ are stored"):
        check_folder(published, published=True)
    whole = (published / "adapter_model.safetensors").read_bytes()
    for broken in (whole[:200], b"\x80\x04K\x01.", (2**62).to_bytes(8, "little") + whole[8:]):
        (published / "adapter_model.safetensors").unlink()
        (published / "adapter_model.safetensors").write_bytes(broken)
        with pytest.raises(DeflectError, match=r"is no whole safetensors file"):
            check_folder(published, published=True)


def test_a_pickle_beside_or_instead_of_safetensors_is_never_opened(published: Path) -> None:
    (published / "adapter_model.bin").write_bytes(b"\x80\x04K\x01.")
    check_folder(published, published=True)
    (published / "adapter_model.safetensors").unlink()
    with pytest.raises(DeflectError, match="such a file may run any program when it is opened, so it is not"):
        check_folder(published, published=True)


def test_stored_tensors_may_be_of_any_precision(published: Path) -> None:
    path = published / "adapter_model.safetensors"
    from safetensors.torch import load_file

    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in copy.deepcopy(load_file(path)).items()}
    path.unlink()
    save_file(tensors, path)
    check_folder(published, published=True)
