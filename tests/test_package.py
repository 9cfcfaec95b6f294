"""What importing and installing the package promises."""

import importlib
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import deflect_hf
from deflect_hf.errors import EXTRAS, MissingPackageError, named_extras, user_errors

# Slow to import, and needed for reading files, drawing or measuring only.
HEAVY = ("rasterio", "matplotlib", "torchmetrics", "sklearn", "datasets")


# in one process, as starting it takes seconds: what is imported when, and, None making every import of it fail as where
# it is not installed, without torchvision
IMPORTS = """
import sys
sys.modules["torchvision"] = None
import deflect_hf
print({name.partition(".")[0] for name in sys.modules} & set(sys.argv[1:]))
print([name for name in sys.modules if name.endswith((".modeling_beit", ".modeling_clip", ".modeling_dinov2"))])
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
PEFT_TYPE_TO_CONFIG_MAPPING["DEFLECT"]
import deflect_hf.data, deflect_hf.data.sets.synthetic, deflect_hf.data.processor
print("rasterio" in sys.modules)
from deflect_hf import *
"""


def test_importing_registers_the_methods_and_leaves_heavy_packages_to_their_users():
    done = subprocess.run([sys.executable, "-c", IMPORTS, *HEAVY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["set()", "[]", "False"]


@pytest.mark.parametrize("name", deflect_hf.__all__)
def test_public_names_are_listed(name):
    assert name in dir(deflect_hf)
    assert getattr(deflect_hf, name).__name__ if name != "SENSORS" else deflect_hf.SENSORS


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'deflect_hf' has no attribute 'nothing'"):
        _ = deflect_hf.nothing


def test_version_is_that_of_the_installation():
    assert version("deflect_hf") == deflect_hf.__version__


def test_installed_versions_satisfy_the_requirements():
    core = [Requirement(line) for line in requires("deflect_hf") if "extra ==" not in line]
    assert {"torch", "transformers", "peft"} <= {requirement.name for requirement in core}
    for requirement in core:
        assert requirement.specifier.contains(version(requirement.name), prereleases=True), requirement


def test_every_package_of_an_extra_is_told_by_its_extra():
    setup = ConfigParser()
    setup.read(Path(__file__).parents[1] / "setup.cfg")
    for extra, modules in EXTRAS.items():
        named = {Requirement(line).name for line in setup["options.extras_require"][extra].split("\n") if line}
        assert named == {{"PIL": "pillow"}.get(module, module) for module in modules}


def test_a_missing_extra_is_told_in_a_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    monkeypatch.delitem(sys.modules, "rasterio.windows", raising=False)  # of another test: it would be found
    with (
        pytest.raises(MissingPackageError, match=r"needs rasterio, .* pip install 'deflect_hf\[train\]'"),
        named_extras(),
    ):
        importlib.import_module("rasterio.windows")
    with pytest.raises(SystemExit), user_errors([]):
        importlib.import_module("rasterio.windows")
    assert capsys.readouterr().err.startswith("error: this needs rasterio, which is not installed: pip install ")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"), named_extras():
        importlib.import_module("no_such_module")
