"""DEFLECT stands in PEFT's tables like a built-in method."""

import configparser
import copy
import json
import pickle
from pathlib import Path

import peft
import pytest
import transformers
from packaging.requirements import Requirement
from packaging.version import Version
from peft import LoraConfig, PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.peft_types import PeftType

from deflect_hf import DeflectConfig, DeflectModel
from deflect_hf.tuners import registration
from deflect_hf.tuners.bitfit import BitFitConfig
from deflect_hf.tuners.scaled_lora import ScaledLoraConfig


def test_the_member_is_a_real_one():
    member = PeftType.DEFLECT
    assert member is PeftType["DEFLECT"] is PeftType("DEFLECT")
    assert member in list(PeftType)
    assert member == "DEFLECT"
    assert member.name == member.value == "DEFLECT"
    assert isinstance(member, PeftType)
    assert pickle.loads(pickle.dumps(member)) is member
    assert copy.deepcopy(member) is member
    assert json.loads(json.dumps({"peft_type": member})) == {"peft_type": "DEFLECT"}
    assert repr(member) == repr(PeftType.LORA).replace("LORA", "DEFLECT")


def test_it_stands_in_the_tables():
    assert PEFT_TYPE_TO_CONFIG_MAPPING["DEFLECT"] is DeflectConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.DEFLECT] is DeflectModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.DEFLECT] == DeflectModel.prefix == "deflect_"


@pytest.mark.parametrize("config", [LoraConfig, DeflectConfig, ScaledLoraConfig, BitFitConfig])
def test_target_modules_are_a_set_as_peft_keeps_them(config: type, tmp_path: Path) -> None:
    given = config(target_modules=["v_proj", "q_proj"])
    given.save_pretrained(tmp_path)
    for one in (given, PeftConfig.from_pretrained(tmp_path)):
        assert one.target_modules == {"q_proj", "v_proj"}
    assert sorted(json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]) == ["q_proj", "v_proj"]


def test_registering_twice_changes_nothing():
    before = list(PeftType)
    registration.register("deflect", DeflectConfig, DeflectModel)
    assert registration.add_peft_type("DEFLECT") is PeftType.DEFLECT
    assert list(PeftType) == before


def test_another_method_of_the_name_is_not_overwritten():
    with pytest.raises(ImportError, match=r"already has a method 'lora' \(peft\.tuners\.lora"):
        registration.register("lora", DeflectConfig, DeflectModel)


@pytest.fixture
def fresh_check():
    """The check of versions, which runs once per process otherwise."""
    registration.check_versions.cache_clear()
    yield registration.check_versions
    registration.check_versions.cache_clear()


@pytest.mark.parametrize(("package", "version"), [(peft, "0.19.1"), (transformers, "5.17.2")])
def test_versions_below_the_floor_are_refused(fresh_check, monkeypatch, package, version):
    monkeypatch.setattr(package, "__version__", version)
    with pytest.raises(ImportError, match=rf"{package.__name__} {version} is installed. Fix: pip install"):
        fresh_check()


@pytest.mark.parametrize(("package", "version"), [(peft, "0.99.0"), (transformers, "5.99.0.dev0")])
def test_versions_above_the_tested_ones_are_warned_about_once(fresh_check, monkeypatch, caplog, package, version):
    monkeypatch.setattr(package, "__version__", version)
    for _ in range(2):
        fresh_check()
    (message,) = [text for text in caplog.messages if "is tested with" in text]
    assert package.__name__ in message and version in message


def test_transformers_that_wants_a_later_peft_for_its_own_adapters_is_warned_about(fresh_check, monkeypatch, caplog):
    monkeypatch.setattr(transformers.integrations.peft, "MIN_PEFT_VERSION", "0.99.0")
    fresh_check()
    assert "wants PEFT >= 0.99.0 for its own model.add_adapter" in caplog.text


def test_the_floors_are_those_of_the_package():
    parser = configparser.ConfigParser()
    parser.read(Path(__file__).parents[2] / "setup.cfg")
    required = {r.name: r.specifier for r in map(Requirement, parser["options"]["install_requires"].split("\n")[1:])}
    for name, oldest in registration.OLDEST.items():
        assert oldest in required[name] and Version(oldest) == min(Version(part.version) for part in required[name])
        assert registration.NEWEST_TESTED[name] in required[name]
