"""The file of a finished run: when it may be used again, and what is told from the run's folder."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import pytest
import yaml

from deflect_hf import __version__
from deflect_hf.benchmark.results import RunFiles, digest, facts, made_by, read, seen_bands, step_seconds, store
from deflect_hf.benchmark.rows import Row
from deflect_hf.config.compose import parse_arguments, plain, to_yaml
from deflect_hf.config.run import RunArguments

CONF = Path(__file__).parents[1] / "conf" / "classification.yaml"


@pytest.fixture(scope="module")
def config() -> RunArguments:
    return parse_arguments(RunArguments, "test", ["--config", str(CONF), "--method.rank", "3"])


def test_a_file_of_the_same_configuration_is_used_again(config: RunArguments, tmp_path: Path) -> None:
    files = RunFiles(tmp_path, "run")
    text = f"{__version__}\n{to_yaml(config)}"
    stored = {"config_sha256": hashlib.sha256(text.encode()).hexdigest()}
    assert made_by(stored, files, config)
    other = parse_arguments(RunArguments, "test", ["--config", str(CONF), "--method.rank", "4"])
    assert not made_by(stored, files, other)


@pytest.mark.parametrize("told_by", ["file", "folder"])
def test_a_key_that_came_to_exist_later_must_have_its_default(
    config: RunArguments, tmp_path: Path, told_by: str
) -> None:
    then = copy.deepcopy(plain(config))
    del then["log_interval"], then["segmentor"]["pooling"]  # log_interval: 1, pooling: mean in the file
    del then["metrics"], then["encoder"]["gsd"]
    files = RunFiles(tmp_path, "run")
    stored = {"config_sha256": digest(then)}
    if told_by == "file":
        stored["config"] = then
    else:
        files.folder.mkdir(parents=True)
        resolved = {**then, "work_dir": "elsewhere", "method": {"rank": 3, "aux_dim": 8}}
        (files.folder / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
    assert not made_by(stored, files, config)
    defaults = ["--log_interval", "10", "--segmentor.pooling", "null"]
    now = parse_arguments(RunArguments, "test", ["--config", str(CONF), "--method.rank", "3", *defaults])
    assert made_by(stored, files, now)
    changed = parse_arguments(
        RunArguments, "test", ["--config", str(CONF), "--method.rank", "3", *defaults, "--epochs", "9"]
    )
    assert not made_by(stored, files, changed)
    # taken over by another output, it is used there too, without the run's folder
    store(files, {**stored, "seconds": 6.0, "steps": 2})
    there = RunFiles(tmp_path / "there", "run")
    taken = read(files, Row.parse("lora:rank=3"), now)
    assert taken is not None
    store(there, taken)
    assert read(there, Row.parse("lora:rank=3"), now) == taken


def test_the_time_of_a_step_leaves_validations_out(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert step_seconds(log) is None
    lines = [{"step": 10 * k, "lr": 1, "seconds": 2.0 * k + 100 * (k > 2)} for k in range(1, 6)]
    lines.insert(2, {"step": 20, "val": {}, "seconds": 104.0})
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert step_seconds(log) == pytest.approx(0.2)
    log.write_text("".join(json.dumps(line) + "\n" for line in lines[:3]))
    assert step_seconds(log) is None


@pytest.mark.parametrize(
    ("row", "base", "expected"),
    [
        ("deflect", "RGB", "all 4"),
        ("lora", "RGB", "RGB"),
        ("lora:patch_embed=repeat", "RGB", "all 4"),
        ("frozen", "BN", "2 of 4"),
        ("full", "BGRN", "all 4"),
    ],
)
def test_bands_that_a_method_looks_at(row: str, base: str, expected: str, tmp_path: Path) -> None:
    files = RunFiles(tmp_path, "run")
    untold = facts(files, Row.parse(row), {"seconds": 6.0, "steps": 2})
    assert untold["bands"] == ("all" if row in ("deflect", "lora:patch_embed=repeat") else "base")
    assert (untold["seconds_per_step"], untold["memory"]) == (3.0, None)
    best = files.folder / "best"
    best.mkdir(parents=True)
    for folder in (files.folder, best):
        (folder / "config.yaml").write_text(yaml.safe_dump({"encoder": {"base_bands": list(base)}}))
    (best / "config.json").write_text("{}")
    (best / "preprocessor_config.json").write_text(json.dumps({"bands": list("BGRN")}))
    assert seen_bands(files.folder, Row.parse(row)) == expected
