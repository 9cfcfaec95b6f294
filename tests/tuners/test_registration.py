"""DEFLECT stands in PEFT's tables like a built-in method."""

from __future__ import annotations

import configparser
import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import transformers
from packaging.requirements import Requirement
from packaging.version import Version
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.peft_types import PeftType

from deflect_hf import DeflectConfig, DeflectModel
from deflect_hf.tuners import registration


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


def test_registering_twice_changes_nothing():
    before = list(PeftType)
    registration.register("deflect", DeflectConfig, DeflectModel)
    assert registration.add_peft_type("DEFLECT") is PeftType.DEFLECT
    assert list(PeftType) == before


def test_another_method_of_the_name_is_not_overwritten():
    with pytest.raises(ImportError, match=r"already has a method 'lora' \(peft\.tuners\.lora"):
        registration.register("lora", DeflectConfig, DeflectModel)


@pytest.mark.parametrize(("package", "version"), [(peft, "0.20.0"), (transformers, "5.22.2"), (transformers, "5.24.0")])
def test_versions_outside_the_range_are_refused(monkeypatch, package, version):
    monkeypatch.setattr(package, "__version__", version)
    with pytest.raises(ImportError, match=rf"{package.__name__} {version} is installed. Fix: pip install"):
        registration.check_versions()


def test_the_installed_versions_are_supported():
    registration.check_versions()
    assert Version(peft.__version__) >= registration.SUPPORTED_PEFT[0]


def test_the_supported_ranges_are_those_of_the_package():
    parser = configparser.ConfigParser()
    parser.read(Path(__file__).parents[2] / "setup.cfg")
    required = {r.name: r.specifier for r in map(Requirement, parser["options"]["install_requires"].split("\n")[1:])}
    supported = {"peft": registration.SUPPORTED_PEFT, "transformers": registration.SUPPORTED_TRANSFORMERS}
    for name, (low, high) in supported.items():
        assert low in required[name]
        assert high not in required[name]
        assert {Version(part.version) for part in required[name]} == {low, high}


def test_spawned_workers_can_unpickle_a_config(tmp_path):
    (tmp_path / "config.pkl").write_bytes(pickle.dumps(DeflectConfig(rank=3)))
    code = (
        "import pickle, sys; config = pickle.load(open(sys.argv[1], 'rb')); print(config.rank, config.peft_type.name)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "config.pkl")], capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == ["3", "DEFLECT"]
